"""The clock: one thread, which ends with whom it ticks for."""

from __future__ import annotations

import gc
import queue
import time
from pathlib import Path

from vmm.engine.clock import Clock


class Ticked:
    """Notes each tick, and wants as many more as it is told, a millisecond apart."""

    def __init__(self, more: int) -> None:
        self.ticks: queue.SimpleQueue[float] = queue.SimpleQueue()
        self.more = more
        self.clock = Clock(self.tick)

    def tick(self) -> float | None:
        self.ticks.put(time.monotonic())
        self.more -= 1
        return 0.001 if self.more > 0 else None


def tasks() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def wait_for(count: int) -> None:
    until = time.monotonic() + 10
    while tasks() > count:
        assert time.monotonic() < until
        time.sleep(0.001)


def test_it_ticks_as_long_as_it_is_told_and_again_when_it_is_begun_again() -> None:
    ticked = Ticked(3)
    ticked.clock.begin()
    for _ in range(3):
        ticked.ticks.get(timeout=10)
    assert ticked.clock.alive
    ticked.clock.begin()
    ticked.ticks.get(timeout=10)
    ticked.clock.close()
    assert not ticked.clock.alive


def test_its_thread_ends_with_it_whoever_forgets_to_close_it() -> None:
    before = tasks()
    ticked = Ticked(1)
    ticked.clock.begin()
    ticked.ticks.get(timeout=10)
    assert tasks() == before + 1
    del ticked
    gc.collect()
    wait_for(before)


def test_a_thread_that_has_not_begun_in_time_is_not_counted_on() -> None:
    ticked = Ticked(1)
    ticked.clock.begin()
    ticked.ticks.get(timeout=10)
    late, ticked.clock._life = ticked.clock._life, None  # as if it had never said that it runs
    assert late is not None
    ticked.clock.begin()
    late.end()
    ticked.ticks.get(timeout=10)
    ticked.clock.close()
    until = time.monotonic() + 10
    while late.running:
        assert time.monotonic() < until
        time.sleep(0.001)
    assert not late.running


class Collected(Ticked):
    """Closes its clock in the clock's own thread, as Python's collector may."""

    def tick(self) -> float | None:
        self.clock.close()
        self.ticks.put(0.0)
        return None


def test_it_does_not_wait_for_itself_where_it_is_closed_in_its_own_thread() -> None:
    before = tasks()
    ticked = Collected(1)
    ticked.clock.begin()
    ticked.ticks.get(timeout=10)
    wait_for(before)
