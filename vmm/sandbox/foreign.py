"""The types of ctypes, and of `numpy.ctypeslib`, as C types: what may be in `argtypes`."""

from __future__ import annotations

import ctypes
import functools
import math
from typing import Any

from vmm.errors import ArgumentTypeError, ConfigError
from vmm.sandbox.ctype import (
    CHAR,
    MOST_CELLS,
    Array,
    CType,
    Field,
    Float,
    FunctionPointer,
    Int,
    Opaque,
    Pointer,
    Struct,
    Void,
    layout,
)

_FUNCTION: Any = vars(ctypes)["_CFuncPtr"]
# The letter that ctypes has for each, as `struct` and the buffer protocol do.
_SIMPLE: dict[str, CType] = {
    "b": Int("signed char", 1, True),
    "B": Int("unsigned char", 1, False),
    "h": Int("short", 2, True),
    "H": Int("unsigned short", 2, False),
    "i": Int("int", 4, True),
    "I": Int("unsigned int", 4, False),
    "l": Int("long", 8, True),
    "L": Int("unsigned long", 8, False),
    "q": Int("long long", 8, True),
    "Q": Int("unsigned long long", 8, False),
    "?": Int("_Bool", 1, False, "bool"),
    "c": CHAR,
    "f": Float("float", 4),
    "d": Float("double", 8),
    "g": Float("long double", 16),
    "P": Pointer(Void()),
    "z": Pointer(CHAR, const=True),
}
_NUMPY: dict[tuple[str, int], CType] = {
    **{("i", size): Int(f"int{8 * size}_t", size, True) for size in (1, 2, 4, 8)},
    **{("u", size): Int(f"uint{8 * size}_t", size, False) for size in (1, 2, 4, 8)},
    ("f", 4): _SIMPLE["f"],
    ("f", 8): _SIMPLE["d"],
    ("b", 1): _SIMPLE["?"],
    ("S", 1): CHAR,
}


def as_ctype(kind: Any, what: str) -> CType:
    """Return a C type as it is, or that of a type of ctypes' or an `ndpointer`; None is `void`.

    Raises ArgumentTypeError for what is no such type, ConfigError for one that is not served:
    bit-fields, wide characters, Python objects, the other byte order.
    """
    if isinstance(kind, CType):
        return kind
    if kind is None:
        return Void()
    if isinstance(kind, type):
        try:
            return of_ctypes(kind)
        except ConfigError as error:
            raise type(error)(f"{what}: {error}") from None
    raise ArgumentTypeError(f"{what} must be a type of ctypes' or None, not {kind!r}")


def of_ctypes(kind: type, within: bool = False) -> CType:
    """Return the C type of a type of ctypes'.

    within    as part of a structure: what its pointers point to is not looked at
    """
    made = _of(kind, within)
    if made.cells > MOST_CELLS:
        raise ConfigError(f"{kind.__name__} is too large")
    return made


def _of(kind: Any, within: bool) -> CType:
    if hasattr(kind, "_dtype_") and hasattr(kind, "_shape_"):
        return _ndpointer(kind)
    if issubclass(kind, ctypes.Structure | ctypes.Union):
        return _structure(kind)
    if issubclass(kind, ctypes.Array):
        return Array(of_ctypes(kind._type_, within), kind._length_)
    if issubclass(kind, _FUNCTION):
        return FunctionPointer(Void(), ())
    if issubclass(kind, ctypes._Pointer):
        target = kind._type_
        if within and not (issubclass(target, ctypes._SimpleCData) and target._type_ in _SIMPLE):
            return Pointer(Opaque(target.__name__))
        return Pointer(of_ctypes(target, within=issubclass(target, ctypes._Pointer)))
    if issubclass(kind, ctypes._SimpleCData) and kind._type_ in _SIMPLE and not _swapped(kind):
        return _SIMPLE[kind._type_]
    raise ArgumentTypeError(f"{kind.__name__} is no C type that is served")


def _structure(kind: Any) -> Struct:
    if hasattr(kind, "_swappedbytes_"):
        raise ConfigError(f"{kind.__name__} is of the other byte order")
    fields: list[Field] = []
    for base in reversed(kind.__mro__):
        for name, of, *bits in vars(base).get("_fields_", ()):
            if bits:
                raise ConfigError(f"{kind.__name__} has bit-fields, which are not served")
            member = Field(name, getattr(base, name).offset, of_ctypes(of, within=True))
            fields += _opened(member, base)
    return layout(kind.__name__, tuple(fields), ctypes.sizeof(kind), ctypes.alignment(kind))


def _opened(member: Field, base: Any) -> list[Field]:
    """Return a field; of one without a name of its own, its fields."""
    if member.name not in getattr(base, "_anonymous_", ()) or not isinstance(member.type, Struct):
        return [member]
    return [Field(f.name, member.offset + f.offset, f.type) for f in member.type.fields]


def _swapped(kind: Any) -> bool:
    return getattr(kind, "__ctype_le__", kind) is not kind


def items_of(value: Any) -> Any:
    """Return the type, ctypes' or NumPy's, of the structures that an object consists of; None if it
    consists of anything else.
    """
    kind: Any = type(value)
    while issubclass(kind, ctypes.Array):
        kind = kind._type_
    if issubclass(kind, ctypes.Structure | ctypes.Union):
        return kind
    dtype = getattr(value, "dtype", None)
    return None if getattr(dtype, "names", None) is None else dtype


@functools.lru_cache(maxsize=256)
def of_items(items: Any) -> CType:
    """Return their C type. Raises ConfigError as `of_ctypes` does."""
    return of_ctypes(items) if isinstance(items, type) else _record(items)


def _record(dtype: Any) -> CType:
    """Return NumPy's type as one of C's: Opaque, if there is none."""
    if dtype.subdtype is not None:
        element, shape = dtype.subdtype
        return Array(_record(element), math.prod(shape))
    if dtype.names is not None:
        parts = ((name, *dtype.fields[name][:2]) for name in dtype.names)
        fields = [Field(name, offset, _record(of)) for name, of, offset in parts if not _pads(of)]
        return Struct(str(dtype), dtype.itemsize, 1, tuple(fields))
    if dtype.kind == "S":
        return Array(CHAR, dtype.itemsize)
    known = _NUMPY.get((dtype.kind, dtype.itemsize))
    return known if known is not None and dtype.isnative else Opaque(str(dtype))


def _pads(dtype: Any) -> bool:
    return dtype.kind == "V" and dtype.names is None and dtype.subdtype is None


def _ndpointer(kind: Any) -> Pointer:
    dtype = kind._dtype_
    if dtype is None:
        return Pointer(Void())
    target = _NUMPY.get((dtype.kind, dtype.itemsize))
    if target is None or not dtype.isnative:
        raise ConfigError(f"arrays of {dtype} have no C type that is served")
    return Pointer(target)
