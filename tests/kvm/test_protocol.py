"""The operations, as guests see them: what each does when it is done."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from kvm.puppets import Puppet, Span, Stage, descriptor, spans_of

from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, Hold, Operation, Status
from vmm.memory.movers import MappedWindow, RemapWindow, SlotsWindow, Window

GIVING = (Operation.SEND, Operation.LEND, Operation.SHARE, Operation.EXCHANGE)


def frames(puppet: Puppet) -> set[int]:
    return {run.frame + i for run in puppet.held() for i in range(run.pages)}


# ---- SEND ----


def test_what_is_sent_is_the_receivers_alone(stage: Stage) -> None:
    a, b, _ = stage.puppets
    (own,) = a.alloc(3)
    a.write(own.gpa, 100, 3)
    forged = {"sender": b.number, "message": 77}
    (answer,) = a.ask(descriptor(Operation.SEND, b.number, own, tag=7, length=9000, **forged))
    assert (answer.status, answer.sender) == (Status.OK, a.number)
    message = b.one()
    (got,) = spans_of(message)
    assert (message.operation, message.status, message.flags) == (Operation.SEND, Status.OK, 0)
    assert (message.sender, message.receiver) == (a.number, b.number)
    assert (message.tag, message.length, message.message) == (7, 9000, answer.message)
    assert b.read(got.gpa, 3) == [100, 101, 102]
    assert (a.holds(own.gpa), b.holds(got.gpa)) == (Hold.NONE, Hold.OWNED)
    part = Span(b.page(1), 1)
    assert b.send(a, part) is Status.OK  # as its owner may, in part
    assert a.read(spans_of(a.one())[0].gpa) == [101]


def test_a_payload_goes_without_pages(one: Stage) -> None:
    a, b, _ = one.puppets
    payloads = [b"", b"one", bytes(range(abi.PAYLOAD_MAX))]
    tag = (1 << 64) - 1
    a.ask(*(descriptor(Operation.SEND, b.number, payload=p, tag=tag) for p in payloads))
    messages = b.inbox()
    assert [bytes(m.payload[: m.payload_length]) for m in messages] == payloads
    assert {(m.extent_count, m.length, m.tag) for m in messages} == {(0, 0, tag)}


def test_sixteen_extents_arrive_in_the_order_in_which_they_were_named(stage: Stage) -> None:
    a, b, _ = stage.puppets
    extents = a.alloc(*(1 + index % 3 for index in range(16)))
    a.write(a.base, 100, 31)
    shuffled = [extents[(index * 7 + 3) % 16] for index in range(16)]
    assert a.send(b, *shuffled, payload=b"p") is Status.OK
    got = spans_of(b.one())
    assert [extent.pages for extent in got] == [extent.pages for extent in shuffled]
    pages = [(gpa - a.base) // PAGE_SIZE + i for gpa, pages in shuffled for i in range(pages)]
    assert b.read(got[0].gpa, 31) == [100 + page for page in pages]


def test_each_message_of_one_doorbell_has_its_own_answer(one: Stage) -> None:
    a, b, c = one.puppets
    first, second, third = (Span(a.page(index), 1) for index in range(3))
    a.alloc(3)
    answers = a.ask(
        descriptor(Operation.SEND, b.number, first, tag=1),
        descriptor(Operation.SEND, b.number, first, tag=2),
        descriptor(Operation.LEND, c.number, second, tag=3),
        descriptor(Operation.RECLAIM, 0, second),
        descriptor(Operation.SEND, a.number, third, tag=4),
        descriptor(99),
        descriptor(Operation.SEND, b.number, second, third, tag=5),
        *(descriptor(Operation.SEND, b.number, tag=6 + index) for index in range(57)),
    )
    statuses = [Status(answer.status) for answer in answers]
    refused = {1: Status.E_OWNERSHIP, 4: Status.E_PEER, 5: Status.E_OPERATION}
    assert statuses == [refused.get(index, Status.OK) for index in range(64)]
    assert [message.tag for message in b.inbox()] == [1, 5, *range(6, 63)]
    assert [message.tag for message in c.inbox()] == [3]
    numbers = [answer.message for answer in answers if answer.message]
    assert numbers == sorted(set(numbers))


def test_a_reply_sends_back_what_was_sent_and_returns_what_was_borrowed(one: Stage) -> None:
    a, b, _ = one.puppets
    ways = (Operation.SEND, Operation.LEND, Operation.SHARE, Operation.SEND)
    for tag, (way, pages) in enumerate(zip(ways, (1, 2, 3, 0), strict=True)):
        own = a.alloc(pages) if pages else []
        assert a.do(way, b, *own, tag=tag) is Status.OK
        assert b.reply(b.seen, 1000 + tag) is Status.OK
        b.inbox()
        reply = a.one()
        returned = way in (Operation.LEND, Operation.SHARE)
        assert reply.operation == (Operation.RETURN if returned else Operation.SEND)
        assert (reply.tag, bytes(reply.payload[:8])) == (tag, (1000 + tag).to_bytes(8, "little"))
        assert sum(extent.pages for extent in spans_of(reply)) == pages
        assert not returned or spans_of(reply) == own


def refuse_to_show(patch: pytest.MonkeyPatch, kind: type[Window], window: Window) -> None:
    """Have the host refuse to show anything in one window, if it is of this kind."""
    show = kind.show

    def refuse(self: Window, *what: Any, **how: Any) -> None:
        if self is window:
            raise OSError(errno.ENOMEM, "no")
        show(self, *what, **how)

    patch.setattr(kind, "show", refuse)
    for own in (kind, RemapWindow):  # by which it would be shown without a call of `show`
        patch.setattr(own, "pass_on", Window.pass_on)


def test_what_the_host_cannot_map_goes_back(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, _ = stage.puppets

    pages = a.alloc(*[1] * 4)
    a.write(a.base, 1, 4)
    for kind in (MappedWindow, SlotsWindow):
        refuse_to_show(monkeypatch, kind, b.machine.peer.window)
    for tag, (operation, page) in enumerate(zip(GIVING, pages, strict=True)):
        assert a.do(operation, b, page, tag=tag) is Status.OK
    assert b.inbox() == []
    monkeypatch.undo()
    back = a.inbox()
    assert {(m.operation, m.status) for m in back} == {(Operation.UNDELIVERED, Status.E_NO_MEMORY)}
    assert [(m.tag, m.sender, m.receiver) for m in back] == [
        (tag, a.number, b.number) for tag in range(4)
    ]
    places = [spans_of(message)[0] for message in back]
    assert places[:3] == pages[:3]
    assert a.read(a.base, 5) == [1, 2, 3, 0, 4]  # what was exchanged is in another place
    assert (a.query(places[0]).hold, b.held()) == (Hold.OWNED, ())


# ---- EXCHANGE, ALLOC, RELEASE ----


def test_an_exchange_leaves_zeroed_pages_in_the_same_places_at_once(stage: Stage) -> None:
    a, b, _ = stage.puppets
    (own,) = a.alloc(4)
    a.write(own.gpa, 5, 4)
    parts = [Span(own.gpa + 8192, 1), Span(own.gpa, 2)]
    b.idle()
    assert a.exchange(b, *parts, tag=3) is Status.OK
    assert a.read(own.gpa, 4) == [0, 0, 0, 8]
    a.write(own.gpa, 70, 3)
    b.awake()
    message = b.one()
    assert (message.operation, message.tag) == (Operation.SEND, 3)
    assert [b.read(*extent) for extent in spans_of(message)] == [[7], [5, 6]]
    assert a.read(own.gpa, 4) == [70, 71, 72, 8]


def test_pages_of_the_pool_are_zeroed_whoever_had_them_before(stage: Stage) -> None:
    a, b, _ = stage.puppets
    own, more = a.alloc(3, 2)
    assert a.read(own.gpa, 3) + a.read(more.gpa, 2) == [0] * 5
    a.write(own.gpa, 1, 3)
    a.write(more.gpa, 1, 2)
    had = frames(a)
    assert a.release(more, Span(own.gpa, 3)) is Status.OK
    (again,) = b.alloc(5)
    assert frames(b) == had
    assert b.read(again.gpa, 5) == [0] * 5


# ---- QUERY ----


def told(answers: list[abi.Descriptor]) -> list[tuple[Hold, int, int, list[int]]]:
    """Return what QUERYs have answered: the hold, for how many pages, the owner, the borrowers."""
    found = []
    for answer in answers:
        assert answer.status == Status.OK
        about = abi.Answer.from_buffer_copy(bytes(answer.payload))
        borrowers = about.borrowers[: about.borrower_count]
        found.append((Hold(about.hold), about.pages, about.owner, list(borrowers)))
    return found


def asked(puppet: Puppet, *spans: tuple[int, int]) -> list[abi.Descriptor]:
    return [descriptor(Operation.QUERY, 0, (puppet.page(page), pages)) for page, pages in spans]


def test_a_query_tells_what_a_page_is_to_whom(one: Stage) -> None:
    a, b, c = one.puppets
    a.alloc(9)
    free = one.monitor.audit()["free"]
    a.share(b, (a.page(2), 2))
    a.share(c, (a.page(3), 1), writable=False)
    a.lend(b, (a.page(4), 2))
    a.lend(b, (a.page(6), 1))
    a.reclaim((a.page(6), 1))
    own, nobody = (a.number, []), (abi.NO_PEER, [])
    assert told(c.ask(*asked(c, (0, 2), (1, 5)))) == [
        (Hold.VIEWED, 1, a.number, [c.number]),
        (Hold.NONE, 5, *nobody),
    ]
    c.idle()
    a.send(c, (a.page(7), 1))
    assert told(a.ask(*asked(a, *((page, 10 - page) for page in range(10))))) == [
        (Hold.OWNED, 2, *own),
        (Hold.OWNED, 1, *own),
        (Hold.SHARED, 1, a.number, [b.number]),
        (Hold.SHARED, 1, a.number, [b.number, c.number]),
        (Hold.LENT, 2, a.number, [b.number]),
        (Hold.LENT, 1, a.number, [b.number]),
        (Hold.OWNED, 1, *own),
        (Hold.SENT, 1, a.number, [c.number]),
        (Hold.OWNED, 1, *own),
        (Hold.NONE, 1, *nobody),
    ]
    assert told(b.ask(*asked(b, (0, 9), (2, 1), (4, 1), (5, 4)))) == [
        (Hold.BORROWED, 1, a.number, [b.number]),
        (Hold.BORROWED, 1, a.number, [b.number]),
        (Hold.REVOKED, 1, *nobody),
        (Hold.NONE, 4, *nobody),
    ]
    limits = a.query()
    assert (limits.hold, limits.pages, limits.owner) == (Hold.NONE, 0, abi.NO_PEER)
    assert (limits.pages_held, limits.pages_quota, limits.pieces_held) == (9, 512, 6)
    assert limits.pool_free == free
    c.awake()
    assert a.query().pages_held == 8
    coming = b.ask_before(one.monitor.host.alloc(8192), *asked(b, (5, 3)))
    assert told(coming) == [(Hold.INCOMING, 2, *nobody)]
