"""`slots` rewrites the KVM memslots.

Each run of adjacent frames in a window is a memslot of its own, whose host memory is the pool,
mapped once. Taking an extent out deletes its slot (and creates slots for what is left of it on
either side); bringing one in creates a slot.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from vmm.guest.abi import PAGE_SIZE
from vmm.kvm import Vm
from vmm.kvm.uapi import (
    KVM_CAP_DISABLE_QUIRKS2,
    KVM_MEM_READONLY,
    KVM_X86_QUIRK_SLOT_ZAP_ALL,
)
from vmm.memory.mapping import Mapping
from vmm.memory.movers.windows import WINDOW_SLOT, Mover, Window
from vmm.memory.region import Region


class _Slot(NamedTuple):
    """A memslot: `pages` pages from `page`, backed from `frame` on."""

    page: int
    pages: int
    frame: int
    number: int
    writable: bool


class SlotsWindow(Window):
    """A window made of memslots, one per run of adjacent frames.

    A slot cannot be cut: it is deleted, and what is left of it created anew.
    """

    blinks = True

    def __init__(self, vm: Vm, pool: Mapping, base: int, size: int) -> None:
        self.region = Region(base, size)
        self._vm = vm
        self._pool = pool
        self._slots: dict[int, _Slot] = {}  # by slot number
        self._unused: list[int] = []  # numbers given back
        self._next = WINDOW_SLOT

    def show(self, page: int, frame: int, count: int, *, writable: bool = True) -> None:
        number = self._unused.pop() if self._unused else self._next
        slot = _Slot(page, count, frame, number, writable)
        try:
            self._set(slot, count)
        except OSError:
            if number != self._next:
                self._unused.append(number)
            raise
        self._next = max(self._next, number + 1)
        self._slots[number] = slot

    def hide(self, page: int, count: int) -> None:
        """Delete the slots that overlap, and create new ones for what is left of them."""
        end = page + count
        old = [s for s in self._slots.values() if s.page < end and page < s.page + s.pages]
        done: list[Callable[[], None]] = []
        try:
            for slot in old:
                self._delete(slot)
                done.append(lambda slot=slot: self._show(slot))  # type: ignore[misc]
                for left in _remains(slot, page, end):
                    self._show(left)
                    done.append(lambda left=left: self._delete(self._at(left.page)))  # type: ignore[misc]
        except OSError:
            for undo in reversed(done):
                undo()
            raise

    def _show(self, slot: _Slot) -> None:
        self.show(slot.page, slot.frame, slot.pages, writable=slot.writable)

    def _delete(self, slot: _Slot) -> None:
        self._set(slot, 0)
        del self._slots[slot.number]
        self._unused.append(slot.number)

    def _set(self, slot: _Slot, count: int) -> None:
        self._vm.set_user_memory_region(
            slot.number,
            self.region.base + slot.page * PAGE_SIZE,
            count * PAGE_SIZE,
            self._pool.address + slot.frame * PAGE_SIZE,
            0 if slot.writable else KVM_MEM_READONLY,
        )

    def _at(self, page: int) -> _Slot:
        return next(s for s in self._slots.values() if s.page <= page < s.page + s.pages)

    def address(self, page: int) -> int:
        slot = self._at(page)
        return self._pool.address + (slot.frame + page - slot.page) * PAGE_SIZE

    def close(self) -> None:
        """Nothing to unmap: the slots went with the VM, the pool is the mover's."""
        self._slots.clear()


def _remains(slot: _Slot, page: int, end: int) -> list[_Slot]:
    """Return what is left of a slot on either side of page..end."""
    slot_end = slot.page + slot.pages
    left = []
    if slot.page < page:
        left.append(slot._replace(pages=page - slot.page))
    if slot_end > end:
        rest = slot._replace(page=end, pages=slot_end - end)
        left.append(rest._replace(frame=slot.frame + end - slot.page))
    return left


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

    def machine_window(self, vm: Vm, base: int, size: int) -> Window:
        # As far as the kernel can (Linux 6.12): else a page sent costs its sender the translations
        # of all others, which took three times as long as all the rest.
        if vm.check_extension(KVM_CAP_DISABLE_QUIRKS2) & KVM_X86_QUIRK_SLOT_ZAP_ALL:
            vm.enable_cap(KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_SLOT_ZAP_ALL)
        return SlotsWindow(vm, self._mapping, base, size)

    def close(self) -> None:
        self._mapping.close()
        super().close()
