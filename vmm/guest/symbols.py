"""From an instruction pointer to a symbol and a source line, as far as the image has them."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from vmm.errors import Place

_MOST_PLACES = 256


class Symbols:
    """An image's symbol table and line program, read at the first question: faults are rare."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._read: dict[int, list[tuple[int, int, str, int]]] = {}
        self._places: dict[int, Place] = {}

    def place(self, rip: int) -> Place:
        """Return where `rip` lies. What the image does not say, or says wrongly, stays None."""
        found = self._places.get(rip)
        if found is None:
            if len(self._places) >= _MOST_PLACES:  # guests can be anywhere
                self._places.clear()
            found = self._places[rip] = self._find(rip)
        return found

    def _find(self, rip: int) -> Place:
        try:
            symbol, offset = self._symbol(rip)
            file, line = self._line(rip)
        except Exception:  # a fault report must not fail over malformed debug information
            return Place()
        return Place(symbol, offset, file, line)

    def _symbol(self, rip: int) -> tuple[str | None, int]:
        for start, size, name in self._functions:
            if start <= rip < start + max(size, 1):
                return name, rip - start
        return None, 0

    def _line(self, rip: int) -> tuple[str | None, int | None]:
        for unit in self._units(rip):
            for start, end, file, line in self._lines(unit):
                if start <= rip < end:
                    return file, line
        return None, None

    def _lines(self, unit: Any) -> list[tuple[int, int, str, int]]:
        """Return a unit's line table, which is read once."""
        if unit.cu_offset not in self._read:
            program = self._dwarf.line_program_for_CU(unit)
            self._read[unit.cu_offset] = _unit_lines(program)
        return self._read[unit.cu_offset]

    def _units(self, rip: int) -> Iterable[Any]:
        """Return the compilation units that `rip` may lie in: one, if the image has an index."""
        if self._dwarf is None:
            return ()
        offset = None if self._index is None else self._index.cu_offset_at_addr(rip)
        return self._dwarf.iter_CUs() if offset is None else (self._dwarf.get_CU_at(offset),)

    def _elf(self) -> Any:
        return ELFFile(io.BytesIO(self._data))

    @functools.cached_property
    def _functions(self) -> list[tuple[int, int, str]]:
        tables = (s for s in self._elf().iter_sections() if isinstance(s, SymbolTableSection))
        return [
            (symbol["st_value"], symbol["st_size"], symbol.name)
            for table in tables
            for symbol in table.iter_symbols()
            if symbol["st_info"]["type"] == "STT_FUNC"
        ]

    @functools.cached_property
    def _index(self) -> Any:
        return self._dwarf.get_aranges()

    @functools.cached_property
    def _dwarf(self) -> Any:
        elf = self._elf()
        return elf.get_dwarf_info() if elf.has_dwarf_info() else None


def _unit_lines(program: Any) -> list[tuple[int, int, str, int]]:
    """Return one compilation unit's line table as (start, end, file, line)."""
    rows: list[tuple[int, int, str, int]] = []
    previous: Any = None
    for entry in program.get_entries() if program is not None else ():
        state = entry.state
        if state is None:
            continue
        if previous is not None and state.address > previous.address:
            file = _file_name(program, previous.file)
            rows.append((previous.address, state.address, file, previous.line))
        previous = None if state.end_sequence else state
    return rows


def _file_name(program: Any, index: int) -> str:
    files = program["file_entry"]
    if program["version"] < 5:
        index -= 1  # file numbers count from 1 before DWARF 5
    name = files[index].name
    return PurePosixPath(name.decode(errors="replace")).name
