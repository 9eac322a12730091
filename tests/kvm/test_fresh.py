"""A machine that is put back to what it was: what one request leaves, the next does not find."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest
from cut_off import Tracer
from kvm.fresh_scene import (
    DIRTY,
    DISCARD,
    LEAVE,
    LOOK,
    MAP,
    NOTHING,
    PAUSE,
    PRINT,
    RIGHTS,
    SCATTER,
    Scene,
)
from tests_support import sized

from vmm import Monitor
from vmm.engine.machine import State
from vmm.errors import BusyError, ClosedError, ConfigError, ResourceError
from vmm.linux.rewind import _Way
from vmm.memory import mapping

Open = Callable[..., Monitor]
EVERY = os.environ.get("PAGEFERRY_SWEEP") == "all"
pytestmark = pytest.mark.smaller_in_lanes("fewer lines at which it is cut off")


@pytest.fixture
def scene(open_monitor: Open) -> Scene:
    """A machine that has been kept."""
    made = Scene(open_monitor(pool="4M"))
    made.machine.keep()
    return made


def secret() -> bytes:
    return random.randbytes(16)


def kept_and_put_back(scene: Scene) -> None:
    machine = scene.machine
    machine.keep()
    before = scene.memory()
    found = scene.ask(LOOK)
    machine.put_back()
    files, printed = dict(machine.files), machine.stdout
    for looks in (False, True):  # to look at pages makes them be there
        left = secret()
        scene.ask(LEAVE, secret=left)
        if looks:
            assert len(scene.find(left)) > 500
            assert left in machine.stdout
            assert machine.files.keys() != files.keys()
        machine.put_back()
        assert scene.find(left) == []
        assert scene.memory() == before
        assert (dict(machine.files), machine.stdout) == (files, printed)
        assert scene.ask(LOOK) == found
        machine.put_back()


def test_what_one_request_leaves_the_next_does_not_find(open_monitor: Open, mover: str) -> None:
    scene = Scene(open_monitor(pool="4M", mover=mover))
    kept_and_put_back(scene)
    scene.ask(DIRTY, 3)
    kept_and_put_back(scene)  # what is kept now is another state


def test_kernels_that_cannot_scan_are_asked_page_by_page(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmm.memory.written._PAGEMAP_SCAN", 0)  # ENOTTY
    kept_and_put_back(scene)
    assert scene.rewind._written.scans is False


def test_the_clock_and_chance_are_put_back_where_they_are_made_up(open_monitor: Open) -> None:
    scene = Scene(open_monitor(pool="4M"), clock="frozen", seed=5)
    process = scene.machine.guest.process
    scene.machine.keep()
    first = process.clock.random(8)
    process.clock.skip(10**9)
    later = process.clock.realtime_ns()
    scene.machine.put_back()
    assert process.clock.random(8) == first
    assert process.clock.realtime_ns() == later - 10**9


def test_only_what_was_written_is_copied_and_no_mapping_changes(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.machine.put_back()
    least = scene.rewind.copied
    assert least < 16  # its stack, its data, the rings
    for name in ("copy", "empty", "renew", "protect", "move"):
        monkeypatch.delattr(mapping, name)
    for count in (64, 120):
        scene.ask(SCATTER, count)
        scene.machine.put_back()
        assert count <= scene.rewind.copied <= count + least + 8


@pytest.mark.parametrize("what", [RIGHTS, DISCARD])
def test_what_its_map_does_not_let_it_write_is_put_back_where_it_was_written(
    scene: Scene, what: int
) -> None:
    before, found = scene.memory(), scene.ask(LOOK)
    scene.machine.put_back()
    for _ in range(3):
        left = secret()
        scene.ask(what, secret=left)
        assert list(scene.guest_memory.areas.spans) == list(scene.map.spans)  # nothing tells of it
        assert scene.memory().keys() != before.keys() or scene.find(left)
        scene.machine.put_back()
        assert scene.memory() == before
        scene.ask(NOTHING)
        scene.machine.put_back()
        assert scene.memory() == before
        assert scene.ask(LOOK) == found
        scene.machine.put_back()


def test_what_a_program_cannot_write_is_looked_at_only_if_its_map_has_changed(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    search = _Way.search

    def count(way: _Way) -> list[list[int]]:
        looks.append(sum(size for _, size, _ in way.ranges))
        return search(way)

    monkeypatch.setattr(_Way, "search", count)
    for what in (NOTHING, DIRTY, SCATTER, PRINT, MAP, NOTHING, RIGHTS, DISCARD, NOTHING):
        scene.ask(what, 10)
        scene.machine.put_back()
    part, whole = min(looks), max(looks)
    assert part < whole
    assert looks == [part] * 4 + [whole, part, whole, whole, part]


def test_what_has_no_system_call_does_not_pay_for_files(scene: Scene) -> None:
    scene.ask(DIRTY, 64)
    assert not scene.since.changed
    scene.ask(PRINT, 1)
    assert scene.since.changed
    scene.machine.put_back()
    assert not scene.since.changed


def test_pages_that_are_no_longer_written_are_given_back_in_the_end(scene: Scene) -> None:
    before = scene.memory()
    scene.ask(DIRTY, 400)
    scene.machine.put_back()
    assert scene.rewind.copied >= 400
    for _ in range(64):
        scene.machine.put_back()
    assert scene.rewind.copied < 500
    scene.ask(DIRTY, 400)
    scene.machine.put_back()
    assert scene.memory() == before


def test_memory_that_is_left_mapped_is_the_hosts_again(scene: Scene) -> None:
    left = secret()
    for _ in range(5):  # more than it may have, together
        scene.ask(MAP, 5000, left)
        scene.machine.put_back()
    assert scene.find(left) == []
    assert scene.rewind.copied < 500


def test_a_machine_that_waits_in_a_system_call_is_put_back(scene: Scene) -> None:
    left = secret()
    found = scene.ask(LOOK)
    scene.machine.put_back()
    scene.send(PAUSE, secret=left)
    scene.monitor.run(20)
    assert scene.machine.state is State.PARKED
    scene.machine.put_back()
    assert scene.find(left) == []
    assert scene.ask(LOOK) == found


def test_messages_in_its_queue_are_still_to_come(scene: Scene) -> None:
    found = scene.ask(LOOK)
    scene.send(LOOK)
    assert scene.machine.state is State.READY
    scene.machine.put_back()
    assert scene.answer() == found


def test_notices_and_peers_are_those_of_the_present(scene: Scene) -> None:
    other = Scene(scene.monitor, name="other")
    scene.monitor.connect(scene.machine, other.machine)
    scene.monitor.notice(scene.machine, 0b100)
    before = scene.machine.guest.memory.read(0x10000, 8192)
    scene.ask(NOTHING)
    scene.machine.put_back()
    control = scene.machine.guest.memory.read(0x10000, 8192)
    assert control[192:224] == before[192:224]
    assert b"other" in control


def test_what_cannot_be_kept_or_put_back_is_refused(open_monitor: Open) -> None:
    monitor = open_monitor(pool="4M")
    scene = Scene(monitor)
    machine = scene.machine
    with pytest.raises(ConfigError, match="nothing has been kept"):
        machine.put_back()
    scene.send(NOTHING)
    with pytest.raises(BusyError, match="not taken"):
        machine.keep()
    scene.answer()
    scene.send(PAUSE)
    monitor.run(20)
    with pytest.raises(BusyError, match="does not wait"):
        machine.keep()
    monitor.kill(machine)
    monitor.run(20)
    with pytest.raises(ClosedError, match="stopped"):
        machine.put_back()
    monitor.remove(machine)
    with pytest.raises(ClosedError, match="closed"):
        machine.keep()


def test_it_is_put_back_whole_or_not_at_all_whatever_is_raised(scene: Scene) -> None:
    machine, monitor = scene.machine, scene.monitor
    kept, left = scene.memory(), secret()
    found = scene.ask(LOOK)

    def outcome(line: int | None) -> Tracer:
        machine.put_back()
        scene.ask(LEAVE, secret=left)
        dirty = scene.memory()
        with Tracer(line) as tracer:
            machine.put_back()
        monitor.audit()  # any turn: what was cut off is done before
        there = scene.memory()
        assert there in (kept, dirty), tracer.where
        if there == kept:
            assert scene.ask(LOOK) == found, tracer.where
        return tracer

    lines = outcome(None).lines
    step = 1 if EVERY else max(lines // sized(12, 3), 1)
    for line in range(1 + random.randrange(step), lines, step):
        outcome(line)


def test_keeping_that_is_cut_off_changes_nothing_and_loses_nothing(scene: Scene) -> None:
    machine, before = scene.machine, scene.memory()
    files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    def outcome(line: int | None) -> Tracer:
        with Tracer(line, under="linux/") as tracer:
            machine.keep()
        assert scene.memory() == before, tracer.where
        machine.keep()
        scene.ask(LEAVE, secret=secret())
        machine.put_back()
        assert scene.memory() == before, tracer.where
        assert len(os.listdir("/proc/self/fd")) == files  # noqa: PTH208
        return tracer

    lines = outcome(None).lines
    step = 1 if EVERY else max(lines // sized(8, 2), 1)
    for line in range(lines - random.randrange(step), 1, -step):
        outcome(line)


def test_a_machine_that_the_host_does_not_put_back_ends(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    scene.ask(LEAVE, secret=secret())
    scene.send(LOOK)
    monkeypatch.setattr(mapping, "renew", refuse)
    with pytest.raises(ResourceError, match="could not be put back"):
        scene.machine.put_back()
    scene.monitor.run(20)
    assert scene.machine.state is State.STOPPED
    assert scene.machine.fault is not None
    assert "could not be put back" in scene.machine.fault.reason
    assert scene.monitor.host.receive() is None
