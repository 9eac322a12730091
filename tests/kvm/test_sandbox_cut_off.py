"""What is raised at any line of a call leaves the sandbox whole: the next call works, arrays are
the caller's, no page and no machine is lost.

PAGEFERRY_SWEEP=all raises at every line, instead of at some.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cut_off import CutOff, Tracer
from tests_support import sized

from vmm import CallError, Pool, Sandbox, State

np: Any = pytest.importorskip("numpy", reason="a nested lane has no more than the package needs")
Elf = Callable[[str], Path]

EVERY = os.environ.get("PAGEFERRY_SWEEP") == "all"
SIZE = 5000

pytestmark = [
    pytest.mark.smaller_in_lanes("a call with a tracer takes fifty times as long there"),
    pytest.mark.not_in_ept("a call with a tracer takes two hundred times as long there"),
    pytest.mark.timeout(3600 if EVERY else 15),
]


@pytest.fixture
def lib(sandboxed: Elf) -> Iterator[Sandbox]:
    with Sandbox(sandboxed("deeds"), pool="16M", timeout=20) as lib:
        yield lib


def lines_of(act: Callable[[], object]) -> int:
    """Return how many lines of ours it takes."""
    with Tracer() as tracer, contextlib.suppress(CallError):
        act()
    return tracer.lines


def some(lines: int, count: int) -> Iterator[int]:
    step = 1 if EVERY else max(lines // count, 1)
    chosen = range(1 + random.randrange(step), lines + 1, step)
    yield from chosen
    print(f"raised at {len(chosen)} of {lines} lines")


CALLS: dict[str, Callable[[Sandbox, Any, bytearray], object]] = {
    "with an array": lambda lib, array, _: lib.fill(array, SIZE, 1),
    "that copies": lambda lib, _, copied: lib.fill(copied, SIZE, 1),
    "with a few words": lambda lib, *_: lib.add(1, 2),
    "that crashes": lambda lib, array, _: lib.fill_and_crash(array, SIZE, 1),
    "that takes too long": lambda lib, array, _: lib.spin(timeout=0.01),
    "that sleeps": lambda lib, *_: lib.nap(0.01),
}


@pytest.mark.parametrize("what", CALLS)
def test_a_call_is_cut_off_at_any_line(lib: Sandbox, what: str) -> None:
    call = CALLS[what]
    array, copied = lib.empty(SIZE, np.uint8), bytearray(SIZE)
    act = lambda: call(lib, array, copied)  # noqa: E731
    lines_of(act)  # the first time, more is done
    before = books(lib)
    for line in some(lines_of(act), sized(40, 4)):
        with Tracer(line) as tracer, contextlib.suppress(CallError):
            act()
        where = tracer.where
        with lib.monitor._turns.lock:
            assert len(lib.monitor.machines) <= 1 + lib.stats.failures, where
        array[:] = 7  # it is the caller's
        assert lib.sum(array, SIZE) == 7 * SIZE, where
        assert len(lib.monitor.machines) == 1, where
        assert not lib._crew._owners, where
        assert not lib._crew._line, where
        assert (array == 7).all(), where
        assert books(lib) == before, where


INSIDE: dict[str, Callable[[Sandbox, Any], object]] = {
    "a handle that is read": lambda lib, handle: lib.read(handle, 8),
    "a handle that is written to": lambda lib, handle: lib.write(handle, bytes(8)),
    "a variable": lambda lib, handle: lib.globals["motto"],
    "a variable that is assigned": lambda lib, handle: lib.globals.__setitem__("level", 5),
    "an array of texts": lambda lib, handle: lib.last(["a", "b" * 500], None),
    "texts that are written to": lambda lib, handle: lib.raise_letters([bytearray(b"a" * 500)]),
    "a text in an argument": lambda lib, handle: lib.find("a" * 5000, b"a"),
}


@pytest.mark.parametrize("what", INSIDE)
def test_what_is_done_with_a_machines_memory_is_cut_off_at_any_line(
    sandboxed: Elf, what: str
) -> None:
    with Sandbox(sandboxed("keeper"), pool="16M", timeout=20) as lib:
        act = INSIDE[what]
        handle = lib.tally_new(3)
        lines = lines_of(lambda: act(lib, handle))
        lib.find("a" * 5000, b"a")  # so that there is memory for copies
        before = lib.monitor.audit(mappings=True)
        for line in some(lines, sized(30, 3)):
            with Tracer(line) as tracer, contextlib.suppress(CallError):
                act(lib, handle)
            where = tracer.where
            lib.twice(1)  # a machine that was left in the midst of something goes now
            if handle.stale:
                handle = lib.tally_new(3)
            act(lib, handle)
            assert lib.find("a" * 5000, b"x") is None, where
            with ThreadPoolExecutor(1) as threads:  # nobody has left a lock behind
                assert len(threads.submit(lib.read, handle, 8).result(10)) == 8, where
            assert len(lib.monitor.machines) == 1, where
            assert not lib._crew._owners, where
            assert not lib._crew._line, where
            assert lib.monitor.audit(mappings=True) == before, where


def books(lib: Sandbox) -> dict[str, int]:
    lib.sum(bytearray(SIZE), SIZE)  # so that there is memory for copies
    return lib.monitor.audit(mappings=True)


@pytest.mark.parametrize("what", ["close", "initializer"])
def test_what_comes_before_and_after_calls_is_cut_off_at_any_line(
    sandboxed: Elf, what: str
) -> None:
    def make() -> Pool:
        return Pool(sandboxed("deeds"), machines=1, pool="4M", initializer="set", initargs=(3,))

    with make() as pool:
        first = pool.close if what == "close" else pool.setting
        lines = lines_of(first)
    for line in some(lines, sized(16, 2)):
        pool = make()
        with Tracer(line) as tracer:
            pool.close() if what == "close" else pool.setting()
        if what == "initializer":
            assert pool.setting() == 3, tracer.where
            assert len(pool.monitor.machines) == 1, tracer.where
        pool.close()
        assert pool._closed
        assert not pool._crew._owners


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_ends_a_call_wherever_it_is(lib: Sandbox) -> None:
    def alarm(number: int, frame: object) -> None:
        raise CutOff

    array = lib.empty(SIZE, np.uint8)
    lib.fill(array, SIZE, 1)
    before = signal.signal(signal.SIGALRM, alarm)
    try:
        for number in range(sized(60, 6)):
            # It may come before the call has begun; or in a finalizer, where Python drops it.
            with contextlib.suppress(CutOff):
                try:
                    signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-4, 4e-3), 0.2)
                    while True:
                        lib.fill(array, SIZE, number) if number % 3 else lib.spin()
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            array[:] = 7
            assert lib.sum(array, SIZE) == 7 * SIZE
            assert len(lib.monitor.machines) == 1
            lib.monitor.audit(mappings=True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    del array


def test_who_is_cut_off_as_it_waits_leaves_the_line_to_others(lib: Sandbox) -> None:
    def alarm(number: int, frame: object) -> None:
        raise CutOff

    before = signal.signal(signal.SIGALRM, alarm)
    try:
        first = threading.Thread(target=lib.nap, args=(0.4,))
        first.start()
        while not lib._crew._owners:
            pass
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(CutOff):
            lib.add(1, 2)
        assert not lib._crew._line
        assert lib.add(1, 2) == 3
        first.join()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert {machine.state for machine in lib.monitor.machines.values()} == {State.PARKED}
