"""Scheduling on the real device.

Waiting, time-outs, fairness, several workers, and how a run ends.
"""

from __future__ import annotations

import signal
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from tests_support import sized

from vmm import Machine, Monitor, State
from vmm.engine import work
from vmm.engine.driver import Driver
from vmm.engine.kick import KICK
from vmm.ferry.doorbell import Doorbell
from vmm.ferry.events import Event
from vmm.ferry.peer import Peer
from vmm.guest.abi import Status
from vmm.kvm import Exit, Intr

Elf = Callable[[str], Path]


def test_a_wait_times_out_when_its_time_has_come_and_not_before(
    open_monitor: Callable[..., Monitor], test_guest: Elf
) -> None:
    monitor = open_monitor()
    machine = monitor.spawn(test_guest("wait_50_ms"), name="w", window="2M")
    start = time.monotonic()
    monitor.run(10)
    assert machine.exit_code == 0
    assert time.monotonic() - start >= 0.05


def test_a_wait_of_zero_only_looks(open_monitor: Callable[..., Monitor], test_guest: Elf) -> None:
    monitor = open_monitor()
    machine = monitor.spawn(test_guest("wait_zero"), name="w", window="2M")
    monitor.run(10)
    assert machine.exit_code == 0


def test_a_spinning_machine_holds_nobody_up(
    open_monitor: Callable[..., Monitor], test_guest: Elf, guest_elf: Callable[[str], Path]
) -> None:
    """One worker, a machine that never exits by itself, a pair that talks, a wait that ends."""
    monitor = open_monitor()
    spinner = monitor.spawn(test_guest("spin"), name="spinner", window="2M")
    waiter = monitor.spawn(test_guest("wait_50_ms"), name="waiter", window="2M")
    server = monitor.spawn(guest_elf("echo_server"), window="2M")
    client = monitor.spawn(guest_elf("echo_client"), window="2M")
    monitor.connect(server, client)
    stopped = threading.Thread(target=_kill_when, args=(monitor, spinner, (waiter, server, client)))
    stopped.start()
    monitor.run(60)
    stopped.join()
    assert [m.exit_code for m in (waiter, server, client)] == [0, 0, 0]
    assert spinner.fault is not None
    assert spinner.fault.kind == "killed"


def _kill_when(monitor: Monitor, victim: Machine, others: tuple[Machine, ...]) -> None:
    deadline = time.monotonic() + 60
    while any(m.state is not State.STOPPED for m in others) and time.monotonic() < deadline:
        time.sleep(0.01)
    monitor.kill(victim)


def test_a_run_ends_at_its_limit_and_says_where_each_machine_was(
    open_monitor: Callable[..., Monitor], test_guest: Elf
) -> None:
    monitor = open_monitor(workers=2)
    spinners = [monitor.spawn(test_guest("spin"), name=f"s{i}", window="2M") for i in range(3)]
    idle = monitor.spawn(test_guest("idle"), name="idle", window="2M")
    start = time.monotonic()
    monitor.run(0.2)
    assert 0.2 <= time.monotonic() - start < 5
    for machine in spinners:
        assert machine.fault is not None
        assert (machine.fault.kind, machine.fault.place.symbol) == ("timeout", "main")
    assert idle.fault is not None


@pytest.mark.smaller_in_lanes("two workers only, 45 hops instead of 205: each takes 0.01 s there")
@pytest.mark.parametrize("workers", sized([1, 2, 4], [2]))
def test_a_page_goes_round_a_ring_of_machines_with_any_number_of_workers(
    open_monitor: Callable[..., Monitor], test_guest: Elf, mover: str, workers: int
) -> None:
    monitor = open_monitor(mover=mover, workers=workers, pool="64M")
    image = test_guest("ring")
    ring = [monitor.spawn(image, name=f"m{i}", window="2M") for i in range(20)]
    for machine, following in zip(ring, [*ring[1:], ring[0]], strict=True):
        monitor.connect(machine, following, both=False)
    hops = sized(205, 45)  # some times round, and a part of it
    page = monitor.host.alloc(8)
    page.write(hops.to_bytes(8, "little"))
    monitor.host.send(ring[0], page)
    monitor.run(60)
    received = monitor.host.receive()
    assert received is not None
    assert received.sender == ring[(hops - 1) % len(ring)].number
    assert sum(machine.peer.sent for machine in ring) == hops
    assert [m.state for m in ring].count(State.PARKED) == len(ring) - 1


def test_who_sends_one_message_after_the_other_has_its_receiver_run_by_its_own_worker(
    open_monitor: Callable[..., Monitor], test_guest: Elf, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, real = [0], work.Work.see_woken

    def counting(self: work.Work, machine: Machine | None, *rest: bool) -> Machine | None:
        told[0] += machine is not None and bool(self._standing.woken)
        return real(self, machine, *rest)

    def stream() -> int:
        monitor = open_monitor(workers=2)
        pair = [monitor.spawn(test_guest("flood"), name=name, window="2M") for name in ("a", "b")]
        monitor.connect(*pair)
        count = sized(2000, 200)
        for one, other, sends, takes in ((*pair, count, 0), (*pair[::-1], 0, count)):
            order = struct.pack("<4I", other.number, other.number, sends, takes)
            monitor.host.send(one, payload=order)
        told[0] = 0
        monitor.run(60)
        assert [machine.exit_code for machine in pair] == [0, 0]
        return told[0]

    monkeypatch.setattr(work.Work, "see_woken", counting)
    monkeypatch.setattr(work, "_BRISK", 0.0)
    assert stream() > 0
    monkeypatch.setattr(work, "_BRISK", 60.0)
    assert stream() <= 1  # the first one


@pytest.mark.not_in_ept("it takes ten seconds, whatever maps the guests")
def test_who_computes_after_it_has_sent_does_not_keep_its_receiver_waiting(
    open_monitor: Callable[..., Monitor], test_guest: Elf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "_BRISK", 60.0)  # as if it were to come back soon
    monitor = open_monitor(workers=2)
    sender = monitor.spawn(test_guest("sends_and_spins"), name="sender", window="2M")
    receiver = monitor.spawn(test_guest("says_and_waits"), name="receiver", window="2M")
    monitor.connect(sender, receiver)
    monitor.run(sized(0.5, 10.0))
    assert receiver.exit_code == 7
    assert sender.fault is not None
    assert sender.fault.kind == "timeout"


def test_what_a_listener_raises_ends_the_run_and_reaches_the_caller(
    open_monitor: Callable[..., Monitor], test_guest: Elf
) -> None:
    monitor = open_monitor(workers=2)
    monitor.spawn(test_guest("spin"), name="spinner", window="2M")
    monitor.spawn(test_guest("wait_50_ms"), name="w", window="2M")

    def fail(event: Event) -> None:
        if event.kind == "exit" and event.fields["machine"] == "w":
            raise ZeroDivisionError("from the listener")

    monitor.trace.listen(fail)
    with pytest.raises(ZeroDivisionError, match="from the listener"):
        monitor.run(10)


def test_one_way_channels_lead_one_way(
    open_monitor: Callable[..., Monitor], test_guest: Elf
) -> None:
    monitor = open_monitor()
    a = monitor.spawn(test_guest("one_way"), name="a", window="2M")
    b = monitor.spawn(test_guest("one_way"), name="b", window="2M")
    monitor.connect(a, b, both=False)
    monitor.run(10)
    assert a.exit_code in (-Status.OK, -Status.E_DEAD)  # b may have exited already
    assert b.exit_code == -Status.E_PEER


def test_who_lets_others_have_the_lock_runs_next_however_long_each_has_it(
    open_monitor: Callable[..., Monitor], test_guest: Elf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a host where every hold of the lock is a long one, and the slice over after it."""
    monkeypatch.setattr(work, "_LONG", 0.0)
    monkeypatch.setattr(work, "SLICE", 0.0)
    monitor = open_monitor(workers=2)
    for number in range(3):
        monitor.spawn(test_guest("spin"), name=f"s{number}", window="2M")
    waiting = monitor.spawn(test_guest("wait_50_ms"), name="w", window="2M")
    exits: Counter[str] = Counter()

    def count(event: Event) -> None:
        if event.kind == "exit":
            exits[event.fields["machine"]] += 1

    monitor.trace.listen(count)
    monitor.run(2)
    assert waiting.exit_code == 0
    assert all(exits[f"s{number}"] > 1 for number in range(3)), exits


@pytest.mark.not_in_ept("what the kernel does there is made longer here")
def test_who_changes_workers_runs_though_the_change_takes_longer_than_a_slice(
    open_monitor: Callable[..., Monitor], test_guest: Elf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As before Linux 6.12, where KVM_RUN waits for RCU when it comes from another thread."""
    ran_on: dict[Machine, int] = {}
    execute = Driver.execute

    def wait_if_moved(driver: Driver, machine: Machine) -> Exit:
        before = ran_on.get(machine)
        ran_on[machine] = threading.get_ident()
        moved = before not in (None, ran_on[machine])
        if moved and signal.sigtimedwait({KICK}, 2 * work.SLICE) is not None:
            return Intr()
        return execute(driver, machine)

    monkeypatch.setattr(Driver, "execute", wait_if_moved)
    monitor = open_monitor(workers=2)
    for number in range(3):  # so each is taken by the one worker and the other in turn
        monitor.spawn(test_guest("counts"), name=f"c{number}", window="2M")
    assert [machine.exit_code for machine in monitor.run(10)] == [0, 0, 0]


@pytest.mark.parametrize("listening", [False, True])
def test_who_has_much_to_do_for_one_exit_lets_others_run_after_each_slice(
    open_monitor: Callable[..., Monitor],
    test_guest: Elf,
    monkeypatch: pytest.MonkeyPatch,
    listening: bool,
) -> None:
    """Also if each part of it takes long, or there is something to be told of each."""
    transmit, execute = Doorbell.transmit, Driver.execute
    done: list[str] = []

    def in_parts(doorbell: Doorbell, peer: Peer) -> Status | None:
        done.append("part")
        if listening:
            monitor.trace.emit("part")
        if done.count("part") <= 50:
            time.sleep(0.002)
            return None
        return transmit(doorbell, peer)

    def noted(driver: Driver, machine: Machine) -> Exit:
        done.append(machine.name)
        return execute(driver, machine)

    monkeypatch.setattr(Doorbell, "transmit", in_parts)
    monkeypatch.setattr(Driver, "execute", noted)
    monitor = open_monitor()
    if listening:
        monitor.trace.listen(lambda event: None)
    busy = monitor.spawn(test_guest("ring"), name="busy", window="2M")
    monitor.spawn(test_guest("spin"), name="spinner", window="2M")
    page = monitor.host.alloc(8)
    page.write((1).to_bytes(8, "little"))
    monitor.host.send(busy, page)
    monitor.run(1)
    assert busy.exit_code == 1
    between = "".join("." if what == "part" else " " for what in done).split()
    assert len(between) > 5, done
