"""What comes out of a lane: the command's output, passed on as it comes, and the exit status.

The emulator appends to two files; we read what is new. The status line is written after the last of
the output.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable
from pathlib import Path

from vmm.nested.emulator import Emulator
from vmm.nested.errors import LaneError, LaneTimeout
from vmm.nested.lanes import CONSOLE, EMULATOR_LOG

_LINE = re.compile(rb"^pageferry-lane: (ready|exit (\d{1,3})|failed:? ?(.*?))\r*\n", re.MULTILINE)
_POLL_SECONDS = 0.02
_SHOWN_LINES = 3


@dataclasses.dataclass(slots=True)
class Progress:
    """What the lane's first process has said.

    ready   whether the command has been started
    status  its exit status, once it has ended
    failed  why the lane gave up
    """

    ready: bool = False
    status: int | None = None
    failed: str | None = None


def parse(console: bytes) -> Progress:
    """Return what the console's text says; a line counts when it is whole."""
    progress = Progress()
    for match in _LINE.finditer(console):
        if match[2] is not None:
            progress.status = int(match[2])
        elif match[1] == b"ready":
            progress.ready = True
        else:
            progress.failed = match[3].decode(errors="replace").strip()
    return progress


class Tail:
    """A file that somebody else appends to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> bytes:
        """Return what is new since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return b""
        self._offset += len(data)
        return data


class Watch:
    """Waits for a lane's end, as its emulator, its console and the clock show it.

    boot_seconds  until the command starts
    limit         seconds from the start of the command; None for ever
    """

    def __init__(
        self, emulator: Emulator, run: Path, boot_seconds: float, limit: float | None
    ) -> None:
        self._emulator = emulator
        self._run = run
        self._console = Tail(run / CONSOLE)
        self._seen = b""
        self._boot_seconds, self._limit = boot_seconds, limit
        self._since = time.monotonic()
        self._ready = False

    def poll(self) -> int | None:
        """Return the command's exit status, or None if it has not ended.

        Raises LaneTimeout if it should have by now, LaneError if it never will.
        """
        ended = self._emulator.ended()  # before the console is read: nothing is written after it
        if new := self._console.read():
            self._seen += new
        progress = parse(self._seen)
        if progress.status is not None:
            return progress.status
        if progress.failed is not None:
            raise LaneError(f"the lane could not be set up: {progress.failed}")
        if ended is not None:
            how = f"signal {-ended}" if ended < 0 else f"status {ended}"
            raise LaneError(
                f"the emulator ended ({how}) without the command's exit status: {self._last()}"
            )
        if progress.ready and not self._ready:
            self._ready, self._since = True, time.monotonic()
        self._check_time()
        return None

    def _check_time(self) -> None:
        spent = time.monotonic() - self._since
        if not self._ready and spent > self._boot_seconds:
            raise LaneTimeout(
                f"the emulator hangs: no command was started within {self._boot_seconds:g} "
                f"seconds: {self._last()}"
            )
        if self._ready and self._limit is not None and spent > self._limit:
            raise LaneTimeout(
                f"the command was not done within {self._limit:g} seconds: give it more (--limit)"
            )

    def _last(self) -> str:
        """Return the last lines of what was said: on the console, or by the emulator itself."""
        logs = (self._run / name for name in (EMULATOR_LOG, "bochs.log"))
        texts = [self._seen, *(path.read_bytes() for path in logs if path.exists())]
        for text in texts:
            lines = [line.strip() for line in text.decode(errors="replace").splitlines()]
            if kept := [line for line in lines if line]:
                return " | ".join(kept[-_SHOWN_LINES:])
        return "it said nothing"


def follow(watch: Watch, output: Path, write: Callable[[bytes], None]) -> int:
    """Pass a command's output on until it ends.

    Return its exit status. Raises as `Watch.poll` does.
    """
    tail = Tail(output)
    try:
        while True:
            status = watch.poll()
            if data := tail.read():
                write(data)
            if status is not None:
                return status
            time.sleep(_POLL_SECONDS)
    except LaneError:
        if data := tail.read():
            write(data)
        raise
