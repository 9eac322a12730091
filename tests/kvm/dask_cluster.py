"""A scheduler and workers of Dask's, each a process as its own command starts it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_PATIENCE = 60


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a process runs.

    within    words before its command
    host      the address at which it listens; None for what Dask chooses
    """

    within: tuple[str, ...] = ()
    host: str | None = None

    def command(self, what: str, *words: str) -> list[str]:
        """Return a command of Dask's as it is started there."""
        host = () if self.host is None else ("--host", self.host)
        return [*self.within, sys.executable, "-m", "dask", what, *host, *words]


LOOPBACK = Place(host="127.0.0.1")


class Cluster:
    """Processes on the loopback interface, or elsewhere, until `close`.

    folder    where they find each other, and write what they have to say
    place     of the scheduler
    """

    def __init__(self, folder: Path, place: Place = LOOPBACK) -> None:
        self.folder = folder
        self._file = folder / "scheduler.json"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._start("scheduler", "--port", "0", place=place, cwd=folder)
        until = time.monotonic() + _PATIENCE
        while not (self._file.exists() and self._file.read_text().endswith("}")):
            assert time.monotonic() < until, self.said("scheduler")
            time.sleep(0.05)

    def worker(self, name: str, *more: str, threads: int = 2, place: Place = LOOPBACK) -> Path:
        """Start a worker, with more options perhaps; return its directory, which is its own."""
        cwd = self.folder / name
        cwd.mkdir(exist_ok=True)  # of one of that name that has ended, perhaps
        options = ("--no-nanny", "--nthreads", str(threads), "--name", name, *more)
        self._start("worker", *options, "--preload", "vmm.dask", place=place, cwd=cwd, name=name)
        return cwd

    def _start(
        self, what: str, *options: str, place: Place, cwd: Path, name: str | None = None
    ) -> None:
        words = ["--scheduler-file", str(self._file), "--no-dashboard"]
        command = place.command(what, *words, *options)
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        name = name or what
        with (self.folder / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                command, cwd=cwd, env=env, stdout=log, stderr=subprocess.STDOUT
            )

    def address(self) -> str:
        """Return where its scheduler listens."""
        found: str = json.loads(self._file.read_text())["address"]
        return found

    def said(self, name: str) -> str:
        """Return what a process has logged."""
        return (self.folder / f"{name}.log").read_text()

    def runs(self, name: str) -> bool:
        """Whether a process has been started, and not been ended."""
        return name in self._processes

    def pid(self, name: str) -> int:
        """Return a process's number."""
        return self._processes[name].pid

    def end(self, name: str, number: int = signal.SIGTERM) -> int:
        """End a process, and return with what it has ended."""
        self._processes[name].send_signal(number)
        return self.ended(name)

    def ended(self, name: str) -> int:
        """Wait for a process that ends, and return with what."""
        process = self._processes.pop(name)
        try:
            return process.wait(_PATIENCE)
        finally:
            process.kill()

    def close(self) -> None:
        """End all of them, also those that follow one that does not end well."""
        with contextlib.ExitStack() as ends:
            for name in self._processes:
                ends.callback(self.end, name)


def machines_of(pid: int) -> list[str]:
    """Return what a process holds for machines: descriptors of KVM's, and of shared memory."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            name = str(link.readlink())
        except FileNotFoundError:
            continue
        if "kvm" in name or "memfd" in name:
            found.append(name)
    return found


def until(true: Any, what: str) -> None:
    """Wait until something is true."""
    end = time.monotonic() + _PATIENCE
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.02)
