"""`slots` rewrites the KVM memslots.

Each run of adjacent frames in a window is a memslot of its own, whose host memory stays where it
is. Taking an extent out deletes its slot (and creates slots for what is left of it on either side);
bringing one in creates a slot.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from vmm.guest.abi import PAGE_SIZE
from vmm.kvm import Vm
from vmm.kvm.uapi import (
    KVM_CAP_DISABLE_QUIRKS2,
    KVM_MEM_READONLY,
    KVM_X86_QUIRK_SLOT_ZAP_ALL,
)
from vmm.memory import mapping
from vmm.memory.journal import IDLE, Journal
from vmm.memory.mapping import Mapping
from vmm.memory.movers.mover import Mover
from vmm.memory.movers.windows import WINDOW_SLOT, Sight, Stuck, Window
from vmm.memory.region import Region
from vmm.memory.runs import Extent


class _Slot(NamedTuple):
    """A memslot: `pages` pages from `page`, backed from `frame` on, which is at `address`."""

    page: int
    pages: int
    frame: int
    address: int
    number: int
    writable: bool

    def clip(self, page: int, end: int) -> _Slot:
        """Return the part of the slot that lies in page..end."""
        first, last = max(page, self.page), min(end, self.page + self.pages)
        by = first - self.page
        frame, address = self.frame + by, self.address + by * PAGE_SIZE
        return self._replace(page=first, pages=last - first, frame=frame, address=address)


class SlotsWindow(Window):
    """A window made of memslots, one per run of adjacent frames.

    A slot cannot be cut: it is deleted, and what is left of it created anew.
    """

    blinks = True

    def __init__(self, vm: Vm, base: int, size: int, journal: Journal = IDLE) -> None:
        # As far as the kernel can (Linux 6.12): else a page sent costs its sender the translations
        # of all others, which took three times as long as all the rest.
        if vm.check_extension(KVM_CAP_DISABLE_QUIRKS2) & KVM_X86_QUIRK_SLOT_ZAP_ALL:
            vm.enable_cap(KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_SLOT_ZAP_ALL)
        self.region = Region(base, size)
        self._journal = journal
        self._vm = vm
        self._slots: dict[int, _Slot] = {}  # by their first page
        self._starts: list[int] = []  # those pages, in order
        self._unused: list[int] = []  # numbers given back
        self._next = WINDOW_SLOT

    @abstractmethod
    def places(self, page: int, frame: int, count: int) -> Iterable[tuple[int, int]]:
        """Return where the memory of frames is that are to be shown from `page` on, in pieces:
        address, and number of pages. Raises OSError.
        """

    @abstractmethod
    def lodged(self, frame: int, count: int) -> Iterable[tuple[int, int]]:
        """Return where the memory of frames is that have been shown, and change nothing."""

    def show(self, page: int, frame: int, count: int, *, writable: bool = True) -> None:
        made: list[_Slot] = []
        try:
            for address, pages in self.places(page, frame, count):
                made.append(self._create(_Slot(page, pages, frame, address, 0, writable)))
                page, frame = page + pages, frame + pages
        except OSError as error:
            left = [Extent(slot.page, slot.pages) for slot in made if not self._deletes(slot)]
            if left:
                raise Stuck(left, error) from None
            raise

    def _deletes(self, slot: _Slot) -> bool:
        try:
            self._delete(slot)
        except OSError:
            return False
        return True

    def _create(self, slot: _Slot) -> _Slot:
        """Create a slot, with a number of its own."""
        number = self._unused.pop() if self._unused else self._next
        slot = slot._replace(number=number)
        try:
            self._set(slot, slot.pages)
        except OSError:
            if number != self._next:
                self._unused.append(number)
            raise
        self._next = max(self._next, number + 1)
        self._slots[slot.page] = slot
        insort(self._starts, slot.page)
        return slot

    def hide(self, page: int, count: int) -> None:
        """Delete the slots that overlap, and create new ones for what is left of them.

        At no time is more to be seen than before; but if the host refuses to undo it, less.
        """
        end = page + count
        old = self.overlapping(page, end)
        done: list[Callable[[], object]] = []
        try:
            for slot in old:
                self._delete(slot)
                done.append(lambda slot=slot: self._create(slot))  # type: ignore[misc]
                for left in _remains(slot, page, end):
                    self._create(left)
                    done.append(lambda left=left: self._delete(self._at(left.page)))  # type: ignore[misc]
        except OSError:
            try:
                for undo in reversed(done):
                    undo()
            except OSError:
                self.spoil()
            raise

    def overlapping(self, page: int, end: int) -> list[_Slot]:
        """Return the slots that have something of page..end."""
        first = max(bisect_right(self._starts, page) - 1, 0)
        slots = [
            self._slots[start] for start in self._starts[first : bisect_left(self._starts, end)]
        ]
        return [slot for slot in slots if page < slot.page + slot.pages]

    def _delete(self, slot: _Slot) -> None:
        self._set(slot, 0)
        del self._slots[slot.page], self._starts[bisect_left(self._starts, slot.page)]
        self._unused.append(slot.number)

    def forget(self) -> None:
        """Delete all slots, and the one that may have been made, or deleted, unknown to us."""
        for number in range(WINDOW_SLOT, self._next + 1):
            with contextlib.suppress(OSError):  # where there is none
                self._vm.set_user_memory_region(number, self.region.base, 0, 0)
        self._slots.clear()
        self._starts.clear()
        self._unused.clear()
        self._next = WINDOW_SLOT

    def _set(self, slot: _Slot, count: int) -> None:
        if self._journal.active:
            self._journal.touched.append((self, slot.page, slot.pages))
        self._vm.set_user_memory_region(
            slot.number,
            self.region.base + slot.page * PAGE_SIZE,
            count * PAGE_SIZE,
            slot.address,
            0 if slot.writable else KVM_MEM_READONLY,
        )

    def _at(self, page: int) -> _Slot:
        (slot,) = self.overlapping(page, page + 1)
        return slot

    def address(self, page: int) -> int:
        ((address, _),) = self.pieces(page, 1)
        return address

    def pieces(self, page: int, count: int) -> Sequence[tuple[int, int]]:
        end = page + count
        parts = [slot.clip(page, end) for slot in self.overlapping(page, end)]
        return [(part.address, part.pages) for part in parts]

    def seen(self) -> Sequence[Sight]:
        """Return what the memslots show, as they were made: the kernel does not say."""
        slots = [self._slots[start] for start in self._starts]
        return [Sight(s.page, s.pages, self._frame_of(s), s.writable) for s in slots]

    def _frame_of(self, slot: _Slot) -> int | None:
        """Return the first frame of a slot, if all of its memory is where theirs is."""
        at = slot.address
        for address, pages in self.lodged(slot.frame, slot.pages):
            if address != at:
                return None
            at += pages * PAGE_SIZE
        return slot.frame

    def close(self) -> None:
        """Nothing to unmap: the slots went with the VM, their memory is the mover's."""
        self._slots.clear()
        self._starts.clear()


class PoolSlotsWindow(SlotsWindow):
    """Memslots over a pool that is mapped as a whole."""

    def __init__(
        self, vm: Vm, base: int, size: int, pool: Mapping, journal: Journal = IDLE
    ) -> None:
        super().__init__(vm, base, size, journal)
        self._pool = pool

    def places(self, page: int, frame: int, count: int) -> Iterable[tuple[int, int]]:
        return self.lodged(frame, count)

    def loosen(self, page: int, count: int) -> bool:
        for address, pages in self.pieces(page, count):
            mapping.loosen(address, pages * PAGE_SIZE)
        return True

    def lodged(self, frame: int, count: int) -> Iterable[tuple[int, int]]:
        return ((self._pool.address + frame * PAGE_SIZE, count),)


def _remains(slot: _Slot, page: int, end: int) -> list[_Slot]:
    """Return what is left of a slot on either side of page..end."""
    around = slot.clip(slot.page, page), slot.clip(end, slot.page + slot.pages)
    return [part for part in around if part.pages > 0]


class SlotsMover(Mover):
    """Memslots over the pool, which is mapped once."""

    name = "slots"

    def __init__(self, frames: int) -> None:
        super().__init__(frames)
        try:
            self._mapping = Mapping.shared(frames * PAGE_SIZE, self.pool.fd)
        except BaseException:
            super().close()
            raise

    def machine_window(self, vm: Vm, base: int, size: int, others: int = 0) -> Window:
        return PoolSlotsWindow(vm, base, size, self._mapping, self.pool.journal)

    def close(self) -> None:
        self._mapping.close()
        super().close()
