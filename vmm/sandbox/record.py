"""A structure, member by member, as debug information has it: what it is aligned to, which is only
said now and then, and what compilers do not agree on.
"""

from __future__ import annotations

from collections.abc import Iterator

from vmm.sandbox.ctype import (
    MOST_CELLS,
    Field,
    Opaque,
    Struct,
    alignments,
    innermost,
    possible,
)


class Record:
    """A structure or union to which members are added. Not for several threads.

    name   as C spells it
    size   bytes
    """

    def __init__(self, name: str, size: int) -> None:
        self._name, self._size = name, size
        self._fields: list[Field] = []
        self._aligns: list[tuple[int, tuple[int, ...]]] = []
        self._at_least, self._cells = 1, 0
        self._loose = self._atomic = False

    def add(self, member: Field, align: int, atomic: bool) -> Opaque | None:
        """Add a member; return what the structure is instead if it is no value with that.

        member   its name is "" if it has none: then a structure's fields are the record's own
        align    what the member is said to be aligned to, a power of 2; 0 if nothing is said
        """
        at, inner = member.offset, innermost(member.type)
        aligns = possible(member.type)
        if align and align < inner.align:  # so it is of a typedef's, not of a member's own
            self._loose |= not isinstance(inner, Struct)
            aligns = (align, *aligns)
        elif align and not at % align and not self._size % align:  # else it is packed all the same
            self._at_least = max(self._at_least, align)
        self._aligns.append((at, aligns))
        self._loose |= isinstance(inner, Struct) and inner.loose
        self._atomic |= atomic or (isinstance(inner, Struct) and inner.atomic)
        for field in _opened(member):
            if isinstance(field.type, Opaque):
                return Opaque(self._name, f"has a {field.type.name}, which {field.type.why}")
            self._cells += field.type.cells
            if self._cells > MOST_CELLS:
                return Opaque(self._name, "is too large")
            if field.offset + field.type.size > self._size:
                return Opaque(self._name, "is malformed")
            self._fields.append(field)
        return None

    def made(self, align: int, atomic: bool) -> Struct:
        """Return the structure.

        align    what it is said to be aligned to, which is all of it; 0 if nothing is said
        atomic   it is so itself
        """
        found: tuple[int, ...] = (align,)
        if not align or self._size % align:
            found = alignments(self._aligns, self._size, self._at_least)
        fields = tuple(self._fields)
        return Struct(
            self._name, self._size, found[0], fields, found, self._loose, self._atomic or atomic
        )


def _opened(member: Field) -> Iterator[Field]:
    if member.name or not isinstance(member.type, Struct):
        yield member
        return
    for field in member.type.fields:
        yield Field(field.name, member.offset + field.offset, field.type)
