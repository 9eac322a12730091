"""Symbol and line tables that are made to cost, or to deceive: a look into them takes little."""

from __future__ import annotations

import struct

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from unit.elf_maker import (
    COMPRESSED,
    ENTRY,
    Elf,
    compressed,
    line_unit,
    rows,
    symbol,
    uleb,
)
from unit.image_scene import MAIN, MIB, NAMES, costs, guest, place, quick

from vmm.errors import Place
from vmm.guest import lines
from vmm.guest.image import parse_image

# ---- Symbols ----


def test_a_large_symbol_table_is_searched_as_far_as_it_may_be() -> None:
    others = symbol(0, 0x10, 16)
    for count, found in ((200_000, Place("main")), (600_000, Place())):
        made = Elf()
        made.symbols(others * count + MAIN, NAMES)
        data = made.pack()
        with costs(64):
            assert parse_image(data, "x.elf").symbols.place(ENTRY) == found


def test_a_name_without_an_end_is_cut() -> None:
    made = Elf()
    made.symbols(symbol(0, ENTRY, 16), b"n" * (8 * MIB))
    name = place(made).symbol
    assert name == "n" * 199 + "…"


@pytest.mark.parametrize("names", [b"", b"\0", b"\0\0main"])
def test_a_symbol_without_a_name_is_none(names: bytes) -> None:
    made = Elf()
    made.symbols(MAIN, names)
    assert place(made) == Place()


def test_names_are_printable() -> None:
    made = Elf()
    made.symbols(symbol(0, ENTRY, 16), "\x1b[2J\u202eevil\npageferry: é\0".encode() + b"\xff")
    made.section(".debug_line", line_unit(rows(ENTRY, [(8, 1)]), file=b"dir/\x1b]0;\x07\nx.c"))
    found = place(made)
    mark = "\N{REPLACEMENT CHARACTER}"
    assert found == Place(f"{mark}[2J{mark}evil{mark}pageferry: é", 4, f"{mark}]0;{mark * 2}x.c", 2)


# ---- Lines ----


@pytest.mark.parametrize("wide", [False, True], ids=["32-bit", "64-bit"])
@pytest.mark.parametrize("version", [2, 3, 4, 5])
def test_every_kind_of_line_table_is_read(version: int, wide: bool) -> None:
    program = rows(ENTRY, [(4, 10), (4, 5), (4, 1)])
    unit = line_unit(program, version, wide)
    elsewhere = line_unit(rows(0x10, [(4, 77)]), version, wide, b"y.c")
    made = guest(debug_line=elsewhere + unit + elsewhere)
    lines = [place(made, ENTRY + n).line for n in range(13)]
    assert lines == [11] * 4 + [16] * 4 + [17] * 4 + [None]
    assert place(made) == Place("main", 4, "x.c", 16)


def test_a_compressed_table_is_read_and_an_unknown_compression_costs_the_line_only() -> None:
    table = line_unit(rows(ENTRY, [(16, 10)]))
    for kind, found in ((1, Place("main", 4, "x.c", 11)), (2, Place("main", 4))):
        made = guest()
        made.section(".debug_line", compressed(table, kind), flags=COMPRESSED)
        assert place(made) == found


@pytest.mark.parametrize("name", [".debug_line", ".debug_str", ".debug_line_str"])
def test_what_swells_when_it_is_decompressed_is_cut(name: str) -> None:
    made = guest()
    made.section(name, compressed(bytes(20 * MIB)), flags=COMPRESSED)
    data = made.pack()
    with costs(70):
        assert parse_image(data, "x.elf").symbols.place(ENTRY) == Place("main")


BEFORE = b"\0\x09\2" + struct.pack("<Q", ENTRY - 8)
FULL = lines._MOST_READS - 1024  # nearly all that is read for one place
BOMBS = {
    "more rows than are read": line_unit(BEFORE + b"\x12" * (8 * MIB)),
    "rows that stand still": line_unit(BEFORE + b"\x12" * FULL),
    "rows of more bytes": line_unit(BEFORE + b"\4\1" * (FULL // 2)),
    "numbers as long as can be": line_unit(BEFORE + (b"\2" + b"\x80" * 8 + b"\0") * (FULL // 10)),
    "an endless number": line_unit(BEFORE + b"\2" + b"\xff" * FULL),
    "opcodes without operands": line_unit(BEFORE + b"\5\1" * (FULL // 2)),
    "opcodes of nothing": line_unit(BEFORE + b"\6" * FULL),
    "sequences without end": line_unit(BEFORE * (4 * MIB // 11)),
    "units without end": line_unit(BEFORE) * 100_000,
    "empty units": bytes(4 * MIB),
    "rows that are copies": line_unit(BEFORE + b"\1" * FULL),
    "files without end": line_unit(BEFORE, file=b"x\0\0\0\0" * (FULL // 5) + b"x"),
    "files that are added": line_unit(BEFORE + b"\0\5\3a\0\0\0\0" * (FULL // 8)),
    "sequences that fit": line_unit(BEFORE * (FULL // 11)) * 90,
    "units of which nothing can be read": struct.pack("<I", 11) + BEFORE,
    "many of them": (struct.pack("<I", 11) + BEFORE) * 100_000,
    "a file that there is not": line_unit(BEFORE + b"\4" + uleb(1 << 62) + b"\1\2\x20\0\1\1"),
    "a line that no file has": line_unit(BEFORE + b"\3" + uleb(1 << 60) + b"\1\2\x20\0\1\1"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_line_table_that_is_made_to_cost_has_no_line(name: str) -> None:
    data = guest(debug_line=BOMBS[name]).pack()
    loaded = parse_image(data, "x.elf")
    with quick():
        found = loaded.symbols.place(ENTRY)
    assert (found.symbol, found.line) == ("main", None)


def test_what_is_found_within_the_budget_is_the_same_for_whoever_asks() -> None:
    late = line_unit(BEFORE + b"\6" * (FULL - 2000) + rows(ENTRY, [(16, 10)]))
    nearer = line_unit(rows(ENTRY, [])) * 40
    for table, line in ((late, 11), (nearer + late, None)):
        data = guest(debug_line=table).pack()
        assert {parse_image(data, "x.elf").symbols.place(ENTRY).line for _ in range(2)} == {line}


@settings(max_examples=300, deadline=None)
@given(
    program=st.binary(max_size=60),
    version=st.sampled_from([2, 3, 4, 5]),
    base=st.integers(1, 13),
    cut=st.integers(0, 40),
    flips=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4),
)
def test_any_bytes_at_all_are_a_line_or_none(
    program: bytes, version: int, base: int, cut: int, flips: list[tuple[int, int]]
) -> None:
    table = bytearray(line_unit(BEFORE + program, version, base=base))
    for at, value in flips:
        table[at % len(table)] = value
    strings = bytes(range(256))
    sections = {".debug_line": bytes(table[: len(table) - cut]), ".debug_str": strings}
    found = lines.line_at(sections, ENTRY)
    assert found is None or (found.file.isprintable() and found.number < 1 << 32)


def test_tables_of_files_that_take_no_bytes_are_not_counted_through() -> None:
    program = rows(ENTRY, [(16, 1)])
    unit = bytearray(line_unit(program, version=5))
    formats = unit.index(b"dir\0") - 4
    for tables in (bytes([0]) + uleb(1 << 60), bytes([1, 1, 0x19]) + uleb(1 << 60)):
        changed = unit[:formats] + tables.ljust(16, b"\0") + unit[formats + 16 :]
        with costs(4):
            assert place(guest(debug_line=bytes(changed))) == Place("main", 4)


def test_strings_that_do_not_end_are_not_read_for_each_file() -> None:
    files = bytes([1, 1, 0x1F]) + uleb(20_000) + bytes(4 * 20_000)  # DW_FORM_line_strp
    unit = bytearray(line_unit(BEFORE, version=5))
    start = unit.index(b"dir\0") - 4
    body = bytes(unit[4:start]) + files + files + BEFORE
    made = guest(debug_line=struct.pack("<I", len(body)) + body, debug_line_str=b"n" * (8 * MIB))
    data = made.pack()
    loaded = parse_image(data, "x.elf")
    with costs(60):
        assert loaded.symbols.place(ENTRY) == Place("main")


@pytest.mark.parametrize("rest", [b"\xf0\xff\xff\xff", b"\xff\xff\xff\xff", b"\xff"])
def test_what_follows_the_units_does_not_hide_them(rest: bytes) -> None:
    table = line_unit(rows(ENTRY, [(16, 10)])) + rest.ljust(20, b"\xf0")
    assert place(guest(debug_line=table)) == Place("main", 4, "x.c", 11)


def test_a_unit_that_cannot_be_read_does_not_hide_the_next() -> None:
    bomb, bad = BOMBS["more rows than are read"], line_unit(rows(ENTRY, [(16, 3)]), version=9)
    good = line_unit(rows(ENTRY, [(16, 10)]))
    assert place(guest(debug_line=bomb + bad + good)) == Place("main", 4, "x.c", 11)
