"""A program's window, as its system calls may see it: what is the machine's at present.

Whose a page is may change whenever the monitor's lock is free. So it is asked for, and copied from
or to, in one turn.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from vmm.ferry.ledger import Ledger
from vmm.ferry.peer import Peer
from vmm.ferry.rules import READABLE, WRITABLE
from vmm.ferry.turns import Turns
from vmm.guest.abi import PAGE_SIZE
from vmm.memory.region import Region
from vmm.memory.runs import Extent

_T = TypeVar("_T")


class ProgramWindow(NamedTuple):
    """The window of one machine. Thread-safe; may be used within a turn of the caller's, too."""

    peer: Peer
    ledger: Ledger
    turns: Turns

    @property
    def region(self) -> Region:
        """Where it lies."""
        return self.peer.window.region

    def read(self, address: int, size: int) -> bytes | None:
        """Return what is there; None if any page is not the machine's to read.

        `address` and `size` are within the window; `size` is more than 0.
        """
        return self._in_turn(lambda: self._read(address, size))

    def write(self, address: int, data: bytes | bytearray | memoryview) -> bool:
        """Write there; False, and nothing done, if any page is not the machine's to write."""
        return self._in_turn(lambda: self._write(address, data))

    def ready(self, address: int, size: int, *, write: bool) -> bool:
        """Whether it could be read, or written to, just now."""
        return self._in_turn(lambda: self._pieces(address, size, write=write) is not None)

    def _in_turn(self, action: Callable[[], _T]) -> _T:
        turns = self.turns
        if turns.inside:
            return action()
        with turns.telling, turns.lock, turns.change:
            return action()

    def _pieces(self, address: int, size: int, *, write: bool) -> list[tuple[int, int]] | None:
        """Return where it is in this process: addresses, and bytes."""
        offset = address - self.region.base
        first = offset // PAGE_SIZE
        extent = Extent(first, (offset + size - 1) // PAGE_SIZE - first + 1)
        holds = WRITABLE if write else READABLE
        if not self.peer.alive or not self.ledger.holds(self.peer.number, extent, holds):
            return None
        pieces, skip = [], offset % PAGE_SIZE
        for place, pages in self.peer.window.pieces(*extent):
            length = min(pages * PAGE_SIZE - skip, size)
            pieces.append((place + skip, length))
            size, skip = size - length, 0
        return pieces

    def _read(self, address: int, size: int) -> bytes | None:
        pieces = self._pieces(address, size, write=False)
        if pieces is None:
            return None
        return b"".join([ctypes.string_at(place, length) for place, length in pieces])

    def _write(self, address: int, data: bytes | bytearray | memoryview) -> bool:
        pieces = self._pieces(address, len(data), write=True)
        if pieces is None:
            return False
        done = 0
        for place, length in pieces:
            ctypes.memmove(place, bytes(data[done : done + length]), length)
            done += length
        return True
