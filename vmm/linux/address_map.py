"""The map of a Linux program's address space: where things lie, and may lie. Pure.

What would change it is a plan, with the map as it is to be afterwards. Nothing changes until that
is put into place, by one assignment (`AddressMap.put`).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from vmm.guest.abi import PAGE_SIZE
from vmm.guest.x86 import LARGE_PAGE
from vmm.linux.errors import SysError
from vmm.linux.plans import PROT_READ, PROT_WRITE, Drop, Move, Plan, Rights
from vmm.linux.spans import Area, Spans
from vmm.memory.region import Region

MOST_AREAS = 65530  # vm.max_map_count
MIN_ADDRESS = 0x10000  # vm.mmap_min_addr
STACK_GAP = 1 << 20  # never given away below the stack but by MAP_FIXED (stack_guard_gap)

ALL = 1 << 64
# What Linux takes for an address of a program's.
TASK_SIZE = (1 << 47) - PAGE_SIZE


class Map(NamedTuple):
    """An address space as it is at one moment: see AddressMap."""

    spans: Spans
    hidden: Spans
    brk: int


class AddressMap:
    """Two regions: `low`, for the image and its heap, and the `arena`.

    spans   the map
    hidden  what of it has no rights, and may have contents since it had some
    brk     where the heap ends; it begins at `heap`
    limit   bytes that areas that may have contents may have together: reserved addresses cost none

    What is in neither region (the system area, the window, the doorbell) is not to be had. All that
    plans raises SysError, and changes nothing. Not thread-safe.
    """

    def __init__(
        self, low: Region, arena: Region, limit: int, stack: int = 0, spans: Spans | None = None
    ) -> None:
        """`stack` bytes, whole pages, at the arena's top are readable and writable at once; with
        `spans`, what is in these is there.
        """
        self.low = low
        self.arena = arena
        self.limit = limit
        self.hidden = Spans()
        self.spans = self.hidden if spans is None else spans
        self._top = arena.end - (stack + STACK_GAP if stack else 0)
        if stack and spans is None:
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

    def _fixed(self, address: int, size: int, *, replace: bool) -> int:
        if address > TASK_SIZE - size:
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
        hint = min(rounded(hint & -PAGE_SIZE), self.arena.end)
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
        hidden = without(self.hidden, start, end)
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
            hidden=without(plan.hidden, start, end),
        )

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


def rounded(size: int) -> int:
    """Return a size in whole pages, as 64-bit arithmetic has it: what is too large is 0."""
    return (size + PAGE_SIZE - 1) % ALL & -PAGE_SIZE


def without(spans: Spans, start: int, end: int) -> Spans:
    """Return areas without what is in a range."""
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
