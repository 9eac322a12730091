"""`memfd` keeps memslots over reserved address space, and changes what is behind them.

The pool's pages to show an extent, inaccessible memory to hide it. No memslot changes, and KVM's
mmu notifier shoots the guest's translations down before the call returns.
"""

from __future__ import annotations

from vmm.kvm import Vm
from vmm.memory.movers.mapped import MappedWindow
from vmm.memory.movers.mover import Mover
from vmm.memory.movers.windows import Window


class MemfdMover(Mover):
    """Memslots that do not change; mappings change behind them."""

    name = "memfd"

    def machine_window(self, vm: Vm, base: int, size: int, others: int = 0) -> Window:
        return MappedWindow(self.pool, size, base, vm, guarded=self.guards(others))
