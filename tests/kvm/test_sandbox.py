"""Functions in C, called from Python, in a machine (tests/sandboxed/library.c)."""

from __future__ import annotations

import array
import copy
import ctypes
import gc
import math
import pickle
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from guest_elfs import SANDBOXED
from kvm import mappings
from kvm.sandbox_books import tidy

from vmm import (
    CallCrash,
    CallError,
    CallExit,
    CallTimeout,
    ClosedError,
    ConfigError,
    GuestFault,
    GuestImageError,
    Sandbox,
)

np: Any = pytest.importorskip("numpy", reason="a nested lane has no more than the package needs")
LIBRARY = SANDBOXED / "library.elf"


@pytest.fixture(scope="module")
def shared_lib(test_guests: Path) -> Iterator[Sandbox]:
    with Sandbox(LIBRARY, pool="256M") as lib:
        lib.total(bytes(1000), 1000)  # so that there is memory for copies, which is kept
        yield lib


@pytest.fixture
def lib(shared_lib: Sandbox) -> Iterator[Sandbox]:
    """The library, with nothing of a test's left in its memory afterwards."""
    before = shared_lib.monitor.audit()["free"]
    yield shared_lib
    tidy(shared_lib)
    mappings.check(shared_lib.monitor)
    for worker in shared_lib._crew.workers:
        worker.copies.drop()
        worker.start()  # another machine, if the test has ended the last one
    assert shared_lib.monitor.audit()["free"] >= before


# ---- Numbers ----


def test_a_function_is_called_with_numbers_by_position_and_by_name(lib: Sandbox) -> None:
    assert lib.add(2, 3) == 5
    assert lib.add(b=-3, a=2) == -1
    assert lib["add"](2, b=2**31 - 3) == 2**31 - 1
    assert lib.widest(2**64 - 1) == 2**64 - 1
    assert lib.half(5) == 2.5
    assert math.isnan(lib.half(math.nan))
    assert (lib.negate(True), lib.negate(0)) == (False, True)
    assert lib.next_letter(b"a") == b"b"
    assert (lib.paint(0), lib.paint(7)) == (7, 0)
    assert lib.add(np.int16(4), np.uint8(5)) == 9


def test_more_arguments_than_there_are_registers_arrive_in_their_places(lib: Sandbox) -> None:
    ints, floats = range(1, 9), [value + 0.5 for value in range(9)]
    expected = sum((i + 1) * v for i, v in enumerate([*ints, *floats, -3]))
    assert lib.all_registers(*ints, *floats, -3) == expected


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda lib: lib.add(1), TypeError, r"add\(\) missing 1 required .* 'b'"),
        (lambda lib: lib.add(1, 2, 3), TypeError, r"add\(\) takes 2 positional arguments but 3"),
        (lambda lib: lib.add(1, c=2), TypeError, "unexpected keyword argument 'c'"),
        (lambda lib: lib.add(1, a=2), TypeError, "multiple values for argument 'a'"),
        (lambda lib: lib.add("1", 2), TypeError, "add: a must be"),
        (lambda lib: lib.add(1.5, 2), TypeError, "add: a must be"),
        (lambda lib: lib.add(2**31, 2), OverflowError, "add: a"),
        (lambda lib: lib.half("x"), TypeError, "half: value must be a number"),
        (lambda lib: lib.total("text", 4), TypeError, "total: bytes must be"),
        (lambda lib: lib.scale([1.0], 1, 2), TypeError, "scale: values may be written"),
        (lambda lib: lib.scale(np.zeros(2, "f4"), 2, 2), TypeError, "not of float32"),
        (lambda lib: lib.scale(np.zeros((4, 4))[:, 0], 4, 2), BufferError, "not contiguous"),
        (lambda lib: lib.scale(b"12345678", 1, 2), TypeError, "can only be read"),
        (lambda lib: lib.moved((1,), 2), ValueError, "moved: point"),
        (lambda lib: lib.call_back(print, 2), TypeError, "callback"),
        (lambda lib: lib.variadic(1, 2), ValueError, "set argtypes first"),
        (lambda lib: lib.nothing_like_it(), AttributeError, "no global function"),
        (lambda lib: lib.countr(), AttributeError, "did you mean 'counter'"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_done(
    lib: Sandbox, call: Callable[[Sandbox], object], error: type[Exception], said: str
) -> None:
    calls, machine = lib.stats.calls, lib._crew.workers[0].machine
    with pytest.raises(error, match=said) as raised:
        call(lib)
    assert "\n" not in str(raised.value)
    assert (lib.stats.calls, lib._crew.workers[0].machine) == (calls, machine)


@pytest.mark.not_in_lanes("there is no compiler")
@pytest.mark.parametrize("optimized", ["-O0", "-O2"])
def test_an_array_of_as_many_rows_and_columns_as_is_said_is_taken(
    optimized: str, tmp_path: Path
) -> None:
    source = tmp_path / "rows.c"
    source.write_text(
        "double corner(int n, int m, const double v[n][m][2]) { return v[n - 1][m - 1][1]; }\n"
        "void put(int n, double v[n][3]) { v[n - 1][2] = 7; }\n"
    )
    with Sandbox(source, cflags=[optimized], pool="64M") as lib:
        given = np.arange(24.0).reshape(4, 3, 2)
        given.flags.writeable = False  # as the source says
        assert lib.corner(4, 3, given) == 23
        with pytest.raises(ValueError, match="= 30 items there, of 8 bytes"):
            lib.corner(5, 3, given)
        with pytest.raises(TypeError, match="must have items of double"):
            lib.corner(4, 3, given.astype(np.int64))
        rows = lib.empty((4, 3))
        lib.put(4, rows)
        assert rows[3, 2] == rows.sum() == 7
        with pytest.raises(ValueError, match="= 15 items there"):
            lib.put(5, rows)
        del rows


@pytest.mark.not_in_lanes("there is no compiler")
def test_an_array_that_is_too_short_for_what_is_said_of_it_is_refused(tmp_path: Path) -> None:
    source = Path(__file__).parent.parent / "sandboxed" / "library.c"
    with Sandbox(source, pool="64M") as lib:
        lib.shift(3, np.zeros(3), 1)
        for values in (np.zeros(3), lib.empty(3)):
            with pytest.raises(
                ValueError, match=r"shift: values has 24 bytes, .* = 4 items there, of 8 bytes"
            ):
                lib.shift(4, values, 1)
        assert lib.shift.lengths == {"values": "(count)"}
        for count in (ctypes.c_int(4), np.array(4), np.int8(4)):
            with pytest.raises(ValueError, match=r"= 4 items there, of 8 bytes"):
                lib.shift(count, np.zeros(3), 1)
        lib.total.lengths = {"bytes": "count"}
        with pytest.raises(ValueError, match="total: bytes has 2 bytes"):
            lib.total(b"12", 3)
        assert lib.total(b"123", 3) == 150
        with pytest.raises(TypeError, match="does not support item assignment"):
            lib.total.lengths["bytes"] = "2"  # type: ignore[index]
        for wrong in ({"bytes": "size"}, {"nothing": 1}, {"bytes": "f()"}, ["count"]):
            with pytest.raises(ConfigError):
                lib.total.lengths = wrong
        del values
    gc.collect()  # what is viewed outlives the sandbox


def test_types_can_be_given_as_with_ctypes(lib: Sandbox) -> None:
    variadic = lib["variadic"]
    variadic.argtypes = [ctypes.c_int] * 4
    try:
        assert variadic(3, 10, 20, 30) == 60
    finally:
        variadic.argtypes = None
    lib["where"].restype = ctypes.c_void_p
    assert lib.where(None) is None
    callback = lib["call_back"]
    assert callback(None, 5) == 5


def test_dir_lists_the_functions_that_are_there_to_be_called(lib: Sandbox) -> None:
    listed = dir(lib)
    assert {"nap", "call_back", "empty", "stats"} <= set(listed)
    assert not [name for name in listed if name == "main" or name.startswith(("pf_", "_Z"))]
    libc = {"printf", "malloc", "free", "exit", "strlen", "fopen", "abort", "setvbuf", "memcpy"}
    assert not libc & set(listed)
    assert lib["exit"].__doc__ == "void exit(int)"  # there all the same


def test_a_name_that_is_not_there_is_told_of_as_by_ctypes(lib: Sandbox) -> None:
    for kind in (AttributeError, KeyError):
        with pytest.raises(kind) as raised:
            lib["countr"]
        said = "there is no global function 'countr' in library; did you mean 'counter'"
        assert str(raised.value).startswith(said)
    assert not hasattr(lib, "countr")


def test_a_function_is_of_this_process_alone(lib: Sandbox) -> None:
    for escape in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError, match="nap cannot be copied or pickled: make a sandbox in"):
            escape(lib.nap)


def test_a_function_of_the_machines_can_be_another_ones_callback(lib: Sandbox) -> None:
    assert lib["call_back"](lib.nap.address, 1) == 0
    assert lib["call_back"](lib.nap.address, -1) == lib.nap(-1) == -1


def test_what_ctypes_would_heed_and_a_function_here_does_not_cannot_be_set(lib: Sandbox) -> None:
    with pytest.raises(AttributeError, match=r"nap.errcheck is nothing that can be set: argtypes"):
        lib.nap.errcheck = print  # type: ignore[attr-defined]


# ---- Structures and text ----


def test_structures_go_and_come_by_value(lib: Sandbox) -> None:
    assert lib.moved((1, 2.5), 0.5) == (2, 3.0)
    assert lib.moved({"x": 4, "y": 1}, 1).x == 5
    big = lib.renamed({"values": [1, 2, 3, 4, 5], "name": b""}, "a name")
    assert (big.values, big.name) == ((1, 2, 3, 4, 5), b"a name")


def test_structures_are_pointed_to_and_written_where_they_are(lib: Sandbox) -> None:
    class Point(ctypes.Structure):
        _fields_ = (("x", ctypes.c_int), ("y", ctypes.c_double))

    point = Point(1, 2.5)
    lib.place_at(point, 9)
    assert (point.x, point.y) == (9, 2.5)
    lib.place_at(ctypes.byref(point), 8)
    assert point.x == 8
    record = np.zeros(1, dtype=np.dtype([("x", "i4"), ("y", "f8")], align=True))
    lib.place_at(record, 7)
    assert record["x"][0] == 7


def test_a_structure_that_is_pointed_to_may_be_a_mapping_and_numbers_a_list(lib: Sandbox) -> None:
    point = {"x": 1, "y": 2.5}
    lib.place_at(point, 9)
    assert point == {"x": 9, "y": 2.5}
    assert lib.get([1.5, 2.5, 3.5], 1) == 2.5
    with pytest.raises(TypeError, match="give an array"):
        lib.scale([1.5], 1, 2)


def test_text_goes_as_utf_8_and_comes_as_bytes(lib: Sandbox) -> None:
    assert lib.greeting("wörld") == "hello wörld".encode()
    assert lib.greeting(b"bytes") == b"hello bytes"
    assert lib.greeting(None) == b"hello nobody"
    assert lib.length_of("x" * 5000) == 5000
    with pytest.raises(ValueError, match="set restype"):
        lib.not_text()
    assert lib.greeting("you") == b"hello you"  # by the same machine: nothing was wrong with it


# ---- Memory ----


@pytest.mark.parametrize("count", [1, 10, 1000, 1_000_003], ids=str)
def test_arrays_of_the_callers_are_copied_there_and_back(lib: Sandbox, count: int) -> None:
    values, copied = np.arange(count, dtype=float), lib.stats.copied_bytes
    lib.scale(values, count, 3)
    assert np.array_equal(values, np.arange(count) * 3.0)
    assert lib.stats.copied_bytes - copied == 2 * values.nbytes
    sums = values.astype("u1")
    copied = lib.stats.copied_bytes
    assert lib.total(sums, count) == int(sums.sum())
    assert lib.stats.copied_bytes - copied == sums.nbytes  # const: not back


@pytest.mark.parametrize("make", [bytearray, memoryview, lambda data: array.array("B", data)])
def test_whatever_has_the_buffer_protocol_is_an_argument(
    lib: Sandbox, make: Callable[[bytearray], object]
) -> None:
    data = make(bytearray(b"12345678"))
    lib.copy(data, b"abcd", 4)
    assert bytes(data) == b"abcd5678"  # type: ignore[call-overload]


@pytest.mark.parametrize("count", [1, 511, 512, 1 << 20], ids=str)
def test_arrays_in_the_sandboxes_memory_are_not_copied(lib: Sandbox, count: int) -> None:
    values, copied = lib.empty(count), lib.stats.copied_bytes
    assert not values.any()
    values[...] = np.arange(count)
    lib.scale(values, count, 3)
    assert np.array_equal(values, np.arange(count) * 3.0)
    assert lib.stats.copied_bytes == copied
    raw = lib.array(values.view("u1"))
    assert lib.total(raw, raw.size) == int(raw.sum())
    assert lib.total(raw[8:], raw.size - 8) == int(raw[8:].sum())


def test_arrays_have_the_shape_and_type_that_is_asked_for(lib: Sandbox) -> None:
    picture = lib.empty((4, 5, 3), np.uint8)
    assert (picture.shape, picture.dtype, picture.flags.c_contiguous) == ((4, 5, 3), "u1", True)
    assert lib.empty(7).shape == (7,)
    assert lib.empty(()).shape == ()
    assert lib.empty((3, 0)).size == 0
    assert lib.empty(2, "i4, f8").dtype.names == ("f0", "f1")
    for shape, kind in ((-1, float), ("3", float), (2.5, float), (3, object)):
        with pytest.raises((TypeError, ValueError)):
            lib.empty(shape, kind)


def test_an_array_is_seen_during_its_call_and_not_before_nor_after(lib: Sandbox) -> None:
    mine, other = lib.array([1.0, 2.0]), lib.array([3.0, 4.0])
    address = int(lib.where(mine))
    for _ in range(2):
        with pytest.raises(CallCrash, match=r"SIGSEGV|SIGBUS"):
            lib.peek(address)
    lib.scale(other, 2, 2)
    with pytest.raises(CallCrash):
        lib.peek(address)
    assert (list(mine), list(other)) == ([1, 2], [6, 8])


def test_what_is_const_cannot_be_written_to(lib: Sandbox) -> None:
    values = lib.array(np.arange(4, dtype=np.int32))
    with pytest.raises(CallCrash, match=r"write of 0x[0-9a-f]+, a page that it may only read"):
        lib.write_through_const(values)
    assert list(values) == [0, 1, 2, 3]


def test_the_same_array_can_be_several_arguments(lib: Sandbox) -> None:
    values = lib.array(np.arange(1000, dtype=np.uint8))
    lib.copy(values[500:], values, 500)  # const and not, with pages in common
    assert np.array_equal(values[500:], values[:500])
    first, second = lib.array(np.full(5000, 1, "u1")), lib.array(np.full(5000, 2, "u1"))
    lib.copy(first, second, 5000)
    assert (first == 2).all()


def test_other_threads_see_an_array_while_a_function_works_on_it(lib: Sandbox) -> None:
    values, stop, seen = lib.array(np.ones(1 << 18)), threading.Event(), set[float]()

    def look() -> None:
        while not stop.is_set():
            seen.update(values[:: 1 << 14])

    looker = threading.Thread(target=look)
    looker.start()
    for _ in range(20):
        lib.scale(values, values.size, 2)
    stop.set()
    looker.join()
    assert seen <= {2.0**power for power in range(21)}
    assert (values == 2.0**20).all()


def test_memory_of_the_machines_own_is_kept_and_handed_back_as_an_address(lib: Sandbox) -> None:
    handle = lib.keep(8)
    lib.put(handle, 3, 2.5)
    assert lib.get(handle, 3) == 2.5
    assert lib.get(np.arange(4.0), 2) == 2


def test_the_memory_of_arrays_is_freed_with_their_last_view(lib: Sandbox) -> None:
    free = lib.monitor.audit()["free"]
    view = lib.empty(1 << 20)[5:7]
    tidy(lib)
    assert lib.monitor.audit()["free"] < free
    view[:] = 1
    del view
    gc.collect()
    lib.empty(1)
    tidy(lib)
    assert lib.monitor.audit()["free"] == free


# ---- State, files, output ----


def test_the_machine_remembers_until_it_is_another(lib: Sandbox) -> None:
    first = lib.counter()
    assert lib.counter() == first + 1
    with pytest.raises(CallError):
        lib.give_up()
    assert lib.counter() == 1


def test_what_it_prints_is_kept(lib: Sandbox) -> None:
    lib.say("for the record")
    with pytest.raises(CallCrash) as raised:
        lib.give_up()
    assert raised.value.fault is not None
    assert raised.value.fault.printed[-2:] == ("for the record", "I give up")


def test_it_reads_the_files_that_it_is_offered_and_no_others(test_guests: Path) -> None:
    with Sandbox(LIBRARY, files={"/in/data": b"offered"}, pool="64M") as lib:
        into = bytearray(16)
        assert lib.read_file("/in/data", into, 16) == 7
        assert into[:7] == b"offered"
        assert lib.read_file("/etc/passwd", into, 16) == -2  # ENOENT


# ---- What goes wrong ----


def test_a_crash_is_an_exception_that_names_the_function_and_the_line(lib: Sandbox) -> None:
    with pytest.raises(CallCrash) as raised:
        lib.poke(0x10, 1)
    error = raised.value
    assert error.function == "poke"
    assert re.search(
        r"^poke: SIGSEGV: .*write of 0x10.*\(poke\+0x\w+ at .*library\.c:\d+\)", str(error)
    )
    assert isinstance(error.fault, GuestFault)
    assert error.fault.signal == "SIGSEGV"
    assert error.fault.registers is not None
    assert lib.add(1, 1) == 2


def test_an_exit_and_an_abort_are_told_apart(lib: Sandbox) -> None:
    with pytest.raises(CallExit, match=r"leave: it called exit\(3\)") as left:
        lib.leave(3)
    assert left.value.exit_code == 3
    with pytest.raises(CallCrash, match="give_up: SIGABRT"):
        lib.give_up()


def test_a_function_that_takes_too_long_is_stopped_in_time(lib: Sandbox) -> None:
    start = time.monotonic()
    with pytest.raises(CallTimeout, match="for_ever: it took longer") as raised:
        lib.for_ever(timeout=0.1)
    assert isinstance(raised.value, TimeoutError)
    assert re.search(r"was stopped at for_ever\+0x\w+ at .*library\.c:\d+$", str(raised.value))
    assert raised.value.fault is not None
    assert 0.1 <= time.monotonic() - start < 5
    with pytest.raises(CallTimeout):
        lib.for_ever.with_timeout(0.01)()
    assert lib.add(1, 1, timeout=10) == 2


def test_a_function_that_sleeps_goes_on_afterwards(lib: Sandbox) -> None:
    start = time.monotonic()
    assert lib.nap(30) == 0
    assert 0.03 <= time.monotonic() - start < 5
    with pytest.raises(CallTimeout):
        lib.nap(60_000, timeout=0.05)


def test_many_threads_may_call_each_gets_its_own_answer(test_guests: Path) -> None:
    with Sandbox(LIBRARY, machines=2, pool="64M") as lib:
        wrong: list[object] = []

        def work(number: int) -> None:
            values = lib.array(np.full(600, float(number)))
            for turn in range(20):
                if lib.add(number, turn) != number + turn:
                    wrong.append(number)
                lib.scale(values, values.size, 1)
            if not (values == number).all():
                wrong.append(values)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert lib.stats.calls == 200
        mappings.check(lib.monitor)


def test_the_closed_say_so(test_guests: Path) -> None:
    lib = Sandbox(LIBRARY, pool="64M")
    add = lib.add
    lib.close()
    lib.close()
    for use in (lambda: add(1, 2), lambda: lib.add(1, 2), lambda: lib.empty(3), lib.__enter__):
        with pytest.raises(ClosedError):
            use()
    assert "closed" in repr(lib)


# ---- What it is made of ----


@pytest.mark.not_in_lanes("there is no compiler")
def test_it_is_built_from_sources_objects_and_archives(tmp_path: Path) -> None:
    (tmp_path / "one.c").write_text("int two(void);\nint one(void) { return 1 + two(); }\n")
    (tmp_path / "two.cc").write_text(
        '#include <vector>\nextern "C" int two(void)\n'
        "{ std::vector<int> v{1, FOUR}; try { v.at(9); } catch (...) { return v[1]; } return 0; }\n"
    )
    with Sandbox(tmp_path / "one.c", tmp_path / "two.cc", cflags=["-DFOUR=4"], pool="64M") as lib:
        assert lib.one() == 5


@pytest.mark.not_in_lanes("there is no compiler")
def test_a_library_without_debug_information_is_described_by_its_header(tmp_path: Path) -> None:
    with Sandbox("/usr/lib/x86_64-linux-gnu/libz.a", header="zlib.h", pool="64M") as lib:
        assert lib.crc32(0, b"123456789", 9) == 0xCBF43926 == zlib.crc32(b"123456789")
        assert lib.zlibVersion().count(b".") >= 2
        text, size = b"again and again " * 1000, array.array("L", [20_000])
        packed = lib.empty(20_000, np.uint8)
        assert lib.compress(packed, size, text, len(text)) == 0
        assert zlib.decompress(packed[: size[0]]) == text


@pytest.mark.not_in_lanes("there is no compiler")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("int f(void) { return missing(); }", "missing"),
        ("int f(void) { return 1 }", "error"),
        ("#error wrong\n", "wrong"),
    ],
)
def test_what_cannot_be_built_says_what_the_compiler_says(
    tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "bad.c").write_text(text)
    with pytest.raises(GuestImageError, match=said):
        Sandbox(tmp_path / "bad.c")


def test_what_is_no_library_is_refused(tmp_path: Path, test_guests: Path) -> None:
    with pytest.raises(GuestImageError, match="No such file"):
        Sandbox(tmp_path / "none.c")
    with pytest.raises(ConfigError, match="needs a source"):
        Sandbox()
    with pytest.raises(ConfigError, match="give it alone"):
        Sandbox(LIBRARY, LIBRARY)
    with pytest.raises((CallError, GuestImageError, ConfigError)):
        Sandbox(test_guests / "idle.elf")  # a guest, but none whose functions are called


# ---- Fresh ----


def test_a_fresh_library_remembers_nothing(test_guests: Path) -> None:
    with Sandbox(LIBRARY, fresh=True, pool="64M") as lib:
        machine = lib._crew.workers[0].machine
        values = lib.array([1.0, 2.0])
        assert [lib.counter() for _ in range(3)] == [1, 1, 1]
        handle = lib.keep(8)
        assert lib.keep(8) == handle  # the heap is what it was, too
        lib.scale(values, 2, 10)
        assert list(values) == [10, 20]
        assert lib.greeting("x" * 40) == b"hello " + b"x" * 40
        with pytest.raises(CallCrash):
            lib.poke(16, 1)
        assert lib.counter() == 1
        assert lib._crew.workers[0].machine is not machine
        del values
    gc.collect()
