"""A pool is an executor, as concurrent.futures has them, whose machines die and are replaced."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import pytest
from tests_support import sized

from vmm import CallCrash, CallError, CallTimeout, ClosedError, ConfigError, Pool

Elf = Callable[[str], Path]
Open = Callable[..., Pool]


@pytest.fixture
def open_pool(sandboxed: Elf) -> Iterator[Open]:
    opened: list[Pool] = []

    def make(**options: object) -> Pool:
        options = {"machines": 2, "pool": "16M", "timeout": 30, **options}
        opened.append(Pool(sandboxed("deeds"), **options))  # type: ignore[arg-type]
        return opened[-1]

    yield make
    for pool in opened:
        pool.close()


@pytest.fixture
def pool(open_pool: Open) -> Pool:
    return open_pool()


class Gate:
    """Keeps threads of a pool in a Python function until it is opened."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._inside = threading.Semaphore(0)

    def __call__(self, value: object = None) -> object:
        self._inside.release()
        assert self._open.wait(20)
        return value

    def entered(self, count: int) -> None:
        for _ in range(count):
            assert self._inside.acquire(timeout=20)

    def open(self) -> None:
        self._open.set()


# ---- submit ----


def test_a_function_its_name_and_python_functions_are_submitted(pool: Pool) -> None:
    assert pool.submit(pool.add, 1, 2).result() == 3
    assert pool.submit("add", 1, b=2).result() == 3
    assert pool.submit(pow, 2, exp=5).result() == 32
    assert pool.add(1, 2) == pool.add.submit(1, 2).result() == 3
    assert isinstance(pool, futures.Executor)


def test_what_cannot_be_submitted_is_said_at_once(pool: Pool) -> None:
    with pytest.raises(KeyError):
        pool.submit("no_such_function")
    with pytest.raises(TypeError, match="fn"):
        pool.submit(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        pool.submit(pool.add, "x", 1).result()
    with pytest.raises(TypeError):
        pool.submit()  # type: ignore[call-arg]


def test_by_default_there_is_a_machine_for_each_processor(open_pool: Open) -> None:
    assert len(open_pool(machines=None)._crew.workers) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("machines", [0, -1, 1.5])
def test_a_number_of_machines_that_cannot_be_meant_is_refused(
    open_pool: Open, machines: object
) -> None:
    with pytest.raises(ConfigError, match="machines"):
        open_pool(machines=machines)


def test_all_calls_of_one_task_reach_the_same_machine(pool: Pool) -> None:
    gate = Gate()

    def counts() -> list[int]:
        first = pool.count()
        gate()
        return [first, pool.count(), pool.count()]

    tasks = [pool.submit(counts) for _ in range(2)]
    gate.entered(2)
    gate.open()
    assert [task.result() for task in tasks] == [[1, 2, 3], [1, 2, 3]]


def test_futures_are_waited_for_as_others_are(pool: Pool) -> None:
    gate = Gate()
    slow = pool.submit(gate, "slow")
    quick = pool.submit(pool.add, 1, 2)
    done, pending = futures.wait([slow, quick], return_when=futures.FIRST_COMPLETED)
    assert (done, pending) == ({quick}, {slow})
    failed = pool.submit(pool.crash)
    done, _ = futures.wait([slow, failed], return_when=futures.FIRST_EXCEPTION)
    assert done == {failed}
    assert not slow.cancel()  # it has begun
    gate.open()
    assert set(futures.as_completed([slow, quick, failed])) == {slow, quick, failed}
    with pytest.raises(CallCrash):
        failed.result()


def test_what_has_not_begun_can_be_cancelled(pool: Pool) -> None:
    gate = Gate()
    running = [pool.submit(gate) for _ in range(2)]
    gate.entered(2)
    waiting = pool.submit(pool.add, 1, 2)
    assert waiting.cancel()
    gate.open()
    futures.wait(running)
    with pytest.raises(futures.CancelledError):
        waiting.result()


def test_a_machine_that_died_is_replaced(pool: Pool) -> None:
    for _ in range(3):
        for function in (pool.crash, pool.spin.with_timeout(0.02)):
            assert isinstance(pool.submit(function).exception(), CallError)
        assert pool.submit(pool.add, 1, 2).result() == 3
    assert len(pool.monitor.machines) <= 2


# ---- map ----


def test_results_come_in_the_order_of_the_items(pool: Pool) -> None:
    assert list(pool.map(pool.add, range(30), range(30))) == list(range(0, 60, 2))
    assert list(pool.map("add", range(30), range(30), chunksize=7)) == list(range(0, 60, 2))
    assert list(pool.map(pow, [2, 3], [3, 2, 1])) == [8, 9]
    assert list(pool.map(pow, [])) == list(pool.map(pow)) == []


def test_the_first_items_are_submitted_before_any_result_is_asked_for(pool: Pool) -> None:
    seen: list[int] = []
    pool.map(seen.append, range(10))
    pool.shutdown()
    assert sorted(seen) == list(range(10))


def test_an_endless_map_looks_a_little_ahead_only(pool: Pool) -> None:
    drawn: list[int] = []

    def draw(number: int) -> int:
        drawn.append(number)
        return number

    results = pool.map(pool.add, map(draw, itertools.count(1)), itertools.repeat(1))
    assert list(itertools.islice(results, 50)) == list(range(2, 52))
    assert len(drawn) <= 50 + 20
    results.close()  # type: ignore[attr-defined]


def test_an_item_that_fails_ends_the_map_and_is_named(pool: Pool) -> None:
    ended: list[int] = []

    def work(number: int) -> int:
        if number == 3:
            pool.crash()
        ended.append(number)
        return number

    results = pool.map(work, range(1000))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(CallCrash) as raised:
        next(results)
    assert raised.value.__notes__ == ["item 3 of the map"]
    assert list(results) == []
    pool.shutdown()
    assert len(ended) < 40


@pytest.mark.parametrize("chunk", [1, 4])
def test_the_others_go_on_if_exceptions_are_results(pool: Pool, chunk: int) -> None:
    def work(number: int) -> int:
        if number % 5 == 2:
            pool.crash()
        return pool.add(number, 0)

    found = list(pool.map(work, range(20), return_exceptions=True, chunksize=chunk))
    for number, result in enumerate(found):
        if number % 5 == 2:
            assert isinstance(result, CallCrash)
            assert result.__notes__ == [f"item {number} of the map"]
        else:
            assert result == number


def test_progress_is_told_of_as_items_end(pool: Pool) -> None:
    told: list[tuple[int, int | None]] = []

    def progress(done: int, total: int | None) -> None:
        assert threading.current_thread() is threading.main_thread()
        told.append((done, total))

    list(pool.map(pool.add, range(40), range(50), progress=progress))
    assert told == [(n, 40) for n in range(1, 41)]
    told.clear()
    list(pool.map(pool.add, iter(range(5)), range(5), progress=progress, chunksize=3))
    assert told == [(n, None) for n in range(1, 6)]


def test_what_progress_raises_ends_the_map(pool: Pool) -> None:
    def progress(done: int, total: int | None) -> None:
        if done == 3:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(pool.map(pool.add, range(1000), range(1000), progress=progress))
    assert pool.add(1, 2) == 3


def test_a_map_that_is_too_slow_times_out(pool: Pool) -> None:
    gate = Gate()
    results = pool.map(gate, ["a", "b"], timeout=0.1)
    with pytest.raises(TimeoutError):
        next(results)
    gate.open()


def test_a_map_keeps_no_result_that_has_been_taken(pool: Pool) -> None:
    class Large:
        pass

    for made in pool.map(lambda _: Large(), range(10)):
        reference = weakref.ref(made)
        del made
        gc.collect()
        assert reference() is None


def test_arrays_of_the_pools_go_through_a_map(pool: Pool) -> None:
    np = pytest.importorskip("numpy", reason="a nested lane has no more than the package needs")
    arrays = [pool.empty(6000, np.uint8) for _ in range(6)]
    list(pool.map(pool.fill, arrays, itertools.repeat(6000), range(6)))
    assert list(pool.map(pool.sum, arrays, itertools.repeat(6000))) == [n * 6000 for n in range(6)]
    assert pool.stats.shared_bytes == 12 * 6000
    del arrays


# ---- initializer ----


@pytest.mark.parametrize("how", ["by its name", "in Python"])
def test_each_machine_is_initialized_before_all_else_also_one_that_replaces_another(
    open_pool: Open, how: str
) -> None:
    calls: list[int] = []

    def initialize(value: int) -> None:
        calls.append(pool.set(value))

    pool = open_pool(initializer="set" if how == "by its name" else initialize, initargs=(7,))
    gate = Gate()

    def setting() -> int:
        gate()
        return int(pool.setting())

    tasks = [pool.submit(setting) for _ in range(2)]
    gate.entered(2)
    gate.open()
    assert [task.result() for task in tasks] == [7, 7]
    for _ in range(3):
        with pytest.raises(CallCrash):
            pool.crash()
        assert pool.setting() == 7

    def dies_between() -> int:
        with pytest.raises(CallCrash):
            pool.crash()
        return int(pool.setting())

    assert pool.submit(dies_between).result() == 7
    if how == "in Python":
        assert calls == [7] * len(calls)
        assert 3 <= len(calls) <= 6


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["raises", "crashes", "loses its machine", "is Python's"])
def test_an_initializer_that_fails_breaks_the_pool(
    open_pool: Open, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    def loses() -> None:
        try:
            pool.crash()
        except CallCrash:
            pool.add(1, 2)

    def raises() -> None:
        raise ValueError("the initializer's")

    first: object = {"raises": raises, "crashes": "crash", "loses its machine": loses}.get(how)
    pool = open_pool(initializer=first or (lambda: 1 / 0))
    gate = Gate()
    tasks = [pool.submit(pool.add, 1, 2)]
    with contextlib.suppress(futures.BrokenExecutor):  # already
        tasks += [pool.submit(gate) for _ in range(3)]
    for task in tasks:
        with pytest.raises(futures.BrokenExecutor):
            task.result(20)
    with pytest.raises(futures.BrokenExecutor):
        pool.submit(pow, 2, 3)
    with pytest.raises(futures.BrokenExecutor):
        pool.add(1, 2)
    with pytest.raises(futures.BrokenExecutor):
        pool.map(pow, [1], [2])
    assert "Exception in initializer" in caplog.text


def test_an_initializer_that_is_no_function_is_refused(open_pool: Open) -> None:
    with pytest.raises(TypeError, match="initializer"):
        open_pool(initializer=3)
    with pytest.raises(KeyError):
        open_pool(initializer="no_such_function")


# ---- shutdown ----


def test_after_shutdown_nothing_is_taken(pool: Pool) -> None:
    pool.shutdown()
    for call in (lambda: pool.submit(pow, 2, 3), lambda: pool.map(pow, [2], [3])):
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            call()
    with pytest.raises(ClosedError):
        pool.add(1, 2)
    pool.shutdown()
    pool.close()


def test_the_end_of_a_with_block_waits_for_what_was_submitted(open_pool: Open) -> None:
    with open_pool() as pool:
        tasks = [pool.submit(pool.nap, 0.02) for _ in range(10)]
    assert [task.result(0) for task in tasks] == [0] * 10


@pytest.mark.parametrize("wait", [True, False])
def test_what_has_not_begun_is_cancelled_if_that_is_asked_for(pool: Pool, wait: bool) -> None:
    gate = Gate()
    running = [pool.submit(gate, "ran") for _ in range(2)]
    gate.entered(2)
    waiting = [pool.submit(pool.add, 1, 2) for _ in range(20)]
    threading.Timer(0.05, gate.open).start()
    pool.shutdown(wait=wait, cancel_futures=True)
    assert all(task.cancelled() for task in waiting)
    assert [task.result(20) for task in running] == ["ran", "ran"]
    closed(pool)


def test_shutdown_without_waiting_closes_when_the_last_has_ended(pool: Pool) -> None:
    tasks = [pool.submit(pool.nap, 0.05) for _ in range(6)]
    start = time.monotonic()
    pool.shutdown(wait=False)
    assert time.monotonic() - start < 0.1
    assert [task.result(20) for task in tasks] == [0] * 6
    closed(pool)


def closed(pool: Pool) -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("pageferry-"):
            thread.join(20)
    assert pool._closed


def test_close_ends_what_runs(pool: Pool) -> None:
    tasks = [pool.submit(pool.spin) for _ in range(5)]
    time.sleep(0.1)
    pool.close()
    for task in tasks:
        with pytest.raises(ClosedError):
            task.result(20)


def test_two_machines_do_more_than_one(pool: Pool) -> None:
    """Two that never return by themselves take the time of one."""
    start = time.monotonic()
    limit = sized(0.3, 1.0)
    found = list(pool.map(pool.spin.with_timeout(limit), *[()] * 0, return_exceptions=True))
    tasks = [pool.submit(pool.spin, timeout=limit) for _ in range(2)]
    assert {type(task.exception()) for task in tasks} == {CallTimeout}
    assert found == []
    assert time.monotonic() - start < 1.8 * limit + 0.3


def test_fresh_machines_are_as_their_initializer_has_left_them(open_pool: Open) -> None:
    pool = open_pool(fresh=True, initializer="set", initargs=(7,))
    for _ in range(3):
        assert (pool.count(), pool.setting()) == (1, 7)
        assert pool.submit(lambda: (pool.count(), pool.count())).result() == (1, 1)
        with pytest.raises(CallCrash):
            pool.crash()
