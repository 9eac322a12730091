"""Arguments that point to memory: held for the time of a call, as they lie, nothing besides."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vmm import CallCrash, ResourceError, Sandbox

np: Any = pytest.importorskip("numpy", reason="a nested lane has no more than the package needs")


@pytest.fixture
def lib(sandboxed: Callable[[str], Path]) -> Iterator[Sandbox]:
    with Sandbox(sandboxed("library"), pool="64M") as lib:
        yield lib


# ---- They are held ----


def test_what_a_call_is_to_read_cannot_be_resized_before_it_is_over(lib: Sandbox) -> None:
    given = bytearray(b"x" * 5000)
    call = lib.total._start((given, 5000), {})
    with pytest.raises(BufferError):
        given.clear()  # else the machine would be given what is there instead
    assert call() == 5000 * ord("x")
    given.clear()


@pytest.mark.parametrize("ends", ["refused", "crashed", "cancelled", "never begun"])
def test_it_can_be_resized_again_however_the_call_ends(lib: Sandbox, ends: str) -> None:
    given = bytearray(b"x" * 5000)
    errors: list[Exception] = []  # whose tracebacks lead to what the call had
    if ends in ("refused", "crashed"):
        try:
            lib.total(given, "many" if ends == "refused" else 1 << 40)
        except (TypeError, CallCrash) as error:
            errors.append(error)
        assert errors
    elif ends == "cancelled":
        call = lib.total._start((given, 5000), {})
        del call
    else:
        lib.total(given, 5000)
    given.clear()
    assert not given


# ---- As they lie ----


@pytest.mark.parametrize("size", [8, 5000])
def test_what_is_given_twice_is_in_the_machine_once(lib: Sandbox, size: int) -> None:
    same = bytearray(size)
    lib.write_both(same, same)
    assert same[:3] == b"\1\2\0"
    assert lib.read_what_was_written(same, same) == 77
    array = np.zeros(size, np.uint8)
    lib.write_both(array[1:], array[:-1])  # which both write to the same one
    assert array[:3].tolist() == [0, 2, 0]
    lib.write_both(array[3:5], array[1:])
    assert array[:5].tolist() == [0, 2, 2, 1, 0]


@pytest.mark.parametrize("size", [8, 100, 5000, 1 << 18])
def test_copies_are_aligned_as_malloc_aligns(lib: Sandbox, size: int) -> None:
    given = bytearray(size)
    assert lib.where(given) % 16 == lib.where_after_one(1, given) % 16 == 0


def test_what_is_aligned_to_more_lies_so(lib: Sandbox) -> None:
    class Line(ctypes.Structure):
        _fields_ = (("values", ctypes.c_double * 8),)

    assert lib.where_is_line(Line()) % 64 == 0
    assert lib.where_is_line([(0,) * 8]) % 64 == 0
    assert lib.aligned_result(2.5).values == (2.5,) * 8


def test_a_structure_is_passed_by_value_up_to_what_the_stack_of_a_call_takes(lib: Sandbox) -> None:
    assert lib.last_of((b"a" * 40_000,)) == ord("a")


def test_copies_have_the_memory_of_arrays_that_are_no_more(lib: Sandbox) -> None:
    arrays = [lib.empty(4 << 20, np.uint8) for _ in range(16)]  # all that there is
    with pytest.raises(ResourceError):
        lib.total(bytes(5000), 5000)
    del arrays
    assert lib.total(b"x" * 5000, 5000) == 5000 * ord("x")


@pytest.mark.not_in_lanes("there is no compiler")
def test_very_many_arguments_that_point_to_something(tmp_path: Path) -> None:
    source = tmp_path / "many.c"
    taken = ", ".join(f"const char *a{i}" for i in range(300))
    source.write_text(f"int last({taken}) {{ return *a0 * 256 + *a299; }}\n")
    with Sandbox(source, pool="16M", cflags=["-w"]) as lib:
        assert lib.last(*["text"] * 299, "zone") == ord("t") * 256 + ord("z")
        array = lib.alloc(5)
        array.write(b"array")
        assert lib.last(*[array] * 300) == ord("a") * 257


# ---- Nothing besides ----


class Named(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p),)


class PackedName(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("name", ctypes.c_char_p),)


@pytest.mark.parametrize(
    "given",
    [
        Named(b"text"),
        PackedName(b"text"),
        (ctypes.c_char_p * 2)(b"a", b"b"),
        ctypes.c_wchar_p("text"),
        (ctypes.CFUNCTYPE(None) * 1)(),
        (ctypes.POINTER(ctypes.c_int) * 1)(),
        (ctypes.py_object * 1)(None),
    ],
    ids=lambda given: type(given).__name__,
)
def test_addresses_of_this_process_are_no_bytes(lib: Sandbox, given: object) -> None:
    with pytest.raises(TypeError, match="holds addresses of this process"):
        lib.where(given)


def test_fields_may_be_called_anything(lib: Sandbox) -> None:
    records = np.zeros(1, [("Offset", "i4"), ("P", "i4")])
    records["P"] = 3
    assert lib.sum_of_record(records) == 3
    assert lib.method(self=1, timeout=2) == 3
    assert lib.method.with_timeout(20)(self=1, timeout=2) == 3
    assert lib.method.submit(self=1, timeout=2).result() == 3


class Either(ctypes.Union):
    _fields_ = (("number", ctypes.c_double), ("halves", ctypes.c_int32 * 2))


class Packed(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("letter", ctypes.c_char), ("either", Either))


def test_structures_of_any_kind_are_pointed_to(lib: Sandbox) -> None:
    record = np.dtype([("letter", "S1"), ("pad", "V4"), ("number", "i4")])
    either, packed, mapping = Either(), Packed(b"a"), {"letter": b"a", "either": {"number": 2.0}}
    for given in (either, ctypes.byref(either), (Either * 2)()):
        lib.halve(given)
    assert either.halves[:] == [2, 2]
    for each in (packed, (Packed * 2)(), mapping, np.zeros(1, record)):
        lib.next_packed(each)
    assert packed.letter == mapping["letter"] == b"b"


@pytest.mark.parametrize(
    "given",
    [
        np.zeros(1, [("letter", "S1"), ("number", "f4"), ("more", "f4")]),
        np.zeros(1, [("letter", "S1"), ("pad", "V4"), ("number", ">i4")]),
        np.zeros(1, [("letter", "S1"), ("pad", "V2"), ("number", "i4"), ("more", "V2")]),
        np.zeros(1, [("letter", "S1"), ("pad", "V4"), ("number", "i4"), ("more", "S9")]),
        (Either * 9)(),
    ],
    ids=lambda given: str(getattr(given, "dtype", "")),
)
def test_structures_that_are_laid_out_differently_are_refused(lib: Sandbox, given: Any) -> None:
    with pytest.raises(TypeError, match="is laid out differently than struct packed"):
        lib.next_packed(given)


@pytest.mark.parametrize("number", [1 << 64, -(10**5000)], ids=["large", "very large"])
def test_a_number_that_is_too_large_is_told_in_a_line(lib: Sandbox, number: int) -> None:
    for call in (lib.method, lib.where_after_one):
        with pytest.raises(OverflowError) as raised:
            call(number, number)
        assert len(str(raised.value)) < 100


def test_arrays_of_subarrays_are_shaped_as_numpys(lib: Sandbox) -> None:
    assert lib.empty(3, "(2,3)f4").shape == np.empty(3, "(2,3)f4").shape
