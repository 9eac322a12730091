"""The monitor as a library: what it refuses, what it reports, and that nothing is left behind."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests_support import descriptors_left, held, sized

from vmm import (
    BusyError,
    ClosedError,
    ConfigError,
    GuestError,
    GuestImageError,
    Monitor,
    PageferryError,
    ResourceError,
    State,
    Status,
)
from vmm.ferry import roster
from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE
from vmm.kvm import Vm, uapi
from vmm.memory.movers import MOVERS, Window

_THE_MONITORS_OWN = pytest.mark.not_in_ept("what the monitor does by itself")
Elf = Callable[[str], Path]


@_THE_MONITORS_OWN
def test_a_machine_is_named_after_its_file_and_names_are_unique(
    monitor: Monitor, guest_elf: Elf
) -> None:
    assert monitor.spawn(guest_elf("canary")).name == "canary"
    with pytest.raises(ConfigError, match="'canary' is taken"):
        monitor.spawn(guest_elf("canary"))
    for name in ("", "host", "x" * 32, "a\nb", "\N{SNOWMAN}" * 11):
        with pytest.raises(ConfigError):
            monitor.spawn(guest_elf("canary"), name=name)
    assert monitor.spawn(guest_elf("canary"), name="x" * 31).name == "x" * 31
    assert list(monitor.machines) == ["canary", "x" * 31]


@_THE_MONITORS_OWN
def test_sizes_are_ints_or_text_and_windows_are_rounded_up_to_2_mib(
    monitor: Monitor, guest_elf: Elf
) -> None:
    machine = monitor.spawn(guest_elf("canary"), name="a", window=1, memory="4M", stack="8K")
    assert machine.window.size == 2 << 20
    assert machine.guest.layout.private.size == 4 << 20
    assert machine.guest.layout.stack.size == 8192
    for wrong in ("12 parsecs", 0, -1, "", "1T"):
        with pytest.raises(ConfigError, match="window"):
            monitor.spawn(guest_elf("canary"), name="b", window=wrong)
    with pytest.raises(GuestImageError, match="too small"):
        monitor.spawn(guest_elf("canary"), name="b", memory="2M")
    assert list(monitor.machines) == ["a"]


@_THE_MONITORS_OWN
def test_wrong_options_are_refused_by_name() -> None:
    for options, word in (
        ({"mover": "carrier-pigeon"}, "mover"),
        ({"ring": 1}, "ring"),
        ({"doorbell": "gong"}, "doorbell"),
        ({"workers": 0}, "workers"),
        ({"pool": "1K"}, "pool"),
    ):
        with pytest.raises(ConfigError, match=word):
            Monitor(**options)


def test_a_mover_of_ones_own_makes_the_windows_and_the_pool(
    open_monitor: Callable[..., Monitor], test_guest: Elf
) -> None:
    made: list[int] = []

    class Own(MOVERS["memfd"]):  # type: ignore[misc]
        name = "remap"  # as it says, so it is called: it is not looked up

        def machine_window(self, vm: Vm, base: int, size: int, others: int = 0) -> Window:
            made.append(size)
            return super().machine_window(vm, base, size, others)

        def close(self) -> None:
            made.append(0)
            super().close()

    with open_monitor(mover=Own, pool="16M") as monitor:
        assert monitor.mover == "remap"
        assert type(monitor._mover) is Own
        machine = monitor.spawn(test_guest("idle"), window="2M")
        monitor.host.send(machine, monitor.host.alloc(1), tag=3)
        monitor.run(10)
        assert machine.exit_code == 3
    assert made == [2 << 20, 0]


def test_slots_keep_the_translations_of_other_pages_where_the_kernel_can(
    open_monitor: Callable[..., Monitor],
    test_guest: Elf,
    mover: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, ...]] = []
    enable = Vm.enable_cap
    monkeypatch.setattr(
        Vm, "enable_cap", lambda vm, *args: (asked.append(args), enable(vm, *args))[1]
    )
    monitor = open_monitor(mover=mover, pool="16M")
    machine = monitor.spawn(test_guest("idle"), window="2M")
    quirk = uapi.KVM_X86_QUIRK_SLOT_ZAP_ALL
    able = machine.guest.vm.check_extension(uapi.KVM_CAP_DISABLE_QUIRKS2) & quirk
    wanted = [(uapi.KVM_CAP_DISABLE_QUIRKS2, quirk)] if able and mover == "slots" else []
    assert [args for args in asked if args[0] == uapi.KVM_CAP_DISABLE_QUIRKS2] == wanted


def test_slots_do_without_where_the_kernel_cannot(
    open_monitor: Callable[..., Monitor], test_guest: Elf, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = Vm.check_extension
    monkeypatch.setattr(
        Vm,
        "check_extension",
        lambda vm, cap: 0 if cap == uapi.KVM_CAP_DISABLE_QUIRKS2 else check(vm, cap),
    )
    monitor = open_monitor(mover="slots", pool="16M")
    machine = monitor.spawn(test_guest("idle"), window="2M")
    monitor.host.send(machine, monitor.host.alloc(1), tag=4)
    monitor.run(10)
    assert machine.exit_code == 4


@_THE_MONITORS_OWN
@pytest.mark.parametrize("depth", [0, -3])
def test_a_queue_holds_a_message_at_least(monitor: Monitor, test_guest: Elf, depth: int) -> None:
    with pytest.raises(ConfigError, match=f"queue {depth} is not a positive number"):
        monitor.spawn(test_guest("idle"), queue=depth)


def test_a_machine_that_nobody_writes_to_stays_parked_and_runs_on_when_somebody_does(
    monitor: Monitor, test_guest: Elf
) -> None:
    machine = monitor.spawn(test_guest("idle"), name="idle", window="2M")
    monitor.run()
    assert machine.state is State.PARKED
    monitor.host.send(machine, tag=42)
    monitor.run()
    assert (machine.state, machine.exit_code) == (State.STOPPED, 42)


def test_the_host_is_refused_what_a_guest_would_be_and_keeps_its_pages(
    monitor: Monitor, test_guest: Elf
) -> None:
    machine = monitor.spawn(test_guest("idle"), name="idle", window="2M", queue=2)
    large = monitor.host.alloc(4 << 20)
    with pytest.raises(GuestError, match="E_WINDOW_FULL"):
        monitor.host.send(machine, large)
    small = monitor.host.alloc(1)
    monitor.host.send(machine, tag=1)
    monitor.host.send(machine, tag=2)
    with pytest.raises(GuestError, match="E_QUEUE_FULL") as refused:
        monitor.host.send(machine, small)
    assert refused.value.status is Status.E_QUEUE_FULL
    with pytest.raises(GuestError, match="E_LENGTH"):
        monitor.host.send(machine, payload=bytes(193))
    small.write(b"!")
    assert small.read() == b"!"
    monitor.host.release(small)
    monitor.host.release(large)
    assert monitor.audit()["owned"] == 0


def test_a_buffer_that_was_sent_or_released_is_no_longer_the_hosts(
    monitor: Monitor, test_guest: Elf
) -> None:
    machine = monitor.spawn(test_guest("idle"), name="idle", window="2M")
    sent, released = monitor.host.alloc(10), monitor.host.alloc(10)
    monitor.host.send(machine, sent)
    monitor.host.release(released)
    for buffer in (sent, released):
        with pytest.raises(ClosedError):
            buffer.read()
        with pytest.raises(ClosedError):
            buffer.write(b"x")
        with pytest.raises(ClosedError):
            monitor.host.send(machine, buffer)
    with pytest.raises(IndexError):
        monitor.host.alloc(10).read(8, 3)


@_THE_MONITORS_OWN
def test_the_pool_is_a_limit(open_monitor: Callable[..., Monitor], mover: str) -> None:
    monitor = open_monitor(mover=mover, pool="1M")
    buffer = monitor.host.alloc(1 << 20)
    with pytest.raises(ResourceError, match="pool"):
        monitor.host.alloc(1)
    monitor.host.release(buffer)
    assert monitor.host.alloc(1 << 20).read(0, 4) == bytes(4)


def test_messages_for_a_machine_that_died_come_back_to_the_host_with_their_pages(
    monitor: Monitor, test_guest: Elf
) -> None:
    machine = monitor.spawn(test_guest("idle"), name="idle", window="2M")
    buffer = monitor.host.alloc(PAGE_SIZE)
    buffer.write(b"precious")
    monitor.host.send(machine, tag=1)
    monitor.host.send(machine, buffer, tag=2)
    monitor.kill(machine)
    first, second = monitor.host.receive(), monitor.host.receive()
    assert first is not None
    assert second is not None
    assert [(r.tag, r.status.name) for r in (first, second)] == [(1, "E_DEAD"), (2, "E_DEAD")]
    assert second.buffers[0].read(0, 8) == b"precious"
    assert monitor.host.receive() is None
    with pytest.raises(GuestError, match="E_DEAD"):
        monitor.host.send(machine)
    known = dict(monitor.host.peer.table)
    monitor.remove(machine)
    with pytest.raises(GuestError, match="E_DEAD"):
        monitor.host.send(machine)
    del known[machine.number]
    assert monitor.host.peer.table == known  # or it would grow for ever


@_THE_MONITORS_OWN
def test_after_close_everything_is_an_error_and_closing_again_is_none(
    open_monitor: Callable[..., Monitor], guest_elf: Elf
) -> None:
    monitor = open_monitor()
    monitor.spawn(guest_elf("canary"))
    monitor.close()
    monitor.close()
    for use in (lambda: monitor.spawn(guest_elf("canary"), name="b"), monitor.run):
        with pytest.raises(ClosedError):
            use()


def test_a_removed_machine_frees_what_it_held_and_its_name_and_its_outcome_stays(
    monitor: Monitor, test_guest: Elf
) -> None:
    monitor.remove(monitor.spawn(test_guest("idle"), window="2M", memory="4M"))
    monitor.run(10)
    before = held()  # the image's template and the clock, which stay for the machines to come
    for state in (State.READY, State.PARKED, State.STOPPED):
        machine = monitor.spawn(test_guest("idle"), name="idle", window="2M", memory="4M")
        if state is not State.READY:
            monitor.run(10)
        if state is State.STOPPED:
            monitor.kill(machine, "enough")
        assert machine.state is state
        monitor.remove(machine)
        monitor.remove(machine)
        assert machine.state is State.STOPPED
        assert machine.outcome()["fault"]["kind"] == "killed"
        assert (machine.progress, list(monitor.machines)) == ((0, 0), [])
    assert held() == before


@_THE_MONITORS_OWN
@pytest.mark.smaller_in_lanes("the limit lowered to 6: 257 machines take a minute there")
def test_a_machine_has_at_most_256_peers_that_are_alive(
    open_monitor: Callable[..., Monitor], test_guest: Elf, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = sized(abi.PEERS_MAX, 6)
    monkeypatch.setattr(abi, "PEERS_MAX", limit)
    monkeypatch.setattr(roster, "PEERS_MAX", limit)
    monitor = open_monitor(pool="16M")
    options = {"window": "2M", "memory": "4M"}
    hub = monitor.spawn(test_guest("idle"), name="hub", **options)
    for index in range(limit - 1):  # the host is one already
        monitor.connect(hub, monitor.spawn(test_guest("idle"), name=f"{index}", **options))
    late = monitor.spawn(test_guest("idle"), name="late", **options)
    with pytest.raises(ConfigError, match=f"hub has {limit} peers already"):
        monitor.connect(hub, late)
    monitor.connect(hub, monitor.machines["3"])  # it is there already
    monitor.remove(monitor.machines["3"])
    monitor.connect(hub, late)
    control = hub.guest.memory.read(abi.CONTROL_GPA, ctypes.sizeof(abi.Control))
    table = abi.Control.from_buffer_copy(control).peers
    assert [entry.name.decode() for entry in table].index("late") == 4
    with pytest.raises(ConfigError, match=f"hub has {limit} peers already"):
        monitor.connect(monitor.spawn(test_guest("idle"), name="later", **options), hub)


@pytest.mark.smaller_in_lanes("8 times instead of 250: each takes 0.1 s there")
def test_a_thousand_spawns_and_closes_leave_nothing_behind(
    open_monitor: Callable[..., Monitor], guest_elf: Elf, mover: str
) -> None:
    elf = guest_elf("canary")

    def cycle() -> None:
        with Monitor(mover=mover, pool="16M") as monitor:
            monitor.spawn(elf, window="4M", memory="4M")

    cycle()
    before = held()
    for _ in range(sized(250, 8)):  # by each of four movers
        cycle()
    assert held() == before


@_THE_MONITORS_OWN
def test_whatever_fails_half_way_through_a_spawn_leaves_nothing_behind(
    open_monitor: Callable[..., Monitor], guest_elf: Elf, mover: str
) -> None:
    """Descriptors run out after one, two, three … more of them.

    Each failure is clean, and a retry works.
    """
    monitor = open_monitor(mover=mover, pool="16M")
    before = held()
    with pytest.raises(OSError, match="open files"), descriptors_left(0):
        monitor.spawn(guest_elf("canary"))
    assert held() == before
    monitor.remove(monitor.spawn(guest_elf("canary")))
    monitor.run(10)
    before = held()  # the image's template and the clock, which stay for the machines to come
    failures = 0
    for spare in range(8):
        try:
            with descriptors_left(spare):
                monitor.spawn(guest_elf("canary"), name=f"machine{spare}")
        except (OSError, PageferryError):
            failures += 1
            assert held() == before
        else:
            break
    assert failures >= 2
    monitor.run(10)
    (machine,) = monitor.machines.values()
    assert machine.exit_code == 0


@_THE_MONITORS_OWN
@pytest.mark.parametrize("what", ["stack", "memory"])
def test_less_than_a_page_of_stack_or_memory_cannot_be_meant(
    monitor: Monitor, guest_elf: Callable[[str], Path], what: str
) -> None:
    with pytest.raises(ConfigError, match=f"{what} of 8 bytes is less than a page: give 4096"):
        monitor.spawn(guest_elf("canary"), **{what: 8})
    monitor.spawn(guest_elf("canary"), stack=4096)


def test_a_running_machine_is_not_removed(
    open_monitor: Callable[..., Monitor], test_guest: Elf
) -> None:
    monitor = open_monitor(pool="16M")
    machine = monitor.spawn(test_guest("spin"), name="m", window="2M")
    runner = threading.Thread(target=monitor.run)
    runner.start()
    try:
        while machine.state is not State.RUNNING:
            time.sleep(0.001)
        with pytest.raises(BusyError, match="m is running: kill it, and remove it afterwards"):
            monitor.remove(machine)
    finally:
        monitor.kill(machine)
        runner.join()
    monitor.remove(machine)


@_THE_MONITORS_OWN
def test_a_buffer_says_what_it_is(monitor: Monitor) -> None:
    first, second = monitor.host.alloc(10000), monitor.host.alloc(1)
    assert repr(first) == f"<Buffer of 10000 bytes, pages {first.extent.page}+3>"
    monitor.host.release(second)
    assert repr(second) == "<Buffer of 1 bytes, no longer the host's>"
