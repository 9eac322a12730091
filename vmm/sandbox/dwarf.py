"""Debug information entries (DWARF 2 to 5), read quickly and within bounds.

pyelftools makes an object of each entry, which takes 50 us; a library has 100,000 of them, and most
are only to be skipped. So this module skips them, and knows the forms for that.
"""

from __future__ import annotations

import bisect
import dataclasses
import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from vmm.guest.elf import Budget, Malformed
from vmm.guest.text import decoded
from vmm.sandbox import forms
from vmm.sandbox.forms import Shape, read_shapes, size_of, sleb, uleb

WANTED = (
    *(".debug_info", ".debug_abbrev", ".debug_str", ".debug_line_str"),
    *(".debug_str_offsets", ".debug_addr"),
)
MOST_STEPS = 4_000_000  # entries and attributes that are looked at, in all: a few seconds

_MOST_NAME = 200
_UNIT_STEPS = 100
_COMPILED, _PARTIAL = 1, 3  # kinds of units


@dataclasses.dataclass(slots=True)
class Unit:
    """A compilation unit: what its entries are read with."""

    start: int
    first: int
    end: int
    version: int
    wide: int
    shapes: Mapping[int, Shape]
    name: str = ""
    strings: int = 8
    addresses: int = 8


class Reference(int):
    """The offset of another entry: where a number might stand, the two are told apart by it."""


class Entry(NamedTuple):
    """One entry. Attributes are numbers, bytes, or printable text; references are offsets."""

    offset: int
    tag: str
    attributes: dict[str, Any]
    children: bool
    end: int
    unit: Unit


class Entries:
    """The entries of a file's debug sections. Every method raises Malformed if there is no sense in
    them, and when its budget is spent; and IndexError, struct.error where they are cut off.
    """

    def __init__(self, sections: Mapping[str, bytes], budget: Budget) -> None:
        found = (sections.get(name, b"") for name in WANTED)
        self._info, self._abbrev, self._str, self._line_str, self._offsets, self._addr = found
        self._budget = budget
        self._shapes: dict[tuple[int, int, int], dict[int, Shape]] = {}
        self._units: list[Unit] = []

    def spend(self, steps: int) -> None:
        """Take from the budget. Raises Malformed."""
        self._budget.left -= steps
        if self._budget.left < 0:
            raise Malformed

    def renew(self, steps: int) -> None:
        """Give a new budget."""
        self._budget.left = steps

    def units(self) -> Iterator[Unit]:
        """Yield the units that are compiled code's, the first first; others are skipped."""
        at = 0
        while at < len(self._info):
            self.spend(_UNIT_STEPS)
            unit, at = self._unit(at)
            if unit is not None:
                self._units.append(unit)
                self._introduce(unit)
                yield unit

    def top(self, unit: Unit) -> Entry:
        """Return a unit's own entry. Raises Malformed."""
        found = self.entry(unit, unit.first)
        if found is None:
            raise Malformed
        return found

    def at(self, offset: int) -> Entry:
        """Return the entry at an offset, of any unit that `units` has told of. Raises Malformed."""
        index = bisect.bisect_right(self._units, offset, key=lambda unit: unit.end)
        if index == len(self._units) or offset < self._units[index].first:
            raise Malformed
        found = self.entry(self._units[index], offset)
        if found is None:
            raise Malformed
        return found

    def children(self, entry: Entry, tags: frozenset[str]) -> Iterator[Entry]:
        """Yield the entries directly below one that have one of these tags."""
        at = entry.end
        while entry.children and at < entry.unit.end:
            code, after = uleb(self._info, at)
            if not code:
                return
            shape = entry.unit.shapes[code]
            if shape.tag in tags:
                child = self.entry(entry.unit, at)
                if child is None:
                    return
                yield child
                at = self._after(child)
            else:
                at = self._skip(entry.unit, at, shape, after)

    def entry(self, unit: Unit, offset: int) -> Entry | None:
        """Return the entry at an offset of a unit; None for one that ends a row."""
        code, at = uleb(self._info, offset)
        if not code:
            return None
        shape = unit.shapes[code]
        self.spend(1 + len(shape.attributes))
        values: dict[str, Any] = {}
        for name, form, implicit in shape.attributes:
            values[name], at = self._value(unit, form, implicit, at)
        return Entry(offset, shape.tag, values, shape.children, at, unit)

    def _after(self, entry: Entry) -> int:
        """Return where what follows an entry, and all that is below it, begins."""
        sibling = entry.attributes.get("sibling")
        if isinstance(sibling, int) and entry.end < sibling <= entry.unit.end:
            return sibling
        return self._rise(entry.unit, entry.end) if entry.children else entry.end

    def _skip(self, unit: Unit, at: int, shape: Shape, after: int) -> int:
        if not shape.children:
            return self._over(unit, shape, after)
        if any(name == "sibling" for name, _, _ in shape.attributes):
            entry = self.entry(unit, at)
            return unit.end if entry is None else self._after(entry)
        return self._rise(unit, self._over(unit, shape, after))

    def _rise(self, unit: Unit, at: int) -> int:
        """Return the end of a row of entries, and of all below them."""
        depth, shapes = 1, unit.shapes
        while at < unit.end:
            code = self._info[at]
            at += 1
            if code >= 0x80:
                code, at = uleb(self._info, at - 1)
            if not code:
                depth -= 1
                if not depth:
                    break
                continue
            shape = shapes[code]
            at = self._over(unit, shape, at)
            depth += shape.children
        return at

    def _over(self, unit: Unit, shape: Shape, at: int) -> int:
        if shape.size is not None:
            self.spend(1)
            return at + shape.size
        self.spend(1 + len(shape.attributes))
        for _, form, _ in shape.attributes:
            at = self._past(unit, form, at)
        return at

    def _past(self, unit: Unit, form: int, at: int) -> int:
        size = size_of(form, unit.wide, unit.version)
        if size is not None:
            return at + size
        if form in forms.LEB:
            return uleb(self._info, at)[1]
        if form == forms.STRING:
            return self._string(self._info, at)[1]
        if form == forms.INDIRECT:
            form, at = uleb(self._info, at)
            if form == forms.INDIRECT:
                raise Malformed
            return self._past(unit, form, at)
        return self._block(form, at)[1]

    def _value(self, unit: Unit, form: int, implicit: int, at: int) -> tuple[Any, int]:
        if form == forms.IMPLICIT:
            return implicit, at
        if form == forms.FLAG_PRESENT:
            return 1, at
        if form == forms.STRING:
            raw, at = self._string(self._info, at)
            return decoded(raw, _MOST_NAME), at
        if form == forms.INDIRECT:
            form, at = uleb(self._info, at)
            if form in (forms.INDIRECT, forms.IMPLICIT):
                raise Malformed
            return self._value(unit, form, 0, at)
        if form in forms.LEB:
            value, after = sleb(self._info, at) if form == forms.SDATA else uleb(self._info, at)
            return self._meant(unit, form, value), after
        size = size_of(form, unit.wide, unit.version)
        if size is None:
            return self._block(form, at)
        if at + size > unit.end:
            raise Malformed
        raw = self._info[at : at + size]
        if form == forms.DATA16:
            return raw, at + size
        return self._meant(unit, form, int.from_bytes(raw, "little")), at + size

    def _meant(self, unit: Unit, form: int, value: int) -> Any:
        """Return what a number is: itself, or the text or the address that it tells where is."""
        if form in forms.LOCAL:
            return Reference(unit.start + value)
        if form == forms.REF_ADDR:
            return Reference(value)
        if form in (forms.STRP, forms.LINE_STRP):
            table = self._str if form == forms.STRP else self._line_str
            return decoded(self._string(table, value)[0], _MOST_NAME)
        if form in forms.STRX:
            at = unit.strings + value * unit.wide
            offset = int.from_bytes(self._offsets[at : at + unit.wide], "little")
            return decoded(self._string(self._str, offset)[0], _MOST_NAME)
        if form in forms.ADDRX:
            at = unit.addresses + value * 8
            return int.from_bytes(self._addr[at : at + 8], "little")
        if form in forms.ELSEWHERE:  # in a type unit, or in a file that is not here
            return b""
        return value

    def _string(self, table: bytes, at: int) -> tuple[bytes, int]:
        end = table.find(b"\0", at)
        if not 0 <= at <= end:
            raise Malformed
        self.spend(1 + (end - at >> 6))
        return table[at : min(end, at + 4 * _MOST_NAME)], end + 1

    def _block(self, form: int, at: int) -> tuple[bytes, int]:
        if form in forms.WORD_BLOCKS:
            size, at = uleb(self._info, at)
        elif form in forms.BLOCKS:
            size = int.from_bytes(self._info[at : at + forms.BLOCKS[form]], "little")
            at += forms.BLOCKS[form]
        else:
            raise Malformed
        return self._info[at : at + min(size, _MOST_NAME)], at + size

    def _unit(self, start: int) -> tuple[Unit | None, int]:
        """Return the unit at an offset, None if it is of a kind that is skipped, and its end."""
        (length,), at, wide = struct.unpack_from("<I", self._info, start), start + 4, 4
        if length == 0xFFFFFFFF:
            (length,), at, wide = struct.unpack_from("<Q", self._info, at), at + 8, 8
        end = at + length
        (version,) = struct.unpack_from("<H", self._info, at)
        at += 2
        if end > len(self._info) or not 2 <= version <= 5:
            raise Malformed
        kind = _COMPILED
        if version >= 5:
            kind, address_size = self._info[at], self._info[at + 1]
            at += 2
        table = int.from_bytes(self._info[at : at + wide], "little")
        at += wide
        if version < 5:
            address_size = self._info[at]
            at += 1
        if kind not in (_COMPILED, _PARTIAL):
            return None, end
        if address_size != 8:
            raise Malformed
        shapes = self._abbreviations(table, wide, version)
        return Unit(start, at, end, version, wide, shapes, strings=2 * wide), end

    def _introduce(self, unit: Unit) -> None:
        """Note what a unit's own entry says for all: it may say it after it has used it."""
        code, at = uleb(self._info, unit.first)
        for name, form, implicit in unit.shapes[code].attributes if code else ():
            if name in ("str_offsets_base", "addr_base"):
                value, at = self._value(unit, form, implicit, at)
                if name == "addr_base":
                    unit.addresses = value
                else:
                    unit.strings = value
            else:
                at = self._past(unit, form, at)
        entry = self.entry(unit, unit.first)
        unit.name = "" if entry is None else str(entry.attributes.get("name", ""))

    def _abbreviations(self, at: int, wide: int, version: int) -> dict[int, Shape]:
        key = at, wide, version
        if key not in self._shapes:
            self._shapes[key] = dict(read_shapes(self._abbrev, at, wide, version, self.spend))
        return self._shapes[key]
