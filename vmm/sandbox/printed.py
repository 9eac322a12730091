"""What machines that are no more have printed: the last of it."""

from __future__ import annotations

from typing import Any, NamedTuple

MOST = 64 << 10  # bytes of each kind that are kept


class _Kept(NamedTuple):
    last: Any = None  # what has been taken last
    stdout: bytes = b""
    stderr: bytes = b""


class Printed:
    """The last that one worker's machines have printed, those that are gone, and fresh ones before
    they were put back. Whatever is raised at any line, nothing is in it twice.

    Read by any thread; written to by whoever has the worker.
    """

    def __init__(self) -> None:
        self._kept = _Kept()
        self._before = 0, 0

    @property
    def stdout(self) -> bytes:
        """To standard output."""
        return self._kept.stdout

    @property
    def stderr(self) -> bytes:
        """To standard error."""
        return self._kept.stderr

    def begin(self, machine: Any) -> None:
        """What a machine has printed so far is there whenever it has been put back."""
        self._before = len(machine.stdout), len(machine.stderr)

    def take(self, machine: Any, call: int | None = None) -> None:
        """Keep what a machine has printed: it is gone, or, with the number of a call, is about to
        be put back. Again is fine.
        """
        kept, key = self._kept, (machine.name, call)
        stdout, stderr = getattr(machine, "stdout", b""), getattr(machine, "stderr", b"")
        if call is not None:
            stdout, stderr = stdout[self._before[0] :], stderr[self._before[1] :]
        if kept.last != key and (stdout or stderr):
            self._kept = _Kept(key, (kept.stdout + stdout)[-MOST:], (kept.stderr + stderr)[-MOST:])

    def gone(self, machine: Any) -> bool:
        """Whether a machine has been taken for gone."""
        return bool(self._kept.last == (machine.name, None))
