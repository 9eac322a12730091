"""A call's arguments, bound to a prototype: bytes, and what pointers are to point to."""

from __future__ import annotations

import array
import collections
import ctypes
import functools
import inspect
import mmap
import struct
import types
from typing import Any

import numpy as np
import pytest

from vmm.errors import ArgumentTypeError, ConfigError
from vmm.sandbox import arguments
from vmm.sandbox.arguments import address_of
from vmm.sandbox.ctype import (
    CHAR,
    INT,
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
)
from vmm.sandbox.prototype import Parameter, Prototype
from vmm.sandbox.references import Reference, refer, written_back

BYTE, REAL, SIZE = Int("uint8_t", 1, False), Float("double", 8), Int("size_t", 8, False)
POINT = Struct("struct point", 16, 8, (Field("x", 0, REAL), Field("y", 8, REAL)))
BLUR = Prototype(
    "blur",
    0,
    (
        Parameter("pixels", Pointer(BYTE)),
        Parameter("width", INT),
        Parameter("height", INT),
        Parameter("sigma", REAL),
    ),
)


class CPoint(ctypes.Structure):
    _fields_ = (("x", ctypes.c_double), ("y", ctypes.c_double))


def pointing(kind: CType) -> Prototype:
    return Prototype("f", 0, (Parameter("data", kind),))


def given(kind: CType, value: Any) -> bytes | Reference:
    return pointing(kind).bind((value,))[0]


def reference(kind: CType, value: Any) -> Reference:
    found = given(kind, value)
    assert isinstance(found, Reference)
    return found


def refusal(kind: CType, value: Any, error: type[Exception] = ArgumentTypeError) -> str:
    with pytest.raises(error) as caught:
        given(kind, value)
    said = str(caught.value)
    assert said.startswith("f: data ")
    assert "\n" not in said
    return said.removeprefix("f: data ")


# ---- Position and name ----


def test_arguments_are_given_by_position_and_by_name() -> None:
    pixels = bytearray(6)
    for args, kwargs in (
        ((pixels, 2, 1, 1.5), {}),
        ((pixels, 2), {"sigma": 1.5, "height": 1}),
        ((), {"sigma": 1.5, "height": 1, "width": 2, "pixels": pixels}),
    ):
        first, *others = BLUR.bind(args, kwargs)
        assert first == Reference(0, pixels, 6, 1, BYTE, const=False)
        assert others == [b"\2\0\0\0", b"\1\0\0\0", b"\0\0\0\0\0\0\xf8\x3f"]


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        ((1,), {}),
        ((1, 2), {}),
        ((1, 2, 3), {}),
        ((1, 2, 3, 4, 5), {}),
        ((1, 2), {"width": 2}),
        ((1,), {"depth": 2}),
        ((), {"sigma": 1, "pixels": None}),
    ],
)
def test_what_is_missing_or_too_much_is_said_in_pythons_own_words(
    args: tuple[int, ...], kwargs: dict[str, Any]
) -> None:
    def blur(pixels: Any, width: Any, height: Any, sigma: Any) -> None: ...

    with pytest.raises(TypeError) as theirs:
        blur(*args, **kwargs)
    with pytest.raises(TypeError) as ours:
        BLUR.bind(args, kwargs)
    assert str(ours.value) == str(theirs.value).rpartition("<locals>.")[2]


def test_parameters_have_names_that_python_takes() -> None:
    names = ("in", "", "x", "x", "arg5", "a b")
    found = Prototype("f", 0, tuple(Parameter(name, INT) for name in names))
    assert found.keywords == ("in_", "arg2", "x", "arg4", "arg5", "arg6")
    bound = found.bind((), dict.fromkeys(found.keywords, 1))
    assert bound == (b"\1\0\0\0",) * 6


def test_a_prototype_tells_of_itself() -> None:
    assert BLUR.signature() == "void blur(uint8_t *pixels, int width, int height, double sigma)"
    assert str(BLUR.inspected()) == (
        "(pixels: 'uint8_t *', width: 'int', height: 'int', sigma: 'double') -> 'void'"
    )
    unknown = Prototype("f", 0, unknown=True)
    assert unknown.signature() == "f(?)"
    assert list(unknown.inspected().parameters) == ["args"]
    assert isinstance(
        pointing(FunctionPointer(INT, (Pointer(Void()),))).inspected(), inspect.Signature
    )


# ---- argtypes ----


def test_types_that_are_not_known_can_be_set() -> None:
    unknown = Prototype("scale", 64, unknown=True)
    with pytest.raises(ConfigError, match="set argtypes and restype"):
        unknown.bind((1,))
    typed = unknown.typed([ctypes.c_float, ctypes.POINTER(ctypes.c_double)], ctypes.c_float)
    assert typed.signature() == "float scale(float, double *)"
    assert typed.address == 64
    assert unknown.typed([]).signature() == "int scale(void)"
    assert unknown.typed([], None).signature() == "void scale(void)"
    assert unknown.typed(None, None).unknown


def test_types_that_are_known_can_be_changed_and_names_stay() -> None:
    typed = BLUR.typed([ctypes.c_void_p, ctypes.c_long, ctypes.c_long, ctypes.c_float])
    assert typed.signature() == "void blur(void *pixels, long width, long height, float sigma)"


def test_types_that_are_none_are_refused() -> None:
    for argtypes, said in (
        ([ctypes.c_int, int], "blur.argtypes[1]: int is no C type that is served"),
        ([7], "blur.argtypes[0] must be a type of ctypes' or None, not 7"),
        ("int", "blur.argtypes must be a list of types"),
        (ctypes.c_int, "blur.argtypes must be a list of types"),
    ):
        with pytest.raises(ArgumentTypeError) as caught:
            BLUR.typed(argtypes)  # type: ignore[arg-type]
        assert str(caught.value) == said
    printed = Prototype("printf", 0, (Parameter("format", Pointer(CHAR, True)),), INT, True)
    with pytest.raises(ConfigError, match="printf takes 1 arguments, and more"):
        printed.typed([])


# ---- Pointers ----


def mapped(data: bytes) -> mmap.mmap:
    made = mmap.mmap(-1, len(data))
    made[:] = data
    return made


@pytest.mark.parametrize(
    ("kind", "value", "size", "item"),
    [
        (BYTE, np.zeros((2, 3), np.uint8), 6, 1),
        (BYTE, np.zeros(6, np.int8), 6, 1),
        (BYTE, bytearray(6), 6, 1),
        (BYTE, memoryview(bytearray(6))[2:], 4, 1),
        (BYTE, mapped(b"12"), 2, 1),
        (CHAR, np.zeros(6, np.bool_), 6, 1),
        (CHAR, ctypes.create_string_buffer(6), 6, 1),
        (REAL, np.zeros((2, 3)), 48, 8),
        (REAL, array.array("d", [1]), 8, 8),
        (REAL, bytearray(16), 16, 1),
        (REAL, (ctypes.c_double * 3)(), 24, 8),
        (REAL, np.zeros(0), 0, 8),
        (Float("float", 4), np.zeros(3, np.float32), 12, 4),
        (INT, ctypes.c_int(3), 4, 4),
        (INT, ctypes.byref(ctypes.c_int(3)), 4, 4),
        (SIZE, np.zeros(2, np.uint64), 16, 8),
        (Int("enum e", 4, False, "enum"), np.zeros(2, np.int32), 8, 4),
        (Array(REAL, 3), np.zeros((2, 3)), 48, 8),
        (POINT, CPoint(), 16, 16),
        (POINT, (CPoint * 3)(), 48, 16),
        (POINT, np.zeros(3, [("x", "f8"), ("y", "f8")]), 48, 16),
        (POINT, bytearray(32), 32, 1),
        (Pointer(CHAR), np.zeros(4, np.uint64), 32, 8),
        (Pointer(Void()), ctypes.byref(ctypes.c_void_p(0x1000)), 8, 8),
        (Void(), np.zeros(3, np.complex128), 48, 16),
        (Void(), bytearray(5), 5, 1),
        (Opaque("struct s"), np.zeros(3, np.int16), 6, 2),
    ],
    ids=lambda value: getattr(value, "name", "") or type(value).__name__,
)
def test_what_has_the_buffer_protocol_is_pointed_to_if_its_items_fit(
    kind: CType, value: Any, size: int, item: int
) -> None:
    found = reference(Pointer(kind), value)
    assert (found.size, found.item_size, found.type) == (size, item, kind)
    assert (found.const, found.temporary, found.terminated) == (False, False, False)
    assert address_of(found.data) == address_of(memoryview(getattr(value, "_obj", value)))


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        (REAL, np.zeros(3, np.float32), "must have items of double, not of float32"),
        (REAL, np.zeros(3, np.int64), "must have items of double, not of int64"),
        (REAL, np.zeros(3, ">f8"), "must have items of double, not of format '>d'"),
        (REAL, np.zeros(8, np.int8), "must have items of double, not of int8"),
        (REAL, np.zeros(3, np.complex128), "must have items of double, not of format 'Zd'"),
        (SIZE, np.zeros(3, np.int64), "must have items of size_t, not of int64"),
        (INT, np.zeros(3, np.uint32), "must have items of int, not of uint32"),
        (BYTE, np.zeros(3, np.uint16), "must have items of uint8_t, not of uint16"),
        (POINT, np.zeros(4), "must have items of struct point, not of float64"),
        (BYTE, np.array([object()]), "holds addresses of this process, which are no machine's"),
        (
            Pointer(BYTE),
            (ctypes.c_char_p * 2)(b"one", b"two"),
            "holds addresses of this process, which are no machine's",
        ),
        (
            Void(),
            ctypes.c_char_p,
            "must be a buffer, an address or None for void *, not PyCSimpleType",
        ),
        (
            BYTE,
            [1, 2],
            "may be written to, which a list cannot be: give an array (numpy.array, array.array)",
        ),
        (BYTE, True, "must be a buffer, an address or None for uint8_t *, not bool"),
        (BYTE, 1.5, "must be a buffer, an address or None for uint8_t *, not float"),
        (BYTE, "text", "must be bytes or a buffer for uint8_t *, not str"),
    ],
)
def test_what_does_not_fit_is_a_type_error(kind: CType, value: Any, said: str) -> None:
    assert refusal(Pointer(kind), value) == said


def test_what_can_only_be_read_is_for_const_pointers_only() -> None:
    frozen = np.zeros(3)
    frozen.flags.writeable = False
    for kind, value in ((REAL, frozen), (BYTE, b"123"), (BYTE, memoryview(b"123"))):
        assert reference(Pointer(kind, const=True), value).const
        assert "can only be read" in refusal(Pointer(kind), value)


def test_bytes_that_are_no_whole_items_are_refused() -> None:
    assert refusal(Pointer(REAL), bytearray(9), ConfigError) == ("has 9 bytes: each double has 8")
    assert refusal(Pointer(POINT), bytearray(0), ConfigError) == (
        "has 0 bytes: each struct point has 16"
    )
    assert "each double [3] has 24" in refusal(Pointer(Array(REAL, 3)), np.zeros(4), ConfigError)


def test_what_is_not_contiguous_is_a_buffer_error() -> None:
    for value in (np.zeros((4, 4))[:, 1], np.zeros((4, 4)).T, np.zeros(8)[::2]):
        assert refusal(Pointer(REAL), value, BufferError).startswith("is not contiguous")
    assert refusal(Pointer(Void()), np.zeros(1, "M8[s]"), BufferError).startswith("cannot be read")


def test_what_is_pointed_to_is_not_resized_meanwhile() -> None:
    data = bytearray(16)
    found = reference(Pointer(BYTE), data)
    with pytest.raises(BufferError):
        data.clear()
    del found
    data.clear()


def test_a_c_string_is_text_or_bytes_and_ends_with_a_nul() -> None:
    text = Pointer(CHAR, const=True)
    for value in ("é", "é".encode(), ctypes.c_char_p("é".encode())):
        found = reference(text, value)
        assert (found.data, found.size) == (b"\xc3\xa9", 2)
        assert found.terminated
        assert found.temporary
    assert reference(text, b"a\0b").data == b"a\0b"
    assert "a NUL in it" in refusal(text, "a\0b", ConfigError)


def test_what_would_lose_what_a_function_writes_is_refused_with_what_to_do() -> None:
    for value in ("é", b"text", ctypes.c_char_p(b"text")):
        said = refusal(Pointer(CHAR), value, ArgumentTypeError)
        assert "may be written to" in said
        assert (
            "give a bytearray with a NUL at its end, or, if it is only read, set argtypes" in said
        )
    for fields in ((1, 2), [1, 2], types.MappingProxyType({"x": 1})):
        assert "give a dict" in refusal(Pointer(POINT), fields, ArgumentTypeError)
        assert reference(Pointer(POINT, const=True), fields).temporary
    assert not reference(Pointer(CHAR), bytearray(b"ab")).terminated


def test_none_is_null_and_a_number_is_an_address_in_the_machine() -> None:
    for kind in (Pointer(BYTE), Pointer(CHAR), Pointer(POINT), Pointer(Void())):
        assert given(kind, None) == bytes(8)
        for value in (0x1234, np.uint64(0x1234), ctypes.c_void_p(0x1234)):
            assert given(kind, value) == b"\x34\x12" + bytes(6)
        with pytest.raises(OverflowError):
            given(kind, 1 << 64)


def test_addresses_of_this_process_are_refused() -> None:
    for value in (
        ctypes.pointer(ctypes.c_int(3)),
        ctypes.CFUNCTYPE(None)(lambda: None),
        ctypes.byref(ctypes.c_void_p()),
        (ctypes.c_void_p * 2)(),
    ):
        assert "this process" in refusal(Pointer(Void()), value)


def test_a_place_within_an_object_of_ctypes_is_given_as_a_memoryview() -> None:
    numbers = (ctypes.c_int * 4)()
    with pytest.raises(ConfigError, match="byref with an offset"):
        given(Pointer(INT), ctypes.byref(numbers, 4))
    assert reference(Pointer(INT), memoryview(numbers)[1:]).size == 12


def test_a_structure_is_pointed_to_by_its_fields_too() -> None:
    pair = collections.namedtuple("pair", "x y")
    for value in ({"y": 2.0, "x": 1.0}, (1, 2), [1, 2], pair(1, 2)):
        found = reference(Pointer(POINT, const=True), value)
        assert (found.data, found.size) == (bytes(CPoint(1, 2)), 16)
        assert found.temporary
    with pytest.raises(ConfigError, match="f: data: struct point has no field 'z'"):
        given(Pointer(POINT), {"z": 1})


def test_callbacks_are_refused_and_addresses_in_the_machine_are_not() -> None:
    kind = FunctionPointer(INT, ())
    assert given(kind, None) == bytes(8)
    for number in (64, ctypes.c_void_p(64)):
        assert given(kind, number) == (64).to_bytes(8, "little")
    for value in (print, functools.partial(print), b"", ctypes.CFUNCTYPE(None)(print)):
        assert refusal(kind, value) == (
            "is a callback: functions of a machine cannot call Python; give None, or the address "
            "of one of the machine's (lib.f.address)"
        )


def test_numbers_in_a_list_are_an_array_that_is_only_read() -> None:
    kind = Pointer(Float("double", 8), const=True)
    made = refer(0, kind, [1, 2.5], "f: v")
    assert isinstance(made, Reference)
    assert (made.data, made.size, made.temporary) == (struct.pack("<2d", 1, 2.5), 16, True)
    with pytest.raises(TypeError, match=r"f: v\[1\] must be a number"):
        refer(0, kind, (1, "2"), "f: v")


def test_a_mapping_that_a_structure_is_made_from_has_what_it_has_become() -> None:
    point = Struct(
        "point", 16, 8, (Field("x", 0, Int("int", 4, True)), Field("y", 8, Float("double", 8)))
    )
    line = Struct("line", 32, 8, (Field("a", 0, point), Field("b", 16, point)))
    value = {"a": {"x": 1, "y": 2}, "b": (3, 4)}
    made = refer(0, Pointer(line), value, "f: l")
    assert isinstance(made, Reference)
    assert made.mapping is value
    written_back(made, struct.pack("<i4xdi4xd", 5, 6, 7, 8), int)
    assert value == {"a": {"x": 5, "y": 6.0}, "b": (7, 8.0)}
    assert getattr(refer(0, Pointer(line, const=True), value, "f: l"), "mapping", 0) is None


def test_a_view_whose_address_is_asked_for_is_let_go_of_when_a_signals_handler_raises_just_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    view, get = memoryview(bytearray(8)), arguments._get_buffer

    def interrupted(*what: Any) -> None:
        get(*what)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(arguments, "_get_buffer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            address_of(view)
    view.release()  # which raises if somebody has it
    with pytest.raises(ValueError, match="released"):
        address_of(view)
