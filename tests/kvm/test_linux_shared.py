"""Files that are mapped, shared, to be written: whatever cuts a call off, and however they end.

That they are what they are on Linux, `shared.c` tells in test_linux_programs.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest
from cut_off import Tracer
from linux_programs import linux_program
from tests_support import sized

from vmm import Monitor
from vmm.linux.machine import LinuxMachine

Open = Callable[..., Monitor]
PAGE = 4096
EVERY = os.environ.get("PAGEFERRY_SWEEP") == "all"
STEPS = (
    *("o /out/file w", f"m s w 0 {20 * PAGE}", "s 0 0 mapped", f"s 0 {17 * PAGE} second", "r 0"),
    *(f"w {PAGE} written", f"g 0 {PAGE}", f"a 0 0 {PAGE}", "r 0", f"f 0 {18 * PAGE} {PAGE}"),
    *(f"u 0 {PAGE} {PAGE}", f"r {PAGE}", f"t {18 * PAGE}", f"r {17 * PAGE}", f"t {20 * PAGE}"),
    *(f"m s w 0 {PAGE}", "s 1 0 again", f"m s w 0 {PAGE}", "r 0"),
)

pytestmark = [
    pytest.mark.timeout(3600 if EVERY else 120),
    pytest.mark.not_in_lanes("what Python does with files is the same, whatever guests run on"),
]


def spawn(monitor: Monitor, *steps: str, **options: object) -> LinuxMachine:
    machine = monitor.spawn(
        linux_program("lent"),
        args=["O /out/file", f"t {20 * PAGE}", *steps],
        window="2M",
        **options,  # type: ignore[arg-type]
    )
    assert isinstance(machine, LinuxMachine)
    return machine


def lines(machine: LinuxMachine) -> list[str]:
    assert machine.fault is None, machine.fault
    return machine.stdout.decode().splitlines()[2:]


def test_a_call_that_is_cut_off_is_done_once(open_monitor: Open) -> None:
    monitor = open_monitor(pool="2M")

    def outcome(line: int | None) -> tuple[object, Tracer]:
        machine = spawn(monitor, *STEPS)
        with Tracer(line, under="linux/") as tracer:
            monitor.run(20)
        monitor.run(20)
        there = machine.files["/out/file"]
        monitor.remove(machine)
        assert machine.files["/out/file"] == there, tracer.where
        return (lines(machine), there), tracer

    expected, tracer = outcome(None)
    step = 1 if EVERY else max(tracer.lines // sized(150, 5), 1)
    for line in range(1 + random.randrange(step), tracer.lines, step):
        found, tracer = outcome(line)
        assert found == expected, tracer.where


def test_what_it_does(open_monitor: Open) -> None:
    monitor = open_monitor(pool="2M")
    machine = spawn(monitor, *STEPS)
    monitor.run(20)
    assert lines(machine) == [
        *("open: 0", "map: 0", "read: 8", "mapped", "write: 7", f"at {PAGE}: written"),
        *("read: 8", "mapped", "map: 0", "unmap: 0", "read: 8", "written", "truncate: 0"),
        *("read: 8", "second", "truncate: 0", "map: 0", "map: ENODEV", "read: 8", "again"),
    ]


@pytest.mark.parametrize("ending", ["exits", "crashes", "is killed"])
def test_what_is_mapped_is_in_the_file_however_it_ends(open_monitor: Open, ending: str) -> None:
    monitor = open_monitor(pool="2M")
    steps = ["o /out/file w", f"m s w {PAGE} {PAGE}", "s 0 0 mapped"]
    steps += {"exits": [], "crashes": ["S 9 8"], "is killed": ["n"]}[ending]
    machine = spawn(monitor, *steps)
    monitor.run()
    monitor.kill(machine)
    assert (machine.fault is None) == (ending == "exits")
    for _ in range(2):
        data = machine.files["/out/file"]
        assert (len(data), data[PAGE : PAGE + 7]) == (20 * PAGE, b"mapped\0")
        monitor.remove(machine)


def test_it_takes_no_more_space_than_there_is(open_monitor: Open) -> None:
    monitor = open_monitor(pool="2M")
    machine = spawn(
        monitor,
        *("o /out/file w", f"m s w 0 {20 * PAGE}", f"m s w 0 {PAGE}", "s 1 0 one", "r 0"),
        f"u 1 0 {PAGE}",
        disk="70K",
    )
    monitor.run(20)
    assert lines(machine) == ["open: 0", "map: ENOMEM", "map: 0", "read: 8", "one", "unmap: 0"]
    files = machine.guest.process.files
    assert files.space.used <= files.space.limit


def test_nothing_is_known_of_what_is_no_longer_mapped(open_monitor: Open) -> None:
    monitor = open_monitor(pool="2M")
    machine = monitor.spawn(linux_program("shared"), window="2M")
    assert isinstance(machine, LinuxMachine)
    monitor.run(20)
    assert machine.fault is None
    assert len(machine.guest.process.mapped) == 1, "of 302 files"
