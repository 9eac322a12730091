"""What programs of one file have in common is worked out once, and let go of in the end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from vmm import Monitor
from vmm.guest.bundled import bundled_guest
from vmm.linux import blueprints
from vmm.linux.boot import Layout
from vmm.linux.machine import LinuxMachine
from vmm.linux.outset import Outset

Open = Callable[..., Monitor]
PROGRAM = bundled_guest("linux/bench_program")


def ran(monitor: Monitor, path: Path, name: str = "m") -> LinuxMachine:
    machine = monitor.spawn(path, name=name, args=["sort", "10"], window="2M")
    assert isinstance(machine, LinuxMachine)
    monitor.run(20)
    assert machine.exit_code == 0
    return machine


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def test_the_memory_of_one_file_is_laid_out_once(
    open_monitor: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[None] = []

    class Seen(blueprints.Template):
        def __init__(self, parts: Iterable[tuple[int, bytes]]) -> None:
            made.append(None)
            super().__init__(parts)

    monkeypatch.setattr(blueprints, "Template", Seen)
    monitor = open_monitor(pool="8M")
    for number in range(3):
        ran(monitor, PROGRAM, f"m{number}")
    assert len(made) == 1


def test_what_one_program_has_written_no_other_begins_with(open_monitor: Open) -> None:
    monitor = open_monitor(pool="8M")
    one, other = ran(monitor, PROGRAM, "one"), ran(monitor, PROGRAM, "other")
    (segment,) = (s for s in one.guest.image.segments if s.rights & 4)  # type: ignore[attr-defined]
    one.guest.process.memory.raw(segment.start, 4)[:] = b"mine"
    assert bytes(other.guest.process.memory.raw(segment.start, 4)) == segment.data[:4]
    third = ran(monitor, PROGRAM, "third")
    assert bytes(third.guest.process.memory.raw(segment.start, 4)) == segment.data[:4]


def test_only_the_last_ones_are_kept_and_none_when_the_monitor_is_closed(
    open_monitor: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(blueprints, "_MOST", 2)
    before = descriptors()
    monitor = open_monitor(pool="8M")
    counts = []
    for number in range(5):
        path = tmp_path / f"program{number}"
        shutil.copy(PROGRAM, path)
        monitor.remove(ran(monitor, path))
        counts.append(descriptors())
    assert counts[1] == counts[0] + 1
    assert counts[1:] == [counts[1]] * 4
    monitor.close()
    assert descriptors() == before


def test_a_program_of_another_file_is_another_one_even_in_its_place(
    open_monitor: Open, tmp_path: Path
) -> None:
    monitor = open_monitor(pool="8M")
    path = tmp_path / "program"
    shutil.copy(PROGRAM, path)
    monitor.remove(ran(monitor, path))
    path.unlink()
    shutil.copy(bundled_guest("bench_exit"), path)
    machine = monitor.spawn(path, name="m")
    assert not isinstance(machine, LinuxMachine)


def test_the_address_space_of_one_file_and_size_is_worked_out_once(
    open_monitor: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    class Seen(blueprints.Outset):
        @classmethod
        def of(cls, layout: Layout, limit: int, *about: Any) -> Outset:
            sizes.append(limit)
            return Outset.of(layout, limit, *about)

    monkeypatch.setattr(blueprints, "Outset", Seen)
    monkeypatch.setattr(blueprints, "_MOST_OUTSETS", 2)
    monitor = open_monitor(pool="8M")
    for number, size in enumerate((16, 32, 16, 32, 64, 64, 16)):
        machine = monitor.spawn(
            PROGRAM, name=f"m{number}", args=["sort", "10"], window="2M", memory=f"{size}M"
        )
        monitor.run(20)
        assert machine.exit_code == 0
    assert [size >> 20 for size in sizes] == [16, 32, 64, 16]  # two are kept


def test_a_machine_needs_its_programs_descriptor_no_more(
    open_monitor: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(blueprints, "_MOST", 1)
    monitor = open_monitor(pool="8M")
    other = tmp_path / "other"
    shutil.copy(PROGRAM, other)
    machines = [
        monitor.spawn(path, name=f"m{number}", args=["sort", "10"], window="2M")
        for number, path in enumerate((PROGRAM, other, PROGRAM, other))
    ]
    monitor.run(20)
    assert [machine.exit_code for machine in machines] == [0] * 4
