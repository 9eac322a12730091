"""What is raised at any line of a system call's serving leaves it done, or undone and done later.

A tracer raises at the n-th line that the room `linux` executes in `run`; then the program runs on,
and what it has printed and written is what it always is.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator

import pytest
from cut_off import Tracer
from tests_support import sized

from vmm import Monitor
from vmm.linux.machine import LinuxMachine

Open = Callable[..., Monitor]

BUSYBOX = shutil.which("busybox") or ""
EVERY = os.environ.get("PAGEFERRY_SWEEP") == "all"
LINES = 12_000  # of one run of the script

SCRIPT = """
i=0
while [ $i -lt 12 ]; do
    echo "line $i"
    echo "$i" >> /out/log
    i=$((i + 1))
done
cd /out && pwd
read first < /in/text; echo "$first"
read second; echo "from stdin: $second"
echo *; test -f log && echo there
echo fail >&2; exit 3
"""

pytestmark = [
    pytest.mark.skipif(not BUSYBOX, reason="no busybox: install busybox-static"),
    pytest.mark.not_in_lanes("what Python raises is the same, whatever guests run on"),
]


def spawn(monitor: Monitor, name: str) -> LinuxMachine:
    machine = monitor.spawn(
        BUSYBOX,
        name=name,
        args=["sh", "-c", SCRIPT],
        files={"/in/text": b"a text\nof two lines\n"},
        stdin=b"input\nmore\n",
        window="2M",
    )
    assert isinstance(machine, LinuxMachine)
    return machine


def ended(machine: LinuxMachine) -> tuple[object, ...]:
    assert machine.fault is None, machine.fault
    return machine.exit_code, machine.stdout, machine.stderr, dict(machine.files)


def some(lines: int, count: int) -> Iterator[int]:
    step = 1 if EVERY else max(lines // count, 1)
    yield from range(1 + random.randrange(step), lines, step)


@pytest.mark.timeout(3600 if EVERY else 120)
def test_what_is_raised_at_any_line_of_a_call_changes_nothing_of_what_a_program_does(
    open_monitor: Open,
) -> None:
    monitor = open_monitor(pool="8M")
    whole = spawn(monitor, "whole")
    monitor.run(20)
    expected = ended(whole)
    assert expected[0] == 3
    assert expected[3] == {"/out/log": b"".join(b"%d\n" % number for number in range(12))}
    raised = 0
    for line in some(LINES, sized(80, 5)):
        machine = spawn(monitor, "m")
        with Tracer(line, under="linux/") as tracer:
            monitor.run(20)
        monitor.run(20)
        assert ended(machine) == expected, tracer.where
        raised += tracer.where is not None
        monitor.remove(machine)
    assert raised >= sized(40, 2)


def test_a_program_may_be_cut_off_again_and_again(open_monitor: Open) -> None:
    monitor = open_monitor(pool="8M")
    whole = spawn(monitor, "whole")
    monitor.run(20)
    machine = spawn(monitor, "m")
    times = 0
    while machine.exit_code is None:
        with Tracer(random.randrange(40, 900), under="linux/") as tracer:
            monitor.run(20)
        times += tracer.where is not None
        assert machine.fault is None, machine.fault
    assert ended(machine) == ended(whole)
    assert times > 5
