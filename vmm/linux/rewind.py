"""The contents that a program's private memory had at one moment, and the way back to them.

They are kept in a sealed memfd, at their guest-physical addresses, and what had been touched by
then is mapped from it, copy-on-write. So whatever is the process's own afterwards has been written
since. It is copied back **in place**: no mapping changes, and the program finds the pages where
its CPU and KVM know them to be. To give them back instead costs a fault each: after 1,024 pages the
next call took 3,800 us on a host without hardware paging, and 170 after they had been cleared.

What is written once is looked at ever after. So now and then, pages that were not written since the
last time are given back: they are the memfd's again.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable
from itertools import starmap

from vmm.guest.abi import PAGE_SIZE
from vmm.linux.backing import Backing
from vmm.linux.ranges import Range, clipped, joined, pairs, united
from vmm.memory import mapping
from vmm.memory.mapping import HUGE
from vmm.memory.template import Template
from vmm.memory.written import Written

_MOST_SCANNED = 4  # ranges, of what may be written
_MOST_MAPPED = 32  # ranges that are mapped from the memfd
_NEAR = 32 * PAGE_SIZE  # what is no further apart is one range
_MOST_CLEARED = 64 << 20  # bytes that were not there, and stay; beyond, huge pages are given back
_OFTEN = 64  # how many times pages are copied before it is asked whether that is still wanted
_MANY = 128  # of so many

_ZEROS = bytes(PAGE_SIZE)

_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)

Copy = tuple[int, int, int]  # to, from, bytes: as memmove(3)


class _Way:
    """The way back of some of the memory: which pages are the process's own, and what becomes of
    them.

    copies   to, from, bytes
    zeros    host address and bytes of what is to be cleared
    copied   pages, of both
    crowded  whether so much is to be cleared that huge pages are given back
    """

    __slots__ = ("_searches", "copied", "copies", "crowded", "found", "ranges", "zeros")

    def __init__(self, written: Written, backing: Backing, ranges: Iterable[Range]) -> None:
        # Host address, bytes, and how much further on it is there than to the guest.
        self.ranges = [
            (host := backing.host(start, end - start), end - start, host - start)
            for start, end in ranges
        ]
        self._searches = [written.again(address, size) for address, size, _ in self.ranges]
        self.found: list[list[int]] = []
        self.copies: list[Copy] = []
        self.zeros: list[Range] = []
        self.copied = 0
        self.crowded = False

    def search(self) -> list[list[int]]:
        """Return the host addresses of what may have been written, for each range."""
        found = []
        for search in self._searches:
            found.append(search())
        return found


class Rewind:
    """Private memory as it was when this was made. Not thread-safe; the program does not run.

    copied    pages that the last `put_back` has copied, or cleared
    """

    copied = 0

    def __init__(self, backing: Backing, writable: Iterable[Range]) -> None:
        """Keep what there is. What is private afterwards is not shared with other machines.

        writable   guest-physical ranges of what the program may write, and the monitor for it, as
                   long as its map is what it is now

        Raises OSError, ResourceError: nothing is lost then, but what an earlier one has kept cannot
        be put back any more. What it is given by the kernel is the caller's to note (`noted`).
        """
        self._backing = backing
        self._written = Written()
        self._all = _Way(self._written, backing, backing.ranges)
        usual = joined(united(writable), _NEAR, _MOST_SCANNED)
        self._usual = _Way(self._written, backing, usual)
        self._times = 0
        touched = [
            each
            for start, end in backing.ranges
            for each in joined(self._own(start, end), _NEAR, _MOST_MAPPED)
        ]
        given = united([*backing.given, *touched])
        self._template = Template((at, backing.view(at, end - at)) for at, end in given)
        self.given = self._template.given
        self._starts = [start for start, _ in self.given]
        self._source = self._template.map(self._template.size + PAGE_SIZE)
        backing.begin(self.given)  # before it is so: then more is cleared, and nothing lost
        for start, end in touched:
            self._map(start, end)

    def _own(self, start: int, end: int) -> list[Range]:
        """Return what of a range has been touched, guest-physical."""
        shift = self._backing.host(start, end - start) - start
        found = self._written.find(start + shift, end - start)
        return [(low - shift, high - shift) for low, high in pairs(found)]

    def _map(self, start: int, end: int) -> None:
        size, fd = end - start, self._template.fd
        mapping.copy(self._backing.host(start, size), size, fd, start, replace=True)

    def put_back(self, *, everywhere: bool = True) -> None:
        """Let memory be what it was. Again is fine, and must be if it was cut off. Raises OSError,
        with some of it done.

        everywhere   whether more than what is writable may have been written since the last time
        """
        backing = self._backing
        way = self._all if everywhere or backing.replaced else self._usual
        if backing.replaced:
            for start, end in backing.replaced:
                mapping.renew(backing.host(start, end - start), end - start)
                for low, high in clipped(self.given, start, end):
                    self._map(low, high)
            backing.begin(self.given)
        found = way.search()
        if found != way.found:  # as a rule it is the same pages each time
            self._plan(way, found)
        self._times += 1
        if self._times % _OFTEN == 0 and way.copied >= _MANY:
            self._give_back_unchanged(way)
        self.copied = way.copied
        deque(starmap(ctypes.memmove, way.copies), maxlen=0)
        for address, size in way.zeros:
            if way.crowded and size >= HUGE:
                mapping.empty(address, size)
            else:
                mapping.clear(address, size)

    def _plan(self, way: _Way, found: list[list[int]]) -> None:
        """Work out what is to be copied, and what to be cleared."""
        source, copies, zeros = self._source.address, list[Copy](), list[Range]()
        for (_, _, shift), own in zip(way.ranges, found, strict=True):
            for low, high in pairs(own):
                at = low - shift
                for start, stop in self._given_in(at, high - shift):
                    if at < start:
                        zeros.append((at + shift, start - at))
                    copies.append((start + shift, start + source, stop - start))
                    at = stop
                if at < high - shift:
                    zeros.append((at + shift, high - shift - at))
        cleared = sum([size for _, size in zeros])
        way.copies, way.zeros, way.crowded = copies, zeros, cleared > _MOST_CLEARED
        way.copied = (sum([size for _, _, size in copies]) + cleared) // PAGE_SIZE
        way.found = found  # after all else: cut off, it is done again

    def _given_in(self, start: int, end: int) -> Iterable[Range]:
        first = max(bisect_right(self._starts, start) - 1, 0)
        given = self.given
        if first < len(given) and given[first][0] <= start and end <= given[first][1]:
            return ((start, end),)
        return clipped(given[first:], start, end)

    def _give_back_unchanged(self, way: _Way) -> None:
        """Give back the pages that have not been written since the last time."""
        unchanged = [
            (target + at, target + at + PAGE_SIZE)
            for target, source, size in way.copies
            for at in range(0, size, PAGE_SIZE)
            if not _memcmp(target + at, source + at, PAGE_SIZE)
        ]
        unchanged += [
            (page, page + PAGE_SIZE)
            for address, size in way.zeros
            for page in range(address, address + size, PAGE_SIZE)
            if ctypes.string_at(page, PAGE_SIZE) == _ZEROS
        ]
        for start, end in united(unchanged):
            mapping.empty(start, end - start)
        if unchanged:  # to write them now would make them the process's own again
            self._plan(way, way.search())
