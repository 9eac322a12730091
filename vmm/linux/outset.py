"""What a program's address space is when it starts: its map, and its page tables. Pure.

It is the same for all machines of one image and one layout, so it is worked out once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from vmm.guest.abi import PAGE_SIZE
from vmm.guest.blueprint import Shape
from vmm.linux.areas import Areas
from vmm.linux.boot import Layout
from vmm.linux.loader import Program
from vmm.linux.plans import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, Rights
from vmm.linux.spans import Spans
from vmm.linux.tables import Filled, Tables, tables_size

_FIXED = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED


@dataclasses.dataclass(frozen=True, slots=True)
class Outset:
    """An address space with a program, its interpreter and its stack, and nothing else.

    limit    bytes that it may have
    stack    bytes of its stack
    heap     where its heap begins
    """

    layout: Layout
    limit: int
    stack: int
    heap: int
    spans: Spans
    tables: Filled

    @classmethod
    def of(cls, layout: Layout, limit: int, shape: Shape, programs: Iterable[Program]) -> Outset:
        """Lay it out; the first of the programs is the one that the heap is behind.

        Raises SysError if all that is more than it may have.
        """
        first, *others = programs
        areas = Areas(layout.low, layout.arena, limit, shape.stack)
        areas.start_heap(first.end)
        base = layout.arena.end
        space = memoryview(bytearray(tables_size(layout.window, layout.arena)))
        tables = Tables(space, base, layout.window, layout.arena)
        for area in areas.spans:
            tables.set(area.start, area.end, area.prot)
        for segment in (segment for program in (first, *others) for segment in program.segments):
            plan = areas.mmap(segment.start, segment.end - segment.start, segment.rights, _FIXED)
            for step in plan.steps:
                assert isinstance(step, Rights)  # nothing is there yet
                tables.set(step.start, step.end, step.prot)
            areas.put(plan)
        return cls(layout, limit, shape.stack, first.end, areas.spans, tables.filled())

    def areas(self) -> Areas:
        """Return the map, to be changed."""
        layout = self.layout
        areas = Areas(layout.low, layout.arena, self.limit, self.stack, self.spans)
        areas.start_heap(self.heap)
        return areas

    @property
    def held(self) -> int:
        """About how many bytes it takes."""
        return PAGE_SIZE + sum(len(data) for _, data in self.tables.pages)
