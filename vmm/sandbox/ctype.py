"""C types of x86-64 Linux, as values: what a function takes, and how large that is.

Sizes, offsets and alignments are bytes. Two types are equal if they are laid out alike and have the
same fields: what types are called is for people, and is not compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar, TypeAlias

# Of one type: scalars and bytes, which is what taking it apart may cost.
MOST_CELLS, MOST_SIZE = 1 << 18, 1 << 24


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
    """A structure; or a union, whose fields lie over each other."""

    name: str = dataclasses.field(compare=False)
    size: int
    align: int
    fields: tuple[Field, ...]
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
    """Return a structure with the alignment that its size and offsets allow: nothing else tells of
    a packed one. (One with over-aligned members at aligned offsets is so taken for aligned.)

    at_least    the alignment that it is said to have
    """
    align = max((field.type.align for field in fields), default=1)
    while align > 1 and (size % align or any(f.offset % min(align, f.type.align) for f in fields)):
        align //= 2
    return Struct(name, size, max(align, at_least), fields)


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
