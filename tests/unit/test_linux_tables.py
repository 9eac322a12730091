"""A Linux program's page tables, walked as the CPU would, against pages in a dictionary."""

from __future__ import annotations

import struct

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from vmm.guest import abi
from vmm.guest.x86 import LARGE_PAGE, PAGE
from vmm.linux.tables import ENTRY_PAGE, Tables, tables_size
from vmm.memory.region import Region

GIB = 1 << 30
WINDOW = Region(abi.WINDOW_GPA, 3 * LARGE_PAGE)
ARENA = Region(5 * GIB, 4 * LARGE_PAGE)
PRESENT, WRITE, USER, LARGE, NO_EXECUTE = 1, 2, 4, 1 << 7, 1 << 63
ADDRESS = (1 << 52) - PAGE


class Made:
    """Tables, and the memory they are in."""

    def __init__(self, window: Region = WINDOW, arena: Region = ARENA) -> None:
        self.base = arena.end
        self.memory = bytearray(tables_size(window, arena))
        self.tables = Tables(memoryview(self.memory), self.base, window, arena)
        self.shown: dict[int, int] = {}  # pages that lead elsewhere, and where

    def entries(self, table: int) -> tuple[int, ...]:
        """Return a table's entries."""
        at = table - self.base
        assert 0 <= at <= len(self.memory) - PAGE
        assert at % PAGE == 0
        return struct.unpack_from("<512Q", self.memory, at)

    def walk(self, root: int) -> dict[int, tuple[int, int]]:
        """Return each leaf's size and rights, by its address."""
        found: dict[int, tuple[int, int]] = {}
        self._walk(root, 4, 0, found)
        return found

    def _walk(self, table: int, level: int, linear: int, found: dict[int, tuple[int, int]]) -> None:
        for index, entry in enumerate(self.entries(table)):
            if not entry:
                continue
            assert entry & PRESENT
            assert entry & 1 << 5, "a walk would write to the tables"
            span = PAGE << 9 * (level - 1)
            start = linear + index * span
            if level > 1 and not (level == 2 and entry & LARGE):
                assert entry & (WRITE | USER) == WRITE | USER
                assert not entry & (NO_EXECUTE | LARGE)
                self._walk(entry & ADDRESS, level - 1, start, found)
                continue
            assert entry & 1 << 6, "a write would write to the tables"
            assert entry & ADDRESS == self.shown.get(start, start), "it leads elsewhere"
            user, write = entry & USER, entry & WRITE
            rights = 1 | bool(write) << 1 | (0 if entry & NO_EXECUTE else 4)
            found[start] = span, rights if user else -rights

    def stale(self, address: int) -> list[int]:
        """Return what the table of 2 MiB says of its pages, whether or not it is in use."""
        directory, table, _ = self.tables._places(address)
        del directory
        return [self.tables._words[table + n] for n in range(512)]


def split(leaves: dict[int, tuple[int, int]]) -> dict[int, int]:
    return {
        at: rights
        for start, (span, rights) in leaves.items()
        for at in range(start, start + span, PAGE)
    }


def own(leaves: dict[int, int], arena: Region = ARENA) -> dict[int, int]:
    """Return the pages that are a program's, and not there from the beginning."""
    return {
        at: rights
        for at, rights in leaves.items()
        if arena.base <= at < arena.end or LARGE_PAGE <= at < abi.DOORBELL_GPA
    }


SYSTEM = {
    **dict.fromkeys((0x1000, 0x2000), -1),
    0x3000: -5,
    **dict.fromkeys(range(0x4000, 0x8000, PAGE), -3),
    ENTRY_PAGE.start: 5,
    abi.DOORBELL_GPA: 3,
}


def test_at_first_there_is_what_every_program_has() -> None:
    made = Made()
    found = split(made.walk(made.tables.root))
    control = {at: r for at, r in found.items() if abi.CONTROL_GPA <= at < LARGE_PAGE}
    assert set(control.values()) == {3}
    window = dict.fromkeys(range(WINDOW.base, WINDOW.end, PAGE), 3)
    assert found == {**SYSTEM, **control, **window}
    assert all(
        span == LARGE_PAGE
        for at, (span, _) in made.walk(made.tables.root).items()
        if at >= WINDOW.base
    )
    assert split(made.walk(made.tables.root_no_window)) == {**SYSTEM, **control}


regions = st.one_of(
    st.tuples(st.just(ARENA.base), st.integers(0, 2047), st.integers(1, 1100)),
    st.tuples(st.just(0), st.integers(512, 1600), st.integers(1, 600)),
    st.tuples(st.just(0), st.integers(511 * 512, 512 * 512 - 2), st.integers(1, 600)),
)
blocks = st.tuples(st.just(ARENA.base), st.sampled_from((0, 512, 1024, 1536)), st.just(512))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.one_of(regions, blocks), st.sampled_from((0, 1, 2, 3, 3, 4, 5, 7))),
        min_size=1,
        max_size=14,
    )
)
@example([((ARENA.base, 0, 512), 3), ((ARENA.base, 7, 1), 1), ((ARENA.base, 7, 1), 3)])
@example([((ARENA.base, 0, 512), 3), ((ARENA.base, 7, 1), 1), ((ARENA.base, 0, 512), 0)])
def test_tables_say_what_was_set_last(sets: list[tuple[tuple[int, int, int], int]]) -> None:
    made, model, filled = Made(), {}, set()
    for (base, first, count), prot in sets:
        end = ARENA.end if base else abi.DOORBELL_GPA
        start = base + first * PAGE
        stop = min(start + count * PAGE, end)
        made.tables.set(start, stop, prot)
        for at in range(start, stop, PAGE):
            model[at] = prot | 1 if prot else 0
        if start % LARGE_PAGE or (stop - start) % LARGE_PAGE:
            filled |= {start & -LARGE_PAGE, (stop - PAGE) & -LARGE_PAGE}
    wanted = {at: prot for at, prot in model.items() if prot}
    leaves = made.walk(made.tables.root)
    assert own(split(leaves)) == wanted
    assert own(split(made.walk(made.tables.root_no_window))) == wanted
    assert all(made.tables.prot(at) == prot for at, prot in model.items())
    for block in range(ARENA.base, ARENA.end, LARGE_PAGE):
        rights = {wanted.get(at, 0) for at in range(block, block + LARGE_PAGE, PAGE)}
        if len(rights) == 1 and rights != {0}:
            assert leaves[block][0] == LARGE_PAGE, "what is the same is one page"
        table = made.stale(block)
        if any(table):
            for at, entry in zip(range(block, block + LARGE_PAGE, PAGE), table, strict=True):
                assert bool(entry) == bool(wanted.get(at)), "a table tells what is no longer so"


def test_rights_of_a_part_of_what_was_large_are_told() -> None:
    made = Made()
    made.tables.set(ARENA.base, ARENA.end, 3)
    assert not made.tables.mixed
    made.tables.set(ARENA.base, ARENA.base + PAGE, 0)
    made.tables.set(ARENA.base, ARENA.base + PAGE, 3)
    assert not made.tables.mixed
    made.tables.set(ARENA.base + LARGE_PAGE, ARENA.base + 2 * LARGE_PAGE, 0)
    made.tables.set(ARENA.base + LARGE_PAGE, ARENA.base + LARGE_PAGE + PAGE, 1)
    assert made.tables.mixed


@pytest.mark.parametrize("gib", [1, 3])
def test_directories_of_more_than_one_gib(gib: int) -> None:
    window = Region(abi.WINDOW_GPA, 2 * GIB + LARGE_PAGE)
    arena = Region(7 * GIB, gib * GIB + LARGE_PAGE)
    made = Made(window, arena)
    made.tables.set(arena.base, arena.end, 3)
    leaves = made.walk(made.tables.root)
    assert own(leaves, arena).keys() == set(range(arena.base, arena.end, LARGE_PAGE))
    seen = [at for at in leaves if window.base <= at < window.end]
    assert seen == list(range(window.base, window.end, LARGE_PAGE))


def test_without_a_window_both_roots_are_the_same() -> None:
    arena = Region(4 * GIB, LARGE_PAGE)
    made = Made(Region(abi.WINDOW_GPA, 0), arena)
    made.tables.set(arena.base, arena.end, 1)
    assert made.walk(made.tables.root) == made.walk(made.tables.root_no_window)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_pages_of_the_window_are_shown_elsewhere_and_no_others_are(data: st.DataObject) -> None:
    made, wanted = Made(), dict[int, int]()
    pages = st.integers(0, ARENA.pages)
    for _ in range(data.draw(st.integers(1, 8))):
        first, last = sorted((data.draw(pages), data.draw(pages)))
        start, end = ARENA.base + first * PAGE, ARENA.base + last * PAGE
        prot = data.draw(st.sampled_from((0, 1, 3, 5, 7)))
        delta = data.draw(st.sampled_from((0, WINDOW.base - ARENA.base - 5 * PAGE)))
        made.tables.set(start, end, prot, delta)
        for at in range(start, end, PAGE):
            wanted.pop(at, None)
            made.shown.pop(at, None)
            if prot:
                wanted[at] = prot
            if prot and delta:
                made.shown[at] = at + delta
            assert made.tables.prot(at) == prot
        found = made.walk(made.tables.root)
        assert own(split(found)) == wanted
        assert all(found[at][0] == PAGE for at in made.shown)


def test_what_was_one_large_page_is_to_be_forgotten_when_a_part_leads_elsewhere() -> None:
    made = Made()
    made.tables.set(ARENA.base, ARENA.base + LARGE_PAGE, 3)
    assert not made.tables.mixed
    made.tables.set(ARENA.base, ARENA.base + PAGE, 3, WINDOW.base - ARENA.base)
    assert made.tables.mixed


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_tables_that_begin_as_others_were_become_what_those_become(data: st.DataObject) -> None:
    pages = st.integers(0, ARENA.pages)

    def change(*all_tables: Tables) -> None:
        for _ in range(data.draw(st.integers(0, 5))):
            first, last = sorted((data.draw(pages), data.draw(pages)))
            prot = data.draw(st.sampled_from((0, 1, 3, 5)))
            for tables in all_tables:
                tables.set(ARENA.base + first * PAGE, ARENA.base + last * PAGE, prot)

    one = Made()
    change(one.tables)
    memory = bytearray(len(one.memory))
    other = Tables(memoryview(memory), one.base, WINDOW, ARENA, one.tables.filled())
    assert memory == one.memory
    change(one.tables, other)
    assert memory == one.memory
    assert other.mixed == one.tables.mixed
