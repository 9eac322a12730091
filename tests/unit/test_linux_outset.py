"""The address space that a program begins with: as if each of its segments had been mapped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vmm.guest import abi
from vmm.guest.blueprint import Shape
from vmm.guest.bundled import bundled_guest
from vmm.linux import boot
from vmm.linux.areas import Areas
from vmm.linux.errors import SysError
from vmm.linux.loader import Program, load
from vmm.linux.memory import Memory
from vmm.linux.outset import Outset
from vmm.linux.plans import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE
from vmm.linux.tables import Filled
from vmm.memory.private import PrivateMemory
from vmm.memory.template import Template

MIB = 1 << 20
SIZE = 16 * MIB
SHAPE = Shape(3, abi.Doorbell.MMIO, 0, 64 << 10, 2 * MIB)


def program() -> Program:
    found = load(bundled_guest("linux/bench_program"))
    assert isinstance(found, Program)
    return found


@contextmanager
def memory(layout: boot.Layout, areas: Areas, tables: Filled | None = None) -> Iterator[Memory]:
    template = Template(boot.contents())
    made = Memory(PrivateMemory(layout.private, template), areas, layout.window, tables)
    template.close()
    try:
        yield made
    finally:
        made.close()


def test_it_is_what_mapping_each_segment_makes() -> None:
    image = program()
    layout = boot.layout(image, SIZE, SHAPE)
    outset = Outset.of(layout, SIZE, SHAPE, [image])
    mapped = Areas(layout.low, layout.arena, SIZE, SHAPE.stack)
    mapped.start_heap(image.end)
    with memory(layout, mapped) as one, memory(layout, outset.areas(), outset.tables) as other:
        for start, end, _, rights in image.segments:
            one.mmap(start, end - start, rights, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)
        assert [*other.areas.spans] == [*one.areas.spans]
        assert other.areas.charged == one.areas.charged > image.size
        assert other.tables.filled() == one.tables.filled()
        assert other.brk(0) == one.brk(0) == image.end


def test_what_one_machine_does_with_it_no_other_begins_with() -> None:
    image = program()
    layout = boot.layout(image, SIZE, SHAPE)
    outset = Outset.of(layout, SIZE, SHAPE, [image])
    with memory(layout, outset.areas(), outset.tables) as one:
        one.munmap(image.segments[0].start, image.segments[0].end - image.segments[0].start)
        one.brk(image.end + MIB)
        with memory(layout, outset.areas(), outset.tables) as other:
            assert [*other.areas.spans] == [*outset.spans]
            assert other.tables.filled() == outset.tables != one.tables.filled()


def test_a_program_that_does_not_fit_is_refused() -> None:
    image = program()
    with pytest.raises(SysError):
        Outset.of(boot.layout(image, SIZE, SHAPE), image.size, SHAPE, [image])
