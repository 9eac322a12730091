"""From an address to a source line, by an image's DWARF line programs (versions 2 to 5).

pyelftools decodes them; an image's author chooses them. So it decodes those that may speak of the
address only, within a budget, which is counted and not timed: whoever asks again gets the same
answer.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import re
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import IO, Any, NamedTuple, cast

from elftools.common.utils import struct_parse
from elftools.construct import Struct
from elftools.dwarf.dwarfinfo import DebugSectionDescriptor, DwarfConfig, DWARFInfo
from elftools.dwarf.structs import DWARFStructs

from vmm.guest.elf import Budget, Malformed, Source, Stream
from vmm.guest.text import decoded

WANTED = (".debug_line", ".debug_line_str", ".debug_str")

_MOST_READS = 100_000  # by pyelftools, for one address; a byte of a line program takes about one
_MOST_TABLE = 10 << 20  # bytes of line programs that are looked through for the address
_MOST_UNITS = 10_000
_MOST_NAME = 100
_SEQUENCE = re.compile(rb"\x00\x09\x02(.{8})", re.DOTALL)  # DW_LNE_set_address, which begins one
_SECTIONS = [name for name in inspect.signature(DWARFInfo).parameters if name.endswith("_sec")]


class Line(NamedTuple):
    """A file's name, without folders, and a line in it."""

    file: str
    number: int


class _Unit(NamedTuple):
    """A unit of .debug_line: what it is, and its bytes."""

    structs: Any
    data: bytes


def line_at(sections: Mapping[str, bytes], address: int) -> Line | None:
    """Return the source line of an address, or None if it has none, or none that is found in time.

    sections    those WANTED that there are
    """
    budget = Budget(_MOST_READS)
    for unit in _candidates(sections.get(".debug_line", b"")[:_MOST_TABLE], address):
        if len(unit.data) <= budget.left:
            with contextlib.suppress(Exception):  # pyelftools stumbles in many ways
                if found := _search(unit, sections, address, budget):
                    return found
    return None


def _candidates(table: bytes, address: int) -> list[_Unit]:
    """Return the units that begin to speak of addresses below `address`, the nearest first.

    pyelftools has such a search for .debug_aranges only, which clang and zig do not write. Without
    it every unit is decoded: a second for 150 KiB, and a C library has more.
    """
    nearest: list[tuple[int, int, _Unit]] = []
    with contextlib.suppress(Exception):  # as far as they can be told apart
        for count, unit in enumerate(_units(table)):
            distances = (
                address - int.from_bytes(match[1], "little")
                for match in _SEQUENCE.finditer(unit.data)
            )
            distance = min((far for far in distances if far >= 0), default=None)
            if distance is not None:
                nearest.append((distance, count, unit))
    return [unit for _, _, unit in sorted(nearest)]


def _units(table: bytes) -> Iterator[_Unit]:
    """Yield the units of .debug_line, as far as it is whole, but for those that are too large.

    Raises Malformed.
    """
    stream, at = cast(IO[bytes], Stream(Source.of(table), Budget(_MOST_UNITS))), 0
    while at + 12 <= len(table):
        wide = table.startswith(b"\xff\xff\xff\xff", at)
        structs, initial_length = _formats(wide)
        length = struct_parse(initial_length, stream, at)
        start, at = at, stream.tell() + length
        if at > len(table):
            return
        if at - start <= _MOST_READS:
            yield _Unit(structs, table[start:at])


@functools.cache
def _formats(wide: bool) -> tuple[Any, Any]:
    """Return how 32-bit or 64-bit DWARF is laid out, and the length that a unit begins with."""
    structs = DWARFStructs(little_endian=True, dwarf_format=64 if wide else 32, address_size=8)
    return structs, structs.Dwarf_initial_length("")


def _search(
    unit: _Unit, sections: Mapping[str, bytes], address: int, budget: Budget
) -> Line | None:
    """Return the line of an address in a unit, if it is there. Raises what pyelftools does."""
    _check_tables(unit, budget)
    program: Any = _dwarf(unit, sections, budget).line_program_for_CU(_compilation(unit))
    if not 2 <= program["version"] <= 5:
        return None
    states = (entry.state for entry in program.get_entries() if entry.state is not None)
    for row, following in itertools.pairwise(states):
        if row.address <= address < following.address and not row.end_sequence:
            return _line(program, row.file, row.line)
    return None


def _compilation(unit: _Unit) -> Any:
    """Return what stands for the unit of .debug_info that names this one: nothing else is asked of
    it, and so .debug_info need be neither there, nor whole, nor small.
    """
    top = SimpleNamespace(attributes={"DW_AT_stmt_list": SimpleNamespace(value=0)})
    return SimpleNamespace(structs=unit.structs, get_top_DIE=lambda: top)


def _line(program: Any, file: int, number: int) -> Line | None:
    if program["version"] < 5:
        file -= 1  # files are counted from 1 before DWARF 5
    if file < 0 or not 0 <= number < 1 << 32:
        return None
    name = program["file_entry"][file].name
    return Line(decoded(name.rpartition(b"/")[2], _MOST_NAME), number)


def _dwarf(unit: _Unit, sections: Mapping[str, bytes], budget: Budget) -> DWARFInfo:
    """Return one unit of .debug_line, with its strings, as a file of its own."""
    parts = {name: sections[name] for name in WANTED if name in sections}
    made: dict[str, Any] = dict.fromkeys(_SECTIONS)
    for name, data in (parts | {".debug_line": unit.data}).items():
        stream = cast(IO[bytes], Stream(Source.of(data), budget))
        made[f"{name[1:]}_sec"] = DebugSectionDescriptor(stream, name, 0, len(data), 0)
    return DWARFInfo(DwarfConfig(True, "x64", 8), **made)


def _check_tables(unit: _Unit, budget: Budget) -> None:
    """Raise Malformed if a table of DWARF 5 has entries without a field that takes a byte.

    They take no reads then: pyelftools would make as many as the table says, 2^64.
    """
    parts = unit.structs.Dwarf_lineprog_header.subcons
    names = [part.name for part in parts]
    for table, fields in (
        ("directories", "directory_entry_format"),
        ("file_names", "file_name_entry_format"),
    ):
        stream = cast(IO[bytes], Stream(Source.of(unit.data), budget))
        before = struct_parse(Struct("", *parts[: names.index(table)]), stream)
        forms = {field.form for field in before[fields] or ()}
        if before["version"] >= 5 and not forms - {"DW_FORM_flag_present"}:
            raise Malformed
