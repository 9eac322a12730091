"""C types of x86-64 Linux, as values: what a function takes, and how large that is.

Sizes, offsets and alignments are bytes. Two types are equal if they are laid out alike and have the
same fields: what types are called is for people, and is not compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import ClassVar, TypeAlias

# Of one type: scalars and bytes, which is what taking it apart may cost.
MOST_CELLS, MOST_SIZE = 1 << 18, 1 << 24
# What members are aligned to at most, in a structure of one kind or another: the first is not
# packed, those between are those of `#pragma pack`.
_PACKED = (1 << 32, 16, 8, 4, 2, 1)


@dataclasses.dataclass(frozen=True, slots=True)
class Void:
    """No value; as a pointer's target, bytes of any kind."""

    name: ClassVar[str] = "void"
    size: ClassVar[int] = 0
    align: ClassVar[int] = 1
    cells: ClassVar[int] = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Int:
    """A whole number.

    kind    "int", "char" (plain `char`: text), "bool" or "enum"
    """

    name: str = dataclasses.field(compare=False)
    size: int
    signed: bool
    kind: str = "int"
    cells: ClassVar[int] = 1

    @property
    def align(self) -> int:
        """As large as it is."""
        return self.size

    @property
    def lowest(self) -> int:
        """The least value that it can have."""
        return -(1 << 8 * self.size - 1) if self.signed else 0

    @property
    def highest(self) -> int:
        """The greatest value that it can have."""
        return 1 if self.kind == "bool" else (1 << 8 * self.size - self.signed) - 1


@dataclasses.dataclass(frozen=True, slots=True)
class Float:
    """A floating-point number: 4, 8 or, for `long double`, 16 bytes."""

    name: str = dataclasses.field(compare=False)
    size: int
    cells: ClassVar[int] = 1

    @property
    def align(self) -> int:
        """As large as it is."""
        return self.size


@dataclasses.dataclass(frozen=True, slots=True)
class Pointer:
    """A pointer, or a C++ reference. const: what it points to is not written through it."""

    target: CType
    const: bool = False
    size: ClassVar[int] = 8
    align: ClassVar[int] = 8
    cells: ClassVar[int] = 1

    @property
    def is_text(self) -> bool:
        """Whether it is a `char *`: a C string, perhaps."""
        return isinstance(self.target, Int) and self.target.kind == "char"


@dataclasses.dataclass(frozen=True, slots=True)
class FunctionPointer:
    """A pointer to a function. parameters: their types."""

    result: CType = dataclasses.field(compare=False)
    parameters: tuple[CType, ...] = dataclasses.field(compare=False)
    size: ClassVar[int] = 8
    align: ClassVar[int] = 8
    cells: ClassVar[int] = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """A member of a structure. Those of members without a name count as the structure's own."""

    name: str
    offset: int
    type: CType


@dataclasses.dataclass(frozen=True, slots=True)
class Struct:
    """A structure; or a union, whose fields lie over each other.

    aligns    what it may be aligned to for all that is known, `align` being the greatest; none if
              `align` is sure
    loose     it has numbers or pointers that are aligned to less than their size
    atomic    it is `_Atomic`, or has members that are
    """

    name: str = dataclasses.field(compare=False)
    size: int
    align: int
    fields: tuple[Field, ...]
    aligns: tuple[int, ...] = dataclasses.field(default=(), compare=False, repr=False)
    loose: bool = dataclasses.field(default=False, compare=False, repr=False)
    atomic: bool = dataclasses.field(default=False, compare=False, repr=False)
    cells: int = dataclasses.field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "cells", 1 + sum(field.type.cells for field in self.fields))


@dataclasses.dataclass(frozen=True, slots=True)
class Array:
    """An array within a structure, or what a pointer points to."""

    element: CType
    count: int
    cells: int = dataclasses.field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "cells", 1 + self.count * self.element.cells)

    @property
    def size(self) -> int:
        """All of its elements'."""
        return self.count * self.element.size

    @property
    def align(self) -> int:
        """Its elements'."""
        return self.element.align


@dataclasses.dataclass(frozen=True, slots=True)
class Opaque:
    """A type that can only be pointed to. why: what keeps it from being a value."""

    name: str = dataclasses.field(compare=False)
    why: str = dataclasses.field(default="is not defined", compare=False)
    size: ClassVar[int] = 0
    align: ClassVar[int] = 1
    cells: ClassVar[int] = 1


CType: TypeAlias = Void | Int | Float | Pointer | FunctionPointer | Struct | Array | Opaque
Scalar: TypeAlias = Int | Float | Pointer | FunctionPointer

INT = Int("int", 4, True)
CHAR = Int("char", 1, True, "char")


def round_up(number: int, unit: int) -> int:
    """Return the next multiple of a unit."""
    return -(-number // unit) * unit


def innermost(kind: CType) -> CType:
    """Return what an array, also one of arrays, has as its elements; another type itself."""
    while isinstance(kind, Array):
        kind = kind.element
    return kind


def scalars(kind: CType, offset: int = 0) -> Iterator[tuple[int, CType]]:
    """Yield what a type consists of, with offsets: neither structures nor arrays."""
    if isinstance(kind, Struct):
        for field in kind.fields:
            yield from scalars(field.type, offset + field.offset)
    elif isinstance(kind, Array):
        for index in range(kind.count):
            yield from scalars(kind.element, offset + index * kind.element.size)
    else:
        yield offset, kind


def layout(name: str, fields: tuple[Field, ...], size: int, at_least: int = 1) -> Struct:
    """Return a structure with the alignment that its size and offsets allow, see `alignments`."""
    found = alignments([(field.offset, possible(field.type)) for field in fields], size, at_least)
    return Struct(name, size, found[0], fields, found)


def possible(kind: CType) -> tuple[int, ...]:
    """Return what a type may be aligned to: more than one if it is a structure's guess."""
    kind = innermost(kind)
    return (isinstance(kind, Struct) and kind.aligns) or (kind.align,)


def alignments(
    members: Iterable[tuple[int, tuple[int, ...]]], size: int, at_least: int = 1
) -> tuple[int, ...]:
    """Return what a structure may be aligned to, the greatest first: nothing but sizes and offsets
    tells of a packed one. What a member lies at may be so because it, or the structure, is packed:
    a packed member is no sign that the structure is. (One with over-aligned members at aligned
    offsets may be either.)

    members     offsets, and what each may be aligned to: powers of 2
    at_least    the alignment that it is said to have
    """
    found: set[int] = set()
    spots = {(offset & -offset, aligns) for offset, aligns in members}
    for most in _PACKED:
        allowed = [
            {min(align, most) for align in aligns if not spot % min(align, most)}
            for spot, aligns in spots
        ]
        if all(allowed):
            least = max(map(min, allowed), default=1)
            found.update(
                max(align, at_least)
                for align in {1}.union(*allowed)
                if align >= least and not size % align
            )
    return tuple(sorted(found, reverse=True))


def declare(kind: CType, name: str = "") -> str:
    """Return how C declares a name of this type: `const double *weights`."""
    if isinstance(kind, Pointer):
        target = kind.target
        if isinstance(target, Array):
            return ("const " if kind.const else "") + declare(target, f"(*{name})")
        if isinstance(target, Pointer | FunctionPointer):
            return declare(target, f"{'const ' if kind.const else ''}*{name}")
        return ("const " if kind.const else "") + declare(target, f"*{name}")
    if isinstance(kind, FunctionPointer):
        taken = ", ".join(map(declare, kind.parameters)) or "void"
        return declare(kind.result, f"(*{name})({taken})")
    if isinstance(kind, Array):
        return declare(kind.element, f"{name}[{kind.count}]")
    return f"{kind.name} {name}".rstrip()
