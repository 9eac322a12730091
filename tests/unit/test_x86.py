"""The state a machine is entered in, decoded again as the CPU would (SDM volume 3)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from vmm.guest import abi, boot, x86
from vmm.guest.image import load_image
from vmm.guest.x86 import PAGE, PageTables, Range
from vmm.memory.region import Region

MIB, GIB = 1 << 20, 1 << 30
PRESENT, WRITE, USER, ACCESSED, DIRTY, LARGE = 1, 2, 4, 1 << 5, 1 << 6, 1 << 7
NO_EXECUTE = 1 << 63
ADDRESS = (1 << 52) - 1 & ~0xFFF
NO_WINDOW = Region(abi.WINDOW_GPA, 0)


class Mapped(NamedTuple):
    """Adjacent linear addresses, mapped onto themselves with the same rights."""

    start: int
    end: int
    rights: int


def leaves(data: bytes, table: int, level: int, linear: int, rights: int) -> Iterator[Mapped]:
    """Walk the tables: yield each page with the rights of the whole path to it."""
    assert x86.PAGE_TABLES <= table <= x86.PAGE_TABLES + len(data) - PAGE
    entries = struct.unpack_from("<512Q", data, table - x86.PAGE_TABLES)
    for index, entry in enumerate(entries):
        if not entry & PRESENT:
            assert entry == 0
            continue
        assert entry & ACCESSED, "a walk would write to the tables"
        span = PAGE << 9 * (level - 1)
        start = linear + index * span
        here = (entry & rights & (WRITE | USER)) | ((entry | rights) & NO_EXECUTE)
        if level > 1 and not entry & LARGE:
            yield from leaves(data, entry & ADDRESS, level - 1, start, here)
            continue
        assert level <= 2, "a page of a gigabyte, which not every CPU has"
        assert entry & DIRTY, "a write would write to the tables"
        assert entry & ADDRESS == start, "linear and physical differ"
        yield Mapped(start, start + span, here)


def walk(tables: PageTables, root: int) -> list[Mapped]:
    """What a root maps, neighbours with the same rights joined."""
    found: list[Mapped] = []
    for leaf in leaves(tables.data, root, 4, 0, WRITE | USER):
        last = found[-1] if found else None
        if last and (last.end, last.rights) == (leaf.start, leaf.rights):
            found[-1] = last._replace(end=leaf.end)
        else:
            found.append(leaf)
    return found


def wanted(ranges: tuple[Range, ...]) -> list[Mapped]:
    """The ranges as the walker sees them."""
    found: list[Mapped] = []
    for r in sorted(ranges, key=lambda r: r.start):
        rights = WRITE * r.write | USER * r.user | NO_EXECUTE * (not r.execute)
        if found and (found[-1].end, found[-1].rights) == (r.start, rights):
            found[-1] = found[-1]._replace(end=r.end)
        elif r.start < r.end:
            found.append(Mapped(r.start, r.end, rights))
    return found


def window_range(window: Region, user: bool) -> Range:
    return Range(window.base, window.end, write=True, user=user)


@st.composite
def disjoint_ranges(draw: st.DrawFn) -> tuple[Range, ...]:
    """Ranges of pages anywhere below the doorbell, some of them large enough for large pages."""
    sizes = st.integers(1, 20) | st.integers(500, 1600)
    ranges, page = [], abi.IMAGE_GPA // PAGE
    for _ in range(draw(st.integers(0, 5))):
        page += draw(st.integers(0, 1100))
        end = page + draw(sizes)
        rights = [draw(st.booleans()) for _ in range(3)]
        ranges.append(Range(page * PAGE, end * PAGE, *rights))
        page = end
    return tuple(ranges)


@settings(max_examples=60, deadline=None)
@given(disjoint_ranges(), st.sampled_from([0, 1, 3, 600]), st.booleans())
def test_every_range_is_mapped_onto_itself_with_the_rights_asked_for_and_nothing_else(
    ranges: tuple[Range, ...], window_pages: int, user: bool
) -> None:
    window = Region(abi.WINDOW_GPA, window_pages * x86.LARGE_PAGE)
    ranges = (*x86.system_ranges(user), *ranges)
    tables = x86.page_tables(ranges, window, user)
    assert walk(tables, tables.root) == wanted((*ranges, window_range(window, user)))
    assert walk(tables, tables.root_no_window) == wanted(ranges)


@pytest.mark.parametrize("user", [False, True])
def test_a_real_machines_space_has_guard_pages_and_hides_its_tables(
    guest_elf: Callable[[str], Path], user: bool
) -> None:
    image = load_image(guest_elf("canary"))
    layout = boot.plan(image, 16 * MIB, 256 << 10, GIB, user)
    for root in (layout.tables.root, layout.tables.root_no_window):
        spaces = walk(layout.tables, root)
        mapped = {
            page
            for space in spaces
            if space.start < GIB
            for page in range(space.start // PAGE, space.end // PAGE)
        }
        assert 0 not in mapped
        guard = range(layout.stack.base // PAGE - boot.GUARD // PAGE, layout.stack.base // PAGE)
        assert len(guard) * PAGE > MIB
        assert not mapped & set(guard)
        assert layout.stack.base // PAGE in mapped
        assert layout.stack.end // PAGE not in mapped
        assert not mapped & set(range(x86.PAGE_TABLES // PAGE, x86.TABLES_END // PAGE))
        assert abi.DOORBELL_GPA // PAGE in mapped
        for space in spaces:
            executable = not space.rights & NO_EXECUTE
            assert not (executable and space.rights & WRITE)
            system = space.start < abi.CONTROL_GPA
            assert bool(space.rights & USER) is (user and not system)
    assert Mapped(abi.WINDOW_GPA, abi.WINDOW_GPA + GIB, window_rights(user)) in walk(
        layout.tables, layout.tables.root
    )


def window_rights(user: bool) -> int:
    return WRITE | USER * user | NO_EXECUTE


@pytest.mark.parametrize("size", [2 * MIB, GIB, 3 * GIB, 256 * GIB])
def test_a_window_up_to_256_gib_fits_below_the_image(size: int) -> None:
    window = Region(abi.WINDOW_GPA, size)
    tables = x86.page_tables(x86.system_ranges(True), window, True)
    assert x86.PAGE_TABLES + len(tables.data) <= abi.IMAGE_GPA
    assert walk(tables, tables.root)[-1] == Mapped(window.base, window.end, window_rights(True))


@pytest.mark.parametrize("size", [480 * GIB, 508 * GIB, 508 * GIB + 2 * MIB, 1 << 50])
def test_a_window_whose_tables_do_not_fit_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="use a smaller"):
        x86.page_tables(x86.system_ranges(True), Region(abi.WINDOW_GPA, size), True)


def test_an_image_whose_tables_do_not_fit_is_refused() -> None:
    # One page in every second large page needs a table of its own for each.
    scattered = tuple(
        Range(gpa, gpa + PAGE) for gpa in range(abi.IMAGE_GPA, abi.DOORBELL_GPA, x86.LARGE_PAGE)
    )
    with pytest.raises(ValueError, match="use a smaller"):
        x86.page_tables(scattered, NO_WINDOW, True)


# ---- Descriptor tables and traps ----

AREA = dict(x86.system_area())


def test_the_system_area_lies_in_what_is_mapped_for_it() -> None:
    spaces = x86.system_ranges(True)
    for gpa, data in AREA.items():
        assert any(r.start <= gpa and gpa + len(data) <= r.end and not r.user for r in spaces)
    assert x86.GDT + len(AREA[x86.GDT]) <= x86.TSS
    assert x86.TSS + len(AREA[x86.TSS]) <= x86.IDT


class Segment(NamedTuple):
    base: int
    limit: int
    type: int
    s: int
    dpl: int
    present: int
    long: int
    db: int
    granularity: int


def gdt_entry(selector: int) -> Segment:
    (raw,) = struct.unpack_from("<Q", AREA[x86.GDT], selector & ~7)
    return Segment(
        base=raw >> 16 & 0xFFFFFF | raw >> 56 << 24,
        limit=raw & 0xFFFF | (raw >> 48 & 0xF) << 16,
        type=raw >> 40 & 0xF,
        s=raw >> 44 & 1,
        dpl=raw >> 45 & 3,
        present=raw >> 47 & 1,
        long=raw >> 53 & 1,
        db=raw >> 54 & 1,
        granularity=raw >> 55 & 1,
    )


def test_the_gdt_has_flat_code_and_data_for_both_rings() -> None:
    code, data, long, wide = 0xB, 0x3, (1, 0), (0, 1)
    for selector, ring, kind, size in (
        (x86.CODE0, 0, code, long),
        (x86.DATA0, 0, data, wide),
        (x86.DATA3, 3, data, wide),
        (x86.CODE3, 3, code, long),
    ):
        assert selector & 3 == ring
        assert gdt_entry(selector) == Segment(0, 0xFFFFF, kind, 1, ring, 1, *size, 1)
    assert AREA[x86.GDT][:8] == bytes(8)


def test_the_gdts_last_entry_is_the_busy_tss() -> None:
    assert gdt_entry(x86.TASK) == Segment(x86.TSS, 103, 0xB, 0, 0, 1, 0, 0, 0)
    assert struct.unpack_from("<Q", AREA[x86.GDT], x86.TASK + 8) == (0,)
    assert len(AREA[x86.GDT]) == x86.TASK + 16


def test_the_tss_gives_the_trap_stack_and_no_io_ports() -> None:
    tss = AREA[x86.TSS]
    assert len(tss) == 104
    (rsp0, rsp1, rsp2, _, ist1, *ists) = struct.unpack_from("<11Q", tss, 4)
    assert rsp0 == ist1 == x86.TRAP_STACK.end
    assert [rsp1, rsp2, *ists] == [0] * len([rsp1, rsp2, *ists])
    assert struct.unpack_from("<H", tss, 102) == (104,)  # the bitmap begins after the limit


def test_every_gate_leads_to_its_own_stub_on_the_trap_stack() -> None:
    idt = AREA[x86.IDT]
    assert len(idt) == 16 * x86.VECTORS
    for vector in range(x86.VECTORS):
        low, selector, ist, kind, middle, high, zero = struct.unpack_from(
            "<HHBBHII", idt, 16 * vector
        )
        assert low | middle << 16 | high << 32 == x86.TRAP_STUBS + vector * x86.STUB_BYTES
        assert (selector, ist, zero) == (x86.CODE0, 1, 0)
        privilege = 3 if vector == 3 else 0  # INT3 only: no other exception can be pretended
        assert kind == 0x80 | privilege << 5 | 0xE  # present, interrupt gate


def test_every_stub_halts_and_halts_again() -> None:
    stubs = AREA[x86.TRAP_STUBS]
    assert len(stubs) == x86.VECTORS * x86.STUB_BYTES
    for start in range(0, len(stubs), x86.STUB_BYTES):
        halt, jump, distance = struct.unpack_from("<BBb", stubs, start)
        assert (halt, jump) == (0xF4, 0xEB)
        assert start + 3 + distance == start


def test_the_address_after_a_stubs_halt_tells_the_vector_and_no_other_does() -> None:
    after_halt = {x86.TRAP_STUBS + v * x86.STUB_BYTES + 1: v for v in range(x86.VECTORS)}
    for rip in range(x86.TRAP_STUBS - PAGE, x86.TRAP_STUBS + PAGE):
        assert x86.trap_vector(rip) == after_halt.get(rip)
    assert x86.trap_vector((1 << 64) + x86.TRAP_STUBS + 1) is None
