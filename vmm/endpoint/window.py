"""The host's window, as buffers reach into it: what is theirs, and only while it is."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

from vmm.errors import AccessError
from vmm.ferry.books import Description
from vmm.ferry.exchange import Exchange
from vmm.ferry.peer import Peer
from vmm.ferry.turns import Turns
from vmm.guest.abi import PAGE_SIZE, Hold
from vmm.memory.movers import MappedWindow
from vmm.memory.runs import Extent
from vmm.memory.views import Export, Views


def _nothing(*_: object) -> None:
    pass


class HostWindow:
    """The pages of the host process, and what each is to it.

    turns     the monitor's. Every method is called in a turn, which nobody interrupts, and what
              `address` and `view` return is not used after it
    take_in   called before anything is done with extents but to read and write them: takes them
              from machines that see them, and do not run until they are called
    take_all  called without the lock, when a run has begun and nobody runs yet: takes from all
              machines what they see, as they may run now. Raises BusyError if one is being called
    """

    take_in: Callable[[Sequence[Extent]], object] = staticmethod(_nothing)
    take_all: Callable[[], object] = staticmethod(_nothing)

    def __init__(self, peer: Peer, exchange: Exchange, turns: Turns) -> None:
        self.peer = peer
        self.turns = turns
        self._ledger = exchange.ledger

    def describe(self, extent: Extent) -> Description:
        """Return what an extent is to the host."""
        self.take_in([extent])
        return self._ledger.describe(self.peer.number, extent)

    def holds(self, extent: Extent, holds: frozenset[Hold]) -> bool:
        """Whether every page of an extent is one of these to the host."""
        return self._ledger.holds(self.peer.number, extent, holds)

    def parted(self, extent: Extent) -> list[Extent]:
        """Return what of an extent is the host's, and with others at present: lent, or shared."""
        self.take_in([extent])
        runs = self._ledger.runs(self.peer.number, extent)
        return [run.extent for run in runs if run.hold in (Hold.LENT, Hold.SHARED)]

    def export(self, extent: Extent, size: int, *, writable: bool) -> Export:
        """Return something that gives out the first bytes of an extent, which has been checked."""
        return Export(self.peer.window.address(extent.page), size, writable=writable)

    @property
    def views(self) -> Views:
        """What buffers have given out."""
        window = self.peer.window
        assert isinstance(window, MappedWindow)
        assert window.views is not None
        return window.views

    def check(self, extent: Extent, holds: frozenset[Hold]) -> None:
        """Raise AccessError unless every page of an extent is one of these to the host."""
        if not self._ledger.holds(self.peer.number, extent, holds):
            held = {run.hold for run in self._ledger.runs(self.peer.number, extent)} - holds
            why = _NO_ACCESS.get(min(held, default=Hold.NONE), "it is not the host's")
            raise AccessError(f"the buffer cannot be used now: {why}")

    def address(self, extent: Extent, holds: frozenset[Hold]) -> int:
        """Return where an extent is, every page of which is one of these. Raises as `check`."""
        self.check(extent, holds)
        return self.peer.window.address(extent.page)

    def view(self, extent: Extent, holds: frozenset[Hold], offset: int, length: int) -> memoryview:
        """Return bytes of an extent, every page of which is one of these. Raises as `check`.

        The caller has checked that they lie within it.
        """
        address = self.address(extent, holds) + offset
        if not length:
            return memoryview(bytearray())
        return memoryview((ctypes.c_char * length).from_address(address)).cast("B")

    def extent(self, gpa: int, pages: int) -> Extent:
        """Return the extent at an address of the window."""
        return Extent((gpa - self.peer.window.region.base) // PAGE_SIZE, pages)


_NO_ACCESS = {
    Hold.LENT: "it is lent: wait until it comes back, or reclaim it",
    Hold.REVOKED: "its owner has taken it back: release it",
    Hold.VIEWED: "it is borrowed to be read only",
}
