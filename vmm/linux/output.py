"""What a program prints: kept, or handed on."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial

from vmm.guest.text import decoded
from vmm.linux.errors import SysError
from vmm.linux.files.changes import Changes

_LONGEST = 4096  # bytes of a line that has not ended: then a piece of it is handed on
_LAST_BYTES, _LAST_LINES = 1024, 8  # that are remembered of what was printed


class Tail:
    """The last that a program has printed, to any of its outputs."""

    def __init__(self) -> None:
        self.text = b""

    def lines(self) -> list[str]:
        """Return its last lines."""
        text = self.text.rpartition(b"\n")[0] if self.text.endswith(b"\n") else self.text
        return [decoded(line) for line in text.split(b"\n")[-_LAST_LINES:]] if self.text else []


class Output:
    """Standard output, or error, of one program.

    changes    of the program's files: what is written in a call that is cut off has not been
    limit      bytes that are kept: beyond it a write is ENOSPC
    sink       called with what is written, instead of keeping it, when the call is over: in order,
               without any lock
    tail       shared by a program's outputs
    """

    def __init__(
        self,
        changes: Changes,
        limit: int,
        sink: Callable[[bytes], object] | None = None,
        tail: Tail | None = None,
    ) -> None:
        self.tail = tail or Tail()
        self._changes = changes
        self._limit = limit
        self._sink = sink
        self._parts: list[bytes] = []
        self._size = 0
        self._told = 0  # parts that have been handed on

    def write(self, data: bytes, /) -> int:
        """Take bytes. Raises ENOSPC."""
        wanted = len(data)
        if self._sink is None:
            data = data[: self._limit - self._size]
            if not data and wanted:
                raise SysError(errno.ENOSPC)
        self._changes.set(self, "_size", self._size + len(data))
        self._changes.push(self._parts, data)
        last = (self.tail.text + data[-_LAST_BYTES:])[-_LAST_BYTES:]
        self._changes.set(self.tail, "text", last)
        return len(data)

    @property
    def ended(self) -> Callable[[], object] | None:
        """What is to be called when there is no more to come, if anything is."""
        return self._sink.end if isinstance(self._sink, Lines) else None

    @property
    def handed_on(self) -> bool:
        """Whether what is written goes elsewhere."""
        return self._sink is not None

    @property
    def waits(self) -> bool:
        """Whether something is to be handed on."""
        return self._sink is not None and self._told < len(self._parts)

    def untold(self) -> tuple[int, list[Callable[[], object]]]:
        """Return what is to be handed on, as calls, and what `tell` is to be told then."""
        end = len(self._parts)
        if self._sink is None:
            return end, []
        return end, [partial(self._sink, part) for part in self._parts[self._told : end]]

    def tell(self, end: int) -> None:
        """It has been handed on, up to there."""
        if self._sink is not None and end > self._told:
            self._told = end
            if end == len(self._parts):
                self._parts = []
                self._told = 0

    def contents(self) -> bytes:
        """Return what is kept."""
        return b"".join(self._parts[:])


class Lines:
    """A sink that hands on lines, as text, to a console."""

    def __init__(self, console: Callable[[str], object]) -> None:
        self._console = console
        self._rest = b""

    def __call__(self, data: bytes) -> None:
        """Hand on what has ended."""
        *whole, rest = (self._rest + data).split(b"\n")
        if len(rest) > _LONGEST:
            whole, rest = [*whole, rest], b""
        self._rest = rest
        for line in whole:
            self._console(decoded(line))

    def end(self) -> None:
        """Hand on a line without an end: there is no more to come."""
        rest, self._rest = self._rest, b""
        if rest:
            self._console(decoded(rest))
