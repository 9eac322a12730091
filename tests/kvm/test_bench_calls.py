"""What `pageferry bench` measures of calls, and what a call may cost: exits, memslots, Python."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import vmm
from vmm import Sandbox
from vmm.bench import callee, library, rivals
from vmm.bench.calls import Calls
from vmm.bench.floor import Floor
from vmm.bench.library import Library
from vmm.bench.plan import QUICK, Case, Composed, Unavailable, cases, measure
from vmm.bench.results import CALLS, COLUMNS, Row
from vmm.bench.scene import waiting_scene
from vmm.guest.abi import PAGE_SIZE
from vmm.guest.compiler import BuildError
from vmm.kvm import Vcpu, Vm
from vmm.linux.machine import LinuxMachine

np: Any = pytest.importorskip("numpy", reason="a nested lane has no more than the package needs")

pytestmark = pytest.mark.not_in_lanes("what is called is compiled; the machines are other tests'")

MIB = 1 << 20
SIZE = 2 * MIB
# Of an empty call, and of a fresh one: each costs a third of a microsecond after an exit.
PYTHON_CALLS = {False: 180, True: 240}
NO_WASM = "wasm: wasmtime is not installed: pip install 'pageferry[bench]'"
WASM = {"wasm"} if importlib.util.find_spec("wasmtime") else set[str]()


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return Library("functions", tmp_path_factory.mktemp("functions"))


@pytest.fixture(scope="module")
def lib(functions: Library) -> Iterator[Sandbox]:
    with Sandbox(functions.program, memory="32M", pool="64M") as opened:
        yield opened


@pytest.fixture(scope="module")
def calls(functions: Library) -> Iterator[Calls]:
    with Calls() as made:
        made._libraries["functions"] = functions
        measured(made, "call_empty")  # what stays: multiprocessing's tracker, wasmtime's threads
        yield made


def measured(calls: Calls, name: str, size: int = 0, samples: int = 3) -> Row:
    return measure(Composed(Case(name, size, samples, 0.0), [calls.columns]), 1)


def found(row: Row) -> set[str]:
    for name in COLUMNS:
        column = row.column(name)
        assert column is None or 0 < column.p50 <= column.p99
    return {name for name in COLUMNS if row.column(name) is not None}


# ---- Rows ----


@pytest.mark.parametrize(
    ("name", "size", "columns"),
    [
        ("call_empty", 0, {"ours", "floor", "bare", "host", "executor"} | WASM),
        ("call_1k_copied", 1024, {"ours", "host", "shared_memory", "executor", "plain"} | WASM),
        ("call_64m", SIZE, {"ours", "floor", "host", "shared_memory", "executor"} | WASM),
        ("call_64m_copied", SIZE, {"ours", "floor", "host", "shared_memory"}),
    ],
)
def test_a_row_of_calls_has_the_ways_to_call_a_function(
    calls: Calls, name: str, size: int, columns: set[str]
) -> None:
    row = measured(calls, name, size)
    assert found(row) == columns, row.note
    assert row.note == ("" if "wasm" in columns or name == "call_64m_copied" else NO_WASM)


def test_a_row_of_fresh_machines_has_what_they_are_instead_of(calls: Calls) -> None:
    assert found(measured(calls, "restore", 64 * PAGE_SIZE)) == {"ours", "cold"}
    assert found(measured(calls, "call_fresh", 64 * PAGE_SIZE)) == {"ours", "plain"}


@pytest.mark.skipif(not hasattr(vmm, "Pool"), reason="there is no Pool")
def test_a_row_of_a_pool_has_one_machine_and_threads_beside_it(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmm.bench.calls._SPIN", 1000)
    assert found(measured(calls, "pool_2")) == {"ours", "host", "plain"}


@pytest.mark.skipif(not Path("/usr/include/png.h").is_file(), reason="no libpng-dev")
def test_a_row_of_a_decoder_decodes_a_photograph_both_ways(calls: Calls) -> None:
    assert found(measured(calls, "decoder")) == {"ours", "host"}


def test_nothing_is_built_before_it_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise BuildError("no C compiler found: install one\nand so on")

    monkeypatch.setattr(library, "find_compiler", none)
    with Calls() as made:
        for case in cases(QUICK, CALLS):
            with Composed(case, [made.columns])._stack:
                assert made.columns(case, made._stack)
        row = measured(made, "call_64m", SIZE)
    assert "no C compiler found: install one" in row.note
    assert row.ours is None


# ---- What is called ----


def test_the_functions_do_the_same_wherever_they_are_called(
    lib: Sandbox, functions: Library
) -> None:
    given = np.random.default_rng(1).integers(0, 256, SIZE, np.uint8)
    wanted = np.minimum(given.astype(np.uint16) * 5 >> 2, 255).astype(np.uint8)
    shared, copied, native = lib.array(given), given.copy(), given.copy()
    lib["contrast"](shared, SIZE)
    lib["contrast"](copied, SIZE)
    callee.native(str(functions.native)).contrast(native)
    for result in (shared, copied, native, callee.contrast(str(functions.native), given.copy())):
        assert np.array_equal(result, wanted)
    assert lib["spin"](1000) == callee.native(str(functions.native)).spin(1000)


@pytest.mark.parametrize("way", ["_ctypes", "_shared", "_executor", "_wasm"])
def test_each_other_way_does_all_of_the_work(
    calls: Calls, functions: Library, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way == "_wasm" and not WASM:
        pytest.skip(NO_WASM)
    array = np.random.default_rng(3).integers(0, 256, SIZE, np.uint8)
    wanted = np.minimum(array.astype(np.uint16) * 5 >> 2, 255)
    monkeypatch.setattr(rivals, "array_of", lambda size: array)
    with contextlib.ExitStack() as stack:
        make = getattr(rivals.Rivals(stack, functions, SIZE, 1), way)
        result = (make(copied=True) if way == "_shared" else make())()
    assert np.array_equal(array if result is None else result, wanted)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("call 1 0 0 " + "00" * 16, "unexpected exit"),  # no function is at 0
        ("call 1 0 0 00", "no answer to a call"),
        ("nonsense", "bad command: nonsense"),
    ],
)
def test_a_floor_whose_call_goes_wrong_says_so(functions: Library, line: str, says: str) -> None:
    with Sandbox(functions.program, memory="32M", pool="64M") as one:
        machine = one._crew.workers[0].machine
        assert isinstance(machine, LinuxMachine)
        floor = Floor(waiting_scene(machine), "floor_calls")
    try:
        with pytest.raises(Unavailable, match=f"^the floor has ended: {says}"):
            floor.ask(line)
    finally:
        floor.close()


# ---- What a call costs ----


def counted(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, call: Callable[[], object]
) -> int:
    times, real = [0], getattr(owner, name)

    def counting(*args: object, **kwargs: object) -> object:
        times[0] += 1
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, counting)
        call()
    return times[0]


@pytest.mark.parametrize("size", [0, SIZE])
def test_a_call_is_one_exit_and_for_an_array_that_was_given_before_nothing_more(
    lib: Sandbox, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    array = lib.array(np.zeros(size, np.uint8)) if size else None

    def call() -> object:
        return lib["empty"]() if array is None else lib["contrast"](array, size)

    for _ in range(3):
        call()
    # More, if a slice is over or a signal comes; never fewer.
    exits = min(_run_times(monkeypatch, lib, call) for _ in range(5))
    assert exits == 1
    slots = counted(monkeypatch, Vm, "set_user_memory_region", call)
    assert slots == 0


def _run_times(monkeypatch: pytest.MonkeyPatch, lib: Sandbox, call: Callable[[], object]) -> int:
    machine = lib._crew.workers[0].machine
    assert isinstance(machine, LinuxMachine)
    gate = machine.guest.process.gate
    times, real = [0], Vcpu.run

    def counting() -> object:
        times[0] += 1
        return real(machine.guest.vcpu)

    with monkeypatch.context() as patch:
        patch.setattr(gate, "run", counting)
        call()
    return times[0]


@pytest.mark.parametrize("fresh", [False, True])
def test_an_empty_call_makes_few_calls_of_python(functions: Library, fresh: bool) -> None:
    with Sandbox(functions.program, memory="32M", pool="64M", fresh=fresh) as lib:
        assert _python_calls(lib["empty"]) <= PYTHON_CALLS[fresh]


def _python_calls(function: Callable[[], object]) -> int:
    made = [0]

    def count(frame: FrameType, event: str, argument: object) -> None:
        made[0] += event == "call"

    least = 1 << 30
    for _ in range(10):
        made[0] = 0
        sys.setprofile(count)
        try:
            function()
        finally:
            sys.setprofile(None)
        least = min(least, made[0])
    return least


def test_a_second_call_maps_nothing_anew(lib: Sandbox) -> None:
    """What `contrast` finds is the host's own memory, at the host's own address."""
    array = lib.array(np.full(SIZE, 8, np.uint8))
    place = (ctypes.c_ubyte * SIZE).from_address(array.ctypes.data)
    for wanted in (10, 12, 15):
        lib["contrast"](array, SIZE)
        assert (place[0], place[SIZE - 1]) == (wanted, wanted)


def test_what_is_copied_needs_huge_pages_only_where_there_are_any(functions: Library) -> None:
    size = 300 << 10
    with Sandbox(functions.program, memory="32M", pool="1M") as small:
        array = np.full(size, 8, np.uint8)
        small["contrast"](array, size)
        assert (array == 10).all()
        assert small.stats.copied_bytes == 2 * size


def test_large_copies_come_back_whole_and_their_memslot_stays(
    lib: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = np.random.default_rng(2).integers(0, 256, SIZE + 5, np.uint8)
    array, wanted = given.copy(), np.minimum(given.astype(np.uint16) * 5 >> 2, 255)
    lib["contrast"](array, SIZE + 5)
    assert np.array_equal(array, wanted)
    assert (
        counted(monkeypatch, Vm, "set_user_memory_region", lambda: lib["contrast"](array, 9)) == 0
    )
