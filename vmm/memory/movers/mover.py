"""What every mover has: it makes windows, and owns the pool whose frames they show."""

from __future__ import annotations

from abc import ABC, abstractmethod

from vmm.kvm import Vm
from vmm.memory.guards import MOST
from vmm.memory.movers.mapped import MappedWindow
from vmm.memory.movers.windows import Window
from vmm.memory.pool import PagePool


class Mover(ABC):
    """A strategy; it owns the page pool. Close its windows first."""

    name: str
    seams = 2 * MOST  # mappings that its windows may need beyond two for each run
    # Machines, beyond which windows are `guarded`: of each change of a mapping the kernel tells all
    # of them, which guards spare. Between two, a page lent and returned, or sent to and fro, takes
    # 6 % less with them, and one that is sent on 4 % more.
    guards_beside = 8

    def __init__(self, frames: int) -> None:
        self.pool = self._make_pool(frames)

    def _make_pool(self, frames: int) -> PagePool:
        return PagePool(frames)

    @abstractmethod
    def machine_window(self, vm: Vm, base: int, size: int, others: int = 0) -> Window:
        """Make an empty window of `size` bytes at the guest-physical address `base`.

        others    how many machines there are besides
        """

    def guards(self, others: int) -> bool:
        """Whether the window of a machine beside so many is to be `guarded`."""
        return others >= self.guards_beside and self.pool.guarded.works

    def host_window(self, size: int) -> Window:
        """Make an empty window in this process: memory that the host itself reads and writes."""
        return MappedWindow(self.pool, size, viewed=True)

    def close(self) -> None:
        """Free the pool's memory."""
        self.pool.close()
