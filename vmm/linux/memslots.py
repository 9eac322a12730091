"""The memslots of one program's memory: of what it uses, and of more as it uses more.

A large one takes the kernel long, and much memory, where it keeps shadow page tables. So each of
the two regions is split: the image's above its heap's first megabytes, the arena below what is
mapped first, since what comes is mapped downwards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

from vmm.guest.x86 import LARGE_PAGE
from vmm.kvm import Vm
from vmm.memory.region import Region

_ROOM = 8 << 20  # addresses that have a memslot from the beginning, besides those in use


class Slot(NamedTuple):
    """One memslot: `size` bytes from guest-physical `base` on, at a host address."""

    number: int
    base: int
    size: int
    address: int


class Memslots:
    """Not thread-safe: used while the program is stopped. Each call may be made again, and then
    ends what was cut off. All raise OSError.

    made    those that there are
    rest    those to come
    """

    __slots__ = ("_vm", "made", "rest")

    def __init__(
        self,
        vm: Vm,
        numbers: Sequence[int],
        low: tuple[Region, int, int],
        arena: tuple[Region, int, int],
    ) -> None:
        """Make those of what is in use.

        numbers    of four memslots
        low        a region, where what is in use ends in it, and its host address
        arena      a region, where what is in use begins, and its host address
        """
        region, used, address = low
        # Boundaries at which huge pages may lie.
        middle = min(-(-(used + _ROOM) // LARGE_PAGE) * LARGE_PAGE, region.end)
        first = Slot(numbers[0], region.base, middle - region.base, address)
        above = Slot(numbers[2], middle, region.end - middle, address + middle - region.base)
        region, used, address = arena
        middle = max((used - _ROOM) // LARGE_PAGE * LARGE_PAGE, region.base)
        size = middle - region.base
        last = Slot(numbers[1], middle, region.end - middle, address + size)
        below = Slot(numbers[3], region.base, size, address)
        self._vm = vm
        self.made: tuple[Slot, ...] = first, last
        self.rest = tuple(slot for slot in (above, below) if slot.size)
        for slot in self.made:
            vm.set_user_memory_region(*slot)

    def show(self, start: int, end: int) -> None:
        """Make those of addresses that are used for the first time."""
        for slot in self.rest:
            if slot.base < end and start < slot.base + slot.size:
                self._vm.set_user_memory_region(*slot)
                if slot not in self.made:
                    self.made = (*self.made, slot)
                self.rest = tuple(other for other in self.rest if other != slot)

    def make_again(self) -> None:
        """Let KVM forget all that it knows of the memory."""
        for slot in self.made:
            # Cut off last time, it may have been deleted.
            with contextlib.suppress(OSError):
                self._vm.set_user_memory_region(*slot._replace(size=0))
            self._vm.set_user_memory_region(*slot)
