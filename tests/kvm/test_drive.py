"""One machine run by the thread that wants something of it: vmm.engine.drive, as calls do it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests_support import sized

from vmm import BusyError, ClosedError, Machine, Monitor, State
from vmm.engine.scheduler import Scheduler

Elf = Callable[[str], Path]
Open = Callable[..., Monitor]

INFINITE = float("inf")


def soon(seconds: float = 20) -> float:
    return time.monotonic() + seconds


class Driving(threading.Thread):
    """Drives a machine in a thread of its own."""

    def __init__(self, monitor: Monitor, machine: Machine, until: float = INFINITE) -> None:
        super().__init__()
        self._arguments = monitor, machine, until
        self.returned: bool | None = None
        self.raised: BaseException | None = None
        self.start()

    def run(self) -> None:
        monitor, *arguments = self._arguments
        try:
            self.returned = monitor._drive(*arguments)
        except BaseException as error:
            self.raised = error

    def end(self) -> bool | None:
        """Wait for it, not for ever."""
        self.join(20)
        assert not self.is_alive()
        return self.returned


def running(machine: Machine) -> None:
    """Wait until a machine is run."""
    until = soon()
    while machine.state is not State.RUNNING and time.monotonic() < until:
        time.sleep(0.001)
    assert machine.state is State.RUNNING


def parked(machine: Machine) -> None:
    until = soon()
    while machine.state is not State.PARKED and time.monotonic() < until:
        time.sleep(0.001)
    assert machine.state is State.PARKED


def test_a_machine_is_driven_until_it_waits_for_what_does_not_come_by_itself(
    open_monitor: Open, test_guest: Elf
) -> None:
    monitor = open_monitor()
    idle = monitor.spawn(test_guest("idle"), name="idle", window="2M")
    other = monitor.spawn(test_guest("spin"), name="other", window="2M")
    assert monitor._drive(idle, INFINITE)
    assert idle.state is State.PARKED
    assert other.state is State.READY  # nobody has run it


def test_a_machine_is_driven_until_it_has_stopped(open_monitor: Open, test_guest: Elf) -> None:
    monitor = open_monitor()
    machine = monitor.spawn(test_guest("says_hello"), name="m", window="2M")
    assert monitor._drive(machine, INFINITE)
    assert machine.exit_code == 3
    assert monitor._drive(machine, INFINITE)  # and does not come back to life


def test_a_sleep_is_waited_for_and_the_machine_goes_on(open_monitor: Open, test_guest: Elf) -> None:
    monitor = open_monitor()
    machine = monitor.spawn(test_guest("wait_50_ms"), name="w", window="2M")
    start = time.monotonic()
    assert monitor._drive(machine, INFINITE)
    assert machine.exit_code == 0
    assert time.monotonic() - start >= 0.05


@pytest.mark.parametrize("guest", ["spin", "wait_a_minute"])
def test_it_comes_back_when_its_time_is_over_with_the_machine_alive(
    open_monitor: Open, test_guest: Elf, guest: str
) -> None:
    monitor = open_monitor()
    machine = monitor.spawn(test_guest(guest), name="m", window="2M")
    start = time.monotonic()
    assert not monitor._drive(machine, start + 0.1)
    assert 0.1 <= time.monotonic() - start < 5
    assert machine.state in (State.READY, State.PARKED)
    assert not monitor._drive(machine, time.monotonic() + 0.05)  # it goes on


def test_several_threads_drive_a_machine_each_and_none_waits_for_another(
    open_monitor: Open, test_guest: Elf
) -> None:
    monitor = open_monitor()
    spinner = monitor.spawn(test_guest("spin"), name="spinner", window="2M")
    long = Driving(monitor, spinner)
    running(spinner)
    waiters = [
        monitor.spawn(test_guest("wait_50_ms"), name=f"w{i}", window="2M")
        for i in range(sized(6, 2))
    ]
    short = [Driving(monitor, machine) for machine in waiters]
    assert all(one.end() for one in short)
    assert [machine.exit_code for machine in waiters] == [0] * len(waiters)
    assert long.is_alive()
    monitor.kill(spinner)
    assert long.end()


def test_who_sleeps_is_killed_at_once_whoever_else_sleeps(
    open_monitor: Open, test_guest: Elf
) -> None:
    monitor = open_monitor()
    sleepers = [
        monitor.spawn(test_guest("wait_a_minute"), name=f"s{i}", window="2M") for i in range(4)
    ]
    drivings = []
    for machine in sleepers:
        drivings.append(Driving(monitor, machine))
        parked(machine)
    start = time.monotonic()
    for machine, driving in reversed(list(zip(sleepers, drivings, strict=True))):
        monitor.kill(machine)
        assert driving.end()
        assert machine.fault is not None
        assert machine.fault.kind == "killed"
    assert time.monotonic() - start < 10


def test_run_and_drive_exclude_each_other(open_monitor: Open, test_guest: Elf) -> None:
    monitor = open_monitor()
    spinner = monitor.spawn(test_guest("spin"), name="spinner", window="2M")
    other = monitor.spawn(test_guest("spin"), name="other", window="2M")
    driving = Driving(monitor, spinner)
    running(spinner)
    with pytest.raises(BusyError, match=r"in run\(\)"):
        monitor.run(1)
    monitor.kill(spinner)
    driving.end()
    runner = threading.Thread(target=monitor.run)
    runner.start()
    running(other)
    with pytest.raises(BusyError, match=r"in run\(\)"):
        monitor._drive(spinner, INFINITE)
    monitor.kill(other)
    runner.join()


def test_a_callback_may_neither_drive_nor_close(open_monitor: Open, test_guest: Elf) -> None:
    raised = []

    def console(name: str, line: str) -> None:
        for call in (monitor.close, lambda: monitor._drive(machine, INFINITE)):
            try:
                call()
            except BusyError as error:
                raised.append(error)

    monitor = open_monitor(console=console)
    machine = monitor.spawn(test_guest("says_hello"), name="m", window="2M")
    assert monitor._drive(machine, INFINITE)
    assert len(raised) >= 2
    assert machine.exit_code == 3


def test_close_ends_all_who_drive(open_monitor: Open, test_guest: Elf) -> None:
    monitor = open_monitor()
    machines = [
        monitor.spawn(test_guest(guest), name=f"m{i}", window="2M")
        for i, guest in enumerate(("spin", "wait_a_minute", "spin"))
    ]
    drivings = [Driving(monitor, machine) for machine in machines]
    running(machines[0])
    parked(machines[1])
    monitor.close()
    for driving in drivings:
        driving.end()
        assert driving.returned is not None or isinstance(driving.raised, ClosedError)
    with pytest.raises(ClosedError):
        monitor._drive(machines[0], INFINITE)


def test_a_clock_that_fails_ends_all_who_drive_and_the_next_has_another(
    open_monitor: Open, test_guest: Elf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = open_monitor()
    spinners = [monitor.spawn(test_guest("spin"), name=f"s{i}", window="2M") for i in range(2)]
    drivings = [Driving(monitor, machine) for machine in spinners]
    for machine in spinners:
        running(machine)
    failing = threading.Event()

    def look(self: Scheduler) -> float | None:
        failing.set()
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(Scheduler, "_look", look)
        assert failing.wait(20)
        for driving in drivings:
            driving.end()
            assert isinstance(driving.raised, ZeroDivisionError)
    assert {machine.state for machine in spinners} == {State.READY}
    assert not monitor._drive(spinners[0], time.monotonic() + 0.05)


class Alarm(Exception):
    pass


@pytest.mark.parametrize("guest", ["spin", "wait_a_minute"])
def test_what_a_signals_handler_raises_comes_out_and_the_machine_goes_on(
    open_monitor: Open, test_guest: Elf, guest: str
) -> None:
    def alarm(number: int, frame: object) -> None:
        raise Alarm

    monitor = open_monitor()
    machine = monitor.spawn(test_guest(guest), name="m", window="2M")
    before = signal.signal(signal.SIGALRM, alarm)
    try:
        for _ in range(sized(10, 3)):
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            with pytest.raises(Alarm):
                monitor._drive(machine, INFINITE)
            assert machine.state in (State.READY, State.PARKED)
            assert not monitor._scheduler.working
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    monitor.kill(machine)
    monitor.run(10)  # nothing is left of who has driven
