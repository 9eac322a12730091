"""From an instruction pointer to a symbol and a source line, as far as the image has them."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Mapping

from vmm.errors import Place
from vmm.guest import lines
from vmm.guest.text import decoded

_SYMBOL = struct.Struct("<IBBHQQ")  # name, info, other, section, value, size
_FUNCTION = 2  # STT_FUNC
_MOST_SYMBOLS = 500_000
_MOST_NAME = 200
_MOST_PLACES = 256


class Symbols:
    """An image's symbol table and line programs, read when a place is asked for: faults are rare.

    What an answer may cost is bounded, in time and memory, whatever the image has; what is beyond
    that is not in the answer. The same question has the same answer, whoever asks.

    Thread-safety: any thread, any number at a time.
    """

    WANTED = lines.WANTED

    def __init__(self, sections: Mapping[str, bytes]) -> None:
        self._sections = sections
        self._places: dict[int, Place] = {}

    @property
    def held(self) -> int:
        """How many bytes of memory they take."""
        return sum(len(data) for data in self._sections.values())

    def place(self, rip: int) -> Place:
        """Return where `rip` lies. What the image does not say, or says wrongly, stays None."""
        found = self._places.get(rip)
        if found is None:
            if len(self._places) >= _MOST_PLACES:  # guests can be anywhere
                self._places.clear()
            found = self._places[rip] = self._find(rip)
        return found

    def _find(self, rip: int) -> Place:
        symbol, offset, line = None, 0, None
        # Each on its own; and a report of a fault does not fail, whatever an image has.
        with contextlib.suppress(Exception):
            symbol, offset = self._symbol(rip)
        with contextlib.suppress(Exception):
            line = lines.line_at(self._sections, rip)
        return Place(symbol, offset, *(line or (None, None)))

    def _symbol(self, rip: int) -> tuple[str | None, int]:
        table = self._sections.get(".symtab", b"")
        whole = min(len(table) // _SYMBOL.size, _MOST_SYMBOLS) * _SYMBOL.size
        # pyelftools finds the table, but makes an object of each symbol: a second for 25,000.
        for name, info, _, _, start, size in _SYMBOL.iter_unpack(table[:whole]):
            if start <= rip < start + (size or 1) and info & 0xF == _FUNCTION:
                found = self._name(name)
                return (found, rip - start) if found else (None, 0)
        return None, 0

    def _name(self, start: int) -> str:
        names = self._sections.get(".strtab", b"")
        return decoded(names[start : start + 4 * _MOST_NAME].partition(b"\0")[0], _MOST_NAME)
