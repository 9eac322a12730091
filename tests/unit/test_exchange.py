"""The exchange: transmit and receive rings, the trace of what was done, audits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from unit.exchange_scene import PAGES, Scene

from vmm.ferry.books import LedgerError
from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, Hold, Operation, Status
from vmm.memory.region import OutOfBounds
from vmm.memory.runs import Extent

pytestmark = pytest.mark.usefixtures("each_pool")

FOREIGN = 99  # nobody's number


# ---- The transmit ring ----


def test_each_descriptor_gets_its_own_answer(scene: Scene) -> None:
    (own,) = scene.alloc(scene.a, 1)
    entries = [
        scene.put(scene.a, Operation.SEND, own, to=scene.b, tag=5),
        scene.put(scene.a, Operation.SEND, own, to=scene.b),
        scene.put(scene.a, Operation.UNDELIVERED),
        scene.put(scene.a, Operation.LEND, to=scene.b),
        scene.put(scene.a, Operation.SEND, to=FOREIGN),
    ]
    assert scene.exchange.transmit(scene.a) is Status.OK
    assert [entry.status for entry in entries] == [
        Status.OK,
        Status.E_OWNERSHIP,
        Status.E_OPERATION,
        Status.E_LENGTH,
        Status.E_PEER,
    ]
    (message,) = scene.b.queue
    assert [entry.message for entry in entries] == [message.number, 0, 0, 0, 0]
    assert [entry.sender for entry in entries] == [scene.a.number] * 5
    assert scene.guest(scene.a).tx_tail == 5
    assert scene.exchange.transmit(scene.a) is Status.OK
    assert len(scene.b.queue) == 1


def test_a_sender_is_who_the_monitor_says(scene: Scene) -> None:
    scene.put(scene.a, Operation.SEND, to=scene.b, sender=scene.c.number, message=77)
    scene.exchange.transmit(scene.a)
    (message,) = scene.b.queue
    assert message.sender == scene.a.number


def test_what_is_asked_for_is_answered_in_the_descriptor(scene: Scene) -> None:
    wanted = [Extent(-abi.WINDOW_GPA // PAGE_SIZE, pages) for pages in (2, 1)]  # gpa 0
    alloc = scene.put(scene.a, Operation.ALLOC, *wanted)
    query = scene.put(scene.a, Operation.QUERY, Extent(1, 5))
    scene.exchange.transmit(scene.a)
    assert [alloc.status, query.status] == [Status.OK, Status.OK]
    assert [(e.gpa, e.pages) for e in alloc.extents[:3]] == [
        (abi.WINDOW_GPA, 2),
        (abi.WINDOW_GPA + 2 * PAGE_SIZE, 1),
        (0, 0),
    ]
    answer = abi.Answer.from_buffer_copy(query.payload)
    assert (answer.hold, answer.pages, answer.pages_held) == (Hold.OWNED, 1, 3)


def test_an_index_that_makes_no_sense_processes_nothing(scene: Scene) -> None:
    scene.put(scene.a, Operation.SEND, to=scene.b)
    scene.guest(scene.a).tx_head += abi.TX_ENTRIES
    before = scene.snapshot()
    assert scene.exchange.transmit(scene.a) is Status.E_RING
    assert scene.snapshot() == before


# ---- The receive ring ----


def test_messages_wait_in_the_queue_for_room_in_the_ring() -> None:
    with Scene(depth=abi.RX_ENTRIES + 6) as scene:
        for tag in range(abi.RX_ENTRIES + 6):
            scene.done(scene.a, Operation.SEND, to=scene.b, tag=tag)
        assert scene.exchange.deliver(scene.b) == abi.RX_ENTRIES
        assert len(scene.b.queue) == 6
        assert scene.exchange.deliver(scene.b) == abi.RX_ENTRIES
        scene.guest(scene.b).rx_tail += 4
        assert scene.exchange.deliver(scene.b) == abi.RX_ENTRIES
        assert [entry.tag for entry in scene.guest(scene.b).rx[:5]] == [64, 65, 66, 67, 4]
        assert [message.tag for message in scene.b.untaken] == list(range(4, 68))
        scene.took(scene.b)
        assert scene.exchange.deliver(scene.b) == 2
        assert [message.tag for message in scene.b.untaken] == [68, 69]


def test_a_message_is_read_in_the_ring_as_it_was_sent(scene: Scene) -> None:
    (own,) = scene.alloc(scene.a, 2)
    fields = {"tag": 8, "length": 5000, "payload": b"news", "writable": False}
    number = scene.done(scene.a, Operation.LEND, own, to=scene.b, **fields).number
    assert scene.exchange.deliver(scene.b) == 1
    read = scene.guest(scene.b).rx[0]
    assert (read.operation, read.flags, read.status) == (Operation.LEND, abi.Flags.READONLY, 0)
    assert (read.sender, read.receiver, read.message) == (1, 2, number)
    assert (read.tag, read.length, bytes(read.payload[:4])) == (8, 5000, b"news")
    assert (read.extent_count, read.extents[0].gpa, read.extents[0].pages) == (
        1,
        abi.WINDOW_GPA,
        2,
    )
    assert (scene.a.sent, scene.b.received) == (1, 1)


def test_a_tail_that_makes_no_sense_gets_nothing_until_it_does(scene: Scene) -> None:
    scene.done(scene.a, Operation.SEND, to=scene.b)
    scene.guest(scene.b).rx_tail = 3
    assert scene.exchange.deliver(scene.b) is None
    assert len(scene.b.queue) == 1
    scene.guest(scene.b).rx_tail = 0
    assert scene.exchange.deliver(scene.b) == 1


# ---- Holds ----


def test_what_is_at_an_address_is_found_by_any_byte_of_its_page(scene: Scene) -> None:
    scene.alloc(scene.a, 1)
    for gpa, hold in (
        (abi.WINDOW_GPA, Hold.OWNED),
        (abi.WINDOW_GPA + PAGE_SIZE - 1, Hold.OWNED),
        (abi.WINDOW_GPA + PAGE_SIZE, Hold.NONE),
        (abi.WINDOW_GPA + PAGES * PAGE_SIZE - 1, Hold.NONE),
    ):
        assert scene.exchange.hold(scene.a, gpa) is hold
    for gpa in (abi.WINDOW_GPA - 1, abi.WINDOW_GPA + PAGES * PAGE_SIZE + 1, 0):
        with pytest.raises(OutOfBounds):
            scene.exchange.hold(scene.a, gpa)


# ---- The trace ----


def runs(*extents: Extent) -> list[dict[str, int]]:
    return [{"gpa": abi.WINDOW_GPA + e.page * PAGE_SIZE, "pages": e.pages} for e in extents]


@pytest.mark.parametrize(
    "operation", [Operation.SEND, Operation.LEND, Operation.SHARE, Operation.EXCHANGE]
)
def test_a_message_and_its_delivery_are_told_with_both_ends(
    scene: Scene, operation: Operation
) -> None:
    one, two = scene.alloc(scene.a, 2, 1)
    scene.alloc(scene.b, 1)
    events = scene.listen()
    number = scene.done(scene.a, operation, two, one, to=scene.b, tag=7, length=9000).number
    places = scene.take(scene.b)
    asked, delivered = (event.fields for event in events)
    name = operation.name.lower()
    assert [event.kind for event in events] == [name, "deliver"]
    assert asked.pop("took_us") > 0
    assert delivered.pop("took_us") > 0
    assert (asked.pop("brought"), delivered.pop("brought")) == (False, False)
    assert asked == {
        "message": number,
        "op": name,
        "sender": "a",
        "receiver": "b",
        "tag": 7,
        "bytes": 9000,
        "extents": runs(two, one),
        "status": "OK",
    }
    given = "send" if operation is Operation.EXCHANGE else name
    assert delivered == {**asked, "op": given, "extents": runs(*places)}


def test_an_operation_with_nobody_else_is_told_with_one_end(scene: Scene) -> None:
    events = scene.listen()
    (own, other) = scene.alloc(scene.a, 1, 1)
    scene.ask_alloc(scene.a, 2)
    scene.done(scene.a, Operation.SHARE, own, to=scene.b)
    scene.done(scene.a, Operation.RECLAIM, own, to=scene.b)  # which means nothing there
    scene.done(scene.a, Operation.QUERY, other, to=scene.b)
    scene.done(scene.a, Operation.RELEASE, other, to=scene.b)
    told = [(e.kind, e.fields["receiver"], e.fields["extents"]) for e in events]
    assert told == [
        ("alloc", None, runs(Extent(2, 2))),  # where it is, not where it was asked for
        ("share", "b", runs(own)),
        ("reclaim", None, runs(own)),
        ("query", None, runs(other)),
        ("release", None, runs(other)),
    ]
    assert all(event.fields["sender"] == "a" for event in events)


def test_a_return_is_told_with_its_borrower_and_its_owner(scene: Scene) -> None:
    places = scene.pass_on(scene.a, Operation.LEND, *scene.alloc(scene.a, 1), to=scene.c)
    events = scene.listen()
    scene.done(scene.c, Operation.RETURN, *places, to=scene.a, length=3)
    scene.take(scene.a)
    told = [(e.kind, e.fields["sender"], e.fields["receiver"], e.fields["bytes"]) for e in events]
    assert told == [("return", "c", "a", 3), ("deliver", "c", "a", 3)]


def test_a_refusal_is_told_with_its_status(scene: Scene) -> None:
    events = scene.listen()
    scene.ask(scene.a, Operation.SEND, Extent(3, 1), to=scene.b, payload=b"four")
    scene.ask(scene.a, Operation.LEND, Extent(3, 1), to=FOREIGN)
    scene.put(scene.a, 10, to=scene.b)
    scene.exchange.transmit(scene.a)
    send, lend, unreadable = events
    assert send.kind == "send"
    assert (send.fields["status"], send.fields["message"]) == ("E_OWNERSHIP", 0)
    assert (send.fields["bytes"], send.fields["extents"]) == (4, runs(Extent(3, 1)))
    assert (lend.kind, lend.fields["receiver"], lend.fields["status"]) == ("lend", None, "E_PEER")
    assert (unreadable.kind, unreadable.fields) == (
        "refuse",
        {"machine": "a", "status": "E_OPERATION"},
    )


def test_what_comes_back_is_told_with_its_reason(scene: Scene) -> None:
    one, two, three = scene.alloc(scene.a, 1, 1, 1)
    scene.pass_on(scene.a, Operation.LEND, three, to=scene.b)
    for own in (one, two):
        scene.done(scene.a, Operation.SEND, own, to=scene.b)
    events = scene.listen()
    scene.host.plan, scene.host.armed = (True,), True
    assert scene.exchange.take(scene.b) is None
    scene.host.armed = False
    scene.exchange.leave(scene.b)
    told = [(e.kind, e.fields["op"], e.fields["status"], e.fields["extents"]) for e in events]
    assert told == [
        ("undelivered", "undelivered", "E_NO_MEMORY", runs(one)),
        ("undelivered", "undelivered", "E_DEAD", runs(two)),
        ("return", "return", "E_DEAD", runs(three)),
    ]
    ends = [(e.fields["sender"], e.fields["receiver"], e.fields["took_us"] > 0) for e in events]
    assert ends == [("a", "b", True), ("a", "b", True), ("b", "a", True)]


# ---- Audits ----


AUDITED: dict[str, Callable[[Scene], object]] = {
    "an operation": lambda scene: scene.ask(scene.a, Operation.SEND, to=scene.b),
    "a refusal": lambda scene: scene.ask(scene.a, Operation.SEND, to=FOREIGN),
    "a descriptor": lambda scene: scene.exchange.transmit(scene.c),
    "a message taken": lambda scene: scene.exchange.take(scene.b),
    "a delivery": lambda scene: scene.exchange.deliver(scene.b),
    "a death": lambda scene: scene.exchange.leave(scene.b),
}


@pytest.mark.parametrize("audit", [True, False])
@pytest.mark.parametrize("after", AUDITED)
def test_an_audit_follows(after: str, audit: bool) -> None:
    with Scene(audit=audit) as scene:
        scene.done(scene.a, Operation.SEND, *scene.alloc(scene.a, 1), to=scene.b)
        scene.put(scene.c, Operation.SEND)
        scene.ledger.account(scene.d.number).charged += 1
        if audit:
            with pytest.raises(LedgerError, match="peer 4 has"):
                AUDITED[after](scene)
        else:
            AUDITED[after](scene)
