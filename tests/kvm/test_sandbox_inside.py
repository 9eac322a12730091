"""A machine's own memory, between calls: handles, what is read and written by them, texts."""

from __future__ import annotations

import copy
import ctypes
import functools
import gc
import pickle
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vmm import (
    AccessError,
    CallCrash,
    CallTimeout,
    ClosedError,
    ConfigError,
    HandleError,
    Pool,
    Sandbox,
)

np: Any = pytest.importorskip("numpy", reason="a nested lane has no more than the package needs")
Elf = Callable[[str], Path]


@pytest.fixture
def lib(sandboxed: Elf) -> Iterator[Sandbox]:
    with Sandbox(sandboxed("keeper"), pool="64M", timeout=30) as lib:
        yield lib


# ---- Handles ----


def test_a_handle_is_a_number_that_functions_take(lib: Sandbox) -> None:
    handle = lib.tally_new(1.5)
    lib.tally_add(handle, 2)
    assert isinstance(handle, int)
    assert lib.tally_read(handle)[:2] == (3.5, 1)
    assert lib.as_number(handle) == handle == int(handle)
    assert hash(handle) == hash(int(handle))
    assert {handle: 1}[int(handle)] == 1
    assert handle.machine == lib._crew.workers[0].machine.name
    out = ctypes.c_void_p(handle)
    assert lib.tally_read(out).sum == 3.5


def test_a_handle_of_a_machine_that_is_gone_is_refused_before_anything_is_done(
    lib: Sandbox,
) -> None:
    handle = lib.tally_new(1)
    inner = lib.tally_read(handle)._replace(next=handle)
    with pytest.raises(CallCrash):
        lib.crash()
    before = lib.stats.calls, lib._crew.workers[0].machine
    for use in (
        lambda: lib.tally_read(handle),
        lambda: lib.tally_read(tally=handle + 0),
        lambda: lib.as_number(handle),
        lambda: lib.sum_of({"next": handle}),
        lambda: lib.sum_of(inner),
        lambda: lib.read(handle, 8),
        lambda: lib.write(handle + 8, b"12"),
    ):
        with pytest.raises(HandleError, match=r"was an address in keeper-1, which is gone"):
            use()
    assert (lib.stats.calls, lib._crew.workers[0].machine) == before
    again = lib.tally_new(4)  # at the same address, as a rule
    assert lib.tally_read(again).sum == 4
    for use in (lambda: lib.tally_read(handle), lambda: lib.as_number(handle)):
        with pytest.raises(HandleError):
            use()
    assert again.machine == "keeper-2"


def test_a_handle_that_dies_while_its_call_waits_is_refused(lib: Sandbox) -> None:
    handle, raised = lib.tally_new(1), []
    taken, crashed = threading.Event(), threading.Event()

    def use() -> None:
        call = lib.as_number._start((handle,), {})  # checked by now
        taken.set()
        crashed.wait(30)
        try:
            call()
        except HandleError as error:
            raised.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    assert taken.wait(30)
    with pytest.raises(CallCrash):
        lib.crash()
    crashed.set()
    thread.join(30)
    assert "which is gone" in str(raised)


def test_handles_within_structures_that_come_back_are_handles(lib: Sandbox) -> None:
    tally = {"sum": 1.0}
    lib.chain(tally)
    assert lib.tally_read(tally["next"]).sum == 5
    first = lib.tally_new(2)
    lib.chain(first)
    found = lib.tally_read(first)
    assert lib.sum_of(found) == 7
    with pytest.raises(CallCrash):
        lib.crash()
    for stale in (tally["next"], found.next):
        with pytest.raises(HandleError):
            lib.tally_read(stale)


def test_what_is_reckoned_with_a_handle_is_one_if_it_is_an_address(lib: Sandbox) -> None:
    handle = lib.tally_new(1)
    moved = [handle + 8, 8 + handle, handle + 16 - 8, copy.copy(handle), copy.deepcopy(handle)]
    assert [type(one) for one in moved] == [type(handle)] * 5
    plain = [handle * 2, (handle + 8) - handle, handle & 4095, pickle.loads(pickle.dumps(handle))]
    assert [type(one) for one in plain] == [int] * 4
    assert plain[1] == 8
    with pytest.raises(TypeError):
        handle + "1"


def test_a_handle_of_a_fresh_sandboxs_call_is_refused_and_one_of_its_initializer_is_not(
    sandboxed: Elf,
) -> None:
    with Sandbox(sandboxed("keeper"), pool="64M", fresh=True) as lib:
        handle = lib.tally_new(1)
        with pytest.raises(HandleError, match="for one call only, as the sandbox is fresh"):
            lib.tally_read(handle)
        with pytest.raises(ConfigError, match="put back after each call"):
            lib.write(int(handle), b"12")
    made: list[Any] = []

    def initialize() -> None:
        made.append(pool.tally_new(3))
        pool.write(made[0], struct.pack("d", 4))

    with Pool(sandboxed("keeper"), machines=1, pool="64M", fresh=True) as pool:
        pool._crew.workers[0].initialize = lambda worker: _bound(pool, worker, initialize)
        for _ in range(2):
            assert pool.submit(lambda: pool.tally_read(made[0]).sum).result() == 4


def _bound(pool: Pool, worker: Any, call: Callable[[], None]) -> None:
    with pool._crew.bound(worker):
        call()


def test_a_handle_of_one_machine_is_refused_by_another(sandboxed: Elf) -> None:
    with Pool(sandboxed("keeper"), machines=2, pool="64M") as pool:
        meet = threading.Barrier(2)

        def make() -> Any:
            handle = pool.tally_new(1)
            meet.wait(30)  # each has a machine of its own
            return handle

        def use(handles: list[Any]) -> list[Any]:
            meet.wait(30)
            found: list[Any] = []
            for handle in handles:
                for act in (lambda: pool.tally_read(handle), lambda: pool.read(handle, 8)):  # noqa: B023
                    try:
                        found.append(act() and True)
                    except HandleError as error:
                        found.append("and this would be" in str(error))
            return found

        made = [pool.submit(make) for _ in range(2)]
        handles = [one.result() for one in made]
        assert {one.machine for one in handles} == {"keeper-1", "keeper-2"}
        used = [pool.submit(use, handles) for _ in range(2)]
        assert [one.result() for one in used] == [[True] * 4] * 2


# ---- Read and write ----


def test_memory_is_read_and_written_where_a_handle_points_to(lib: Sandbox) -> None:
    handle = lib.tally_new(1.5)
    assert lib.read(handle, 8) == struct.pack("d", 1.5)
    lib.write(handle + 8, np.array([7], "i4"))
    lib.write(int(handle), bytearray(struct.pack("d", 2)))
    assert lib.tally_read(handle)[:2] == (2.0, 7)
    assert lib.read(handle, 0) == b""
    calls = lib.stats.calls
    lib.read(handle, 24)
    assert lib.stats.calls == calls


def test_what_is_not_all_there_is_refused_and_nothing_is_written(lib: Sandbox) -> None:
    handle, shared = lib.tally_new(1), lib.array([1.0])
    window = lib._crew.workers[0].machine.peer.window.region.base
    at = lib.as_number(0) or 16
    for address, size in ((at, 1), (2**64 - 1, 8), (int(handle), 1 << 40), (window, 1)):
        with pytest.raises(AccessError, match="are not all memory of the machine's own"):
            lib.read(address, size)
        with pytest.raises(AccessError, match="that it can write"):
            lib.write(address, bytes(min(size, 1 << 30)))
    constant = lib.constant()
    assert lib.read(constant, 6) == b"cannot"
    with pytest.raises(AccessError, match="that it can write"):
        lib.write(constant, b"C")
    assert lib.read(constant, 6) == b"cannot"
    for wrong, error in (
        (lambda: lib.read(None, 8), ValueError),
        (lambda: lib.read("x", 8), TypeError),
        (lambda: lib.read(-1, 8), ValueError),
        (lambda: lib.read(1 << 64, 8), ValueError),
        (lambda: lib.read(handle, -1), ValueError),
        (lambda: lib.read(handle, 1.5), TypeError),
        (lambda: lib.write(handle, "text"), TypeError),
        (lambda: lib.write(handle, 5), TypeError),
    ):
        with pytest.raises(error):
            wrong()
    assert lib.tally_read(handle).sum == 1
    del shared


def test_of_several_machines_it_is_to_be_said_which(sandboxed: Elf) -> None:
    with Pool(sandboxed("keeper"), machines=2, pool="64M") as pool:
        handle = pool.tally_new(1)
        with pytest.raises(ConfigError, match="of which of 2 machines"):
            pool.read(handle, 8)
        with pytest.raises(ConfigError, match="of which of 2 machines"):
            pool.write(handle, b"1")

        def task() -> bytes:
            return pool.read(pool.tally_new(2), 8)

        assert pool.submit(task).result() == struct.pack("d", 2)


def test_of_a_sandbox_that_is_closed_nothing_is_read(sandboxed: Elf) -> None:
    with Sandbox(sandboxed("keeper"), pool="64M") as lib:
        handle = lib.tally_new(1)
        plain = int(handle)
    for address in (handle, plain):
        with pytest.raises((ClosedError, HandleError)):
            lib.read(address, 8)
    with pytest.raises(ClosedError):
        lib.write(plain, b"1")


def test_who_reads_while_the_sandbox_closes_gets_it_or_an_error(sandboxed: Elf) -> None:
    for _ in range(5):
        lib = Sandbox(sandboxed("keeper"), pool="64M")
        handle, ended, began = lib.tally_new(1), [], threading.Event()
        look = functools.partial(_look, lib, handle, began, ended)
        threads = [threading.Thread(target=look) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert began.wait(30)
        time.sleep(0.01)
        lib.close()
        for thread in threads:
            thread.join(30)
        assert len(ended) == 3


def _look(lib: Sandbox, handle: int, began: threading.Event, ended: list[Exception]) -> None:
    try:
        while True:
            assert lib.read(handle, 8) == struct.pack("d", 1)
            began.set()
    except (ClosedError, HandleError) as error:
        ended.append(error)


# ---- Texts in what a call has been given ----


@pytest.mark.parametrize("size", [10, 150, 5000, 300_000])
def test_a_text_that_is_a_part_of_an_argument_is_returned(lib: Sandbox, size: int) -> None:
    given = "a" * size + "Zoë"
    assert lib.find(given, b"Z") == "Zoë".encode()
    assert lib.find(given, b"a") == given.encode()
    assert lib.find(given, b"x") is None
    own = bytearray(given.encode() + b"\0")
    assert lib.skip(own, size) == "Zoë".encode()
    assert lib.second(given, "y" * size) == b"y" * size
    shared = lib.array(np.frombuffer(own, np.uint8))
    assert lib.skip(shared, size) == "Zoë".encode()
    assert lib.skip(shared[4:], size - 4) == "Zoë".encode()
    assert lib.find(shared, b"Z") == "Zoë".encode()
    assert lib.second(shared, given) == given.encode()
    del shared
    gc.collect()


@pytest.mark.parametrize("size", [10, 5000, 300_000])
def test_so_it_is_in_a_fresh_sandbox(sandboxed: Elf, size: int) -> None:
    given = "a" * size + "Zoë"
    own = bytearray(given.encode() + b"\0")
    with Sandbox(sandboxed("keeper"), pool="64M", fresh=True) as lib:
        for _ in range(3):
            assert lib.find(given, b"Z") == "Zoë".encode()
            assert lib.skip(own, size) == "Zoë".encode()
            assert lib.last(["b" * size, given], None) == given.encode()
            assert lib.second(own, given) == given.encode()
        assert len(lib.monitor.machines) == 1


def test_a_text_without_an_end_is_told_of(lib: Sandbox) -> None:
    page = lib.array(np.full(4096, ord("a"), np.uint8))
    with pytest.raises(ConfigError, match="no text of at most 1 MiB"):
        lib.skip(page, 0)
    with pytest.raises(ConfigError, match="no text of at most 1 MiB"):
        lib.skip(page, 4097)  # what follows is nobody's
    longest = lib.array(np.full(1 << 20, ord("a"), np.uint8))
    longest[-1] = 0
    assert lib.skip(longest, 0) == b"a" * ((1 << 20) - 1)
    with pytest.raises(CallTimeout):
        lib.skip(page, 0, timeout=0)
    assert lib.skip(bytearray(b"fine\0"), 0) == b"fine"
    del page, longest
    gc.collect()
