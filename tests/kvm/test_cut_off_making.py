"""What is raised as a monitor is opened or closed, or a machine made or removed, leaves nothing
behind: no descriptor, mapping or thread. And the monitor goes on, or can be closed at once.

PAGEFERRY_SWEEP=all raises at every line, ten times in one that is in a loop, instead of at some.
"""

from __future__ import annotations

import gc
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import pytest
from cut_off import CutOff, Tracer
from kvm import mappings
from tests_support import held, sized

from vmm import Buffer, Machine, Monitor
from vmm.guest.abi import PAGE_SIZE
from vmm.host import canary, copying, facts, hugepages
from vmm.linux import loader

Elf = Callable[[str], Path]

EVERY = os.environ.get("PAGEFERRY_SWEEP") == "all"
TIMES = 10  # that a line is raised at, if it is executed more often
NOISE = 6 << 20  # bytes that the interpreter may have mapped for itself

pytestmark = [
    pytest.mark.smaller_in_lanes("fewer lines: each takes a second there"),
    pytest.mark.not_in_ept("a call with a tracer takes two hundred times as long there"),
    # What is raised in a finalizer Python drops.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.timeout(3600 if EVERY else 60),
]


class Places(Tracer):
    """Notes the place of each line."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[tuple[str, int]] = []

    def _line(self, frame: FrameType, event: str, argument: object) -> object:
        if event == "line":
            self.places.append((frame.f_code.co_filename, frame.f_lineno))
        return self._line


def lines_of(call: Callable[[], object]) -> list[int]:
    with Places() as tracer:
        call()
    return first_times(tracer)


def first_times(tracer: Tracer) -> list[int]:
    """Return the numbers of the lines that it has seen, each line's first times of many."""
    assert isinstance(tracer, Places)
    times = Counter[tuple[str, int]]()
    found = []
    for number, place in enumerate(tracer.places, 1):
        times[place] += 1
        if times[place] <= TIMES:
            found.append(number)
    return found


def some(lines: list[int], count: int) -> list[int]:
    """Return some of them, evenly spread, others each time; or all."""
    step = 1 if EVERY else max(len(lines) // count, 1)
    chosen = lines[random.randrange(step) :: step]
    print(f"raised at {len(chosen)} of {len(lines)} lines")
    return chosen


class Baseline:
    """What this process has of the kernel's, when there is nothing to be freed."""

    def __init__(self) -> None:
        before = None
        while (now := held()) != before:  # a thread's end takes its time
            before = now
            time.sleep(0.02)
        self._held, self._mapped = now, mapped()

    def check(self, where: object) -> None:
        now, until = held(), time.monotonic() + 5
        while now != self._held and time.monotonic() < until:
            gc.collect()  # what is raised holds frames, and these files, which are closed with them
            time.sleep(0.001)
            now = held()
        assert now == self._held, (where, now - self._held, self._held - now)
        before, self._mapped = self._mapped, mapped()
        assert self._mapped <= before + NOISE, where


def mapped() -> int:
    """Return how many bytes of addresses this process has mapped."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * PAGE_SIZE


def quiet(mover: str) -> Monitor:
    return Monitor(mover=mover, pool="64M", console=lambda name, line: None)


def spawn(monitor: Monitor, elf: Path) -> Machine:
    return monitor.spawn(elf, name="m", window="4M")


def spawn_with_pages(monitor: Monitor, elf: Path) -> tuple[Machine, list[Buffer]]:
    """A machine whose death has things to do, and the buffers that come back then."""
    machine, host = spawn(monitor, elf), monitor.host
    sent, lent, shared = (host.alloc(pages * PAGE_SIZE) for pages in (4, 1, 1))
    host.send(machine, sent)
    host.lend(machine, lent)
    host.share(machine, shared)
    return machine, [lent, shared]


def forget_image(monitor: Monitor) -> None:
    """Let the next spawn read and lay out its image again."""
    loader._files._cache.clear()
    monitor._blueprints.close()


def forget_host() -> None:
    """Let the next monitor find out again what the host can do."""
    facts._inspected.cache_clear()
    canary._canary.cache_clear()
    hugepages.huge_pages.cache_clear()
    copying._costs.cache_clear()


def go_on(monitor: Monitor, elf: Path, where: object, buffers: Sequence[Buffer] = ()) -> None:
    """Do with a monitor what it is there for, and leave it empty."""
    mappings.check(monitor)
    for machine in list(monitor.machines.values()):
        monitor.remove(machine)
    machine = spawn(monitor, elf)
    assert monitor.run(10) == [machine], where
    assert machine.exit_code == 3, (where, machine.fault)
    monitor.remove(machine)
    back = [buffer for message in iter(monitor.host.receive, None) for buffer in message.buffers]
    for buffer in {buffer.address: buffer for buffer in (*back, *buffers)}.values():
        monitor.host.release(buffer)
    totals = monitor.audit()
    assert totals["free"] == sum(totals.values()), (where, totals)


# ---- At a line ----


@pytest.mark.parametrize("known", [True, False])
def test_a_spawn_that_is_cut_off_leaves_nothing_and_the_monitor_goes_on(
    test_guest: Elf, mover: str, known: bool
) -> None:
    elf, cut = test_guest("says_hello"), Counter[object]()
    with quiet(mover) as monitor:
        go_on(monitor, elf, "before")
        base = Baseline()
        if not known:
            forget_image(monitor)
        lines = lines_of(lambda: spawn(monitor, elf))
        go_on(monitor, elf, "before")
        for line in some(lines, sized(20, 3)):
            if not known:
                forget_image(monitor)
            with Tracer(line) as tracer:
                spawn(monitor, elf)
            cut[tracer.where] += 1
            go_on(monitor, elf, tracer.where)
            base.check(tracer.where)
    assert len(cut) > 1


def test_a_removal_that_is_cut_off_is_done_or_not(test_guest: Elf, mover: str) -> None:
    elf, cut = test_guest("says_hello"), Counter[object]()
    with quiet(mover) as monitor:
        go_on(monitor, elf, "before")
        base = Baseline()
        machine, buffers = spawn_with_pages(monitor, elf)
        lines = lines_of(lambda: monitor.remove(machine))
        go_on(monitor, elf, "before", buffers)
        for line in some(lines, sized(20, 3)):
            machine, buffers = spawn_with_pages(monitor, elf)
            with Tracer(line) as tracer:
                monitor.remove(machine)
            cut[tracer.where] += 1
            assert (machine.name in monitor.machines) is not machine.closed, tracer.where
            go_on(monitor, elf, tracer.where, buffers)
            base.check(tracer.where)
    assert len(cut) > 1


def cut_off_everywhere(trial: Callable[[Tracer], Tracer]) -> None:
    """Cut a trial off at its lines, and check each time that nothing has been left."""
    cut = Counter[object]()
    trial(Tracer())
    lines = first_times(trial(Places()))
    base = Baseline()
    for line in some(lines, sized(16, 2)):
        where = trial(Tracer(line)).where
        cut[where] += 1
        base.check(where)
    assert len(cut) > 1


@pytest.mark.parametrize("what", ["spawn", "remove", "close"])
def test_a_monitor_that_is_closed_after_something_was_cut_off_leaves_nothing(
    test_guest: Elf, mover: str, what: str
) -> None:
    elf = test_guest("says_hello")

    def trial(tracer: Tracer) -> Tracer:
        loader._files._cache.clear()
        monitor = quiet(mover)
        calls: dict[str, Callable[[], object]] = {
            "spawn": lambda: spawn(monitor, elf),
            "remove": lambda: monitor.remove(machine),
            "close": monitor.close,
        }
        if what != "spawn":
            machine, _ = spawn_with_pages(monitor, elf)
        if what == "close":
            monitor.run(10)  # there is a clock's thread from now on
        with tracer:
            calls[what]()
        monitor.close()
        return tracer

    cut_off_everywhere(trial)


@pytest.mark.parametrize("known", [True, False])
def test_a_monitor_whose_making_is_cut_off_leaves_nothing(
    mover: str, known: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PAGEFERRY_CACHE", str(tmp_path))

    def trial(tracer: Tracer) -> Tracer:
        if not known:
            forget_host()
            shutil.rmtree(tmp_path, ignore_errors=True)
        made: list[Monitor] = []
        with tracer:
            made.append(quiet(mover))
        for monitor in made:
            monitor.close()
        return tracer

    cut_off_everywhere(trial)


# ---- By a signal ----


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of what is lost in a finalizer
def test_what_signals_cut_off_whenever_they_come_leaves_nothing(
    test_guest: Elf, mover: str
) -> None:
    elf = test_guest("says_hello")

    def alarm(number: int, frame: object) -> None:
        raise CutOff

    with quiet(mover) as monitor:
        go_on(monitor, elf, "before")
    base = Baseline()
    before = signal.signal(signal.SIGALRM, alarm)
    cut = 0
    try:
        monitor = quiet(mover)
        go_on(monitor, elf, "before")
        kept = Baseline()
        for number in range(sized(60, 4) * (20 if EVERY else 1)):
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00005, 0.004))
                machine = spawn(monitor, elf)
                monitor.remove(machine)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except CutOff:
                cut += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            go_on(monitor, elf, number)
            kept.check(number)
        monitor.close()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert cut
    base.check("closed")
