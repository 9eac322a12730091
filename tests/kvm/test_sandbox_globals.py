"""A library's global variables, and arrays of texts."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vmm import AccessError, CallCrash, ClosedError, ConfigError, HandleError, Pool, Sandbox

np: Any = pytest.importorskip("numpy", reason="a nested lane has no more than the package needs")
Elf = Callable[[str], Path]


@pytest.fixture
def lib(sandboxed: Elf) -> Iterator[Sandbox]:
    with Sandbox(sandboxed("keeper"), pool="64M", timeout=30) as lib:
        yield lib


# ---- Variables ----


def test_variables_are_read_as_their_types_say(lib: Sandbox) -> None:
    found = lib.globals
    assert (found["level"], found["fixed"]) == (3, 4)
    assert found["weights"] == ((1, 2, 3), (4, 5, 6))
    assert found["total"] == (1.5, 2, None)
    assert found["title"] == b"first"
    assert (found["motto"], found["nothing"]) == (b"as it is", None)
    assert found["bytes"] == b"\1\2\3\4"
    assert found["handler"] is None
    assert lib.tally_read(found["current"]).sum == 1.5
    assert found["current"] == found.address("total")
    assert lib.read(found.address("bytes"), 2) == b"\1\2"
    lib.tally_add(found.address("total"), 2)
    assert found["total"].sum == 3.5


def test_what_is_assigned_is_what_the_functions_see(lib: Sandbox) -> None:
    found = lib.globals
    found["level"] = np.int16(-7)
    assert (found["level"], lib.level_seen()) == (-7, -6)
    found["weights"] = [[0, 0, 0], [0, 0, 0.5]]
    assert lib.weight_seen(1, 2) == 0.5
    found["weights"] = np.arange(6.0).reshape(2, 3)
    assert lib.weight_seen(1, 1) == 4
    found["total"] = {"sum": 9}
    assert (lib.total_seen(), found["total"].count) == (9, 0)
    found["current"] = lib.tally_new(4)
    assert lib.total_seen() == 4
    found["title"] = "second"
    assert found["title"] == b"second"
    found["handler"] = lib.twice.address
    assert lib.handled(4) == 8
    found["handler"] = None
    assert lib.handled(4) == -1


def test_what_cannot_be_assigned_changes_nothing(lib: Sandbox) -> None:
    found = lib.globals
    for name, value, error in (
        ("fixed", 5, AccessError),
        ("level", "5", TypeError),
        ("level", 2**31, OverflowError),
        ("weights", [1, 2], ValueError),
        ("title", "far too long", ValueError),
        ("motto", "a text", TypeError),
        ("handler", print, TypeError),
        ("wide", 1.0, ConfigError),
        ("no_such", 1, KeyError),
    ):
        before = None if name in ("wide", "no_such") else found[name]
        with pytest.raises(error):
            found[name] = value
        assert before is None or found[name] == before


def test_a_variable_that_is_not_there_is_told_of_with_those_that_are(lib: Sandbox) -> None:
    for kind in (KeyError, AttributeError):
        with pytest.raises(kind, match=r"no global variable 'levels' in keeper; did you mean 'lev"):
            lib.globals["levels"]
    for hidden in ("hidden", "of_a_thread", "level_seen"):
        with pytest.raises(KeyError):
            lib.globals[hidden]
    with pytest.raises(ConfigError, match=r"wide: long double is not served; lib\.read\(lib\.glob"):
        lib.globals["wide"]
    names = "level fixed weights total current title motto nothing bytes handler wide"
    assert set(lib.globals) == set(names.split())
    assert len(lib.globals) == len(names.split())
    assert "level" in lib.globals
    assert "levels" not in lib.globals
    assert 5 not in lib.globals
    assert "level" in repr(lib.globals)


def test_variables_are_a_new_machines_after_a_crash(lib: Sandbox) -> None:
    lib.globals["level"] = 10
    current = lib.globals["current"]
    with pytest.raises(CallCrash):
        lib.crash()
    assert lib.globals["level"] == 3
    with pytest.raises(HandleError):
        lib.globals["current"] = current


def test_of_several_machines_or_fresh_ones_variables_are_an_initializers(sandboxed: Elf) -> None:
    def begin() -> None:
        pool.globals["level"] = 20

    with Pool(
        sandboxed("keeper"),
        machines=2,
        pool="64M",
        fresh=True,
        initializer=lambda: begin(),
    ) as pool:
        with pytest.raises(ConfigError, match="of which of 2 machines"):
            pool.globals["level"]
        assert list(pool.map(lambda _: pool.level_seen(), range(4))) == [21] * 4
        assert pool.submit(lambda: pool.globals["level"]).result() == 20

        def change() -> None:
            pool.globals["level"] = 1

        with pytest.raises(ConfigError, match="put back after each call"):
            pool.submit(change).result()
        handle = pool.submit(lambda: pool.globals["current"]).result()
        used = pool.submit(lambda: pool.tally_read(handle).sum).exception()
        assert used is None or isinstance(used, HandleError)
    with pytest.raises(ClosedError):
        pool.globals["level"]


def test_a_text_may_lie_in_what_the_machine_has_been_given_last(lib: Sandbox) -> None:
    lib.find.restype = ctypes.c_void_p
    given = b"a" * 5000 + b"zone"
    lib.globals["motto"] = lib.find(given, b"z")
    assert lib.globals["motto"] == b"zone"
    shared = lib.array(np.frombuffer(given + b"\0", np.uint8))
    lib.globals["motto"] = lib.find(shared, b"z")
    assert lib.globals["motto"] == b"zone"
    lib.find(given, b"z")
    with pytest.raises(ConfigError, match="a char \\* to no text"):  # it sees that no more
        lib.globals["motto"]
    del shared


# ---- Arrays of texts ----


@pytest.mark.parametrize("size", [0, 1, 300, 100_000])
def test_a_list_of_texts_is_an_array_of_c_strings(lib: Sandbox, size: int) -> None:
    into = bytearray(2 * size + 100)
    texts = ["Zoë", b"b" * size, bytearray(b"c"), None, "d" * size]
    used = lib.join(len(texts), texts, into, len(into))
    assert into[:used] == "Zoë,".encode() + b"b" * size + b",c,NULL," + b"d" * size
    array = lib.empty(2 * size + 100, np.uint8)
    assert lib.join(len(texts), tuple(texts), array, array.size) == used
    assert array[:used].tobytes() == into[:used]
    del array


def test_an_array_of_texts_ends_with_null(lib: Sandbox) -> None:
    assert lib.last([], "nothing") == b"nothing"
    assert lib.last(["a", "b" * 5000], None) == b"b" * 5000
    many = [str(number) for number in range(20_000)]
    assert lib.last(many, None) == b"19999"
    assert lib.count_texts([bytearray(b"a")] * 100) == 100
    assert lib.count_texts([]) == 0


def test_texts_that_may_be_written_to_are_bytearrays_and_are_given_back(lib: Sandbox) -> None:
    texts = [bytearray(b"one"), bytearray(b"two" * 1000)]
    lib.raise_letters(texts)
    assert texts == [b"ONE", b"TWO" * 1000]
    for wrong in (["one"], [b"one"]):
        with pytest.raises(TypeError, match=r"texts\[0\] may be written to, .* give a bytearray"):
            lib.raise_letters(wrong)
    lib.count_texts.argtypes = [ctypes.POINTER(ctypes.c_char_p)]
    assert lib.count_texts(["a", b"b"]) == 2


def test_ctypes_arrays_of_texts_are_those(lib: Sandbox) -> None:
    given = (ctypes.c_char_p * 3)(b"one", b"two", None)
    assert lib.last(given, None) == b"two"


@pytest.mark.parametrize("wrong", [["a", 5], [["a"]], ["a\0b"], "text", [1.5]])
def test_what_is_no_text_is_none_in_an_array_either(lib: Sandbox, wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="last: texts"):
        lib.last(wrong, None)


def test_how_many_texts_there_must_be_is_checked(lib: Sandbox) -> None:
    lib.join.lengths = {"texts": "count"}
    into = bytearray(100)
    with pytest.raises(ValueError, match=r"texts has 8 bytes, .* count = 2 items"):
        lib.join(2, ["a"], into, 100)
    assert lib.join(1, ["a"], into, 100) == 1


def test_a_crash_with_an_array_of_texts_leaves_nothing(lib: Sandbox) -> None:
    texts = [bytearray(b"one")]
    lib.raise_letters.argtypes = [ctypes.POINTER(ctypes.POINTER(ctypes.c_char))]
    lib.raise_letters(texts)  # there is memory for copies now, which is kept
    free = lib.monitor.audit()["free"]
    with pytest.raises(CallCrash):
        lib.join(10**6, texts, bytearray(10), 10)
    texts[0] += b"can be resized"
    for worker in lib._crew.workers:
        worker.copies.drop()
    assert lib.monitor.audit()["free"] >= free
