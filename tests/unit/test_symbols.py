"""From an instruction pointer to a symbol and a line of source."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given, settings
from unit.elf_maker import COMPRESSED, SHT_STRTAB, SHT_SYMTAB, Elf

from vmm.errors import Place
from vmm.guest import elf
from vmm.guest.symbols import Symbols

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def canary(guest_elf: Callable[[str], Path]) -> bytes:
    return guest_elf("canary").read_bytes()


def symbols_of(data: bytes) -> Symbols:
    return Symbols(elf.sections(elf.Source.of(data), Symbols.WANTED))


def functions(data: bytes) -> dict[str, tuple[int, int]]:
    """Every function's address and size."""
    symbols = ELFFile(io.BytesIO(data)).get_section_by_name(".symtab").iter_symbols()
    return {
        symbol.name: (symbol["st_value"], symbol["st_size"])
        for symbol in symbols
        if symbol["st_info"]["type"] == "STT_FUNC"
    }


def test_the_entry_point_is_the_start_up_code(canary: bytes) -> None:
    entry = ELFFile(io.BytesIO(canary)).header["e_entry"]
    place = symbols_of(canary).place(entry)
    assert (place.symbol, place.offset, place.file) == ("_start", 0, "start.c")
    assert place.line is not None
    source = (ROOT / "guests/lib/start.c").read_text().splitlines()
    assert any("_start" in line for line in source[place.line - 2 : place.line])
    assert str(place) == f"_start+0x0 at start.c:{place.line}"


def test_every_function_is_found_from_its_first_byte_to_its_last(canary: bytes) -> None:
    symbols = symbols_of(canary)
    found = functions(canary)
    assert {"_start", "main"} < found.keys()
    for start, size in found.values():
        names = {name for name, bounds in found.items() if bounds == (start, size)}  # aliases
        for offset in (0, size - 1):
            place = symbols.place(start + offset)
            assert place.symbol in names
            assert place.offset == offset
            assert place.file is not None


def test_lines_are_those_of_the_guests_own_source(canary: bytes) -> None:
    start, size = functions(canary)["main"]
    source = (ROOT / "guests/canary.c").read_text().splitlines()
    symbols = symbols_of(canary)
    places = [symbols.place(rip) for rip in range(start, start + size)]
    lines = {place.line for place in places if place.file == "canary.c"}
    first = next(n for n, line in enumerate(source, 1) if line.endswith("int main(void)"))
    assert lines
    assert all(line is not None and first <= line <= len(source) for line in lines)


def test_lines_are_those_of_the_whole_table_decoded(canary: bytes) -> None:
    dwarf, symbols = ELFFile(io.BytesIO(canary)).get_dwarf_info(), symbols_of(canary)
    compared = 0
    for unit in dwarf.iter_CUs():
        program = dwarf.line_program_for_CU(unit)
        states = [entry.state for entry in program.get_entries() if entry.state is not None]
        pairs = [
            (row, following)
            for row, following in itertools.pairwise(states)
            if not row.end_sequence and following.address != row.address
        ]
        for row, following in pairs[::10]:  # a look takes its time
            file = program["file_entry"][row.file - (program["version"] < 5)].name.decode()
            for rip in (row.address, following.address - 1):
                place = symbols.place(rip)
                assert (place.file, place.line) == (Path(file).name, row.line)
                compared += 1
    assert compared > 200


@pytest.mark.parametrize("rip", [0, 0x1FFFFF, 0x300000, (1 << 64) - 1])
def test_an_address_outside_of_the_image_has_no_place(canary: bytes, rip: int) -> None:
    assert symbols_of(canary).place(rip) == Place()


def test_an_image_without_debug_information_still_has_its_symbols(canary: bytes) -> None:
    start, _ = functions(canary)["main"]
    stripped = canary.replace(b".debug_line\0", b".dxbug_line\0")
    assert stripped != canary
    assert symbols_of(stripped).place(start + 1) == Place("main", 1)


@pytest.mark.parametrize("data", [b"", b"\x7fELF", bytes(4096), b"\xff" * 4096])
@pytest.mark.parametrize("compressed", [False, True])
def test_garbage_has_no_place(data: bytes, compressed: bool) -> None:
    made = Elf()
    for name in Symbols.WANTED:
        made.section(name, data, flags=COMPRESSED * compressed)
    made.section(".symtab", data, SHT_SYMTAB, COMPRESSED * compressed, link=5)
    made.section(".strtab", data, SHT_STRTAB, COMPRESSED * compressed)
    assert symbols_of(made.pack()).place(0x201000) == Place()
    garbage = dict.fromkeys((".symtab", ".strtab", *Symbols.WANTED), data)
    assert Symbols(garbage).place(0x201000) == Place()


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_fault_report_never_fails_over_damaged_debug_information(
    canary: bytes, data: st.DataObject
) -> None:
    damaged = bytearray(canary)
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0x1000, len(canary) - 1))
        junk = data.draw(st.binary(min_size=1, max_size=20))
        damaged[start : start + len(junk)] = junk
    start, _ = functions(canary)["main"]
    assert "\n" not in str(symbols_of(bytes(damaged)).place(start))
