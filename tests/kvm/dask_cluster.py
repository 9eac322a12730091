"""A scheduler and workers of Dask's, each a process as its own command starts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_PATIENCE = 60


class Cluster:
    """Processes on the loopback interface, until `close`.

    folder    where they find each other, and write what they have to say
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / "scheduler.json"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._start("scheduler", "--port", "0", "--host", "127.0.0.1", cwd=folder)
        until = time.monotonic() + _PATIENCE
        while not self._file.exists():
            assert time.monotonic() < until, self.said("scheduler")
            time.sleep(0.05)

    def worker(self, name: str, *more: str, threads: int = 2) -> Path:
        """Start a worker, with more options perhaps; return its directory, which is its own."""
        cwd = self.folder / name
        cwd.mkdir()
        options = ("--no-nanny", "--host", "127.0.0.1", "--nthreads", str(threads), "--name", name)
        self._start("worker", *options, *more, "--preload", "vmm.dask", cwd=cwd, name=name)
        return cwd

    def _start(self, what: str, *options: str, cwd: Path, name: str | None = None) -> None:
        words = ["--scheduler-file", str(self._file), "--no-dashboard"]
        command = [sys.executable, "-m", "dask", what, *words, *options]
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

    def pid(self, name: str) -> int:
        """Return a process's number."""
        return self._processes[name].pid

    def end(self, name: str, number: int = signal.SIGTERM) -> int:
        """End a process, and return with what it has ended."""
        process = self._processes.pop(name)
        process.send_signal(number)
        try:
            return process.wait(_PATIENCE)
        finally:
            process.kill()

    def close(self) -> None:
        """End all of them."""
        for name in reversed(tuple(self._processes)):
            self.end(name)


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
