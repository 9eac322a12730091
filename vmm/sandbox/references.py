"""Arguments for pointers: what is to be in the machine's memory for the time of a call.

Nothing is moved here. What has the bytes is held from now on, by a view: who resizes it before the
call is over gets Python's own BufferError. Errors here are those of `values`, and BufferError.
"""

from __future__ import annotations

import ctypes
import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any

from vmm.endpoint.arguments import wrong_type
from vmm.errors import ArgumentTypeError, ConfigError
from vmm.sandbox.ctype import (
    CType,
    Float,
    FunctionPointer,
    Int,
    Opaque,
    Pointer,
    Struct,
    Void,
    declare,
    innermost,
    scalars,
)
from vmm.sandbox.foreign import items_of, of_items
from vmm.sandbox.values import address, c_text, check_alike, decode, encode

# Kinds of items, by the letters that the buffer protocol has for them.
_KINDS = {
    **dict.fromkeys("bhilqn", "int"),
    **dict.fromkeys("BHILQNP", "uint"),
    **dict.fromkeys("efdg", "float"),
    **dict.fromkeys("cs", "bytes"),
    "?": "bool",
    "x": "bytes",
}
_BYREF: Any = type(ctypes.byref(ctypes.c_int()))
_ADDRESSES: Any = (ctypes._Pointer, vars(ctypes)["_CFuncPtr"])
_COMPOUND = (ctypes.Structure, ctypes.Union, ctypes.Array)
_ITEM = re.compile(r"([@=<>!^]?)(Z?[a-zA-Z?])")
_NAME = re.compile(r":[^:]*:")  # of a structure's field
# Objects, pointers and functions, also as ctypes has C strings; "Zd" is a complex number.
_ADDRESS = re.compile(r"[OPXz&]|Z(?![efdg])")


@dataclasses.dataclass(frozen=True, slots=True)
class Reference:
    """An argument that a pointer is to point to.

    index        the parameter's
    data         a view of the bytes, which are C-contiguous; or bytes, if it is `temporary`
    size         how many bytes those are
    item_size    of one item, as the object has them
    type         what the parameter points to
    const        the function does not write to them
    terminated   a NUL is to follow the bytes in the machine: it is a C string
    temporary    the bytes are nobody's: what the function writes there is lost, but for
    mapping      which has the values of a structure, and gets those that it has afterwards
    pointers     what the words at its beginning point to: offsets within it, 0 for NULL
    texts        by such an offset what gets the text that is there afterwards
    """

    index: int
    data: Any
    size: int
    item_size: int
    type: CType
    const: bool
    terminated: bool = False
    temporary: bool = False
    mapping: MutableMapping[str, Any] | None = None
    pointers: Sequence[int] = ()
    texts: Mapping[int, bytearray] = dataclasses.field(default_factory=dict)


def refer(index: int, kind: Pointer | FunctionPointer, value: Any, what: str) -> bytes | Reference:
    """Return what is to be pointed to; or the pointer itself: None for NULL, or an address in the
    machine, which is what functions return.
    """
    if value is None:
        return bytes(8)
    if not isinstance(kind, FunctionPointer) or isinstance(value, ctypes.c_void_p):
        value = _unwrapped(value, what)
    if value is None or _is_number(value):
        return address(value, what)
    if isinstance(kind, FunctionPointer):
        raise ArgumentTypeError(
            f"{what} is a callback: functions of a machine cannot call Python; give None, or the "
            "address of one of the machine's (lib.f.address)"
        )
    if isinstance(value, str):
        if not kind.is_text:
            raise wrong_type(what, f"bytes or a buffer for {declare(kind)}", value)
        if not kind.const:
            raise _lost(what, value, "c_char_p")
        return _temporary(index, kind, c_text(value, what), terminated=True)
    if isinstance(value, bytes) and kind.is_text:
        if not kind.const:
            raise _lost(what, value, "c_char_p")
        return _temporary(index, kind, value, terminated=True)
    target = kind.target
    if isinstance(target, Struct) and isinstance(value, Mapping | tuple | list):
        made = _temporary(index, kind, encode(target, value, what))
        if kind.const:
            return made
        if not isinstance(value, MutableMapping):
            raise ArgumentTypeError(
                f"{what} may be written to, which a {type(value).__name__} cannot be: give a "
                "dict, which has the new values afterwards"
            )
        return dataclasses.replace(made, mapping=value)
    if isinstance(target, Pointer) and target.is_text and _holds_texts(value):
        return _texts(index, target, value, what)
    if isinstance(value, list | tuple) and isinstance(target, Int | Float | Struct):
        if not kind.const:
            raise ArgumentTypeError(
                f"{what} may be written to, which a {type(value).__name__} cannot be: "
                "give an array (numpy.array, array.array)"
            )
        items = [encode(target, item, f"{what}[{at}]") for at, item in enumerate(value)]
        return _temporary(index, kind, b"".join(items))
    return _buffer(index, kind, value, what)


def _holds_texts(value: Any) -> bool:
    """Whether it is a list, perhaps of texts, or ctypes' array of them."""
    if isinstance(value, ctypes.Array):
        return isinstance(value._type_, type) and issubclass(value._type_, ctypes.c_char_p)
    return isinstance(value, list | tuple)


def _texts(index: int, target: Pointer, given: Iterable[Any], what: str) -> Reference:
    """Return an array of C strings, with a NULL at its end. Where they may be written to, they are
    bytearrays; pointers that are written there are not given back.
    """
    values = list(given)
    pointers, data = [0] * (len(values) + 1), bytearray(8 * (len(values) + 1))
    texts: dict[int, bytearray] = {}
    for at, value in enumerate(values):
        name = f"{what}[{at}]"
        if value is None:
            continue
        if not isinstance(value, str | bytes | bytearray):
            raise wrong_type(name, "text, bytes or None", value)
        pointers[at] = len(data)
        if isinstance(value, bytearray) and not target.const:
            texts[len(data)] = value
        elif not target.const:
            raise _lost(name, value, "POINTER(c_char_p)")
        data += (c_text(value, name) if isinstance(value, str) else value) + b"\0"
    made = Reference(index, bytes(data), 8 * len(values), 8, target, target.const, False, True)
    return dataclasses.replace(made, pointers=pointers, texts=texts)


def _lost(what: str, value: Any, kind: str) -> ArgumentTypeError:
    """Return the error for text that a function may write to."""
    return ArgumentTypeError(
        f"{what} may be written to, which a {type(value).__name__} cannot be: give a bytearray "
        f"with a NUL at its end, or, if it is only read, set argtypes ({kind})"
    )


def written_back(reference: Reference, data: bytes, pointer: Callable[[int], int]) -> None:
    """Let the mapping that a structure was made from, or texts, have what is there now."""
    for at, text in reference.texts.items():
        text[:] = data[at : at + len(text)]
    if reference.mapping is None:
        return
    assert isinstance(reference.type, Struct)
    _update(reference.mapping, reference.type, data, pointer)


def _update(
    mapping: MutableMapping[str, Any], kind: Struct, data: bytes, pointer: Callable[[int], int]
) -> None:
    for field in kind.fields:
        part = data[field.offset : field.offset + field.type.size]
        inner = mapping.get(field.name)
        if isinstance(field.type, Struct) and isinstance(inner, MutableMapping):
            _update(inner, field.type, part, pointer)
        else:
            mapping[field.name] = decode(field.type, part, pointer)


def _unwrapped(value: Any, what: str) -> Any:
    """Return what ctypes' own ways of passing pointers stand for."""
    if isinstance(value, _BYREF):
        if ctypes.cast(value, ctypes.c_void_p).value != ctypes.addressof(value._obj):
            raise ConfigError(f"{what}: byref with an offset is not served: give a memoryview")
        return value._obj  # even if it is a pointer: one to that is wanted
    if isinstance(value, _ADDRESSES):
        raise ArgumentTypeError(
            f"{what} is an address of this process, which is no machine's: give what is there"
        )
    if isinstance(value, ctypes.c_void_p | ctypes.c_char_p):
        return value.value
    return value


def _is_number(value: Any) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool)
    # NumPy's numbers have the buffer protocol as well; its arrays have __index__ as well.
    return hasattr(value, "__index__") and not hasattr(value, "__len__")


def _temporary(index: int, kind: Pointer, data: bytes, terminated: bool = False) -> Reference:
    size = max(kind.target.size, 1)
    return Reference(index, data, len(data), size, kind.target, kind.const, terminated, True)


def _buffer(index: int, kind: Pointer, value: Any, what: str) -> Reference:
    try:
        view = memoryview(value)
    except TypeError:
        raise wrong_type(what, f"a buffer, an address or None for {declare(kind)}", value) from None
    except (BufferError, ValueError) as error:
        raise BufferError(f"{what} cannot be read: {error}") from error
    if not view.c_contiguous:
        raise BufferError(f"{what} is not contiguous: copy it first (numpy.ascontiguousarray)")
    if view.readonly and not kind.const:
        raise ArgumentTypeError(
            f"{what} can only be read, and the function may write to it: give a copy "
            "(bytearray, numpy.array)"
        )
    items = None  # numbers, as a rule: the rest takes longer to look at
    if view.format not in "BbHhIiLlQqfd" or view.itemsize > 8 or isinstance(value, _COMPOUND):
        items = _served(items_of(value))
        _check_addresses(kind, items, view.format, what)
    if items is None:
        _check_items(kind, view.format, view.itemsize, what)
    else:
        _check_structures(kind, items, what)
    _check_size(kind.target, view.nbytes, what)
    return Reference(index, view, view.nbytes, view.itemsize, kind.target, kind.const)


def _check_size(target: CType, size: int, what: str) -> None:
    """Raise ConfigError if a buffer is not so many whole items, or is no structure."""
    if target.size and (size % target.size or (isinstance(target, Struct) and not size)):
        raise ConfigError(f"{what} has {size} bytes: each {declare(target)} has {target.size}")


def _served(items: Any) -> Any:
    """Return structures' type; None if it is none that C has as well, such as one with bit-fields:
    then their format has to do.
    """
    try:
        return items if items is None or of_items(items) else None
    except ConfigError:
        return None


def _check_addresses(kind: Pointer, items: Any, form: str, what: str) -> None:
    """Raise ArgumentTypeError if a buffer has addresses of this process in it."""
    handle = isinstance(kind.target, Pointer) and form.lstrip("@=<") == "P"  # ctypes.c_void_p
    found = _ADDRESS.search(_NAME.sub("", form)) and not handle
    if isinstance(items, type):  # the format says nothing of unions, and packed structures
        found = found or any(
            isinstance(part, Pointer | FunctionPointer) for _, part in scalars(of_items(items))
        )
    if found:
        raise ArgumentTypeError(f"{what} holds addresses of this process, which are no machine's")


def _check_structures(kind: Pointer, items: Any, what: str) -> None:
    """Raise ArgumentTypeError if structures are not what a pointer points to."""
    target = innermost(kind.target)
    if isinstance(target, Struct):
        check_alike(target, items, what)
    elif not isinstance(target, Void | Opaque):
        said = declare(of_items(items))
        raise ArgumentTypeError(f"{what} must have items of {declare(target)}, not of {said}")


def _check_items(kind: Pointer, form: str, size: int, what: str) -> None:
    """Raise ArgumentTypeError if items of a format are not what a pointer points to."""
    target = innermost(kind.target)
    if isinstance(target, Void | Opaque) or (size == 1 and (target.size == 1 or _is_raw(form))):
        return
    found = _ITEM.fullmatch(form)
    item = _KINDS.get(found[2], "") if found else ""
    if found and found[1] in (">", "!") and size > 1:
        item = "swapped"
    if size == target.size and _fits(target, item, form):
        return
    said = f"{item}{8 * size}" if item in ("int", "uint", "float") else f"format {form!r}"
    raise ArgumentTypeError(f"{what} must have items of {declare(target)}, not of {said}")


def _is_raw(form: str) -> bool:
    return form.lstrip("@=<>!") in ("B", "c")


def _fits(target: CType, item: str, form: str) -> bool:
    if isinstance(target, Struct):
        return form.startswith("T{") or item == "bytes"
    if isinstance(target, Float):
        return item == "float"
    if isinstance(target, Int):
        signs = (
            ("int", "uint") if target.kind == "enum" else ("int",) if target.signed else ("uint",)
        )
        return item in signs
    return item in ("int", "uint")  # a pointer to a pointer: addresses in the machine
