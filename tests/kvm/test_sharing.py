"""Sharing: one page that several see, as far as its owner allows."""

from __future__ import annotations

import pytest
from kvm.puppets import Span, Stage, descriptor, spans_of

from vmm import Monitor
from vmm.guest import abi
from vmm.guest.abi import Flags, Hold, Operation, Status


def test_all_see_at_once_what_one_of_them_writes(stage: Stage) -> None:
    a, b, c = stage.puppets
    (own,) = a.alloc(2)
    a.write(own.gpa, 1, 2)
    assert a.share(b, own, tag=5) is Status.OK
    assert a.share(c, own, writable=False, tag=6) is Status.OK
    messages = b.one(), c.one()
    assert [(m.operation, m.tag) for m in messages] == [(Operation.SHARE, 5), (Operation.SHARE, 6)]
    assert [m.flags for m in messages] == [0, Flags.READONLY]
    seen, viewed = (spans_of(message)[0] for message in messages)
    assert b.read(seen.gpa, 2) == c.read(viewed.gpa, 2) == [1, 2]
    a.write(own.gpa, 10, 2)
    assert b.read(seen.gpa, 2) == c.read(viewed.gpa, 2) == [10, 11]
    b.write(seen.gpa, 20)
    assert a.read(own.gpa, 2) == c.read(viewed.gpa, 2) == [20, 11]
    holds = [a.holds(own.gpa), b.holds(seen.gpa), c.holds(viewed.gpa)]
    assert holds == [Hold.SHARED, Hold.BORROWED, Hold.VIEWED]


def test_a_page_is_shared_until_the_last_borrower_has_returned_it(stage: Stage) -> None:
    a, b, c = stage.puppets
    (own,) = a.alloc(3)
    a.share(b, Span(own.gpa, 2))
    a.share(c, Span(own.gpa + 4096, 2), writable=False)
    (at_b,), (at_c,) = (spans_of(puppet.one()) for puppet in (b, c))
    assert b.give_back(a, at_b, payload=b"done") is Status.OK
    back = a.one()
    assert (back.operation, back.sender) == (Operation.RETURN, b.number)
    assert spans_of(back) == [(own.gpa, 2)]
    assert (a.holds(own.gpa), a.holds(own.gpa + 4096)) == (Hold.OWNED, Hold.SHARED)
    a.write(own.gpa, 30, 3)
    assert c.read(at_c.gpa, 2) == [31, 32]
    assert a.share(b, own, writable=False) is Status.OK  # again, and less than before
    (at_b,) = spans_of(b.one())
    assert (b.holds(at_b.gpa), b.read(at_b.gpa, 3)) == (Hold.VIEWED, [30, 31, 32])
    assert c.give_back(a, at_c) is Status.OK
    assert b.give_back(a, at_b) is Status.OK
    assert [spans_of(message) for message in a.inbox()] == [[(own.gpa + 4096, 2)], [own]]
    assert (a.query(own).hold, a.query(own).pages) == (Hold.OWNED, 3)


def test_what_is_shared_is_reclaimed_from_all_and_can_be_shared_anew(stage: Stage) -> None:
    a, b, c = stage.puppets
    (own,) = a.alloc(2)
    a.ask(*(descriptor(Operation.SHARE, puppet.number, own) for puppet in (b, c)))
    places = [spans_of(puppet.one())[0] for puppet in (b, c)]
    before = [puppet.control().reclaim_notices for puppet in (b, c)]
    assert a.reclaim(Span(own.gpa, 1)) is Status.OK  # a part of it
    assert [puppet.control().reclaim_notices for puppet in (b, c)] == [n + 1 for n in before]
    for puppet, place in zip((b, c), places, strict=True):
        assert puppet.holds(place.gpa) is Hold.REVOKED
        assert puppet.holds(place.gpa + 4096) is Hold.BORROWED
    assert a.lend(b, Span(own.gpa, 1), writable=False) is Status.OK
    message = b.one()
    (loan,) = spans_of(message)
    assert (message.operation, message.flags) == (Operation.LEND, Flags.READONLY)
    assert (a.holds(own.gpa), b.holds(loan.gpa)) == (Hold.LENT, Hold.VIEWED)


def test_sharing_reaches_into_the_host_and_out_of_it(stage: Stage) -> None:
    a, b, _ = stage.puppets
    host = stage.monitor.host
    (own,) = a.alloc(1)
    a.write(own.gpa, 0x41)
    assert a.do(Operation.SHARE, abi.PEER_HOST, own, tag=9, length=4096) is Status.OK
    received = host.receive()
    assert received is not None
    assert (received.operation, received.sender) == (Operation.SHARE, a.number)
    (buffer,) = received.buffers
    buffer.write(b"C", 1)
    assert (buffer.read(0, 2), a.read(own.gpa)) == (b"AC", [0x4341])
    host.give_back(buffer)
    assert a.one().operation == Operation.RETURN
    buffer = host.alloc(4096)
    host.share(a.machine, buffer, writable=True)
    host.share(b.machine, buffer)
    (at_a,), (at_b,) = (spans_of(puppet.one()) for puppet in (a, b))
    a.write(at_a.gpa, 0x42)
    assert (b.read(at_b.gpa), buffer.read(0, 2)) == ([0x42], b"B\0")
    assert (a.holds(at_a.gpa), b.holds(at_b.gpa)) == (Hold.BORROWED, Hold.VIEWED)
    host.reclaim(buffer)
    host.release(buffer)


@pytest.mark.parametrize("lend", [False, True], ids=["shared", "lent"])
def test_what_is_only_to_be_read_is_read_only_to_the_processor(
    monitor: Monitor, lend: bool
) -> None:
    a, b, c = Stage(monitor, "abc").puppets
    (own,) = a.alloc(3)
    a.write(own.gpa, 1, 3)
    middle = Span(own.gpa + 4096, 1)
    (a.lend if lend else a.share)(b, middle, writable=False)
    if not lend:
        a.share(c, own)
    (view,) = spans_of(b.one())
    assert b.read(view.gpa) == [2]
    b.touch(view.gpa, "write")
    assert "a page that it may only read" in str(b.machine.fault)
    assert a.read(own.gpa, 3) == [1, 2, 3]
    back = a.one()
    assert (back.operation, back.status, spans_of(back)) == (
        Operation.RETURN,
        Status.E_DEAD,
        [middle],
    )
    if not lend:
        c.write(spans_of(c.one())[0].gpa, 7, 3)  # as the other may
        assert a.read(own.gpa, 3) == [7, 8, 9]
