"""Python values as C values and back, with ctypes as the one that knows."""

from __future__ import annotations

import ctypes
import enum
import math
import struct
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from vmm.errors import ArgumentRangeError, ArgumentTypeError, ConfigError, PageferryError
from vmm.sandbox.ctype import CHAR, Array, CType, Field, Float, Int, Opaque, Pointer, Struct, Void
from vmm.sandbox.foreign import as_ctype, of_ctypes
from vmm.sandbox.values import decode, encode

INT, BYTE, REAL = Int("int", 4, True), Int("uint8_t", 1, False), Float("double", 8)
SINGLE, BOOL, COLOR = (
    Float("float", 4),
    Int("_Bool", 1, False, "bool"),
    Int("enum c", 4, False, "enum"),
)
POINT = Struct("struct point", 16, 8, (Field("x", 0, REAL), Field("y", 8, REAL)))
BOTH = Struct("union both", 4, 4, (Field("whole", 0, INT), Field("part", 0, BYTE)))


class CPoint(ctypes.Structure):
    _fields_ = (("x", ctypes.c_double), ("y", ctypes.c_double))


def refusal(kind: CType, value: Any, error: type[PageferryError]) -> str:
    with pytest.raises(error) as caught:
        encode(kind, value, "blur: sigma")
    said = str(caught.value)
    assert said.startswith("blur: sigma")
    assert "\n" not in said
    return said


# ---- Numbers ----


class Index:
    def __index__(self) -> int:
        return 7


class Color(enum.IntEnum):
    RED = 7


@pytest.mark.parametrize(
    "value", [7, np.int8(7), np.uint64(7), Index(), Color.RED, ctypes.c_long(7), np.array(7)]
)
def test_a_whole_number_is_whatever_has_an_index(value: Any) -> None:
    assert encode(INT, value, "f: x") == encode(COLOR, value, "f: x") == b"\7\0\0\0"


@pytest.mark.parametrize("value", [7.0, "7", b"7", None, [7], Fraction(7), np.float64(7)])
def test_other_values_are_no_whole_numbers(value: Any) -> None:
    name = type(value).__name__
    assert refusal(INT, value, ArgumentTypeError) == (
        f"blur: sigma must be a whole number, not {name}"
    )


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("signed", [False, True])
def test_a_whole_number_has_to_fit(size: int, signed: bool) -> None:
    kind = Int("number", size, signed)
    for number in (kind.lowest, kind.highest):
        assert decode(kind, encode(kind, number, "f: x")) == number
    for number in (kind.lowest - 1, kind.highest + 1):
        said = refusal(kind, number, ArgumentRangeError)
        assert said.endswith(f"must be from {kind.lowest} to {kind.highest} (number), not {number}")
    with pytest.raises(OverflowError):
        encode(kind, 1 << 70, "f: x")


def test_a_bool_is_true_or_false() -> None:
    for value in (True, np.True_, 1, np.bool_(True)):
        assert encode(BOOL, value, "f: x") == b"\1"
    assert encode(INT, True, "f: x") == b"\1\0\0\0"
    assert decode(BOOL, b"\0") is False
    refusal(BOOL, 2, ArgumentRangeError)
    assert refusal(BOOL, 0.0, ArgumentTypeError).endswith("True or False, not float")


def test_a_char_is_one_byte() -> None:
    for value in (b"a", bytearray(b"a"), 97, ctypes.c_char(b"a")):
        assert encode(CHAR, value, "f: x") == b"a"
    assert encode(CHAR, b"\xff", "f: x") == b"\xff"
    assert decode(CHAR, b"\xff") == b"\xff"
    assert refusal(CHAR, b"ab", ConfigError).endswith("must be one byte, not 2")
    refusal(CHAR, "a", ArgumentTypeError)


@pytest.mark.parametrize(
    "value", [1.5, Fraction(3, 2), np.float32(1.5), np.float64(1.5), ctypes.c_double(1.5)]
)
def test_a_floating_point_number_is_whatever_has_a_float(value: Any) -> None:
    assert encode(REAL, value, "f: x") == struct.pack("<d", 1.5)
    assert decode(SINGLE, encode(SINGLE, value, "f: x")) == 1.5
    assert encode(REAL, 3, "f: x") == struct.pack("<d", 3.0)


def test_other_values_are_no_floating_point_numbers() -> None:
    for value in ("1.5", b"1.5", None, 1j, np.array([1.5]), [1.5]):
        assert refusal(REAL, value, ArgumentTypeError) == (
            f"blur: sigma must be a number, not {type(value).__name__}"
        )
    assert refusal(SINGLE, 1e300, ArgumentRangeError).endswith("is too large for a float")
    refusal(REAL, 10**400, ArgumentRangeError)
    assert math.isnan(decode(SINGLE, encode(SINGLE, math.nan, "f: x")))
    assert decode(SINGLE, encode(SINGLE, -math.inf, "f: x")) == -math.inf


def test_a_pointer_is_an_address_in_the_machine() -> None:
    kind = Pointer(Void())
    for value in (0, 0x1000, (1 << 64) - 1):
        assert decode(kind, encode(kind, value, "f: x")) == (value or None)
    assert encode(kind, None, "f: x") == bytes(8)
    refusal(kind, -1, ArgumentRangeError)
    refusal(kind, "x", ArgumentTypeError)


# ---- Structures and arrays ----


@pytest.mark.parametrize(
    "value",
    [
        {"x": 1, "y": 2.5},
        MappingProxyType({"y": 2.5, "x": 1}),
        (1, 2.5),
        [1.0, 2.5],
        np.array([1, 2.5]),
        CPoint(1, 2.5),
        bytes(CPoint(1, 2.5)),
        np.array([(1, 2.5)], dtype=[("x", "f8"), ("y", "f8")])[0],
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_structure_is_given_in_many_ways(value: Any) -> None:
    raw = encode(POINT, value, "f: p")
    assert raw == bytes(CPoint(1, 2.5))
    back = decode(POINT, raw)
    assert (back.x, back.y) == back == (1.0, 2.5)
    assert repr(back) == "point(x=1.0, y=2.5)"
    assert encode(POINT, back, "f: p") == raw


def test_what_is_left_out_of_a_structure_is_zero() -> None:
    assert decode(POINT, encode(POINT, {"y": 1}, "f: p")) == (0, 1)


def test_a_wrong_structure_says_which_field() -> None:
    class Other(ctypes.Structure):
        _fields_ = (("x", ctypes.c_double), ("y", ctypes.c_long))

    for value, said in (
        ({"z": 1}, "blur: sigma: struct point has no field 'z'"),
        ({"x": "1"}, "blur: sigma.x must be a number, not str"),
        ((1,), "blur: sigma: struct point has 2 fields, not 1"),
        (b"123", "blur: sigma: struct point has 16 bytes, not 3"),
        (Other(), "blur: sigma: Other is laid out differently than struct point"),
        (7, "blur: sigma must be a mapping or a sequence for struct point, not int"),
        ("xy", "blur: sigma must be a mapping or a sequence for struct point, not str"),
    ):
        assert refusal(POINT, value, ConfigError) == said


def test_of_a_union_one_member_is_given_and_all_are_seen() -> None:
    assert decode(BOTH, encode(BOTH, {"whole": 0x1234}, "f: u")) == (0x1234, 0x34)
    assert "are in the same place" in refusal(BOTH, {"whole": 1, "part": 1}, ConfigError)
    assert "are in the same place" in refusal(BOTH, (1, 1), ConfigError)


def test_an_array_has_all_its_elements() -> None:
    kind = Array(Array(INT, 2), 2)
    rows = ((1, 2), (3, 4))
    for value in (rows, [[1, 2], [3, 4]], np.array(rows), struct.pack("<4i", 1, 2, 3, 4)):
        assert decode(kind, encode(kind, value, "f: a")) == rows
    assert refusal(kind, ((1, 2), (3, "4")), ConfigError) == (
        "blur: sigma[1][1] must be a whole number, not str"
    )
    assert refusal(kind, ((1, 2),), ConfigError).endswith("must be a sequence of 2, not of 1")
    refusal(kind, 5, ArgumentTypeError)


def test_an_array_of_char_is_text_that_may_be_shorter() -> None:
    kind = Array(CHAR, 4)
    for value in ("é!", "é!".encode()):
        assert encode(kind, value, "f: name") == b"\xc3\xa9!\0"
    assert decode(kind, b"ab\0c") == b"ab"
    assert decode(Array(BYTE, 4), b"ab\0c") == b"ab\0c"
    refusal(kind, "12345", ConfigError)
    refusal(kind, "a\0b", ConfigError)
    refusal(kind, "\ud800", ConfigError)


def test_names_that_python_has_other_uses_for_are_changed() -> None:
    names = ("in", "_private", "a b", "x", "x")
    kind = Struct("", 5, 1, tuple(Field(name, at, BYTE) for at, name in enumerate(names)))
    back = decode(kind, bytes(range(5)))
    assert back == tuple(range(5))
    assert back.in_ == 0
    assert back.x == 3


def test_what_is_no_value_is_refused() -> None:
    for kind in (Void(), Opaque("struct s"), Float("long double", 16)):
        refusal(kind, 1, ConfigError)


# ---- ctypes' types ----

SIMPLE = (
    *(ctypes.c_byte, ctypes.c_ubyte, ctypes.c_short, ctypes.c_ushort, ctypes.c_int),
    *(ctypes.c_uint, ctypes.c_long, ctypes.c_ulong, ctypes.c_float, ctypes.c_double),
    *(ctypes.c_bool, ctypes.c_char, ctypes.c_void_p),
)


def of_fields(base: type, pack: int, kinds: list[Any]) -> Any:
    fields = [(f"m{number}", kind) for number, kind in enumerate(kinds)]
    return type(
        "Made",
        (base,),
        {"_pack_": pack, "_layout_": "ms", "_fields_": fields} if pack else {"_fields_": fields},
    )


structures = st.recursive(
    st.sampled_from(SIMPLE),
    lambda inner: st.one_of(
        st.builds(lambda kind, count: kind * count, inner, st.integers(1, 3)),
        st.builds(
            of_fields,
            st.sampled_from((ctypes.Structure, ctypes.Structure, ctypes.Union)),
            st.sampled_from((0, 0, 1, 2)),
            st.lists(inner, min_size=1, max_size=4),
        ),
    ),
    max_leaves=10,
)


def seen(kind: Any, value: Any) -> Any:
    """What ctypes shows of a value, as `decode` does."""
    if issubclass(kind, ctypes.Structure | ctypes.Union):
        return tuple(seen(of, getattr(value, name)) for name, of in kind._fields_)
    if issubclass(kind, ctypes.Array):
        if kind._type_ is ctypes.c_char:
            return getattr(value, "value", value)
        if kind._type_ is ctypes.c_ubyte:
            return bytes(value)
        return tuple(seen(kind._type_, each) for each in value)
    return value


@settings(max_examples=150, deadline=None)
@given(kind=structures, data=st.data())
def test_ctypes_sees_the_same_in_the_same_bytes(kind: Any, data: st.DataObject) -> None:
    size = ctypes.sizeof(kind)
    raw = data.draw(
        st.binary(min_size=size, max_size=size).map(lambda raw: bytes(b & 1 for b in raw))
    )
    ours = of_ctypes(kind)
    assert (ours.size, decode(ours, raw)) == (size, seen(kind, _held(kind, raw)))
    if issubclass(kind, ctypes.Structure):
        theirs = kind.from_buffer_copy(raw)
        assert encode(ours, theirs, "f: x") == raw


def _held(kind: Any, raw: bytes) -> Any:
    """A value of a type of ctypes'; of a simple one, as a field would give it."""
    if issubclass(kind, ctypes._SimpleCData):
        return of_fields(ctypes.Structure, 0, [kind]).from_buffer_copy(raw).m0
    return kind.from_buffer_copy(raw)


def test_types_of_ctypes_and_numpy_are_c_types() -> None:
    for kind, wanted in (
        (None, Void()),
        (ctypes.c_int, INT),
        (ctypes.c_size_t, Int("", 8, False)),
        (ctypes.c_char_p, Pointer(CHAR, const=True)),
        (ctypes.POINTER(ctypes.c_double), Pointer(REAL)),
        (ctypes.POINTER(CPoint), Pointer(POINT)),
        (ctypes.c_int * 3, Array(INT, 3)),
        (np.ctypeslib.ndpointer(np.float64), Pointer(REAL)),
        (np.ctypeslib.ndpointer(np.uint8, flags="C_CONTIGUOUS"), Pointer(BYTE)),
        (np.ctypeslib.ndpointer(), Pointer(Void())),
        (Pointer(INT), Pointer(INT)),
    ):
        assert as_ctype(kind, "f.argtypes[0]") == wanted


def test_a_structure_of_ctypes_that_points_to_itself_ends_there() -> None:
    class Node(ctypes.Structure):
        pass

    Node._fields_ = (("next", ctypes.POINTER(Node)), ("value", ctypes.c_int))
    made = as_ctype(ctypes.POINTER(Node), "f.argtypes[0]")
    assert isinstance(made, Pointer)
    assert isinstance(made.target, Struct)
    assert made.target.fields[0].type == Pointer(Opaque("Node"))


def test_types_that_are_not_served_are_refused() -> None:
    class Bits(ctypes.Structure):
        _fields_ = (("a", ctypes.c_int, 3),)

    class Swapped(ctypes.BigEndianStructure):
        _fields_ = (("a", ctypes.c_int),)

    for kind in (
        *(
            int,
            "int",
            7,
            Bits,
            Swapped,
            ctypes.c_wchar_p,
            ctypes.py_object,
            ctypes.c_int.__ctype_be__,
        ),
        *(np.ctypeslib.ndpointer(np.complex128), np.ctypeslib.ndpointer(">f8")),
        ctypes.c_char * (1 << 30),
    ):
        with pytest.raises(ConfigError, match=r"^f\.argtypes\[0\]"):
            as_ctype(kind, "f.argtypes[0]")
