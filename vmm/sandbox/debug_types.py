"""C types as debug information has them, made into values.

A type that is no value (bit-fields, vectors, what C++ passes by reference) becomes Opaque: it can
be pointed to. So it is with what pointers within structures point to, and there types end.
"""

from __future__ import annotations

from typing import Any

from vmm.guest.elf import Malformed
from vmm.sandbox.ctype import (
    CHAR,
    MOST_CELLS,
    MOST_SIZE,
    Array,
    CType,
    Field,
    Float,
    FunctionPointer,
    Int,
    Opaque,
    Pointer,
    Void,
)
from vmm.sandbox.dwarf import Entries, Entry, Reference
from vmm.sandbox.forms import uleb
from vmm.sandbox.prototype import Parameter
from vmm.sandbox.record import Record

_MOST_DEPTH = 40  # of types within types
_QUALIFIERS = frozenset(
    ("const_type", "volatile_type", "restrict_type", "atomic_type", "typedef", "immutable_type")
)
_RECORDS = frozenset(("structure_type", "class_type", "union_type"))
_PARAMETERS = frozenset(("formal_parameter", "unspecified_parameters"))
_POINTERS = frozenset(("pointer_type", "reference_type", "rvalue_reference_type"))
_BOOLEAN, _COMPLEX, _FLOAT, _SIGNED, _SIGNED_CHAR = 2, 3, 4, 5, 6
_UNSIGNED, _UNSIGNED_CHAR, _UTF = 7, 8, 16
_BY_REFERENCE = 4  # DW_CC_pass_by_reference
_PLUS = 0x23  # DW_OP_plus_uconst: what an offset was in DWARF 2


class Types:
    """The types of one file's debug information. Methods raise what `dwarf.Entries` does."""

    def __init__(self, entries: Entries) -> None:
        self._entries = entries

    def function(self, entry: Entry) -> tuple[tuple[Parameter, ...], CType, bool]:
        """Return a function's parameters, its result, and whether more arguments may follow."""
        return self._function(entry, False, 0)

    def variable(self, entry: Entry) -> CType:
        """Return a variable's type."""
        return self._type(entry, False, 0)

    def pointed_to(self, entry: Entry) -> Entry | None:
        """Return the function type that a variable of a pointer type points to, if it does."""
        pointer = self._stripped(entry)[0]
        found = None if pointer is None else self._stripped(pointer)[0]
        return found if found is not None and found.tag == "subroutine_type" else None

    def _function(
        self, entry: Entry, within: bool, depth: int
    ) -> tuple[tuple[Parameter, ...], CType, bool]:
        parameters, variadic = [], False
        for child in self._entries.children(entry, _PARAMETERS):
            if child.tag == "formal_parameter":
                named = self._origin(child)
                kind = self._type(named, within, depth + 1)
                parameters.append(Parameter(_text(named), kind))
            else:
                variadic = True
        return tuple(parameters), self._type(entry, within, depth + 1), variadic

    def _origin(self, entry: Entry) -> Entry:
        origin = entry.attributes.get("abstract_origin")
        return self._entries.at(origin) if isinstance(origin, int) else entry

    def _stripped(self, entry: Entry) -> tuple[Entry | None, str, bool]:
        """Return the type of what an entry is, without qualifiers and typedefs: the outermost
        typedef's name, and whether it is const.
        """
        name, const = "", False
        for _ in range(_MOST_DEPTH):
            offset = entry.attributes.get("type")
            if offset is None:
                return None, name, const
            if not isinstance(offset, int):
                raise Malformed
            entry = self._entries.at(offset)
            if entry.tag not in _QUALIFIERS:
                return entry, name, const
            const |= entry.tag == "const_type"
            name = name or (_text(entry) if entry.tag == "typedef" else "")
        raise Malformed

    def _is_atomic(self, entry: Entry) -> bool:
        """Whether what an entry is, or the elements of it if it is an array, are atomic."""
        for _ in range(_MOST_DEPTH):
            offset = entry.attributes.get("type")
            if not isinstance(offset, int):
                return False
            entry = self._entries.at(offset)
            if entry.tag == "atomic_type":
                return True
            if entry.tag not in _QUALIFIERS and entry.tag != "array_type":
                return False
        return False

    def _type(self, entry: Entry, within: bool, depth: int) -> CType:
        """Return the type of what an entry is.

        within    what pointers point to is only named
        """
        found, name, _ = self._stripped(entry)
        if found is None:
            return Void()
        if depth > _MOST_DEPTH:
            raise Malformed
        if found.tag in _POINTERS:
            return self._pointer(found, within, depth)
        if found.tag == "base_type":
            return _base(found, name or _text(found))
        if found.tag == "enumeration_type":
            return self._enum(found, name)
        if found.tag in _RECORDS:
            return self._record(found, name, depth, self._is_atomic(entry))
        if found.tag == "array_type":
            return self._array(found, name, depth)
        return Opaque(name or _text(found) or "type", "is no type of C's")

    def _pointer(self, entry: Entry, within: bool, depth: int) -> CType:
        target, name, const = self._stripped(entry)
        if target is None:
            return Pointer(Void(), const)
        if target.tag == "subroutine_type":
            parameters, result, _ = self._function(target, True, depth)
            return FunctionPointer(result, tuple(parameter.type for parameter in parameters))
        if target.tag == "array_type":
            return Pointer(
                self._array(target, name, depth, True), const or self._holds_const(target)
            )
        if within and target.tag in _RECORDS:
            return Pointer(Opaque(_spelled(target, name)), const)
        return Pointer(self._type(entry, within or target.tag in _POINTERS, depth + 1), const)

    def _enum(self, entry: Entry, name: str) -> CType:
        size = entry.attributes.get("byte_size")
        if size not in (1, 2, 4, 8):
            return Opaque(_spelled(entry, name))
        encoding = entry.attributes.get("encoding")
        if encoding is None:
            under = self._stripped(entry)[0]
            encoding = None if under is None else under.attributes.get("encoding")
        signed = encoding in (_SIGNED, _SIGNED_CHAR)
        return Int(_spelled(entry, name), size, signed, "enum")

    def _holds_const(self, array: Entry) -> bool:
        """Whether an array's elements are const: those of arrays of arrays may be."""
        for _ in range(_MOST_DEPTH):
            element, _, const = self._stripped(array)
            if const or element is None or element.tag != "array_type":
                return const
            array = element
        raise Malformed

    def _array(self, entry: Entry, name: str, depth: int, pointed_to: bool = False) -> CType:
        """pointed_to: its first element will do, where C reckons how long it is when it runs."""
        kind = self._type(entry, True, depth + 1)
        counts = []
        for child in self._entries.children(entry, frozenset(("subrange_type",))):
            counts.append(_count(child))
        if entry.attributes.get("GNU_vector"):
            return Opaque(name or "vector", "is a vector")
        for count in reversed(counts):
            if pointed_to and not count:
                break
            if count is None or count * max(kind.size, 1) >= 1 << 47:
                return Opaque(name or "array", "has no size that is known")
            kind = Array(kind, count if kind.size else 0)
        return _bounded(kind, name or "array")

    def _record(self, entry: Entry, name: str, depth: int, atomic: bool) -> CType:
        spelled, said = _spelled(entry, name), entry.attributes
        size = said.get("byte_size")
        if said.get("declaration") or not isinstance(size, int):
            return Opaque(spelled)
        if size > MOST_SIZE:
            return Opaque(spelled, "is too large")
        if said.get("calling_convention") == _BY_REFERENCE or "containing_type" in said:
            return Opaque(spelled, "has a constructor or destructor, or virtual functions")
        record = Record(spelled, size)
        for child in self._entries.children(entry, frozenset(("member", "inheritance"))):
            if child.tag == "inheritance":
                return Opaque(spelled, "has base classes")
            if child.attributes.get("external") or child.attributes.get("declaration"):
                continue  # a static one of C++
            if "bit_size" in child.attributes:
                return Opaque(spelled, "has bit-fields")
            kind = self._type(child, True, depth + 1)
            member = Field(_text(child), _location(child), kind)
            instead = record.add(member, _align(child), self._is_atomic(child))
            if instead is not None:
                return instead
        return record.made(_align(entry), atomic)


def _location(entry: Entry) -> int:
    at = entry.attributes.get("data_member_location", 0)
    if isinstance(at, bytes) and at and at[0] == _PLUS:
        at = uleb(at, 1)[0]
    if not isinstance(at, int):
        raise Malformed
    return at


def _text(entry: Entry) -> str:
    name = entry.attributes.get("name", "")
    return name if isinstance(name, str) else ""


def _spelled(entry: Entry, name: str) -> str:
    """Return what C calls a type: by its typedef's name, or "struct point"."""
    word = {"union_type": "union", "enumeration_type": "enum"}.get(entry.tag, "struct")
    return name or f"{word} {_text(entry)}".rstrip()


def _align(entry: Entry) -> int:
    """Return the alignment that is said, a power of 2; 0 if none is."""
    align = entry.attributes.get("alignment", 0)
    sound = isinstance(align, int) and 0 < align <= 1 << 32 and not align & (align - 1)
    return align if sound else 0


def _count(entry: Entry) -> int | None:
    """Return the length of a dimension: 0 for one that is left open, None for one that varies."""
    count = entry.attributes.get("count")
    last = entry.attributes.get("upper_bound", -1)
    if count is None and isinstance(last, int) and not isinstance(last, Reference):
        count = (last + 1) % (1 << 64)
    if isinstance(count, Reference) or not isinstance(count, int) or count < 0:
        return None  # an expression, or a variable that has it
    return count


def _bounded(kind: CType, name: str) -> CType:
    return kind if kind.cells <= MOST_CELLS else Opaque(name, "is too large")


def _base(entry: Entry, name: str) -> CType:
    encoding, size = (entry.attributes.get(which) for which in ("encoding", "byte_size"))
    if encoding in (_SIGNED, _SIGNED_CHAR, _UNSIGNED, _UNSIGNED_CHAR, _UTF, _BOOLEAN):
        if size not in (1, 2, 4, 8):
            return Opaque(name, f"has {8 * size if isinstance(size, int) else 'unknown'} bits")
        if encoding == _BOOLEAN:
            return Int(name, size, False, "bool")
        if _text(entry) == "char" and size == 1:
            return Int(name, 1, encoding == _SIGNED_CHAR, CHAR.kind)
        return Int(name, size, encoding in (_SIGNED, _SIGNED_CHAR))
    if encoding == _FLOAT and size in (4, 8, 16):
        return Float(name, size)
    return Opaque(name, "is not served")


def take_name(entry: Any) -> str:
    """Return the name that a symbol table has for a function."""
    linkage = entry.attributes.get("linkage_name") or entry.attributes.get("MIPS_linkage_name")
    return linkage if isinstance(linkage, str) and linkage else _text(entry)
