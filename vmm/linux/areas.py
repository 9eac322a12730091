"""The map of a Linux program's address space, and the rules by which it changes. Pure.

Each call says what it would do: a plan, with the map as it is to be afterwards. Nothing changes
until that is put into place, by one assignment (`Areas.put`). Rules and error numbers are those of
Linux 6.x (mmap(2), mremap(2), brk(2), and mm/mmap.c, mm/mremap.c, mm/mprotect.c for their order);
where an address space of ours differs is said at the call.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from vmm.guest.abi import PAGE_SIZE
from vmm.guest.x86 import LARGE_PAGE
from vmm.linux.errors import SysError
from vmm.linux.spans import Area, Spans
from vmm.memory.region import Region

PROT_READ, PROT_WRITE, PROT_EXEC, PROT_SEM = 1, 2, 4, 8
PROT_GROWSDOWN, PROT_GROWSUP = 0x01000000, 0x02000000
_RIGHTS = PROT_READ | PROT_WRITE | PROT_EXEC

MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE, MAP_TYPE = 1, 2, 3, 0xF
MAP_FIXED, MAP_ANONYMOUS, MAP_32BIT = 0x10, 0x20, 0x40
MAP_HUGETLB, MAP_FIXED_NOREPLACE = 0x40000, 0x100000

MREMAP_MAYMOVE, MREMAP_FIXED, MREMAP_DONTUNMAP = 1, 2, 4

MOST_AREAS = 65530  # vm.max_map_count
MIN_ADDRESS = 0x10000  # vm.mmap_min_addr
STACK_GAP = 1 << 20  # never given away below the stack but by MAP_FIXED (stack_guard_gap)

_ALL = 1 << 64
_TASK_SIZE = (1 << 47) - PAGE_SIZE  # what Linux takes for an address of a program's


class Drop(NamedTuple):
    """Addresses whose contents go: zeros from now on, and out of reach."""

    start: int
    end: int


class Rights(NamedTuple):
    """Addresses that get other rights; what is there stays.

    stale   whether there have been rights, which a CPU may remember
    delta   how much further on what they lead to is: see Area
    """

    start: int
    end: int
    prot: int
    stale: bool = False
    delta: int = 0


class Move(NamedTuple):
    """Contents that move, to where there are none. The rights do not."""

    source: int
    target: int
    size: int


class Lent(NamedTuple):
    """Pages of the window that are mapped: `size` bytes from `address` on.

    write   whether they may be written
    """

    address: int
    size: int
    write: bool


class Plan(NamedTuple):
    """What a call does: steps, in order, and then the map as it is to be.

    result   what the call answers; less than zero if, having done this, it fails with -result
    hidden   see Areas
    """

    result: int
    steps: tuple[Drop | Rights | Move, ...]
    spans: Spans
    hidden: Spans
    brk: int


class Map(NamedTuple):
    """An address space as it is at one moment: see Areas."""

    spans: Spans
    hidden: Spans
    brk: int


class Areas:
    """An address space of two regions: `low`, for the image and its heap, and the `arena`.

    spans   the map
    hidden  what of it has no rights, and may have contents since it had some
    brk     where the heap ends; it begins at `heap`
    limit   bytes that areas that may have contents may have together: reserved addresses cost none

    What is in neither region (the system area, the window, the doorbell) is not to be had. All
    calls raise SysError, and change nothing. Not thread-safe.
    """

    def __init__(self, low: Region, arena: Region, limit: int, stack: int = 0) -> None:
        """`stack` bytes, whole pages, at the arena's top are readable and writable at once."""
        self.low = low
        self.arena = arena
        self.limit = limit
        self.spans = self.hidden = Spans()
        self._top = arena.end - (stack + STACK_GAP if stack else 0)
        if stack:
            area = Area(arena.end - stack, arena.end, PROT_READ | PROT_WRITE)
            self.spans = self.spans.replaced(area.start, area.end, [area])
        self.heap = self.brk = low.end  # no heap, as long as nobody has said where

    def start_heap(self, address: int) -> None:
        """Say where the heap begins: a multiple of the page size, above the image."""
        self.heap = self.brk = address

    def put(self, plan: Plan) -> None:
        """Make the map what a plan says. Twice is as good as once."""
        self.spans, self.hidden, self.brk = plan.spans, plan.hidden, plan.brk

    @property
    def map(self) -> Map:
        """What it is at present."""
        return Map(self.spans, self.hidden, self.brk)

    def back_to(self, kept: Map) -> Plan:
        """Return what makes it what it was, but for the contents of what was there."""
        steps = tuple(_differences(self.spans, kept.spans))
        return Plan(0, steps, kept.spans, kept.hidden, kept.brk)

    @property
    def charged(self) -> int:
        """Bytes that count against the limit."""
        return self.spans.charged + self.hidden.charged

    def parts(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return what of start..end is in each of the two regions, as start and end."""
        parts = [(max(start, r.base), min(end, r.end)) for r in (self.low, self.arena)]
        return [(low, high) for low, high in parts if low < high]

    # ---- the calls ----

    def mmap(
        self,
        address: int,
        length: int,
        prot: int,
        flags: int,
        lent: Lent | None = None,
        live: int = 0,
    ) -> Plan:
        """Map zeros, readable as `prot` says. The result is where.

        Without MAP_ANONYMOUS the area shows a file, whose contents and refusals are the caller's
        business. With `lent`, it shows these pages, and zeros beyond them. Sharing and private
        memory are the same here but for that: there is one process. `live` is of Area.

        MAP_FIXED below MIN_ADDRESS is EPERM, and ENOMEM where nothing is to be had; with
        MAP_FIXED_NOREPLACE, EEXIST. MAP_32BIT maps in the low region. MAP_HUGETLB is ENOMEM, as
        where no huge pages are set aside.
        """
        if length == 0:
            raise SysError(errno.EINVAL)
        size = _rounded(length)
        if not 0 < size <= _TASK_SIZE or flags & MAP_HUGETLB:
            raise SysError(errno.ENOMEM)
        if flags & (MAP_FIXED | MAP_FIXED_NOREPLACE):
            place = self._fixed(address, size, replace=not flags & MAP_FIXED_NOREPLACE)
        else:
            place = self._found(address, size, low=bool(flags & MAP_32BIT))
        kind = flags & MAP_TYPE
        if kind not in (MAP_SHARED, MAP_PRIVATE) and (
            kind != MAP_SHARED_VALIDATE or flags & MAP_ANONYMOUS
        ):
            raise SysError(errno.EINVAL)
        area = Area(place, place + size, prot & _RIGHTS, not flags & MAP_ANONYMOUS, live=live)
        if lent is None:
            return self._mapped(place, [area], self.brk)
        middle = place + min(_rounded(lent.size), size)
        write = None if kind == MAP_PRIVATE else lent.write
        shown = area._replace(end=middle, delta=lent.address - place, write=write)
        parts = [shown, area._replace(start=middle)]
        return self._mapped(place, [a for a in parts if a.start < a.end], self.brk)

    def munmap(self, address: int, length: int) -> Plan:
        """Unmap what there is of a range."""
        size = _rounded(length)
        if address % PAGE_SIZE or size == 0 or address + size > _TASK_SIZE:
            raise SysError(errno.EINVAL)
        return self._checked(self._unmapped(self._plan(0), address, address + size))

    def mprotect(self, address: int, length: int, prot: int) -> Plan:
        """Give a range other rights. Up to the first hole in it, if it has one: then the result is
        -ENOMEM. Of PROT_GROWSDOWN only the stack knows. EACCES for what is shared and lent to be
        read only; what is private and to be written is the range's own from then on, and the
        caller has copied it (`borrowed`).
        """
        grows = prot & (PROT_GROWSDOWN | PROT_GROWSUP)
        prot &= ~grows
        if grows == PROT_GROWSDOWN | PROT_GROWSUP or address % PAGE_SIZE:
            raise SysError(errno.EINVAL)
        if length == 0:
            return self._plan(0)
        end = (address + _rounded(length)) % _ALL
        if end <= address:
            raise SysError(errno.ENOMEM)
        if prot & ~(_RIGHTS | PROT_SEM):
            raise SysError(errno.EINVAL)
        if grows == PROT_GROWSDOWN:
            address = self._grown_down(address, end)
        return self._protected(address, end, prot & _RIGHTS)

    def move_brk(self, address: int) -> Plan:
        """Move the heap's end. The result is where it is then: where it was, if that cannot be."""
        refused = self._plan(self.brk)
        if not self.heap <= address <= self.low.end:
            return refused
        try:
            return self._brk_moved(address)._replace(brk=address)
        except SysError:
            return refused

    def _brk_moved(self, address: int) -> Plan:
        old, new = _rounded(self.brk), _rounded(address)
        if new <= old:
            return self._checked(self._unmapped(self._plan(address), new, old))
        # A page beyond it has to be free, too.
        if next(self.spans.within(old, new + PAGE_SIZE), None):
            raise SysError(errno.ENOMEM)
        return self._mapped(address, [Area(old, new, PROT_READ | PROT_WRITE)], address)

    def mremap(self, old: int, old_size: int, new_size: int, flags: int, new: int) -> list[Plan]:
        """Move or resize an area. The plans are to be carried out in order; the last has the
        result.

        MREMAP_DONTUNMAP is EINVAL, as on kernels that do not know it; so is an old size of 0, which
        only duplicates what is shared. Pages of the window, and a file's own bytes, can be
        unmapped by it, and no more: ENOMEM.
        """
        if flags & ~(MREMAP_MAYMOVE | MREMAP_FIXED) or flags & 3 == MREMAP_FIXED:
            raise SysError(errno.EINVAL)
        old_size, new_size = _rounded(old_size), _rounded(new_size)
        if old % PAGE_SIZE or new_size == 0 or new_size > _TASK_SIZE:
            raise SysError(errno.EINVAL)
        if flags & MREMAP_FIXED and (
            new % PAGE_SIZE
            or new > _TASK_SIZE - new_size
            or (old < new + new_size and new < old + old_size)
        ):
            raise SysError(errno.EINVAL)
        area = self.spans.at(old)
        if area is None:
            raise SysError(errno.EFAULT)
        if old_size == 0:
            raise SysError(errno.EINVAL)
        if (area.delta or area.live) and (flags & MREMAP_FIXED or new_size > old_size):
            raise SysError(errno.ENOMEM)
        if flags & MREMAP_FIXED:
            return self._moved_to(area, old, old_size, new_size, new)
        if new_size < old_size and old + old_size > _TASK_SIZE:
            raise SysError(errno.EINVAL)
        if new_size <= old_size:
            return [self._checked(self._unmapped(self._plan(old), old + new_size, old + old_size))]
        if old + old_size > area.end:
            raise SysError(errno.EFAULT)
        grown = self._grown(area, old, old_size, new_size)
        if grown is not None:
            return [grown]
        if not flags & MREMAP_MAYMOVE:
            raise SysError(errno.ENOMEM)
        target = self._found(0, new_size, low=False)
        return [self._moved(self._plan(target), area, old, old_size, new_size)]

    def borrowed(self, start: int, end: int) -> list[Area]:
        """Return the areas in a range that are private, and have no memory of their own yet."""
        areas = [area.clip(start, end) for area in self.spans.within(start, end)]
        return [area for area in areas if area.delta and area.write is None]

    # ---- what they are made of ----

    def _fixed(self, address: int, size: int, *, replace: bool) -> int:
        if address > _TASK_SIZE - size:
            raise SysError(errno.ENOMEM)
        if address % PAGE_SIZE:
            raise SysError(errno.EINVAL)
        if address < MIN_ADDRESS:
            raise SysError(errno.EPERM)
        if not self._inside(address, size):
            raise SysError(errno.ENOMEM if replace else errno.EEXIST)
        if not replace and next(self.spans.within(address, address + size), None):
            raise SysError(errno.EEXIST)
        return address

    def _inside(self, address: int, size: int) -> bool:
        """Whether a range is one that can be had."""
        return any(r.base <= address and address + size <= r.end for r in (self.low, self.arena))

    def _found(self, hint: int, size: int, *, low: bool) -> int:
        """Return a free place: the one that is wished for, if it is; else the highest, or for what
        is large the one next below at which huge pages begin.
        """
        hint = min(_rounded(hint & -PAGE_SIZE), self.arena.end)
        free = hint and self._inside(hint, size) and (hint < self.arena.base or hint < self._top)
        if free and not next(self.spans.within(hint, hint + size), None):
            return hint
        base, top = (self.low.base, self.low.end) if low else (self.arena.base, self._top)
        place = self.spans.highest_gap(base, top, size)
        if place is None:
            raise SysError(errno.ENOMEM)
        aligned = place & -LARGE_PAGE
        if size < LARGE_PAGE or aligned < base or next(self.spans.within(aligned, place), None):
            return place
        return aligned

    def _grown_down(self, address: int, end: int) -> int:
        """Return where a range begins that is to reach down to where its stack ends."""
        area = self.spans.next(address)
        if area is None or area.start >= end:
            raise SysError(errno.ENOMEM)
        if area.end != self.arena.end:
            raise SysError(errno.EINVAL)
        return area.start

    def _plan(self, result: int) -> Plan:
        """Return a plan that changes nothing."""
        return Plan(result, (), self.spans, self.hidden, self.brk)

    def _mapped(self, result: int, areas: list[Area], brk: int) -> Plan:
        start, end = areas[0].start, areas[-1].end
        steps: list[Drop | Rights | Move] = []
        if next(self.spans.within(start, end), None):
            steps.append(Drop(start, end))
        steps += [Rights(a.start, a.end, a.prot, delta=a.delta) for a in areas if a.prot]
        spans = self.spans.replaced(start, end, areas)
        hidden = _without(self.hidden, start, end)
        return self._checked(Plan(result, tuple(steps), spans, hidden, brk))

    def _unmapped(self, plan: Plan, start: int, end: int) -> Plan:
        """Return a plan that has been made without what is in start..end then."""
        steps = []
        for low, high in self.parts(start, end):
            found = list(plan.spans.within(low, high))
            if found:
                steps.append(Drop(max(found[0].start, low), min(found[-1].end, high)))
        if not steps:
            return plan._replace(steps=())
        return plan._replace(
            steps=tuple(steps),
            spans=plan.spans.replaced(start, end, ()),
            hidden=_without(plan.hidden, start, end),
        )

    def _protected(self, start: int, end: int, prot: int) -> Plan:
        areas: list[Area] = []
        steps: list[Rights] = []
        hidden, reached = self.hidden, start
        for whole in self.spans.within(start, end):
            if whole.start > reached:
                break
            area = whole.clip(start, end)
            delta, write = area.delta, area.write
            if delta and prot & PROT_WRITE:
                if write is False:
                    raise SysError(errno.EACCES)
                delta = delta if write else 0
            areas.append(area._replace(prot=prot, delta=delta))
            if (area.prot, area.delta) != (prot, delta):
                steps.append(Rights(area.start, area.end, prot, area.prot != 0, delta))
                if not prot and not area.file:
                    hidden = hidden.replaced(area.start, area.end, [area])
            reached = area.end
        if not areas:
            raise SysError(errno.ENOMEM)
        if prot:
            hidden = _without(hidden, start, reached)
        result = 0 if reached == end else -errno.ENOMEM
        spans = self.spans.replaced(start, reached, areas)
        return self._checked(Plan(result, tuple(steps), spans, hidden, self.brk))

    def _grown(self, area: Area, old: int, old_size: int, new_size: int) -> Plan | None:
        """Return how an area grows where it is; None if it cannot."""
        end = old + new_size
        if old + old_size != area.end or not self._inside(old, new_size):
            return None
        if next(self.spans.within(area.end, end), None):
            return None
        spans = self.spans.replaced(area.start, end, [area._replace(end=end)])
        steps = (Rights(area.end, end, area.prot),) if area.prot else ()
        return self._checked(Plan(old, steps, spans, self.hidden, self.brk))

    def _moved_to(self, area: Area, old: int, old_size: int, new_size: int, new: int) -> list[Plan]:
        """Return how a part of an area is moved to where somebody wants it."""
        kept = min(old_size, new_size)
        if kept < old_size and old + old_size > _TASK_SIZE:
            raise SysError(errno.EINVAL)
        if new < MIN_ADDRESS:
            raise SysError(errno.EPERM)
        if not self._inside(new, new_size):
            raise SysError(errno.ENOMEM)
        if old + kept > area.end:
            raise SysError(errno.EFAULT)
        cleared = self._unmapped(self._plan(new), new, new + new_size)
        cut = self._unmapped(cleared, old + kept, old + old_size)
        moved = self._moved(cut, area, old, kept, new_size)
        return [cleared, cut, moved]

    def _moved(self, plan: Plan, area: Area, old: int, size: int, new_size: int) -> Plan:
        """Return what moves a part of an area to a plan's result, when that has been made."""
        target = plan.result
        end = target + new_size
        spans = plan.spans.replaced(old, old + size, ())
        spans = spans.replaced(target, end, [area._replace(start=target, end=end)])
        hidden = plan.hidden
        for part in [part.clip(old, old + size) for part in hidden.within(old, old + size)]:
            start, stop = part.start - old + target, part.end - old + target
            hidden = hidden.replaced(start, stop, [part._replace(start=start, end=stop)])
        hidden = _without(hidden, old, old + size)
        steps: list[Drop | Rights | Move] = [Move(old, target, size), Drop(old, old + size)]
        if area.prot:
            steps.append(Rights(target, end, area.prot))
        return self._checked(Plan(target, tuple(steps), spans, hidden, self.brk))

    def _checked(self, plan: Plan) -> Plan:
        """Return a plan whose map is within the limits: as many areas, and bytes, as there may be.

        What there are fewer of is never refused.
        """
        charged = plan.spans.charged + plan.hidden.charged
        count = plan.spans.count + plan.hidden.count
        present = self.spans.count + self.hidden.count
        if (count > MOST_AREAS and count > present) or (
            charged > self.limit and charged > self.charged
        ):
            raise SysError(errno.ENOMEM)
        return plan


def _rounded(size: int) -> int:
    """Return a size in whole pages, as 64-bit arithmetic has it: what is too large is 0."""
    return (size + PAGE_SIZE - 1) % _ALL & -PAGE_SIZE


def _without(spans: Spans, start: int, end: int) -> Spans:
    return spans.replaced(start, end, ()) if spans.count else spans


def _differences(before: Spans, after: Spans) -> Iterator[Drop | Rights]:
    """Yield what turns the rights of one map into those of another."""
    ends = {end for spans in (before, after) for area in spans for end in area[:2]}
    for start, end in pairwise(sorted(ends)):
        old, new = before.at(start) or _NOTHING, after.at(start)
        if new is None:
            if old is not _NOTHING:
                yield Drop(start, end)
        elif (old.prot, old.delta) != (new.prot, new.delta):
            yield Rights(start, end, new.prot, old.prot != 0, new.delta)


_NOTHING = Area(0, 0, 0)
