"""Calls of numbers only, made in one step: what the general way says of them."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from vmm.errors import ConfigError
from vmm.sandbox import request
from vmm.sandbox.ctype import (
    CHAR,
    INT,
    CType,
    Field,
    Float,
    Int,
    Pointer,
    Struct,
    Void,
)
from vmm.sandbox.function import _words
from vmm.sandbox.plain import Plain
from vmm.sandbox.prototype import Parameter, Prototype
from vmm.sandbox.values import decode

FUNCTION = 0x40_1000
SCALARS: list[CType] = [
    *(Int(f"{size}", size, signed) for size in (1, 2, 4, 8) for signed in (False, True)),
    *(Int("char", 1, True, "char"), Int("char", 1, False, "char"), Int("_Bool", 1, False, "bool")),
    *(Int("enum a", 4, False, "enum"), Float("float", 4), Float("double", 8)),
]
OTHERS: list[CType] = [
    Pointer(INT),
    Pointer(CHAR, const=True),
    Struct("struct s", 8, 4, (Field("a", 0, INT), Field("b", 4, INT))),
]
edge = st.sampled_from([s << b for b in (0, 7, 8, 15, 16, 31, 32, 63, 64) for s in (-1, 1)])
whole = st.one_of(st.integers(-(2**65), 2**65), edge, edge.map(lambda n: n - 1))
values = st.one_of(
    *(whole, st.integers(-2, 2), st.booleans(), st.floats(), st.none(), st.sampled_from(["", "a"])),
    *(st.binary(max_size=2), st.just(ctypes.c_int(7)), st.floats().map(ctypes.c_double)),
)


def prototype(types: list[CType], result: CType) -> Prototype:
    return Prototype("f", 0, tuple(Parameter(f"p{n}", t) for n, t in enumerate(types)), result)


def generally(called: Prototype, args: list[Any]) -> bytes:
    """Return the payload as calls of any kind get theirs."""
    words, references = _words(called.layout, FUNCTION, called.bind(args))
    assert not references
    return request.asked(words, request.laid_out(words, ())).payload


def fitting(kind: CType) -> st.SearchStrategy[Any]:
    """Numbers of Python's own that a type can have, and now and then something else."""
    if isinstance(kind, Float):
        fits: st.SearchStrategy[Any] = st.floats(width=32 if kind.size == 4 else 64)
    else:
        assert isinstance(kind, Int)
        fits = st.integers(kind.lowest, kind.highest)
    return st.one_of(fits, fits, fits, fits, values)


@given(st.data())
def test_a_payload_is_what_the_general_way_says_or_left_to_it(data: st.DataObject) -> None:
    types = data.draw(st.lists(st.sampled_from(SCALARS), max_size=8))
    args = [data.draw(fitting(kind)) for kind in types]
    if data.draw(st.integers(0, 9)) == 0:
        args = args[:-1] if data.draw(st.booleans()) else [*args, 0]
    called = prototype(types, Void())
    plain = called.plain
    if plain is None:
        assert called.layout.stack
        return
    payload = plain.payload(FUNCTION, args)
    if payload is not None:
        assert payload == generally(called, args)


@given(st.lists(st.sampled_from(SCALARS), max_size=6), st.data())
def test_pythons_own_numbers_that_fit_are_not_left_to_it(
    types: list[CType], data: st.DataObject
) -> None:
    args = [
        data.draw(
            st.floats(width=32)
            if isinstance(kind, Float)
            else st.integers(kind.lowest, kind.highest)  # type: ignore[union-attr]
        )
        for kind in types
    ]
    plain = prototype(types, Void()).plain
    assert plain is not None
    assert plain.payload(FUNCTION, args) is not None


@given(st.sampled_from([*SCALARS, Void()]), st.lists(st.integers(0, 2**64 - 1), min_size=4))
def test_a_result_is_what_the_general_way_makes_of_it(kind: CType, words: list[int]) -> None:
    called = prototype([], kind)
    assert called.plain is not None
    payload = struct.pack("<4Q", *words[:4])
    result, _ = request.result(payload)
    expected = decode(kind, called.layout.unpack(*result))
    found = called.plain.result(payload + b"more")
    assert type(found) is type(expected)
    assert found == expected or (found != found and expected != expected)


@pytest.mark.parametrize("other", OTHERS)
def test_what_takes_or_returns_anything_else_is_not_plain(other: CType) -> None:
    assert prototype([INT, other], Void()).plain is None
    assert prototype([INT], other).plain is None


def test_what_goes_onto_the_stack_is_not_plain() -> None:
    assert prototype([INT] * 6, INT).plain is not None
    assert prototype([INT] * 7, INT).plain is None
    assert prototype([Float("long double", 16)], INT) is not None


@pytest.mark.parametrize("types", [{"unknown": True}, {"variadic": True}])
def test_what_cannot_be_called_says_so_in_the_general_way(types: dict[str, bool]) -> None:
    called = Prototype("f", 0, **types)  # type: ignore[arg-type]
    assert called.plain is None
    with pytest.raises(ConfigError):
        called.bind(())


def test_types_that_are_set_later_make_another_plan() -> None:
    called = prototype([INT], INT)
    assert isinstance(called.plain, Plain)
    assert called.plain.payload(FUNCTION, [2**40]) is None
    other = called.typed([ctypes.c_int64], ctypes.c_double)
    assert other.plain is not None
    assert other.plain.payload(FUNCTION, [2**40]) == generally(other, [2**40])
    assert other.plain.result(struct.pack("<QQdQ", 0, 0, 1.5, 0)) == 1.5
