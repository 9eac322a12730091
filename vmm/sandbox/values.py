"""Python values as C values, and back: bytes, as they lie in memory.

`what` names the value in errors: "blur: sigma". Raises ArgumentTypeError, a TypeError, for what is
of no fitting type, ArgumentRangeError, an OverflowError, for a number that does not fit, and
ConfigError, a ValueError, for all else.
"""

from __future__ import annotations

import collections
import ctypes
import functools
import keyword
import operator
import struct
from collections.abc import Callable, Mapping
from typing import Any

from vmm.endpoint.arguments import wrong_type
from vmm.errors import ArgumentRangeError, ArgumentTypeError, ConfigError
from vmm.sandbox.ctype import (
    Array,
    CType,
    Field,
    Float,
    FunctionPointer,
    Int,
    Pointer,
    Struct,
    Void,
    declare,
    scalars,
)
from vmm.sandbox.foreign import of_items
from vmm.sandbox.handle import Handle
from vmm.sizes import shown

_RAW = (bytes, bytearray, memoryview, ctypes.Structure, ctypes.Union)
_WHOLE = {"bool": "True or False", "char": "one byte, or a whole number"}
_FLOATS = {4: struct.Struct("<f"), 8: struct.Struct("<d")}


def encode(kind: CType, value: Any, what: str) -> bytes:
    """Return a value as it lies in memory.

    Int       a whole number: whatever has `__index__`; `char`: bytes of length 1, too
    Float     a number: whatever has `__float__`, but no text
    Pointer   an address in the machine, as an int, or None for NULL; so are those to functions
    Struct    a mapping of its fields, those left out being zero; all fields in order; or the bytes
              of one (a ctypes.Structure that is laid out alike, a NumPy record)
    Array     all elements in order, or their bytes; of `char`, bytes or text that may be shorter
    """
    value = plain(value)
    if isinstance(kind, Int):
        return _int(kind, value, what).to_bytes(kind.size, "little", signed=kind.signed)
    if isinstance(kind, Float) and kind.size in _FLOATS:
        return _float(kind, value, what)
    if isinstance(kind, Pointer | FunctionPointer):
        return address(value, what)
    if isinstance(kind, Struct):
        return _struct(kind, value, what)
    if isinstance(kind, Array):
        return _array(kind, value, what)
    raise ConfigError(f"{what} is a {declare(kind)}: it cannot be made from Python")


def plain(value: Any) -> Any:
    """Return what a scalar of ctypes' stands for; all else as it is."""
    if type(value) is not int and isinstance(value, ctypes._SimpleCData):
        return value.value
    return value


def address(value: Any, what: str) -> bytes:
    """Return an address in the machine, or NULL for None. Raises HandleError for one of a machine
    that is gone.
    """
    if value is None:
        return bytes(8)
    if type(value) is Handle:
        value.check(what)
    number = _index(value, what, "an address in the machine, or None")
    if not 0 <= number < 1 << 64:
        raise ArgumentRangeError(f"{what}: {shown(number)} is no address")
    return number.to_bytes(8, "little")


def decode(kind: CType, data: bytes, pointer: Callable[[int], int] = int) -> Any:
    """Return the Python value of bytes that lie in memory.

    int, bool, float; `char`: bytes of length 1; a pointer: what `pointer` makes of an address, or
    None for NULL; a structure: a named tuple; an array: a tuple, or bytes if its elements are
    `char` (up to the first NUL) or unsigned bytes.
    """
    if isinstance(kind, Void):
        return None
    if isinstance(kind, Int):
        if kind.kind == "char":
            return data[:1]
        number = int.from_bytes(data[: kind.size], "little", signed=kind.signed)
        return bool(number) if kind.kind == "bool" else number
    if isinstance(kind, Float) and kind.size in _FLOATS:
        return _FLOATS[kind.size].unpack_from(data)[0]
    if isinstance(kind, Struct):
        parts = (_part(data, field.offset, field.type, pointer) for field in kind.fields)
        return _tuple(kind.name, tuple(field.name for field in kind.fields))(*parts)
    if isinstance(kind, Array):
        return _elements(kind, data, pointer)
    number = int.from_bytes(data[:8], "little")
    return pointer(number) if number else None


def _part(data: bytes, offset: int, kind: CType, pointer: Callable[[int], int]) -> Any:
    return decode(kind, data[offset : offset + kind.size], pointer)


def _elements(kind: Array, data: bytes, pointer: Callable[[int], int]) -> Any:
    element = kind.element
    if isinstance(element, Int) and element.size == 1:
        if element.kind == "char":
            return data[: kind.size].partition(b"\0")[0]
        if element.kind == "int" and not element.signed:
            return data[: kind.size]
    return tuple(_part(data, index * element.size, element, pointer) for index in range(kind.count))


@functools.lru_cache(maxsize=256)
def _tuple(name: str, fields: tuple[str, ...]) -> Any:
    """Return a class of named tuples; names that Python has other uses for end in `_`."""
    wanted = [f"{field}_" if keyword.iskeyword(field) else field for field in fields]
    title = name.rpartition(" ")[2]
    made: Any = collections.namedtuple(  # type: ignore[misc]
        title if title.isidentifier() and not keyword.iskeyword(title) else "struct",
        wanted,
        rename=True,
        module=__name__,
    )
    return made


def _index(value: Any, what: str, wanted: str) -> int:
    """Return a whole number, of whatever has `__index__`."""
    try:
        return operator.index(value)
    except TypeError:
        # NumPy's bools have no __index__.
        if getattr(getattr(value, "dtype", None), "kind", "") == "b" and value.ndim == 0:
            return int(value)
        raise wrong_type(what, wanted, value) from None


def _int(kind: Int, value: Any, what: str) -> int:
    if kind.kind == "char" and isinstance(value, bytes | bytearray):
        if len(value) != 1:
            raise ConfigError(f"{what} must be one byte, not {len(value)}")
        return int.from_bytes(value, "little", signed=kind.signed)
    number = _index(value, what, _WHOLE.get(kind.kind, "a whole number"))
    if not kind.lowest <= number <= kind.highest:
        raise ArgumentRangeError(
            f"{what} must be from {kind.lowest} to {kind.highest} ({kind.name}), "
            f"not {shown(number)}"
        )
    return number


def _float(kind: Float, value: Any, what: str) -> bytes:
    try:
        if isinstance(value, str | bytes | bytearray) or hasattr(value, "__len__"):
            raise TypeError
        return _FLOATS[kind.size].pack(float(value))
    except TypeError:
        raise wrong_type(what, "a number", value) from None
    except OverflowError:
        raise ArgumentRangeError(f"{what} is too large for a {kind.name}") from None


def _struct(kind: Struct, value: Any, what: str) -> bytes:
    if isinstance(value, Mapping):
        return _fields(kind, value, what)
    raw = _raw(value)
    if raw is not None:
        if isinstance(value, ctypes.Structure | ctypes.Union):
            check_alike(kind, type(value), what)
        if len(raw) != kind.size:
            raise ConfigError(f"{what}: {kind.name} has {kind.size} bytes, not {len(raw)}")
        return raw
    values = _sequence(value, what, f"a mapping or a sequence for {kind.name}")
    if len(values) != len(kind.fields):
        raise ConfigError(f"{what}: {kind.name} has {len(kind.fields)} fields, not {len(values)}")
    return _fields(kind, dict(enumerate(values)), what)


def _fields(kind: Struct, values: Mapping[Any, Any], what: str) -> bytes:
    """Return a structure, by its fields' names or numbers."""
    known: dict[Any, Field] = {field.name: field for field in kind.fields}
    known |= dict(enumerate(kind.fields))
    made = bytearray(kind.size)
    taken: list[Field] = []
    for name, value in values.items():
        field = known.get(name)
        if field is None:
            raise ConfigError(f"{what}: {kind.name} has no field {name!r}")
        for other in taken:
            if field.offset < other.offset + other.type.size and (
                other.offset < field.offset + field.type.size
            ):
                raise ConfigError(
                    f"{what}: {other.name} and {field.name} of {kind.name} are in the same place: "
                    "give one of them, in a mapping"
                )
        taken.append(field)
        end = field.offset + field.type.size
        made[field.offset : end] = encode(field.type, value, f"{what}.{field.name}")
    return bytes(made)


def _array(kind: Array, value: Any, what: str) -> bytes:
    element = kind.element
    text = isinstance(element, Int) and element.kind == "char"
    if text and isinstance(value, str):
        value = c_text(value, what)
    raw = _raw(value)
    if raw is not None:
        if len(raw) > kind.size or (len(raw) < kind.size and not text):
            raise ConfigError(f"{what} has room for {kind.size} bytes, not {len(raw)}")
        return raw.ljust(kind.size, b"\0")
    values = _sequence(value, what, f"a sequence of {kind.count}")
    if len(values) != kind.count:
        raise ConfigError(f"{what} must be a sequence of {kind.count}, not of {len(values)}")
    return b"".join(
        encode(element, value, f"{what}[{index}]") for index, value in enumerate(values)
    )


def c_text(value: str, what: str) -> bytes:
    """Return text as UTF-8, without the NUL that ends it in C."""
    try:
        raw = value.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{what} is text that UTF-8 cannot have") from None
    if b"\0" in raw:
        raise ConfigError(f"{what} is text with a NUL in it, which would end it in C")
    return raw


def _sequence(value: Any, what: str, wanted: str) -> list[Any]:
    if isinstance(value, str | bytes | bytearray) or not hasattr(value, "__len__"):
        raise wrong_type(what, wanted, value)
    try:
        return list(value)
    except TypeError:
        raise wrong_type(what, wanted, value) from None


def _raw(value: Any) -> bytes | None:
    """Return the bytes of what is nothing but bytes, or a structure; None for all else."""
    record = getattr(getattr(value, "dtype", None), "kind", "") == "V" and not value.ndim
    if not record and not isinstance(value, _RAW):
        return None
    with memoryview(value) as view:
        return view.tobytes()


def check_alike(kind: Struct, items: Any, what: str) -> None:
    """Raise ArgumentTypeError if a structure of ctypes' or NumPy's is laid out differently."""
    if not _alike(kind, items):
        name = items.__name__ if isinstance(items, type) else items
        raise ArgumentTypeError(f"{what}: {name} is laid out differently than {kind.name}")


@functools.lru_cache(maxsize=256)
def _alike(kind: Struct, items: Any) -> bool:
    theirs = of_items(items)
    # NumPy has no unions: one member is enough, and what it does not name is padding to it.
    return theirs.size == kind.size and _outline(theirs) <= _outline(kind)


def _outline(kind: CType) -> set[tuple[int, bool, int]]:
    """Return where its numbers are, whether they have fractions, and their sizes (addresses are
    numbers; what has no size is nothing that C has).
    """
    return {(offset, isinstance(part, Float), part.size) for offset, part in scalars(kind)}
