"""The control structure: what the guest reads and writes, from both sides, on plain memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from vmm.ferry.control import ControlStructure, Identity, Notice, Wait
from vmm.ferry.layout import CONTROL_BYTES
from vmm.ferry.message import Answer, Message, Span
from vmm.ferry.rules import Refusal
from vmm.guest import abi
from vmm.guest.abi import Doorbell, Operation, PeerFlags, Status, WaitFor

IDENTITY = Identity(
    machine=3,
    name="alice",
    privilege=3,
    doorbell=Doorbell.PIO,
    window_gpa=abi.WINDOW_GPA,
    window_pages=512,
    stack_gpa=0x3C0000,
    stack_bytes=0x40000,
)
TOP = 1 << 32
U64 = (1 << 64) - 1


class Sides(NamedTuple):
    """The same bytes as the monitor and as the guest has them."""

    monitor: ControlStructure
    guest: abi.Control


@pytest.fixture
def sides() -> Iterator[Sides]:
    memory = bytearray(CONTROL_BYTES)
    monitor = ControlStructure(memoryview(memory), IDENTITY)
    yield Sides(monitor, abi.Control.from_buffer(memory))
    monitor.release()


def refused(operation: object) -> Status:
    with pytest.raises(Refusal) as caught:
        operation()  # type: ignore[operator]
    return caught.value.status


# ---- Identity ----


def test_a_machine_reads_who_it_is(sides: Sides) -> None:
    guest = sides.guest
    assert (guest.magic, guest.size) == (abi.MAGIC, CONTROL_BYTES)
    assert bytes(guest)[:8] == b"PAGFERRY"
    assert (guest.abi_major, guest.abi_minor) == (abi.ABI_MAJOR, abi.ABI_MINOR)
    assert (guest.self, guest.name, guest.privilege) == (3, b"alice", 3)
    assert guest.doorbell == Doorbell.PIO
    assert (guest.window_gpa, guest.window_pages) == (abi.WINDOW_GPA, 512)
    assert (guest.stack_gpa, guest.stack_bytes) == (0x3C0000, 0x40000)
    assert guest.peer_count == 0


def test_the_longest_name_still_ends_in_a_zero() -> None:
    memory = bytearray(CONTROL_BYTES)
    name = "n" * (abi.NAME_MAX - 1)
    ControlStructure(memoryview(memory), Identity(1, name, 0, Doorbell.MMIO, 0, 0, 0, 0))
    field = abi.Control.name
    raw = memory[field.offset : field.offset + field.size]
    assert raw == name.encode() + b"\0"


def test_released_memory_can_be_unmapped() -> None:
    memory = bytearray(CONTROL_BYTES)
    control = ControlStructure(memoryview(memory), IDENTITY)
    with pytest.raises(BufferError):
        memory.clear()
    control.release()
    memory.clear()


# ---- The transmit ring ----


def test_the_monitor_sees_what_was_put_since_its_last_answer(sides: Sides) -> None:
    assert list(sides.monitor.transmit_indices()) == []
    sides.guest.tx_head = 3
    assert list(sides.monitor.transmit_indices()) == [0, 1, 2]
    sides.monitor.answer(0, 3, Answer(Status.OK, 1))
    assert list(sides.monitor.transmit_indices()) == [1, 2]
    assert sides.guest.tx_tail == 1


def test_the_transmit_ring_may_be_full_and_not_fuller(sides: Sides) -> None:
    sides.guest.tx_head = abi.TX_ENTRIES
    assert len(sides.monitor.transmit_indices()) == abi.TX_ENTRIES
    for head in (abi.TX_ENTRIES + 1, 1 << 31, TOP - 1):
        sides.guest.tx_head = head
        assert refused(sides.monitor.transmit_indices) is Status.E_RING
    assert sides.guest.tx_tail == 0


def test_transmit_indices_wrap_at_2_to_the_32(sides: Sides) -> None:
    sides.monitor.answer(TOP - 3, 3, Answer(Status.OK, 1))
    assert sides.guest.tx_tail == TOP - 2
    sides.guest.tx_head = 2
    for tag, entry in enumerate((62, 63, 0, 1)):
        sides.guest.tx[entry].tag = 100 + tag
    indices = sides.monitor.transmit_indices()
    tags = []
    for index in indices:
        copy = sides.monitor.copy_descriptors(range(index, index + 1))
        tags.append(abi.Descriptor.from_buffer_copy(copy).tag)
        sides.monitor.answer(index, 3, Answer(Status.OK, 1))
    assert tags == [100, 101, 102, 103]
    assert sides.guest.tx_tail == 2
    assert list(sides.monitor.transmit_indices()) == []


def test_a_tail_that_the_guest_wrote_is_not_believed(sides: Sides) -> None:
    sides.guest.tx_head = 2
    sides.guest.tx_tail = 2
    sides.guest.rx_head = 40
    assert list(sides.monitor.transmit_indices()) == [0, 1]
    assert sides.monitor.pending() == 0


def test_a_descriptor_is_copied_once_and_a_later_change_is_not_seen(sides: Sides) -> None:
    sides.guest.tx[5].operation = Operation.SEND
    sides.guest.tx[5].extents[0].pages = 1
    copy = abi.Descriptor.from_buffer_copy(sides.monitor.copy_descriptors(range(5, 6)))
    sides.guest.tx[5].extents[0].pages = 0xFFFFFFFF
    assert (copy.operation, copy.extents[0].pages) == (Operation.SEND, 1)


def test_an_answer_stamps_sender_number_and_status_and_nothing_else(sides: Sides) -> None:
    entry = sides.guest.tx[abi.TX_ENTRIES - 1]
    entry.tag, entry.sender, entry.status = 77, 99, Status.PENDING
    before = bytes(sides.guest)
    sides.monitor.answer(abi.TX_ENTRIES - 1, 3, Answer(Status.E_PEER, 1 << 40))
    assert (entry.status, entry.sender, entry.message) == (Status.E_PEER, 3, 1 << 40)
    entry.status, entry.sender, entry.message = Status.PENDING, 99, 0
    sides.guest.tx_tail = 0
    assert bytes(sides.guest) == before


def test_an_answer_fills_in_where_what_was_asked_for_is(sides: Sides) -> None:
    entry = sides.guest.tx[2]
    for extent in entry.extents:
        extent.pages, extent.attributes = 7, 9
    before = bytes(sides.guest)
    sides.monitor.answer(2, 3, Answer(Status.OK, 0, (Span(1 << 32, 7), Span(U64, 1)), b"answer"))
    assert [extent.gpa for extent in entry.extents[:3]] == [1 << 32, U64, 0]
    assert bytes(entry.payload[:7]) == b"answer\0"
    entry.extents[0].gpa = entry.extents[1].gpa = entry.sender = sides.guest.tx_tail = 0
    entry.payload[:6] = bytes(6)
    assert bytes(sides.guest) == before


def test_the_longest_answer_ends_where_the_next_entry_begins(sides: Sides) -> None:
    most = tuple(Span(U64, 1) for _ in range(abi.EXTENTS_MAX))
    last = abi.TX_ENTRIES - 1
    sides.monitor.answer(last, 3, Answer(Status.OK, 1, most, b"\xff" * abi.PAYLOAD_MAX))
    assert bytes(sides.guest.tx[last].payload) == b"\xff" * abi.PAYLOAD_MAX
    assert bytes(sides.guest.tx[last - 1]) == bytes(sides.guest.rx[0]) == bytes(512)


# ---- The receive ring ----


def test_messages_are_put_one_after_the_other_until_the_ring_is_full(sides: Sides) -> None:
    for tag in range(abi.RX_ENTRIES):
        sides.monitor.deliver([Message.letter(1, 2, 3, tag, b"")])
    assert sides.monitor.pending() == abi.RX_ENTRIES
    assert [entry.tag for entry in sides.guest.rx] == list(range(abi.RX_ENTRIES))
    sides.guest.rx_tail = 2
    assert sides.monitor.pending() == abi.RX_ENTRIES - 2
    sides.monitor.deliver([Message.letter(1, 2, 3, 1000, b"")])
    assert (sides.guest.rx[0].tag, sides.guest.rx_head) == (1000, abi.RX_ENTRIES + 1)


@pytest.mark.parametrize("extents", [0, 1, abi.EXTENTS_MAX])
def test_a_delivered_message_is_written_to_its_entry_and_nowhere_else(
    sides: Sides, extents: int
) -> None:
    sides.guest.rx[0].payload[:] = b"\xff" * abi.PAYLOAD_MAX  # of an earlier one
    before = bytes(sides.guest)
    payload = b"\xaa" * (abi.PAYLOAD_MAX - 1)
    raw = abi.Descriptor(operation=1, sender=2, receiver=3, tag=1, message=7)
    raw.extent_count, raw.payload_length = extents, len(payload)
    raw.payload[: len(payload)] = payload
    for index in range(extents):
        raw.extents[index].gpa, raw.extents[index].pages = 4096 * index, index + 1
    spans = tuple(Span(extent.gpa, extent.pages) for extent in raw.extents[:extents])
    sides.monitor.deliver([Message.letter(7, 2, 3, 1, payload)._replace(spans=spans)])
    after = bytes(sides.guest)
    start = abi.Control.rx.offset
    head = abi.Control.rx_head.offset
    assert after[start : start + 512] == bytes(raw)
    assert after[head : head + 4] == b"\1\0\0\0"
    assert after[:head] + before[head : head + 4] + after[head + 4 : start] == before[:start]
    assert after[start + 512 :] == before[start + 512 :]


def test_receive_indices_wrap_at_2_to_the_32(sides: Sides) -> None:
    sides.monitor.rx_head = TOP - 1  # as after four thousand million messages
    sides.guest.rx_tail = TOP - 2
    assert sides.monitor.pending() == 1
    sides.monitor.deliver([Message.letter(1, 2, 3, 1, b"")])
    sides.monitor.deliver([Message.letter(1, 2, 3, 2, b"")])
    assert (sides.guest.rx[63].tag, sides.guest.rx[0].tag) == (1, 2)
    assert sides.guest.rx_head == 1
    assert sides.monitor.pending() == 3


@pytest.mark.parametrize("tail", [1, 65, 1 << 31, TOP - abi.RX_ENTRIES - 1])
def test_a_receive_tail_that_makes_no_sense_is_refused_until_it_makes_sense(
    sides: Sides, tail: int
) -> None:
    sides.guest.rx_tail = tail
    assert refused(sides.monitor.pending) is Status.E_RING
    sides.guest.rx_tail = 0
    assert sides.monitor.pending() == 0


# ---- Peers and the doorbell ----


def test_the_peer_table_grows_and_its_entries_change_in_place(sides: Sides) -> None:
    both = PeerFlags.ALIVE | PeerFlags.SEND
    sides.monitor.put_peer(0, 0, "host", both, 8)
    sides.monitor.put_peer(1, 7, "bob", PeerFlags.ALIVE, 64)
    sides.monitor.put_peer(0, 0, "host", PeerFlags.SEND, 0)
    first, second, third = sides.guest.peers[:3]
    assert sides.guest.peer_count == 2
    assert (first.id, first.name, first.flags, first.room) == (0, b"host", PeerFlags.SEND, 0)
    assert (second.id, second.name, second.flags, second.room) == (7, b"bob", PeerFlags.ALIVE, 64)
    assert bytes(third) == bytes(64)


def test_the_last_peer_ends_where_the_rings_begin(sides: Sides) -> None:
    for index in range(abi.PEERS_MAX):
        sides.monitor.put_peer(index, index + 1, f"peer {index}", PeerFlags.ALIVE, 1)
    assert sides.guest.peer_count == abi.PEERS_MAX
    assert sides.guest.peers[abi.PEERS_MAX - 1].name == b"peer 255"
    assert bytes(sides.guest.tx[0]) == bytes(512)


def test_the_guests_words_are_read_as_they_are(sides: Sides) -> None:
    guest, monitor = sides.guest, sides.monitor
    guest.wait_timeout_us, guest.log_gpa, guest.log_length = abi.FOREVER, (1 << 64) - 1, TOP - 1
    guest.exit_code, guest.progress_done, guest.progress_total = -7, 5, 1 << 63
    assert monitor.wait.timeout_us == abi.FOREVER
    assert monitor.log == ((1 << 64) - 1, TOP - 1)
    assert monitor.exit_code == -7
    assert monitor.progress == (5, 1 << 63)


def test_a_doorbell_is_answered_as_a_whole(sides: Sides) -> None:
    sides.monitor.bell_status(Status.E_TIMEOUT)
    assert sides.guest.bell_status == Status.E_TIMEOUT


def test_what_a_wait_is_for_is_read_as_it_is(sides: Sides) -> None:
    guest = sides.guest
    assert sides.monitor.wait == Wait(0, 0, 0, 0)
    guest.wait_for, guest.wait_peer, guest.notices_seen = TOP - 1, 7, 1 << 31
    assert sides.monitor.wait == Wait(0, TOP - 1, 7, 1 << 31)
    guest.wait_for = WaitFor.ROOM | WaitFor.NOTICE
    assert sides.monitor.wait.flags == 6


# ---- Notices ----


def test_notice_bits_add_up_whatever_the_guest_does_to_them(sides: Sides) -> None:
    sides.monitor.notice(Notice.HOST, 1)
    sides.guest.notices = 0
    sides.monitor.notice(Notice.HOST, 1 << 31)
    assert sides.guest.notices == 1 << 31 | 1
    sides.monitor.notice(Notice.HOST, 1 << 32)  # no such bit
    assert sides.guest.notices == 1 << 31 | 1


def test_notices_and_peers_are_written_again_over_older_ones(sides: Sides) -> None:
    monitor, guest = sides
    monitor.put_peer(0, 7, "bob", 1, 5)
    for kind in (Notice.PEER, Notice.RECLAIM, Notice.RECLAIM, Notice.HOST):
        monitor.notice(kind, 4 if kind is Notice.HOST else 0)
    now = bytes(guest)
    guest.peer_count = guest.notices = guest.notice_count = 99
    guest.peer_notices = guest.reclaim_notices = guest.host_notices = 98
    monitor.write_again()
    assert bytes(guest) == now
    assert (guest.peer_notices, guest.reclaim_notices, guest.host_notices) == (1, 2, 1)


def test_notices_are_counted_by_kind_and_together_whatever_the_guest_writes(sides: Sides) -> None:
    guest = sides.guest
    for kind in (Notice.PEER, Notice.RECLAIM, Notice.HOST, Notice.RECLAIM):
        guest.notice_count = guest.peer_notices = guest.reclaim_notices = 77
        sides.monitor.notice(kind)
    assert sides.monitor.notice_count == guest.notice_count == 4
    assert (guest.reclaim_notices, guest.host_notices, guest.notices) == (2, 1, 0)
    sides.monitor.notice(Notice.PEER)
    assert (guest.peer_notices, guest.notice_count) == (2, 5)


def test_notice_counts_wrap_at_2_to_the_32(sides: Sides) -> None:
    sides.monitor._noticed[Notice.PEER] = TOP - 1  # as after four thousand million notices
    sides.monitor.notice(Notice.RECLAIM)
    assert sides.monitor.notice_count == sides.guest.notice_count == 0
    sides.monitor.notice(Notice.PEER)
    assert (sides.guest.peer_notices, sides.guest.notice_count) == (0, 1)
