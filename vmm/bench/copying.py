"""The other way: a mover that copies. For the bench only, since it keeps nobody from anything.

Each window has memory of its own, mapped once. Showing frames copies them from where they were
last; hiding does nothing, so whoever has sent a page still sees what it was, as with any copy.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

from vmm.guest.abi import PAGE_SIZE, Hold
from vmm.kvm import Vm
from vmm.memory import mapping
from vmm.memory.mapping import Mapping
from vmm.memory.memslots import WindowSlots
from vmm.memory.movers import Mover, Window
from vmm.memory.movers.windows import WINDOW_SLOT
from vmm.memory.pool import PagePool
from vmm.memory.region import Region
from vmm.memory.runs import IntervalMap, Run


class _Pool(PagePool):
    """Frames that are wherever they were shown last: `page` is a frame, `frame` a host page."""

    def __init__(self, frames: int) -> None:
        super().__init__(frames)
        self.places: IntervalMap[Run] = IntervalMap(frames)

    def zero(self, frames: Iterable[tuple[int, int]]) -> None:
        """Forget them: the bench does not look at what fresh pages hold."""
        for first, count in frames:
            self.places.remove(first, count)


class _CopyWindow(Window):
    """Memory of its own, in huge pages as far as the host gives them."""

    def __init__(self, pool: _Pool, size: int, vm: Vm | None = None, base: int = 0) -> None:
        self._pool = pool
        self._memory = Mapping.park(size)
        mapping.advise_huge(self._memory.address, size)
        address = self._memory.address
        self.region = Region(address if vm is None else base, size)
        self._slots: WindowSlots | None = None
        if vm is not None:
            self._slots = WindowSlots(vm, WINDOW_SLOT, base, self.region.pages, address)

    def show(self, page: int, frame: int, count: int, *, writable: bool = True) -> None:
        if self._slots is not None:
            self._slots.cover(page, count)
        target = self.address(page)
        for run in self._pool.places.within(frame, count):
            offset, source = (run.page - frame) * PAGE_SIZE, run.frame * PAGE_SIZE
            if source != target + offset:
                ctypes.memmove(target + offset, source, run.pages * PAGE_SIZE)
        self._pool.places.replace(Run(frame, count, target // PAGE_SIZE, Hold.OWNED))

    def hide(self, page: int, count: int) -> None:
        pass

    def address(self, page: int) -> int:
        return self._memory.address + page * PAGE_SIZE

    def close(self) -> None:
        self._memory.close()


class CopyMover(Mover):
    """Copies what it is to move."""

    name = "copy"
    pool: _Pool

    def _make_pool(self, frames: int) -> PagePool:
        return _Pool(frames)

    def machine_window(self, vm: Vm, base: int, size: int, others: int = 0) -> Window:
        return _CopyWindow(self.pool, size, vm, base)

    def host_window(self, size: int) -> Window:
        return _CopyWindow(self.pool, size)
