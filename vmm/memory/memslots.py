"""The memslots under a window whose mapping changes: made where pages have been, and only there.

A memslot takes the kernel time and memory by its size: without EPT or NPT, 2.5 KiB for each MiB,
which for a window of a GiB is more than all else that a VM takes, and a third of the time that a
spawn takes. So the window is cut into chunks, and a chunk has its slot when a page is first shown
in it.
"""

from __future__ import annotations

from vmm.guest.abi import PAGE_SIZE
from vmm.kvm import Vm

CHUNK = (64 << 20) // PAGE_SIZE  # pages, as a rule
MOST = 256  # chunks: before Linux 5.12 a VM has no more than 509 slots
_LARGE = (2 << 20) // PAGE_SIZE  # pages; a chunk is a multiple, so that no huge page is cut


class WindowSlots:
    """The slots of one window, numbered from `first` on. Not thread-safe.

    base, pages    where the window lies, and how large it is
    address        the host address of its first page, mapped for as long as the VM lives
    chunk, made    how many pages a slot has, and which there are: to be read only
    """

    __slots__ = ("_address", "_base", "_first", "_pages", "_vm", "chunk", "made")

    def __init__(self, vm: Vm, first: int, base: int, pages: int, address: int) -> None:
        self._vm = vm
        self._first = first
        self._base = base
        self._pages = pages
        self._address = address
        self.chunk = max(CHUNK, -(-pages // (MOST * _LARGE)) * _LARGE)
        self.made: set[int] = set()

    def cover(self, page: int, count: int) -> None:
        """Make the slots that `count` pages from `page` on lie in.

        Raises OSError; what has been made by then stays, and is of no harm: the host's mapping
        decides what is seen through a slot.
        """
        for chunk in range(page // self.chunk, (page + count - 1) // self.chunk + 1):
            if chunk not in self.made:
                self._make(chunk)

    def _make(self, chunk: int) -> None:
        start = chunk * self.chunk
        offset, pages = start * PAGE_SIZE, min(self.chunk, self._pages - start)
        self._vm.set_user_memory_region(
            self._first + chunk, self._base + offset, pages * PAGE_SIZE, self._address + offset
        )
        self.made.add(chunk)
