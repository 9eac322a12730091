"""Real signals, whenever they come: as a run begins and ends, in the host's calls, in `close`."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cut_off import CutOff, Tracer
from kvm import mappings
from tests_support import sized

from vmm import BusyError, ClosedError, Monitor, State
from vmm.guest.abi import PAGE_SIZE

Elf = Callable[[str], Path]
Open = Callable[..., Monitor]

pytestmark = [
    # What a handler raises in a finalizer Python drops.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.not_in_ept("when a signal comes, whatever the hardware"),
]


@contextlib.contextmanager
def alarms() -> Iterator[Callable[[float], None]]:
    """Let SIGALRM raise CutOff; give what orders one, in seconds."""

    def alarm(number: int, frame: object) -> None:
        raise CutOff

    before = signal.signal(signal.SIGALRM, alarm)
    try:
        yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds, 0.1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def interrupted(order: Callable[[float], None], seconds: float, call: Callable[[], object]) -> bool:
    """Make a call, and interrupt it; return whether that has come out of it."""
    try:
        order(seconds)
        call()
    except CutOff:
        return True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return False


@pytest.mark.smaller_in_lanes("fewer of them: each takes a hundred times as long there")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_may_be_interrupted_as_it_begins_and_the_next_one_runs(
    open_monitor: Open, test_guest: Elf, workers: int
) -> None:
    monitor = open_monitor(workers=workers)
    machine = monitor.spawn(test_guest("spin"), name="s", window="2M")
    with alarms() as order:
        for _ in range(sized(250, 10)):
            with contextlib.suppress(CutOff):
                interrupted(order, random.uniform(1e-5, 6e-4), lambda: monitor.run(20))
            assert machine.state in (State.READY, State.PARKED)
    monitor.run(0.05)
    assert machine.fault is not None
    assert machine.fault.kind == "timeout"


@pytest.mark.smaller_in_lanes("fewer of them: each takes a hundred times as long there")
def test_calls_of_the_hosts_may_be_interrupted_and_nobody_waits_for_their_lock(
    open_monitor: Open, test_guest: Elf
) -> None:
    monitor = open_monitor(pool="64M")
    idle = monitor.spawn(test_guest("spin"), name="s", window="4M")
    kept: list[BaseException] = []  # with the frames that they came through

    def calls() -> None:
        for _ in range(50):
            buffer = monitor.host.alloc(2 * PAGE_SIZE)
            monitor.host.lend(idle, buffer)
            monitor.host.reclaim(buffer)
            monitor.host.release(buffer)

    with alarms() as order:
        for _ in range(sized(150, 5)):
            try:
                order(random.uniform(1e-5, 2e-3))
                calls()
            except CutOff as error:
                kept.append(error)
            except BaseException:
                signal.setitimer(signal.ITIMER_REAL, 0)
                raise
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            other = threading.Thread(target=monitor.audit)
            other.start()
            other.join(20)
            assert not other.is_alive()
            monitor.kill(idle)
            monitor.remove(idle)
            while monitor.host.receive() is not None:
                pass
            idle = monitor.spawn(test_guest("spin"), name="s", window="4M")
    assert kept
    mappings.check(monitor)


def test_a_close_that_was_interrupted_can_be_called_again(test_guest: Elf) -> None:
    for line in range(1, 60, 7):
        monitor = Monitor(pool="16M", console=lambda name, line: None)
        machine = monitor.spawn(test_guest("says_hello"), name="m", window="2M")
        with Tracer(line):
            monitor.close()
        monitor.close()
        with pytest.raises(ClosedError):
            monitor.run()
        assert machine.name == "m"


def test_the_time_out_of_one_run_is_none_of_anothers(open_monitor: Open, test_guest: Elf) -> None:
    monitor = open_monitor(pool="16M")
    over = threading.Event()

    def runs() -> None:
        while not over.is_set():
            with contextlib.suppress(BusyError):
                monitor.run(0.01)

    threads = [threading.Thread(target=runs) for _ in range(2)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + sized(1.0, 5.0)
    rounds = 0
    while time.monotonic() < until:
        machines = [
            monitor.spawn(test_guest("spin"), name=f"s{index}", window="2M", memory="4M")
            for index in range(3)
        ]
        limit = time.monotonic() + 30
        while any(machine.state is not State.STOPPED for machine in machines):
            assert time.monotonic() < limit
            time.sleep(0.001)
        for machine in machines:
            monitor.remove(machine)
        rounds += 1
    over.set()
    for thread in threads:
        thread.join()
    assert rounds


def test_a_child_forked_in_a_callback_gets_an_error_from_its_run(
    open_monitor: Open, test_guest: Elf
) -> None:
    children: list[int] = []

    def console(name: str, line: str) -> None:
        children.append(os.fork())

    monitor = open_monitor(console=console)
    machine = monitor.spawn(test_guest("says_hello"), name="m", window="2M")
    code = 1
    try:
        monitor.run(10)
    except ClosedError:
        code = 7
    finally:
        if children == [0]:
            os._exit(code)
    assert machine.exit_code == 3
    _, status = os.waitpid(children[0], 0)
    assert os.waitstatus_to_exitcode(status) == 7
