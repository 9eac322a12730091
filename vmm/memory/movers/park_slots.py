"""Windows of memslots over the park, for hosts of many machines.

The kernel tells each VM of a process of each change in its mappings, whosever the address is; of a
memslot it tells the one that has it. What such a window shows stays where it is: at home, or in the
memfd.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

from vmm.guest.abi import PAGE_SIZE
from vmm.kvm import Vm
from vmm.memory import mapping
from vmm.memory.movers.lodgings import Lodging
from vmm.memory.movers.park import Park
from vmm.memory.movers.slots import SlotsWindow


class ParkSlotsWindow(SlotsWindow):
    """A window beside others to which memory is moved, and which may have had it before."""

    def __init__(self, park: Park, vm: Vm, base: int, size: int) -> None:
        super().__init__(vm, base, size, park.journal)
        self._park = park
        _ = park.memfd  # to be had before any memory is to be shown

    def places(self, page: int, frame: int, count: int) -> Iterator[tuple[int, int]]:
        for part in self._park.lodgings.of(page, frame, count):
            yield self._park.settled(part), part.pages

    def lodged(self, frame: int, count: int) -> Iterator[tuple[int, int]]:
        for part in self._park.lodgings.within(frame, count):
            yield self._park.memory(part), part.pages

    def loosen(self, page: int, count: int) -> bool:
        end, loosened = page + count, False
        for shown in [slot.clip(page, end) for slot in self.overlapping(page, end)]:
            for part in self._park.lodgings.within(shown.frame, shown.pages):
                if not part.anonymous:
                    mapping.loosen(self._park.memory(part), part.pages * PAGE_SIZE)
                    loosened = True
        return loosened

    def make_shareable(self, page: int, count: int) -> None:
        end = page + count
        for shown in [slot.clip(page, end) for slot in self.overlapping(page, end)]:
            for part in self._park.lodgings.within(shown.frame, shown.pages):
                if part.anonymous:
                    at = shown.page + part.frame - shown.frame
                    self._store(at, part.frame, part.pages, writable=shown.writable)

    def share_slice(self, page: int, count: int, most: int) -> bool:
        end = page + count
        for shown in [slot.clip(page, end) for slot in self.overlapping(page, end)]:
            for part in self._park.lodgings.within(shown.frame, shown.pages):
                if part.anonymous:
                    at, pages = shown.page + part.frame - shown.frame, min(part.pages, most)
                    try:
                        self._store(at, part.frame, pages, writable=shown.writable)
                    except OSError:
                        return False
                    return True
        return False

    def _store(self, page: int, frame: int, count: int, *, writable: bool) -> None:
        """Copy anonymous memory into the memfd, and show that in its place."""
        park, size = self._park, count * PAGE_SIZE
        if not park.may_cut(self):
            raise OSError(errno.ENOMEM, "too many frames have been shared out of larger runs")
        try:
            mapping.store(park.home(frame), size, park.fd, frame * PAGE_SIZE)
            self.hide(page, count)
        except OSError:
            park.disown(frame, count)
            raise
        park.lodgings.settle(Lodging(frame, count, anonymous=False))
        park.has_cut(self)
        try:
            self.show(page, frame, count, writable=writable)
        except OSError:
            park.lodgings.settle(Lodging(frame, count, anonymous=True))
            if not self.try_to_show(page, frame, count, writable=writable):
                self.spoil()
            park.disown(frame, count)
            raise
        park.vacate(frame, count)
