"""What is raised at any line of the monitor leaves it whole: Ctrl-C, an alarm, a callback.

A tracer raises at the n-th line that the monitor executes in `run`; then each operation has been
done or not, every machine can run on, and the mappings are what the ledger says.

PAGEFERRY_SWEEP=all raises at every line, instead of at some.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cut_off import ROOT, CutOff, Tracer
from kvm import mappings
from tests_support import sized

from vmm import BusyError, GuestError, Machine, Monitor, Received, State
from vmm.engine import turn
from vmm.engine.driver import Driver
from vmm.engine.guest import Asked
from vmm.ferry import deaths, delivery
from vmm.guest.abi import PAGE_SIZE, Operation, Status
from vmm.kvm import Exit, Intr

Elf = Callable[[str], Path]
Open = Callable[..., Monitor]

EVERY = os.environ.get("PAGEFERRY_SWEEP") == "all"
LINES = 4000  # a turn has up to 1,500
CAN_GO_ON = {State.READY, State.PARKED}


def some(lines: int, count: int, first: int = 1) -> Iterator[int]:
    """Yield the lines at which to raise: evenly spread, others each time, or all of them."""
    step = 1 if EVERY else max(lines // count, 1)
    chosen = range(first + random.randrange(step), lines, step)
    yield from chosen
    print(f"raised at {len(chosen)} of {lines} lines")


def pair(monitor: Monitor, test_guest: Elf, pages: int) -> tuple[Machine, Machine]:
    """Two machines that do everything there is with extents of so many pages, for ever. One of them
    has them mapped as they arrive.
    """
    a, b = (
        monitor.spawn(test_guest("every_way"), name=name, window="16M", populate=name == "b")
        for name in "ab"
    )
    monitor.connect(a, b)
    monitor.host.send(a, payload=struct.pack("<IIII", 1 << 30, pages, 0, 0))
    return a, b


def stop(monitor: Monitor, *machines: Machine) -> None:
    """Let machines run for a moment, in which they must get on, and stop them."""
    before = machines[0].guest.control.progress
    until = time.monotonic() + 20

    def look() -> None:
        while machines[0].progress[0] < before[0] + 2 and time.monotonic() < until:
            time.sleep(0.005)
        for machine in machines:
            monitor.kill(machine)

    ender = threading.Thread(target=look)
    ender.start()
    monitor.run(30)
    ender.join()
    assert time.monotonic() < until, "they do not get on"
    assert machines[0].fault is not None
    assert machines[0].fault.kind == "killed", machines[0].fault
    totals = monitor.audit()
    assert sum(totals.values()) == totals["free"]


# ---- Raised at a line ----


@pytest.mark.smaller_in_lanes("a run with a tracer takes fifty times as long there")
@pytest.mark.not_in_ept("a run with a tracer takes two hundred times as long there")
@pytest.mark.parametrize("pages", [1, 512])
@pytest.mark.timeout(3600 if EVERY else 120)
def test_what_is_raised_at_any_line_of_a_run_leaves_all_as_it_was_or_is_to_be(
    open_monitor: Open, test_guest: Elf, mover: str, pages: int
) -> None:
    monitor = open_monitor(mover=mover, pool="64M")
    a, b = pair(monitor, test_guest, pages)
    raised = 0
    for line in some(LINES, sized(160, 12)):
        with Tracer(line) as tracer:
            monitor.run(20)
        raised += tracer.where is not None
        assert {a.state, b.state} <= CAN_GO_ON, (tracer.where, a.fault, b.fault)
        mappings.check(monitor)  # the audit, and that each reaches what the ledger says
    assert raised >= sized(100, 8)
    stop(monitor, a, b)


@pytest.mark.smaller_in_lanes("a run with a tracer takes fifty times as long there")
@pytest.mark.not_in_ept("a run with a tracer takes two hundred times as long there")
@pytest.mark.timeout(3600 if EVERY else 120)
def test_what_is_raised_as_a_machine_gets_what_is_there_already_loses_no_message(
    open_monitor: Open, test_guest: Elf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages come while it runs, so that they are there when it comes to wait for one."""
    monitor = open_monitor()
    host, left, taken = monitor.host, 0, 0
    sink = monitor.spawn(test_guest("nuisance"), name="sink", window="2M")
    host.send(sink, payload=struct.pack("<IIQ", 6, 0, 0))
    monitor.run(20)
    execute, take_in = Driver.execute, turn.take_in

    def executed(driver: Driver, machine: Machine) -> Exit | Asked:
        nonlocal left
        exit_ = execute(driver, machine)
        while left and not isinstance(exit_, Intr):
            left -= 1
            host.send(sink, payload=b"meanwhile")
        return exit_

    def counted(*arguments: Any) -> bool:
        nonlocal taken
        done = take_in(*arguments)
        taken += done
        return done

    monkeypatch.setattr(Driver, "execute", executed)
    monkeypatch.setattr(turn, "take_in", counted)
    for line in some(1200, sized(150, 12)):
        host.send(sink, payload=b"go")
        left = 2
        with Tracer(line) as tracer, contextlib.suppress(GuestError):
            monitor.run(20)
        monitor.run(20)
        control = sink.guest.control
        assert sink.state is State.PARKED, (tracer.where, sink.fault)
        assert sink.peer.received == host.peer.sent, tracer.where
        assert not sink.peer.queue, tracer.where
        assert control.rx_head == sink.peer.received, tracer.where
        assert control.pending() == 0, tracer.where
    print(f"{taken} turns took what was there")
    assert taken > sized(10, 0)
    mappings.check(monitor)


@pytest.mark.smaller_in_lanes("a run with a tracer takes fifty times as long there")
@pytest.mark.not_in_ept("a run with a tracer takes two hundred times as long there")
@pytest.mark.timeout(3600 if EVERY else 120)
def test_what_is_raised_in_another_worker_ends_the_run_and_leaves_all_whole(
    open_monitor: Open, test_guest: Elf, mover: str
) -> None:
    monitor = open_monitor(mover=mover, pool="64M", workers=2)
    a, b = pair(monitor, test_guest, 2)
    # It keeps one worker busy, so that the other one has to work as well.
    spinner = monitor.spawn(test_guest("spin"), name="spinner", window="2M")
    with contextlib.suppress(CutOff), Tracer(1000):
        monitor.run(20)  # now there is a clock, which is not what is to be cut off
    raised = 0
    begins = range(2, sized(40, 5))  # from the line after its `try` to its first machine
    for line in itertools.chain(begins, some(LINES // 2, sized(24, 3), first=2)):
        with Tracer(line, threads=True) as tracer:
            monitor.run(20)
        raised += tracer.where is not None
        assert {a.state, b.state} <= CAN_GO_ON, (tracer.where, a.fault, b.fault)
        mappings.check(monitor)
    assert raised >= sized(16, 2)
    stop(monitor, a, b, spinner)


def test_what_is_raised_in_the_clocks_thread_ends_the_run_and_the_next_one_has_a_clock(
    open_monitor: Open, test_guest: Elf, monkeypatch: pytest.MonkeyPatch
) -> None:
    for line in range(2, sized(20, 6)):  # of its first tick, from the line after the `try`
        monitor = open_monitor(pool="8M")
        spinner = monitor.spawn(test_guest("spin"), name="spinner", window="2M")
        tracer = Tracer(line, under="engine/scheduler.py")
        look = monitor._scheduler._clock._tick()

        def tick(tracer: Tracer = tracer, look: Callable[[], float | None] = look) -> float | None:
            with tracer:
                return look()
            return None

        monkeypatch.setattr(monitor._scheduler._clock, "_tick", lambda tick=tick: tick)
        with contextlib.suppress(CutOff):
            monitor.run(20)
        assert tracer.where is not None
        monitor.run(0.05)
        assert spinner.fault is not None
        assert spinner.fault.kind == "timeout", tracer.where
        monitor.close()


@pytest.mark.smaller_in_lanes("a run with a tracer takes fifty times as long there")
@pytest.mark.not_in_ept("a run with a tracer takes two hundred times as long there")
@pytest.mark.timeout(3600 if EVERY else 120)
@pytest.mark.parametrize("how", ["at once", "in parts", "killed in parts"])
def test_what_is_raised_at_any_line_of_a_death_gives_everyone_what_is_theirs(
    open_monitor: Open,
    test_guest: Elf,
    mover: str,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may be done in parts: after any of them it can be cut off, and goes on."""
    if how != "at once":
        for name in ("RUNS_AT_ONCE", "RUNS_OF_SLOTS"):
            for module in (deaths, delivery):
                monkeypatch.setattr(module, name, 1)
        monkeypatch.setattr(deaths, "HIDDEN_AT_ONCE", 3)
    monitor = open_monitor(mover=mover, pool="64M")
    host = monitor.host
    reached = set()
    for line in some(2400, sized(60, 5)):
        victim = monitor.spawn(test_guest("dies_with_mail"), name="victim", window="4M")
        lent, sent, shared = (host.alloc(4 * PAGE_SIZE) for _ in range(3))
        for buffer in (lent, sent, shared):
            buffer.write(b"mine" * 4096)
        host.lend(victim, lent)
        host.send(victim, sent)
        host.share(victim, shared)
        fault = ("exception", 0x10)
        if how == "killed in parts":
            with Tracer(line) as tracer:
                monitor.kill(victim)
            if tracer.where is not None and line % 2:
                monitor.kill(victim)  # else the run does it, if it has been begun
        else:
            with Tracer(line) as tracer:
                monitor.run(20)
        reached.add(tracer.where)
        mappings.check(monitor)
        if victim.ending is not None:
            fault = ("killed", None)
        monitor.run(20)  # it dies now, if it has not yet
        assert victim.state is State.STOPPED
        assert victim.fault is not None
        assert (victim.fault.kind, victim.fault.address) == fault, tracer.where
        back = list(iter(host.receive, None))
        assert [kind_of(message) for message in back] == [
            (Operation.UNDELIVERED, Status.E_DEAD),
            (Operation.UNDELIVERED, Status.E_DEAD),
            (Operation.RETURN, Status.E_DEAD),
        ] or {kind_of(message) for message in back} <= DEAD, (tracer.where, back)
        (again,) = (m.buffers[0] for m in back if m.buffers and m.buffers[0] not in (lent, shared))
        for buffer in (lent, again, shared):
            assert buffer.read() == b"mine" * 4096, tracer.where
            host.release(buffer)
        monitor.remove(victim)
        totals = monitor.audit()
        assert totals["free"] == sum(totals.values()), tracer.where
    assert len(reached) > sized(30, 3)


DEAD = {(Operation.UNDELIVERED, Status.E_DEAD), (Operation.RETURN, Status.E_DEAD)}


def kind_of(message: Received) -> tuple[Operation, Status]:
    return message.operation, message.status


@pytest.mark.smaller_in_lanes("a run with a tracer takes fifty times as long there")
@pytest.mark.not_in_ept("a run with a tracer takes two hundred times as long there")
@pytest.mark.timeout(3600 if EVERY else 120)
def test_what_is_raised_in_a_call_of_the_hosts_has_done_it_or_not(
    open_monitor: Open, test_guest: Elf, mover: str
) -> None:
    monitor = open_monitor(mover=mover, pool="64M")
    host, idle = monitor.host, monitor.spawn(test_guest("spin"), name="s", window="4M", queue=512)
    calls: dict[str, Callable[[], object]] = {
        "alloc": lambda: host.alloc(4 * PAGE_SIZE),
        "send": lambda: host.send(idle, host.alloc(PAGE_SIZE)),
        "lend": lambda: host.reclaim(lend()),
        "exchange": lambda: host.exchange(idle, host.alloc(PAGE_SIZE)),
        "kill": lambda: monitor.kill(monitor.machines["k"]),
    }

    def lend() -> object:
        buffer = host.alloc(2 * PAGE_SIZE)
        host.lend(idle, buffer)
        return buffer

    monitor.spawn(test_guest("spin"), name="k", window="2M")
    for name, call in calls.items():
        for line in some(700, sized(12, 2)):
            queued = len(idle.peer.queue)
            with Tracer(line):
                call()
            mappings.check(monitor)
            assert len(idle.peer.queue) - queued <= (name in ("send", "lend", "exchange"))
    monitor.kill(monitor.machines["k"])
    monitor.remove(idle)
    while (received := host.receive()) is not None:
        assert received.status is Status.E_DEAD
    mappings.check(monitor)


# ---- Raised by a signal ----


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.smaller_in_lanes("fewer moments: each takes a second there")
@pytest.mark.parametrize("pages", [1, 512])
def test_a_run_that_a_signal_has_cut_off_goes_on(
    open_monitor: Open, test_guest: Elf, mover: str, pages: int
) -> None:
    monitor = open_monitor(mover=mover, pool="64M")
    a, b = pair(monitor, test_guest, pages)

    def alarm(number: int, frame: object) -> None:
        raise CutOff

    before = signal.signal(signal.SIGALRM, alarm)
    try:
        for _ in range(sized(40, 4)):
            # It may come before `run` has begun; or in a finalizer, where Python drops what is
            # raised: so there is another one after a while.
            with contextlib.suppress(CutOff):
                signal.setitimer(signal.ITIMER_REAL, random.uniform(0.001, 0.006), 0.2)
                monitor.run(20)
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert {a.state, b.state} <= CAN_GO_ON, (a.fault, b.fault)
            mappings.check(monitor)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    stop(monitor, a, b)


class Handler(Tracer):
    """Calls something at the n-th line, as a signal's handler may, instead of raising."""

    def __init__(self, line: int, call: Callable[[], object]) -> None:
        super().__init__(line)
        self._handler = call

    def _line(self, frame: object, event: str, argument: object) -> object:
        if event == "line" and self.where is None:
            self.lines += 1
            if self.lines == self.line:
                self.where = ROOT, self.lines
                sys.settrace(None)
                self._handler()
        return self._line


@pytest.mark.not_in_ept("a run with a tracer takes two hundred times as long there")
@pytest.mark.smaller_in_lanes("a run with a tracer takes fifty times as long there")
@pytest.mark.timeout(3600 if EVERY else 120)
def test_a_signals_handler_may_kill_and_gets_an_error_at_once_for_what_it_may_not(
    open_monitor: Open, test_guest: Elf
) -> None:
    monitor = open_monitor(pool="64M")
    busy = 0
    for line in some(1500, sized(60, 6)):
        a, b = pair(monitor, test_guest, 1)

        def handler(a: Machine = a) -> None:
            nonlocal busy
            monitor.kill(a)
            monitor.notice(a, 1)
            monitor.interrupt(a)
            try:
                monitor.host.send(a, payload=b"from the handler")
            except BusyError:
                busy += 1
            except GuestError:  # it is dead
                pass

        handling = Handler(line, handler)
        with handling:
            monitor.run(20)
        assert handling.where is not None
        assert a.state is State.STOPPED
        assert a.fault is not None
        assert a.fault.kind == "killed"
        monitor.kill(b)
        monitor.run(20)
        monitor.remove(a)
        monitor.remove(b)
    assert busy > 0


# ---- Raised by a callback, which may call the monitor ----


def test_what_a_console_raises_ends_the_run_and_the_next_one_goes_on(
    open_monitor: Open, guest_elf: Elf, test_guest: Elf
) -> None:
    lines: list[str] = []

    def console(name: str, line: str) -> None:
        lines.append(line)
        if len(lines) == 1:
            raise OSError(28, "No space left on device")

    monitor = open_monitor(console=console)
    machine = monitor.spawn(test_guest("says_hello"), name="m", window="2M")
    with pytest.raises(OSError, match="No space left"):
        monitor.run(10)
    assert machine.state in CAN_GO_ON | {State.STOPPED}
    monitor.run(10)
    assert machine.exit_code == 3, machine.fault
    assert len(lines) == len(set(lines))  # each is told once
    monitor.remove(machine)


def test_what_a_listener_raises_at_any_event_leaves_all_whole(
    open_monitor: Open, test_guest: Elf, mover: str
) -> None:
    monitor = open_monitor(mover=mover, pool="64M")
    a, b = pair(monitor, test_guest, 2)
    left = [0]

    def listener(event: object) -> None:
        left[0] -= 1
        if not left[0]:
            raise CutOff

    monitor.trace.listen(listener)
    for number in range(1, sized(60, 10)):
        left[0] = number
        with pytest.raises(CutOff):
            monitor.run(20)
        assert {a.state, b.state} <= CAN_GO_ON
        mappings.check(monitor)
    stop(monitor, a, b)


@pytest.mark.parametrize("workers", [1, 2])
def test_callbacks_may_call_the_monitor(open_monitor: Open, test_guest: Elf, workers: int) -> None:
    said: list[str] = []

    def console(name: str, line: str) -> None:
        said.append(line)
        monitor.audit()
        monitor.host.send(monitor.machines[name], payload=b"go", tag=7)
        monitor.notice(monitor.machines[name], 1)
        monitor.spawn(test_guest("spin"), name=f"s{len(said)}", window="2M")
        monitor.kill(monitor.machines[f"s{len(said)}"], "not needed")
        with pytest.raises(BusyError, match="return from the callback"):
            monitor.run(1)
        with pytest.raises(BusyError, match="return from the callback"):
            monitor.close()

    monitor = open_monitor(console=console, workers=workers)
    machine = monitor.spawn(test_guest("says_and_waits"), name="m", window="2M")
    monitor.run(10)
    assert said == ["ready"]
    assert machine.exit_code == 7, machine.fault
    fault = monitor.machines["s1"].fault
    assert fault is not None
    assert "not needed" in str(fault)


def test_who_is_told_of_a_machine_may_kill_it(open_monitor: Open, test_guest: Elf) -> None:
    def console(name: str, line: str) -> None:
        monitor.kill(monitor.machines[name], f"said {line}")

    monitor = open_monitor(console=console)
    machine = monitor.spawn(test_guest("says_and_waits"), name="m", window="2M")
    monitor.run(10)
    assert "said ready" in str(machine.fault)


# ---- Two at once ----


def test_a_second_run_is_refused_and_the_first_keeps_its_time_out(
    open_monitor: Open, test_guest: Elf
) -> None:
    monitor = open_monitor()
    machine = monitor.spawn(test_guest("spin"), name="s", window="2M")
    first = threading.Thread(target=monitor.run, args=(1,))
    started = time.monotonic()
    first.start()
    while machine.state is not State.RUNNING:
        time.sleep(0.001)
    with pytest.raises(BusyError, match="another thread is in run"):
        monitor.run()
    first.join()
    assert time.monotonic() - started < 5
    assert "still running after 1 second" in str(machine.fault)


def test_closing_ends_another_threads_run(open_monitor: Open, test_guest: Elf) -> None:
    monitor = open_monitor()
    machine = monitor.spawn(test_guest("spin"), name="s", window="2M")
    runner = threading.Thread(target=monitor.run)
    runner.start()
    while machine.state is not State.RUNNING:
        time.sleep(0.001)
    monitor.close()
    runner.join(10)
    assert not runner.is_alive()


def test_time_outs_that_are_over_do_not_pile_up(open_monitor: Open, test_guest: Elf) -> None:
    """Each wait leaves one behind; an hour-long one is before none of them."""
    monitor = open_monitor(pool="16M")
    monitor.spawn(test_guest("wait_a_minute"), name="hour", window="2M")
    a, _ = pair(monitor, test_guest, 1)
    runner = threading.Thread(target=monitor.run, args=(60,))
    runner.start()
    most = 0
    until = time.monotonic() + sized(1, 5)
    while time.monotonic() < until:
        most = max(most, len(monitor._standing.deadlines), len(monitor._standing.line))
        time.sleep(0.01)
    for machine in monitor.machines.values():
        monitor.kill(machine)
    runner.join()
    assert a.peer.sent > 10
    assert most <= 2 * 64 + 8
