"""`memfd` keeps one memslot per window over reserved address space, and changes what is behind it.

The pool's pages to show an extent, inaccessible memory to hide it. No memslot changes, and KVM's
mmu notifier shoots the guest's translations down before the call returns.
"""

from __future__ import annotations

from vmm.kvm import Vm
from vmm.memory.memslots import WindowSlots
from vmm.memory.movers.windows import WINDOW_SLOT, MappedWindow, Mover, Window
from vmm.memory.pool import PagePool


class MachineWindow(MappedWindow):
    """One that a machine sees, by memslots that are made once."""

    def __init__(self, pool: PagePool, vm: Vm, base: int, size: int) -> None:
        super().__init__(pool, size, base)
        address = self.mapping.address
        self._slots = WindowSlots(vm, WINDOW_SLOT, base, self.region.pages, address)

    def show(self, page: int, frame: int, count: int, *, writable: bool = True) -> None:
        self._slots.cover(page, count)
        super().show(page, frame, count, writable=writable)


class MemfdMover(Mover):
    """Memslots that do not change; mappings change behind them."""

    name = "memfd"

    def machine_window(self, vm: Vm, base: int, size: int) -> Window:
        return MachineWindow(self.pool, vm, base, size)
