"""Many threads call one sandbox; it ends, whoever ends it and whatever is under way."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests_support import sized

from vmm import (
    BusyError,
    CallCancelled,
    CallCrash,
    CallExit,
    CallTimeout,
    ClosedError,
    Pool,
    Sandbox,
)
from vmm.sandbox.crew import Ticket

np: Any = pytest.importorskip("numpy", reason="a nested lane has no more than the package needs")
Elf = Callable[[str], Path]


@pytest.fixture
def lib(sandboxed: Elf) -> Iterator[Sandbox]:
    with Sandbox(sandboxed("deeds"), machines=2, pool="16M", timeout=30) as lib:
        yield lib


def busy(lib: Sandbox, count: int = 1) -> None:
    """Wait until so many calls are under way."""
    until = time.monotonic() + 20
    while len(lib._crew._owners) < count and time.monotonic() < until:
        time.sleep(0.001)
    assert len(lib._crew._owners) >= count
    time.sleep(0.02)  # from there to the function


def waiting(lib: Sandbox, count: int) -> None:
    until = time.monotonic() + 20
    while len(lib._crew._line) < count and time.monotonic() < until:
        time.sleep(0.001)
    assert len(lib._crew._line) >= count


# ---- Many threads ----


def test_many_threads_call_and_each_gets_its_own_answer(lib: Sandbox) -> None:
    rounds = sized(20, 3)

    def work(number: int) -> None:
        mine = lib.empty(5000, np.uint8)
        for i in range(rounds):
            assert lib.add(number, i) == number + i
            lib.fill(mine, mine.size, number)
            assert lib.sum(mine, mine.size) == number * 5000
            assert lib.sum(bytes([number]) * 3000, 3000) == number * 3000

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    assert lib.stats.calls == 8 * rounds * 4
    assert lib.stats.failures == 0


def test_who_comes_first_is_served_first(sandboxed: Elf) -> None:
    with Sandbox(sandboxed("deeds"), pool="16M") as lib, ThreadPoolExecutor(5) as threads:
        served = []
        first = threads.submit(lib.nap, 0.2)
        busy(lib)
        others = []
        for number in range(4):

            def call(number: int = number) -> None:
                lib.count()
                served.append(number)

            others.append(threads.submit(call))
            waiting(lib, number + 1)
        first.result()
        for other in others:
            other.result()
        assert served == [0, 1, 2, 3]


def test_each_way_to_fail_costs_the_machine_that_has_and_nobody_elses(lib: Sandbox) -> None:
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(lib.nap, 0.5)
        busy(lib)
        lib.count()
        for function, arguments, error in (
            (lib.crash, (), CallCrash),
            (lib.quit, (3,), CallExit),
            (lib.spin.with_timeout(0.05), (), CallTimeout),
            (lib.nap.with_timeout(0.05), (100,), CallTimeout),
        ):
            with pytest.raises(error):
                function(*arguments)
            assert lib.count() == 1
        assert other.result() == 0
    assert lib.stats.failures == 4


def test_who_waits_in_vain_for_a_machine_is_told_so(lib: Sandbox) -> None:
    with ThreadPoolExecutor(2) as threads:
        for _ in range(2):
            threads.submit(lib.nap, 0.3)
        busy(lib, 2)
        with pytest.raises(CallTimeout, match="no machine was free"):
            lib.add(1, 2, timeout=0.05)
        assert not lib._crew._line
    assert lib.add(1, 2) == 3


def test_a_call_is_cancelled_wherever_it_is(lib: Sandbox) -> None:
    with ThreadPoolExecutor(4) as threads:
        tickets = [Ticket() for _ in range(4)]
        calls = []
        for ticket in tickets:
            calls.append(threads.submit(lib.spin._start((), {}, ticket)))
            busy(lib, min(len(calls), 2))
        waiting(lib, 2)
        tickets[3].cancel()  # it waits
        with pytest.raises(CallCancelled):
            calls[3].result(20)
        for number in range(3):
            tickets[number].cancel()
            with pytest.raises(CallCancelled):
                calls[number].result(20)
            tickets[number].cancel()  # it is over
    assert lib.add(1, 2) == 3


def test_a_cancellation_reaches_no_later_call(lib: Sandbox) -> None:
    ticket = Ticket()
    ticket.cancel()
    with pytest.raises(CallCancelled):
        lib.add._start((1, 2), {}, ticket)()
    assert lib.add(1, 2) == 3


# ---- close ----


@pytest.mark.parametrize("function", ["spin", "nap"])
def test_close_ends_calls_that_are_under_way_and_those_that_wait(
    lib: Sandbox, function: str
) -> None:
    arguments = (1000,) if function == "nap" else ()
    threads = ThreadPoolExecutor(4)
    calls: list[Future[object]] = [threads.submit(lib[function], *arguments) for _ in range(4)]
    calls += [lib[function].submit(*arguments) for _ in range(4)]
    busy(lib, 2)
    lib.close()
    for call in calls:
        assert isinstance(call.exception(20), ClosedError)
    threads.shutdown()
    with pytest.raises(ClosedError, match="sandbox has been closed"):
        lib.add(1, 2)
    with pytest.raises(ClosedError):
        lib.add.submit(1, 2)
    with pytest.raises(ClosedError), lib:
        pass
    lib.close()


def test_a_thread_that_makes_calls_may_close(lib: Sandbox) -> None:
    closed = threading.Event()

    def close(_: object) -> None:
        lib.close()
        closed.set()

    lib.nap.submit(0.1).add_done_callback(close)
    assert closed.wait(20)
    with pytest.raises(ClosedError):
        lib.add(1, 2)
    for thread in list(lib._threads._threads):
        thread.join(20)


def test_a_console_may_neither_call_nor_close(sandboxed: Elf) -> None:
    raised: list[BaseException] = []

    def console(name: str, line: str) -> None:
        for act in (lib.close, lambda: lib.honest(1)):
            try:
                act()
            except BusyError as error:
                raised.append(error)

    with Sandbox(sandboxed("cheats"), machines=2, pool="16M", console=console) as lib:
        lib.monitor.trace.listen(lambda event: event.kind == "exit" and console("", ""))
        assert lib.honest(1) == 1
        assert len(raised) >= 2
        assert lib.honest(2) == 2


def test_a_signals_handler_may_call_if_a_machine_is_free(sandboxed: Elf) -> None:
    """Between turns of the monitor's; within one it is told to come later."""
    found: list[object] = []

    def handler(number: int, frame: object) -> None:
        try:
            found.append(lib.add(1, 2))
        except BusyError as error:
            found.append(type(error))

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with Sandbox(sandboxed("deeds"), pool="16M") as lib:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            assert lib.nap(0.3) == 0
            assert found == [BusyError]
            assert lib.add(3, 4) == 7
    finally:
        signal.signal(signal.SIGALRM, before)


# ---- Dropped, forked, at the end of the interpreter ----


@pytest.mark.parametrize("kind", [Sandbox, Pool])
def test_one_that_is_dropped_warns_once_and_is_closed(sandboxed: Elf, kind: type[Sandbox]) -> None:
    lib = kind(sandboxed("deeds"), pool="16M")
    lib.add(1, 2)
    function, monitor = lib.add, lib.monitor
    lib.add.submit(1, 2).result()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del lib
        gc.collect()
    assert [w.category for w in caught] == [ResourceWarning]
    assert kind.__name__ in str(caught[0].message)
    with pytest.raises(ClosedError):
        function(1, 2)
    with pytest.raises(ClosedError):
        monitor.run()


def test_a_sandbox_is_of_one_process(lib: Sandbox) -> None:
    path = lib._program.path
    with ThreadPoolExecutor(3) as threads:
        calls = [threads.submit(lib.nap, 0.3) for _ in range(2)]
        busy(lib, 2)
        held, go_on = threading.Event(), threading.Event()

        def hold() -> None:
            with lib._crew._lock:
                held.set()
                go_on.wait(20)

        calls.append(threads.submit(hold))
        assert held.wait(20)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads, in Python 3.12
            child = os.fork()
        if not child:
            code = 1
            try:
                for call in (lambda: lib.add(1, 2), lambda: lib.add.submit(1, 2)):
                    try:
                        call()
                    except ClosedError as error:
                        code = 0 if "forked" in str(error) else 2
                lib.close()
                del call
            finally:
                os._exit(code)
        go_on.set()
        assert os.waitpid(child, 0)[1] == 0
        assert [call.result() for call in calls] == [0, 0, None]
    assert path.exists()
    assert lib.add(1, 2) == 3


EXITS = {
    "with a sandbox that is open": "lib.add(1, 2)",
    "with calls under way": "futures = [lib.nap.submit(0.2) for _ in range(5)]",
    "with a pool's futures": "futures = [pool.submit(pool.nap, 0.2) for _ in range(5)]",
    "with a pool shut down meanwhile": "pool.submit(pool.nap, 0.2); pool.shutdown(wait=False)",
    "with a map": "results = pool.map(pool.nap, [0.05] * 30); next(results)",
    "with a thread that calls": "threading.Thread(target=lambda: lib.nap(0.3)).start()",
    "with a daemon that calls": "threading.Thread(target=lib.nap, args=(60,), daemon=True).start();"
    "time.sleep(0.1)",
    "in a child": "pid = os.fork(); os.waitpid(pid, 0) if pid else None; pid and lib.crash_not()",
    "closed at exit": "atexit.register(lib.close); atexit.register(pool.close)",
}


@pytest.mark.parametrize("what", EXITS)
def test_the_interpreter_comes_to_its_end(sandboxed: Elf, what: str) -> None:
    act = EXITS[what].replace("lib.crash_not()", "print(lib.add(1, 2))")
    code = f"""
        import atexit, os, sys, threading, time
        from vmm import Pool, Sandbox
        lib = Sandbox({str(sandboxed("deeds"))!r}, machines=2, pool="16M")
        pool = Pool({str(sandboxed("deeds"))!r}, machines=2, pool="16M")
        {act}
        print("done")
    """
    ended = subprocess.run(
        # Python 3.12 and newer warn of a fork beside other threads.
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    assert "done" in ended.stdout
    assert ended.stderr == ""
