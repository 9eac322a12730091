"""`memfd` keeps one memslot per window over reserved address space, and changes what is behind it.

The pool's pages to show an extent, inaccessible memory to hide it. No memslot changes, and KVM's
mmu notifier shoots the guest's translations down before the call returns.
"""

from __future__ import annotations

from vmm.kvm import Vm
from vmm.memory.movers.windows import WINDOW_SLOT, MappedWindow, Mover, Window


class MemfdMover(Mover):
    """One memslot per window, made once; mappings change behind it."""

    name = "memfd"

    def _window(self, size: int, base: int | None = None) -> MappedWindow:
        return MappedWindow(self.pool, size, base)

    def machine_window(self, vm: Vm, base: int, size: int) -> Window:
        window = self._window(size, base)
        try:
            vm.set_user_memory_region(WINDOW_SLOT, base, size, window.mapping.address)
        except OSError:
            window.close()
            raise
        return window

    def host_window(self, size: int) -> Window:
        return self._window(size)
