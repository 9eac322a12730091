"""The host endpoint: the operations for Python, and what may be done with a buffer meanwhile."""

from __future__ import annotations

import io

import pytest
from kvm.puppets import Puppet, Span, Stage, spans_of

from vmm.endpoint import Buffer, HostEndpoint, Received
from vmm.errors import AccessError, ClosedError, GuestError
from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, Hold, Operation, Status

LENT = "it is lent: wait until it comes back, or reclaim it"
VIEWED = "it is borrowed to be read only"
REVOKED = "its owner has taken it back: release it"


@pytest.fixture
def stage(one: Stage) -> Stage:
    return one


def receive(host: HostEndpoint) -> Received:
    received = host.receive()
    assert received is not None
    return received


def out_of_reach(buffer: Buffer, why: str) -> None:
    for use in (buffer.read, lambda: buffer.write(b"x"), buffer.frame_number):
        with pytest.raises(AccessError, match=why):
            use()


def of_puppet(puppet: Puppet, operation: Operation, pages: int = 1, **fields: int) -> Buffer:
    """Let a puppet send, lend or share pages to the host; return them there."""
    (own,) = puppet.alloc(pages)
    puppet.write(own.gpa, 0x41, pages)
    length = pages * PAGE_SIZE
    status = puppet.do(operation, abi.PEER_HOST, own, tag=9, length=length, **fields)
    assert status is Status.OK
    (buffer,) = receive(puppet.monitor.host).buffers
    return buffer


def test_what_is_lent_comes_back_as_the_very_buffer(stage: Stage) -> None:
    a, host = stage.puppets[0], stage.monitor.host
    buffer = host.alloc(5000)
    buffer.write(b"lent")
    number = host.lend(a.machine, buffer, tag=4, payload=b"p")
    assert buffer.hold is Hold.LENT
    out_of_reach(buffer, LENT)
    message = a.one()
    assert (message.message, message.tag, message.length) == (number, 4, 5000)
    (loan,) = spans_of(message)
    a.write(loan.gpa, 0x42)
    assert a.give_back(abi.PEER_HOST, loan, tag=5, length=5000) is Status.OK
    assert buffer.hold is Hold.OWNED
    back = receive(host)
    assert (back.operation, back.sender, back.tag) == (Operation.RETURN, a.number, 5)
    assert back.buffers == (buffer,)
    assert (buffer.size, buffer.read(0, 2)) == (5000, b"B\0")
    host.release(buffer)


def test_buffers_that_come_back_together_are_the_ones_that_went(stage: Stage) -> None:
    """Adjacent as they are, they come back as one extent; and one of them in parts."""
    a, host = stage.puppets[0], stage.monitor.host
    first, second, third = host.alloc(100), host.alloc(2 * PAGE_SIZE), host.alloc(PAGE_SIZE)
    assert first.extent.end == second.extent.page
    host.lend(a.machine, first, second)
    host.share(a.machine, third)
    loans, shared = (spans_of(message) for message in a.inbox())
    assert a.give_back(abi.PEER_HOST, *loans, *shared, length=4 * PAGE_SIZE) is Status.OK
    assert receive(host).buffers == (first, second, third)
    host.lend(a.machine, second)
    (loan,) = spans_of(a.one())
    for page in (1, 0):
        assert a.give_back(abi.PEER_HOST, Span(loan.gpa + page * PAGE_SIZE, 1)) is Status.OK
    assert [receive(host).buffers, receive(host).buffers] == [(second,), (second,)]
    for buffer in (first, second, third):
        host.release(buffer)


def test_what_is_shared_stays_in_reach(stage: Stage) -> None:
    a, b, _ = stage.puppets
    host = stage.monitor.host
    buffer = host.alloc(PAGE_SIZE)
    host.share(a.machine, buffer, tag=1)  # read-only, unless it is said otherwise
    host.share(b.machine, buffer, writable=True)
    (at_a,), (at_b,) = (spans_of(puppet.one()) for puppet in (a, b))
    assert (buffer.hold, a.holds(at_a.gpa), b.holds(at_b.gpa)) == (
        Hold.SHARED,
        Hold.VIEWED,
        Hold.BORROWED,
    )
    buffer.write(b"A")
    assert a.read(at_a.gpa) == b.read(at_b.gpa) == [0x41]
    with pytest.raises(GuestError, match="cannot send to a: E_LENT"):
        host.send(a.machine, buffer)
    with pytest.raises(GuestError, match="cannot share with a: E_REPEATED"):
        host.share(a.machine, buffer)
    for puppet, place in ((a, at_a), (b, at_b)):
        assert puppet.give_back(abi.PEER_HOST, place) is Status.OK
        assert receive(host).buffers == (buffer,)
    assert buffer.hold is Hold.OWNED
    host.release(buffer)


def test_a_buffer_that_is_reclaimed_is_at_hand_again(stage: Stage) -> None:
    a, b, _ = stage.puppets
    host = stage.monitor.host
    lent, shared = host.alloc(PAGE_SIZE), host.alloc(PAGE_SIZE)
    host.lend(a.machine, lent)
    for puppet in (a, b):
        host.share(puppet.machine, shared)
    places = [spans_of(message)[0] for message in a.inbox()]
    with pytest.raises(GuestError, match="cannot release it: E_LENT"):
        host.release(lent)
    # One has returned it, which the host has not seen yet; the other has not.
    assert a.give_back(abi.PEER_HOST, places[1]) is Status.OK
    host.reclaim(lent, shared)
    assert {lent.hold, shared.hold} == {Hold.OWNED}
    assert (lent.read(), shared.read()) == (bytes(PAGE_SIZE), bytes(PAGE_SIZE))
    assert receive(host).buffers == (shared,)
    with pytest.raises(GuestError, match="cannot reclaim it: E_NOT_LENT"):
        host.reclaim(lent)
    assert a.give_back(abi.PEER_HOST, places[0]) is Status.E_RECLAIMED
    host.release(lent)
    host.release(shared)


def test_what_the_host_has_given_up_does_not_come_back_as_a_buffer(stage: Stage) -> None:
    """The message is of before: the place may be another buffer's by now."""
    a, host = stage.puppets[0], stage.monitor.host
    buffer = host.alloc(PAGE_SIZE)
    host.lend(a.machine, buffer)
    assert a.give_back(abi.PEER_HOST, *spans_of(a.one()), tag=1) is Status.OK
    host.release(buffer)
    other = host.alloc(PAGE_SIZE)
    back = receive(host)
    assert (back.operation, back.tag, back.buffers) == (Operation.RETURN, 1, ())
    host.release(other)


def test_an_exchanged_buffer_is_zeroed_and_the_hosts_at_once(stage: Stage) -> None:
    a, host = stage.puppets[0], stage.monitor.host
    buffer = host.alloc(PAGE_SIZE)
    buffer.write(b"A")
    host.exchange(a.machine, buffer, tag=6)
    assert (buffer.hold, buffer.read()) == (Hold.OWNED, bytes(PAGE_SIZE))
    buffer.write(b"B")
    message = a.one()
    assert message.operation == Operation.SEND
    assert a.read(spans_of(message)[0].gpa) == [0x41]
    host.release(buffer)


@pytest.mark.parametrize("operation", [Operation.LEND, Operation.SHARE])
def test_what_the_host_borrows_it_can_read_or_write_and_give_back(
    stage: Stage, operation: Operation
) -> None:
    a, host = stage.puppets[0], stage.monitor.host
    buffer = of_puppet(a, operation, 2)
    assert (buffer.hold, buffer.read(0, 1)) == (Hold.BORROWED, b"A")
    buffer.write(b"H")
    for ask in (lambda: host.send(a.machine, buffer), lambda: host.release(buffer)):
        with pytest.raises(GuestError, match="E_BORROWED"):
            ask()
    host.give_back(buffer, tag=7, payload=b"thanks")
    with pytest.raises(ClosedError):
        buffer.read()
    message = a.one()
    assert (message.operation, message.tag) == (Operation.RETURN, 7)
    assert bytes(message.payload[:6]) == b"thanks"
    assert a.read(spans_of(message)[0].gpa, 2) == [0x48, 0x42]


def test_what_the_host_may_only_read_it_cannot_write(stage: Stage) -> None:
    a, host = stage.puppets[0], stage.monitor.host
    buffer = of_puppet(a, Operation.SHARE, flags=abi.Flags.READONLY)
    assert (buffer.hold, buffer.read(0, 1)) == (Hold.VIEWED, b"A")
    with pytest.raises(AccessError, match=VIEWED):
        buffer.write(b"H")
    with io.BytesIO(b"x") as file, pytest.raises(AccessError, match=VIEWED):
        buffer.fill(file, 0)
    host.give_back(buffer)


def test_what_is_taken_back_from_the_host_is_out_of_its_reach(stage: Stage) -> None:
    a, host = stage.puppets[0], stage.monitor.host
    buffer = of_puppet(a, Operation.LEND)
    assert a.reclaim((a.base, 1)) is Status.OK
    assert buffer.hold is Hold.REVOKED
    out_of_reach(buffer, REVOKED)
    with pytest.raises(GuestError, match="cannot give it back: E_RECLAIMED"):
        host.give_back(buffer)
    other = host.alloc(PAGE_SIZE)
    assert other.address != buffer.address
    host.release(buffer)
    with pytest.raises(ClosedError):
        buffer.read()
    host.release(other)


def test_what_was_never_the_hosts_is_not_to_be_used(stage: Stage) -> None:
    a, b, _ = stage.puppets
    host = stage.monitor.host
    sent, kept = host.alloc(PAGE_SIZE), host.alloc(PAGE_SIZE)
    host.send(a.machine, sent)
    with pytest.raises(ClosedError, match="no longer the host's"):
        host.send(b.machine, kept, sent)
    with pytest.raises(GuestError, match="cannot give it back: E_NOT_LENT"):
        host.give_back(kept)
    one, other = of_puppet(a, Operation.LEND), of_puppet(b, Operation.LEND)
    with pytest.raises(GuestError, match="cannot give it back: E_NOT_LENT"):
        host.give_back(one, other)
    assert {kept.hold, one.hold, other.hold} == {Hold.OWNED, Hold.BORROWED}
    host.give_back(one)
    host.give_back(other)
    host.release(kept)
