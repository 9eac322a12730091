"""What a system call takes, counted: where times drift, numbers of calls do not."""

from __future__ import annotations

import collections
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from vmm import Monitor
from vmm.guest.bundled import bundled_guest
from vmm.kvm import Vm
from vmm.linux.machine import LinuxMachine

Open = Callable[..., Monitor]

PIECE, PIECES = 64 << 10, 40
CONTENTS = bytes(range(256)) * (PIECE * PIECES // 256)

pytestmark = pytest.mark.not_in_lanes("what Python does is the same, whatever guests run on")


def rounds(monitor: Monitor, machine: LinuxMachine) -> Iterator[list[str]]:
    """Run a program; yield the functions called from each of its entries to the next one."""
    called: list[str] = []

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            called.append(frame.f_code.co_name)
        elif event == "c_call":
            called.append(f"C {argument.__name__}")

    sys.setprofile(profile)
    try:
        monitor.run(20)
    finally:
        sys.setprofile(None)
    assert machine.exit_code == 0
    starts = [at for at, name in enumerate(called) if name == "run"]
    return (called[start:stop] for start, stop in itertools.pairwise(starts))


def usual(monitor: Monitor, *args: str, **files: Path | bytes) -> list[str]:
    """Return the functions of the round that is the most frequent one."""
    machine = monitor.spawn(
        bundled_guest("linux/bench_program"),
        args=args,
        files={f"/{name}": what for name, what in files.items()},
        window="2M",
    )
    assert isinstance(machine, LinuxMachine)
    found = [tuple(one) for one in rounds(monitor, machine)]
    most = max(set(found), key=found.count)
    assert found.count(most) > 20, "no round is like another"
    return list(most)


def functions(called: list[str]) -> list[str]:
    return [name for name in called if not name.startswith("C ")]


def test_a_call_that_only_answers_is_served_by_few_functions(open_monitor: Open) -> None:
    called = usual(open_monitor(pool="8M"), "calls", "50")
    assert "sys_getppid" in called
    assert len(functions(called)) <= 12, called


@pytest.mark.parametrize("kind", [Path, bytes])
def test_a_read_copies_once_to_where_it_is_wanted(
    kind: type, open_monitor: Open, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENTS)
    what = path if kind is Path else CONTENTS
    called = usual(open_monitor(pool="8M"), "read", str(PIECES - 1), "/file", file=what)
    assert "sys_read" in called
    assert len(functions(called)) <= 18, called
    assert called.count("C preadv") == (kind is Path)
    assert {"read", "pread", "_read", "part", "C pread"} & {*called} == set()


def test_a_program_is_made_and_run_in_few_functions_and_two_small_memslots(
    open_monitor: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = open_monitor(pool="8M")
    sizes: list[int] = []
    original = Vm.set_user_memory_region

    def seen(vm: Vm, slot: int, base: int, size: int, address: int) -> None:
        sizes.append(size)
        original(vm, slot, base, size, address)

    def life() -> None:
        machine = monitor.spawn(bundled_guest("linux/bench_program"), args=["calls", "1"])
        monitor.run(20)
        assert machine.exit_code == 0
        monitor.remove(machine)

    life()  # what its image has in common with others is worked out once
    monkeypatch.setattr(Vm, "set_user_memory_region", seen)
    called: list[str] = []

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            called.append(frame.f_code.co_name)

    sys.setprofile(profile)
    try:
        life()
    finally:
        sys.setprofile(None)
    assert len(called) <= 950, collections.Counter(called).most_common(30)
    assert len(sizes) == 2
    assert sum(sizes) <= 64 << 20
