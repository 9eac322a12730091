"""What is behind a Linux program's addresses: this process's memory, and what is done to it.

No rights are looked at here, and no map. Each operation may be done twice, but for a move, which
says how far it has come.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

from vmm.guest.x86 import LARGE_PAGE, TABLE_SPAN
from vmm.linux.ranges import clipped, united
from vmm.memory import mapping
from vmm.memory.mapping import Mapping
from vmm.memory.pagemap import populated
from vmm.memory.private import PrivateMemory
from vmm.memory.region import OutOfBounds, Region

# Each may leave up to two more mappings to a process that has 65,530. What comes after them costs
# copying.
_MOST_RENEWED = 8
_MOST_MOVED = 8
_MOST_ADVISED = 16

_WORTH_A_CALL = 64 << 10  # bytes that are faster replaced than cleared
_STEP = 64 << 10
_ZEROS = bytes(_STEP)


class Backing:
    """Private memory from address 0 on, and the arena with `extra` bytes behind it.

    ranges     where they are, without what is behind
    given      what of them is a file's until it is written (`begin`)
    replaced   ranges that have been mapped anew since, or may have been

    Ranges are guest-physical, page-aligned, and in one of the two. Not thread-safe.
    """

    def __init__(self, low: PrivateMemory, arena: Region, extra: int) -> None:
        """Map the arena; `low` is the caller's. Raises OSError, ResourceError."""
        self.low = low
        self._arena = arena
        self.arena = Region(arena.base, arena.size + extra)
        self._mapping = Mapping.park(self.arena.size)
        self._bytes = self._mapping.view()
        self._low = low.view(0, low.region.size)
        self._displaced: list[tuple[int, int]] = []  # moved here, so mappings of their own
        self._renewed = self._advised = 0
        self.ranges = ((low.region.base, low.region.end), (arena.base, arena.end))
        self.given = low.given
        self.replaced: list[tuple[int, int]] = []

    def begin(self, given: tuple[tuple[int, int], ...]) -> None:
        """What is `given`, as start and end, in order, is a file's until it is written: its
        contents come back if it is given back. From now on it is noted what is `replaced`.
        """
        self._displaced = [d for d in self._displaced if not clipped(self.replaced, *d)]
        self.given, self.replaced = given, []
        self._renewed = 0

    @property
    def address(self) -> int:
        """The host address of the arena."""
        return self._mapping.address

    def view(self, address: int, size: int) -> memoryview:
        """Return `size` writable bytes. Raises OutOfBounds."""
        if address < TABLE_SPAN:
            view, start = self._low, address
        else:
            view, start = self._bytes, address - self.arena.base
        end = start + size
        if start < 0 or end > len(view):  # as Region.offset, without its call
            raise OutOfBounds(f"{size} bytes at {address:#x} are in neither part")
        return view[start:end]

    def host(self, address: int, size: int) -> int:
        """Return the host address of `size` bytes. Raises OutOfBounds."""
        if address < TABLE_SPAN:
            return self.low.address + self.low.region.offset(address, size)
        return self._mapping.address + self.arena.offset(address, size)

    def zero(self, start: int, end: int) -> None:
        """Give the pages back: zeros from now on. Invalidates them."""
        for low, high in self.given:
            if low >= end:
                break
            if high > start:
                self._empty(start, low)
                # Given back, they would be the file's again.
                stop = min(end, high)
                self._clear(max(start, low), stop)
                start = stop
        self._empty(start, end)

    def _empty(self, start: int, end: int) -> None:
        if start >= end or self._replace_displaced(start, end):
            return
        mapping.empty(self.host(start, end - start), end - start)

    def _clear(self, start: int, end: int) -> None:
        size = end - start
        if size >= _WORTH_A_CALL and self._renewed < _MOST_RENEWED:
            self._renewed += 1
            self.replaced = united([*self.replaced, (start, end)])
            try:
                mapping.renew(self.host(start, size), size)
            except OSError:  # too many mappings
                self._renewed = _MOST_RENEWED
            else:
                return
        self.invalidate(start, end)  # before it: cut off last time, it may have left it read-only
        mapping.clear(self.host(start, size), size)

    def _replace_displaced(self, start: int, end: int) -> bool:
        """Whether all of a range has been replaced by plain memory, since some was displaced."""
        hit = [d for d in self._displaced if d[0] < end and start < d[1]]
        if not hit:
            return False
        self.replaced = united([*self.replaced, (start, end)])
        try:
            mapping.renew(self.host(start, end - start), end - start)
        except OSError:
            return False
        left = [d for d in self._displaced if d not in hit]
        for low, high in hit:
            left += [(low, start)] * (low < start) + [(end, high)] * (end < high)
        self._displaced = left
        return True

    def invalidate(self, start: int, end: int) -> None:
        """Make every CPU and KVM forget what they know of a range, whose contents stay.

        Raises OSError, with nothing done, if that takes more mappings than there may be.
        """
        size = end - start
        host = self.host(start, size)
        try:
            mapping.protect(host, size, writable=False)
        finally:
            mapping.protect(host, size, writable=True)

    def advise_huge(self, start: int, end: int) -> None:
        """Ask for huge pages behind a range, if it has room for any. It may come to be more."""
        first, last = -(-start // LARGE_PAGE) * LARGE_PAGE, end // LARGE_PAGE * LARGE_PAGE
        if first >= last:
            return
        if self._advised == _MOST_ADVISED:
            first, last = self._arena.base, self._arena.end
        if self._advised <= _MOST_ADVISED:
            self._advised += 1
            mapping.advise_huge(self.host(first, last - first), last - first)

    def move(self, source: int, target: int, size: int, *, again: bool) -> bool:
        """Move pages to where nothing is, as they are, huge ones included; what stays is zeros.

        again    whether it has been tried before: then it may have been done

        False, and nothing is changed, if they have to be copied.
        """
        inside = source >= TABLE_SPAN and target >= TABLE_SPAN
        if not inside or size < LARGE_PAGE or len(self._displaced) >= _MOST_MOVED:
            return False
        if clipped(self.given, source, source + size):  # what stays would not be zeros
            return False
        if again and not populated(self.host(source, size), size):
            return True
        self._displaced = [*self._displaced, (target, target + size)]
        self.replaced = united([*self.replaced, (target, target + size)])
        try:
            mapping.move(self.host(source, size), self.host(target, size), size)
        except OSError:
            return False
        return True

    def copy(self, source: int, target: int, size: int) -> None:
        """Copy pages to where nothing is. What is zeros is left out, and takes no memory."""
        start, goal = self.host(source, size), self.host(target, size)
        for at, length in _steps(size):
            if ctypes.string_at(start + at, length) != _ZEROS[:length]:
                ctypes.memmove(goal + at, start + at, length)

    def close(self) -> None:
        """Unmap the arena. Further calls do nothing."""
        self._low.release()
        self._bytes.release()
        self._mapping.close()


def _steps(size: int) -> Iterator[tuple[int, int]]:
    for at in range(0, size, _STEP):
        yield at, min(_STEP, size - at)
