"""The mission, row by row: one test for each claim in the README's table, on the real device.

Each with bare guests, and with programs for Linux that are built from the same sources.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from guest_elfs import FOR_LINUX
from tests_support import sized

from vmm import Buffer, Machine, Monitor, State
from vmm.ferry.events import Event
from vmm.guest import abi
from vmm.guest.abi import Bell, Descriptor, Operation, Status
from vmm.memory.pagemap import kept_in_place

# A sends to B what it gets from the host; B adds one to the first byte and gives it to the host.

Elf = Callable[[str], Path]


class Elves(NamedTuple):
    """Where the ELF files are that machines a and b are made of: guests', or programs'."""

    a: Elf
    b: Elf


_ALIKE = {"guests": (False, False), "programs": (True, True)}
_MIXED = {"a guest and a program": (False, True), "a program and a guest": (True, False)}
_KINDS = _ALIKE | sized(_MIXED, {})


def program(name: str) -> Path:
    """Return the path of a program for Linux."""
    return FOR_LINUX / f"{name}.elf"


@pytest.fixture(params=_KINDS)
def elves(request: pytest.FixtureRequest, test_guest: Elf) -> Elves:
    """The tests' own sources, as every kind of machine."""
    return Elves(*(program if is_one else test_guest for is_one in _KINDS[request.param]))


@pytest.fixture(params=_ALIKE)
def elf(request: pytest.FixtureRequest, test_guest: Elf) -> Elf:
    """The same, where there is one machine only."""
    return program if request.param == "programs" else test_guest


@pytest.fixture(params=_KINDS)
def bundled(request: pytest.FixtureRequest, guest_elf: Elf, test_guests: Path) -> Elves:
    """The bundled ones; `test_guests` has them built as programs."""
    return Elves(*(program if is_one else guest_elf for is_one in _KINDS[request.param]))


MIXED = pytest.mark.smaller_in_lanes(
    "two guests, two programs: with each other they are on the host"
)

# OUT %eax,%dx; VMCALL; VMMCALL; mov %eax,(%rcx) and such, whose second byte names registers.
STORES = [bytes((0x89, 8 * source + target)) for source in range(8) for target in range(8)]
DOORBELL_CODE = [b"\xef", b"\x0f\x01\xc1", b"\x0f\x01\xd9", *STORES]


def pair(monitor: Monitor, elves: Elves, a: str, b: str) -> tuple[Machine, Machine]:
    """Two connected machines, named a and b, running these sources."""
    first = monitor.spawn(elves.a(a), name="a", window="16M")
    second = monitor.spawn(elves.b(b), name="b", window="16M")
    monitor.connect(first, second)
    return first, second


def new_page(monitor: Monitor, content: bytes) -> Buffer:
    buffer = monitor.host.alloc(len(content))
    buffer.write(content)
    return buffer


def send_page(monitor: Monitor, to: Machine, content: bytes = b"hello", tag: int = 7) -> None:
    monitor.host.send(to, new_page(monitor, content), tag=tag)


def of_kind(events: list[Event], kind: str) -> list[Event]:
    return [event for event in events if event.kind == kind]


@MIXED
def test_c1_the_same_physical_page_goes_from_one_machine_to_the_other(
    monitor: Monitor, elves: Elves
) -> None:
    a, b = pair(monitor, elves, "forward_to_b", "increment_to_host")
    frames: list[int | None] = []

    def look(event: Event) -> None:
        if event.kind == "deliver" and event.fields["receiver"] != "host":
            gpa = event.fields["extents"][0]["gpa"]
            frames.append(monitor.machines[event.fields["receiver"]].frame_number(gpa))

    monitor.trace.listen(look)
    buffer = new_page(monitor, b"hello")
    with kept_in_place(buffer.address):
        monitor.host.send(a, buffer, tag=7)
        monitor.run(10)
        received = monitor.host.receive()
        assert received is not None
        assert received.buffers[0].read() == b"iello"
        if None in frames:
            pytest.fail("physical frame numbers need root: run the tests as root")
        assert frames == [received.buffers[0].frame_number()] * 2
    assert (a.exit_code, b.exit_code) == (0, 0)


def test_c3a_data_or_an_address_or_both_go_into_the_senders_own_control_structure(
    monitor: Monitor, elf: Elf
) -> None:
    a = monitor.spawn(elf("data_address_both"), name="a", window="16M")
    placed: list[tuple[int, bytes]] = []

    def look(event: Event) -> None:
        if event.kind == "exit" and event.fields["bell"] == Bell.TRANSMIT:
            entry = abi.CONTROL_GPA + abi.Control.tx.offset + len(placed) * 512
            d = Descriptor.from_buffer_copy(a.guest.memory.read(entry, 512))
            gpa = d.extents[0].gpa if d.extent_count else 0
            placed.append((gpa, bytes(d.payload[: d.payload_length])))

    monitor.trace.listen(look)
    send_page(monitor, a, bytes(8192))
    monitor.run(10)
    base = a.window.base
    assert a.exit_code == 0, a.fault
    assert placed == [(0, b"data"), (base, b""), (base + 4096, b"both")]


@MIXED
def test_c3b_to_c4b_exit_enqueue_dequeue_control_structure_and_mapping_follow_in_this_order(
    monitor: Monitor, elves: Elves
) -> None:
    a, b = pair(monitor, elves, "forward_to_b", "increment_to_host")
    seen: list[str] = []
    control = abi.CONTROL_GPA

    def look(event: Event) -> None:
        fields = event.fields
        if event.kind == "exit" and fields["machine"] == "a" and fields["bell"] == Bell.TRANSMIT:
            seen.append("a exits")  # C3b
            assert len(b.peer.queue) == 0
        if event.kind == "send" and fields["sender"] == "a":
            (message,) = b.peer.queue  # C3c: the monitor has put the address into b's queue
            assert message.targets
            seen.append("in b's queue")
        if event.kind == "deliver" and fields["receiver"] == "b":
            assert len(b.peer.queue) == 0  # C3d
            assert b.frame_number(fields["extents"][0]["gpa"]) is not None  # C4b: mapped ...
            seen.append("dequeued, and mapped in b")
        if event.kind == "exit" and fields["machine"] == "b" and "in b's queue" in seen[-1:]:
            pytest.fail("b ran before the page was in its window")

    monitor.trace.listen(look)
    send_page(monitor, a)
    monitor.run(10)
    assert seen == ["a exits", "in b's queue", "dequeued, and mapped in b"]
    # C4a: the address is in b's control structure, ... and b was told where (C4b).
    entry = b.guest.memory.read(control + abi.Control.rx.offset, 512)
    descriptor = Descriptor.from_buffer_copy(entry)
    assert descriptor.extents[0].gpa == b.window.base
    assert descriptor.tag == 7
    assert b.exit_code == 0  # it used the page there


@MIXED
def test_c5_the_receiver_processes_the_message_in_place(monitor: Monitor, elves: Elves) -> None:
    a, _ = pair(monitor, elves, "forward_to_b", "increment_to_host")
    buffer = new_page(monitor, b"abc")
    with kept_in_place(buffer.address):
        before = buffer.frame_number()
        monitor.host.send(a, buffer)
        monitor.run(10)
        received = monitor.host.receive()
        assert received is not None
        assert received.buffers[0].read() == b"bbc"
        assert received.buffers[0].frame_number() == before


def test_c6_nothing_runs_in_the_sender_between_placing_the_message_and_the_exit(
    monitor: Monitor, elf: Elf
) -> None:
    """At the exit the message is placed, and the one instruction since is the doorbell."""
    a = monitor.spawn(elf("send_x_to_host"), name="a", window="16M")
    sites: list[tuple[bytes, int]] = []

    def look(event: Event) -> None:
        if event.kind == "exit" and event.fields["bell"] == Bell.TRANSMIT:
            head = a.guest.memory.read(abi.CONTROL_GPA + abi.Control.tx_head.offset, 4)
            code = a.guest.memory.read(a.guest.vcpu.get_regs().rip - 6, 9)
            sites.append((code, int.from_bytes(head, "little")))

    monitor.trace.listen(look)
    monitor.run(10)
    assert a.exit_code == 0
    ((code, head),) = sites
    assert head == 1  # placed
    # The instruction pointer is at the doorbell or just behind it; right before the doorbell stands
    # the store of tx_head, mov %r32,(%r64): opcode 89 and one byte more.
    here = 6
    starts = [here, *(here - len(bell) for bell in DOORBELL_CODE if code[:here].endswith(bell))]
    assert any(
        code[start:].startswith(tuple(DOORBELL_CODE)) and code[start - 2] == 0x89
        for start in starts
    ), code.hex(" ")


@MIXED
def test_c7_and_c14_both_identities_travel_with_the_message_and_no_guest_can_forge_them(
    monitor: Monitor, elves: Elves
) -> None:
    a, b = pair(monitor, elves, "forger", "tell_sender")
    queued: list[tuple[int, int]] = []
    monitor.trace.listen(
        lambda event: (
            queued.extend((m.sender, m.receiver) for m in b.peer.queue)
            if event.kind == "send"
            else None
        )
    )
    monitor.run(10)
    assert queued == [(a.number, b.number)]
    assert (a.exit_code, b.exit_code) == (0, a.number)


@MIXED
def test_c8_either_machine_can_be_the_sender(monitor: Monitor, bundled: Elves) -> None:
    server = monitor.spawn(bundled.a("echo_server"))
    client = monitor.spawn(bundled.b("echo_client"))
    monitor.connect(server, client)
    monitor.run(20)
    assert (server.exit_code, client.exit_code) == (0, 0)
    assert client.peer.sent == server.peer.received == 101
    assert server.peer.sent == client.peer.received == 100


@MIXED
def test_c10_the_monitor_itself_puts_a_status_a_notice_and_a_returned_page_into_a_control_structure(
    monitor: Monitor, elves: Elves
) -> None:
    a, b = pair(monitor, elves, "status_return_notice", "spin")
    send_page(monitor, a)

    def stop_b_when_it_has_mail(event: Event) -> None:
        if event.kind == "send" and event.fields["receiver"] == "b":
            threading.Thread(target=end_b).start()

    def end_b() -> None:
        monitor.kill(b)
        monitor.notice(a, 4)

    monitor.trace.listen(stop_b_when_it_has_mail)
    monitor.run(10)
    assert a.exit_code == 0, a.fault
    assert b.fault is not None
    assert b.fault.kind == "killed"


def test_c11_the_monitor_can_make_a_running_machine_exit(
    monitor: Monitor, elf: Elf, events: list[Event]
) -> None:
    machine = monitor.spawn(elf("spin"), name="spinner", window="16M")
    runner = threading.Thread(target=monitor.run, args=(10,))
    runner.start()
    deadline = time.monotonic() + 5
    while machine.state is not State.RUNNING and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.05)
    before = len(of_kind(events, "exit"))
    monitor.interrupt(machine)
    while len(of_kind(events, "exit")) == before and time.monotonic() < deadline:
        time.sleep(0.001)
    exits = of_kind(events, "exit")[before:]
    monitor.kill(machine)
    runner.join()
    assert [(e.fields["machine"], e.fields["exit"]) for e in exits] == [("spinner", "Intr")]


def test_c12_the_host_puts_a_message_into_a_machines_queue_on_its_own_account(
    monitor: Monitor, elf: Elf
) -> None:
    b = monitor.spawn(elf("tag_from_host"), name="b", window="16M")
    monitor.host.send(b, payload=b"from the host", tag=55)
    assert [message.sender for message in b.peer.queue] == [abi.PEER_HOST]
    monitor.run(10)
    assert b.exit_code == 55


@MIXED
def test_c13_the_receiver_can_read_write_return_send_on_and_release_the_page(
    monitor: Monitor, elves: Elves
) -> None:
    a, b = pair(monitor, elves, "three_pages_to_b", "all_uses")
    send_page(monitor, a, b"hello" + bytes(3 * 4096 - 5))
    free = monitor.audit()["free"]
    monitor.run(10)
    assert (a.exit_code, b.exit_code) == (0, 0), (a.fault, b.fault)
    received = monitor.host.receive()
    assert received is not None
    assert received.tag == 9
    # Released by b, and freed with a when it exited: two of the three pages are back in the pool.
    assert monitor.audit()["free"] == free + 2


def test_c15_and_c17_to_c20_the_installed_package_does_it_when_run_by_its_command() -> None:
    command = [str(Path(sys.executable).with_name("pageferry")), "demo", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["digest_ok"]
    assert report["change_ok"]
    assert report["pfn_before"] == report["pfn_after"]
    assert report["sender_fault"]["access"] == "write"


def test_statuses_and_operations_are_named_alike_on_both_sides() -> None:
    """The tests above speak of the ABI by name; the names are the header's."""
    assert (Status.E_DEAD, Operation.UNDELIVERED) == (-3, 128)
