"""The columns of programs for Linux: in a machine, by their floor, and run by the host itself.

What they do is in guests/linux/bench_program.c. It has the clock, the time-stamp counter, and
prints its samples.
"""

from __future__ import annotations

import array
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

from vmm.bench.floor import Floor, program_of
from vmm.bench.ours import SPAWNS, on_one_processor, once, one_life
from vmm.bench.plan import Case, Column, Unavailable
from vmm.bench.results import LINUX
from vmm.bench.scene import calls_scene
from vmm.errors import GuestImageError, PageferryError
from vmm.ferry.events import Event
from vmm.guest.bundled import bundled_guest
from vmm.guest.compiler import work_directory
from vmm.linux.machine import LinuxMachine
from vmm.monitor import Monitor

_PATIENCE = 600.0
_FILE = 64 << 20
_MIB = 1 << 20
_SMALL, _WINDOW = "16M", "2M"


class _Work(NamedTuple):
    """What the program is asked for: its words, how much memory that takes, and what it reads."""

    words: tuple[str, ...]
    memory: str = _SMALL
    file: Path | None = None

    def to_host(self) -> list[str]:
        """Return its words as the host has them."""
        return [*self.words, *([] if self.file is None else [str(self.file)])]

    def spawn(self, monitor: Monitor) -> LinuxMachine:
        """Make its machine."""
        machine = monitor.spawn(
            bundled_guest("linux/bench_program"),
            args=[*self.words, *([] if self.file is None else ["/file"])],
            files={} if self.file is None else {"/file": self.file},
            memory=self.memory,
            window=_WINDOW,
        )
        assert isinstance(machine, LinuxMachine)
        return machine


def columns(case: Case, stack: ExitStack) -> Mapping[str, Column]:
    """Return the columns of a program's row; none for the others.

    What they need is made when they are first called, and is put on the stack, to be ended with
    the row.
    """
    if case.name not in LINUX:
        return {}
    if case.name == "linux_start":
        return _starts(case, stack)
    made: list[_Work] = []

    def work() -> _Work:
        if not made:
            made.append(_work(case, stack))
        return made[0]

    found = {
        "ours": lambda: _in_machine(work()),
        "floor": once(lambda: _floor(stack, work())),
        "host": lambda: _by_host(work()),
    }
    if case.name not in ("linux_getppid", "linux_read"):
        del found["floor"]  # it computes what the machine does, as the machine does
    return found


def _work(case: Case, stack: ExitStack) -> _Work:
    much = f"{case.bytes // _MIB + 64}M"
    match case.name:
        case "linux_getppid":
            return _Work(("calls", str(case.samples)))
        case "linux_read":
            file = stack.enter_context(work_directory("pageferry-bench-")) / "file"
            with file.open("wb") as writer:
                for _ in range(_FILE // _MIB):
                    writer.write(bytes(range(256)) * (_MIB // 256))
            return _Work(("read", str(case.samples)), _SMALL, file)
        case "linux_sha256":
            return _Work(("sha256", str(case.bytes)), much)
        case "linux_sort":
            return _Work(("sort", str(case.bytes // 4)), much)
        case "linux_tree":
            return _Work(("tree", str(case.bytes // 8)), much)
    piece = _MIB if case.name == "linux_touch_small" else case.bytes
    return _Work(("touch", str(case.bytes), str(piece)), much)


def _samples(printed: bytes, khz: int) -> Sequence[float]:
    return [ticks / khz * 1e3 for ticks in array.array("Q", printed)]


def _in_machine(work: _Work) -> Sequence[float]:
    with on_one_processor(), Monitor() as monitor:
        machine = work.spawn(monitor)
        khz = machine.guest.vcpu.get_tsc_khz()
        monitor.run(_PATIENCE)
        if machine.fault is not None:
            raise machine.fault
        if machine.exit_code != 0:
            raise PageferryError(f"{machine.name} ended with {machine.exit_code}: this is a bug")
        return _samples(machine.stdout, khz)


def _floor(stack: ExitStack, work: _Work) -> Column:
    with Monitor() as monitor:
        data = calls_scene(work.spawn(monitor))
    with on_one_processor():
        floor = stack.enter_context(closing(Floor(data, "floor_calls")))
    return lambda: floor.ask("go")


def _by_host(work: _Work) -> Sequence[float]:
    with Monitor() as monitor:  # the counter is the same
        khz = work.spawn(monitor).guest.vcpu.get_tsc_khz()
    with on_one_processor():
        return _samples(_ran([str(bundled_guest("linux/bench_program")), *work.to_host()]), khz)


def _ran(command: list[str]) -> bytes:
    try:
        return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise Unavailable(f"the host cannot run it: {error}") from error


# ---- From spawn to exit ----


def _starts(case: Case, stack: ExitStack) -> Mapping[str, Column]:
    """Return the columns of a program with a C library: from its start until it has ended."""
    count = min(SPAWNS, case.samples)
    found: list[Path] = []

    def hello() -> Path:
        if not found:
            found.append(program_of("hello", stack.enter_context(work_directory("pageferry-"))))
        return found[0]

    def lives(path: Callable[[], Path]) -> Callable[[], Column]:
        def make() -> Column:
            monitor = stack.enter_context(Monitor())
            events: list[Event] = []
            monitor.trace.listen(events.append)
            program = path()

            def round_() -> Sequence[float]:
                with on_one_processor():
                    try:
                        return [one_life(monitor, events, program)[0] for _ in range(count)]
                    except GuestImageError as error:
                        raise Unavailable(str(error)) from error

            round_()
            return round_

        return make

    def by_host() -> Sequence[float]:
        with on_one_processor():
            return [_timed([str(hello())]) for _ in range(count)]

    return {
        "ours": once(lives(hello)),
        "bare": once(lives(lambda: bundled_guest("bench_exit"))),
        "host": by_host,
    }


def _timed(command: list[str]) -> float:
    start = time.monotonic_ns()
    _ran(command)
    return (time.monotonic_ns() - start) / 1e3
