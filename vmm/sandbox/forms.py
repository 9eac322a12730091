"""What debug information is written in: abbreviations, the forms of their attributes, numbers.

pyelftools has their names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from elftools.dwarf import enums

from vmm.guest.elf import Malformed

_TAGS: Mapping[int, str] = {
    number: name.removeprefix("DW_TAG_")
    for name, number in enums.ENUM_DW_TAG.items()
    if isinstance(number, int)
}
_NAMES: Mapping[int, str] = {
    number: name.removeprefix("DW_AT_")
    for name, number in enums.ENUM_DW_AT.items()
    if isinstance(number, int)
}
_FORMS: Mapping[str, int] = {
    name.removeprefix("DW_FORM_"): number for name, number in enums.ENUM_DW_FORM.items()
}


def _forms(names: str) -> frozenset[int]:
    return frozenset(_FORMS[name] for name in names.split())


_SIZES = {
    **dict.fromkeys(_forms("data1 ref1 flag strx1 addrx1"), 1),
    **dict.fromkeys(_forms("data2 ref2 strx2 addrx2"), 2),
    **dict.fromkeys(_forms("strx3 addrx3"), 3),
    **dict.fromkeys(_forms("data4 ref4 strx4 addrx4 ref_sup4"), 4),
    **dict.fromkeys(_forms("data8 ref8 ref_sig8 ref_sup8"), 8),
    **dict.fromkeys(_forms("data16"), 16),
    **dict.fromkeys(_forms("flag_present implicit_const"), 0),
}
OFFSETS = _forms("sec_offset strp line_strp strp_sup GNU_ref_alt GNU_strp_alt")
LEB = _forms("udata sdata ref_udata strx addrx loclistx rnglistx GNU_addr_index GNU_str_index")
BLOCKS = {_FORMS["block1"]: 1, _FORMS["block2"]: 2, _FORMS["block4"]: 4}
WORD_BLOCKS = _forms("block exprloc")
LOCAL = _forms("ref1 ref2 ref4 ref8 ref_udata")
STRX, ADDRX = _forms("strx strx1 strx2 strx3 strx4"), _forms("addrx addrx1 addrx2 addrx3 addrx4")
STRING, INDIRECT, SDATA = (_FORMS[name] for name in ("string", "indirect", "sdata"))
STRP, LINE_STRP, ADDR = (_FORMS[name] for name in ("strp", "line_strp", "addr"))
REF_ADDR, FLAG_PRESENT = _FORMS["ref_addr"], _FORMS["flag_present"]
IMPLICIT, DATA16 = _FORMS["implicit_const"], _FORMS["data16"]
ELSEWHERE = _forms("ref_sig8 ref_sup4 ref_sup8 GNU_ref_alt strp_sup GNU_strp_alt")


class Shape(NamedTuple):
    """An abbreviation: which attributes entries of a kind have, and in which forms.

    size    of all of them, if that is always the same
    """

    tag: str
    children: bool
    attributes: tuple[tuple[str, int, int], ...]  # name, form, and the value if it is implicit
    size: int | None


def read_shapes(
    table: bytes, at: int, wide: int, version: int, spend: Callable[[int], None]
) -> Iterator[tuple[int, Shape]]:
    """Yield the abbreviations that begin at an offset, by their codes.

    wide      bytes of an offset
    spend     is told of each step. Raises what it does, and IndexError, Malformed
    """
    while True:
        code, at = uleb(table, at)
        if not code:
            return
        tag, at = uleb(table, at)
        children = table[at] == 1
        at += 1
        attributes = []
        while True:
            spend(1)
            name, at = uleb(table, at)
            form, at = uleb(table, at)
            implicit = 0
            if form == IMPLICIT:
                implicit, at = sleb(table, at)
            if not name and not form:
                break
            attributes.append((_NAMES.get(name, ""), form, implicit))
        sizes = [size_of(form, wide, version) for _, form, _ in attributes]
        known = [size for size in sizes if size is not None]
        size = sum(known) if len(known) == len(sizes) else None
        yield code, Shape(_TAGS.get(tag, ""), children, tuple(attributes), size)


def size_of(form: int, wide: int, version: int) -> int | None:
    """Return the bytes that a form takes, None if that is not always the same."""
    size = _SIZES.get(form)
    if size is None:
        if form in OFFSETS:
            return wide
        if form == ADDR or (form == REF_ADDR and version == 2):
            return 8
        if form == REF_ADDR:
            return wide
    return size


def uleb(data: bytes, at: int) -> tuple[int, int]:
    """Return an unsigned LEB128 number and what follows it. Raises IndexError, Malformed."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 70:
            raise Malformed


def sleb(data: bytes, at: int) -> tuple[int, int]:
    """Return a signed LEB128 number and what follows it. Raises IndexError, Malformed."""
    value, after = uleb(data, at)
    bits = 7 * (after - at)
    return value - (1 << bits) if value >> bits - 1 else value, after
