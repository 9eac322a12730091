"""Loans: what is lent is the borrower's, until it returns it or the owner takes it back."""

from __future__ import annotations

import threading

from kvm.puppets import SPIN, Puppet, Span, Stage, descriptor, spans_of

from vmm import Monitor
from vmm.guest import abi
from vmm.guest.abi import Hold, Operation, Status


def test_what_is_lent_is_the_borrowers_until_it_is_returned(stage: Stage) -> None:
    a, b, _ = stage.puppets
    (own,) = a.alloc(3)
    a.write(own.gpa, 1, 3)
    assert a.lend(b, own, tag=1, length=12288) is Status.OK
    message = b.one()
    (loan,) = spans_of(message)
    assert (message.operation, message.flags, message.tag) == (Operation.LEND, 0, 1)
    assert (a.holds(own.gpa), b.holds(loan.gpa)) == (Hold.LENT, Hold.BORROWED)
    b.write(loan.gpa, 50, 3)
    # In parts, the last one first.
    assert b.give_back(a, Span(loan.gpa + 8192, 1), tag=2, payload=b"last") is Status.OK
    back = a.one()
    assert (back.operation, back.status, back.sender) == (Operation.RETURN, Status.OK, b.number)
    assert (back.tag, bytes(back.payload[: back.payload_length])) == (2, b"last")
    assert spans_of(back) == [Span(own.gpa + 8192, 1)]
    assert [a.query(own).pages, a.read(own.gpa + 8192)] == [2, [52]]
    assert b.give_back(a, Span(loan.gpa, 2)) is Status.OK
    assert spans_of(a.one()) == [Span(own.gpa, 2)]
    assert a.read(own.gpa, 3) == [50, 51, 52]
    assert (a.holds(own.gpa), b.holds(loan.gpa)) == (Hold.OWNED, Hold.NONE)


def test_what_is_reclaimed_leaves_an_empty_place_until_the_borrower_lets_go(stage: Stage) -> None:
    a, b, c = stage.puppets
    (own,) = a.alloc(2)
    a.lend(b, own)
    (loan,) = spans_of(b.one())
    b.write(loan.gpa, 8, 2)
    before = b.control().reclaim_notices
    assert a.reclaim(own) is Status.OK
    assert b.control().reclaim_notices == before + 1
    assert (a.holds(own.gpa), a.read(own.gpa, 2)) == (Hold.OWNED, [8, 9])
    about = b.query(loan)
    assert (about.hold, about.pages, about.owner) == (Hold.REVOKED, 2, abi.NO_PEER)
    assert a.send(b, own) is Status.OK  # nothing lands in that place
    (other,) = spans_of(b.one())
    assert other.gpa == loan.gpa + 8192
    assert b.release(loan) is Status.OK
    assert b.holds(loan.gpa) is Hold.NONE
    (third,) = c.alloc(1)
    assert c.send(b, third) is Status.OK
    assert spans_of(b.one())[0].gpa == loan.gpa


def test_what_is_reclaimed_before_it_is_delivered_arrives_without_its_pages(stage: Stage) -> None:
    a, b, _ = stage.puppets
    own, shared = a.alloc(1, 1)
    b.idle()
    assert a.lend(b, own) is Status.OK
    assert a.share(b, shared) is Status.OK
    assert a.reclaim(own, shared) is Status.OK
    b.awake()
    places = [spans_of(message)[0] for message in b.inbox()]
    assert [b.holds(place.gpa) for place in places] == [Hold.REVOKED] * 2
    assert b.give_back(a, places[0]) is Status.E_RECLAIMED
    assert b.release(*places) is Status.OK


def test_a_reclaimed_place_is_kept_until_the_message_that_names_it_has_come(stage: Stage) -> None:
    b, host = stage.puppets[1], stage.monitor.host
    buffer = host.alloc(4096)
    b.start(descriptor(Operation.RELEASE, 0, (b.base, 1)))
    for _ in range(abi.RX_ENTRIES - 1):
        host.send(b.machine)
    host.lend(b.machine, buffer)
    host.reclaim(buffer)
    assert b.answers(1)[0].status == Status.E_OWNERSHIP
    assert spans_of(b.inbox()[-1]) == [(b.base, 1)]
    assert b.release((b.base, 1)) is Status.OK
    host.release(buffer)


# ---- Out of reach ----


def test_a_loan_can_be_returned_where_no_channel_leads_back() -> None:
    """But nothing can be said with it."""
    with Monitor(pool="64M") as monitor:
        owner, borrower = (Puppet(monitor, name) for name in ("owner", "borrower"))
        monitor.connect(owner.machine, borrower.machine, both=False)
        owner.boot()
        borrower.boot()
        (own,) = owner.alloc(1)
        assert owner.lend(borrower, own) is Status.OK
        (loan,) = spans_of(borrower.one())
        assert borrower.send(owner) is Status.E_PEER
        assert borrower.give_back(owner, loan, payload=b"p") is Status.E_PEER
        assert borrower.give_back(owner, loan) is Status.OK
        message = owner.one()
        assert (message.operation, message.sender) == (Operation.RETURN, borrower.number)
        assert (spans_of(message), owner.holds(own.gpa)) == ([own], Hold.OWNED)


def test_a_page_that_is_not_ones_to_use_is_out_of_reach_of_the_processor(monitor: Monitor) -> None:
    stage = Stage(monitor, "o")
    (o,) = stage.puppets
    lender, sender, returner, robbed, releaser = (
        stage.add(name) for name in ("lender", "sender", "returner", "robbed", "releaser")
    )
    (own,) = lender.alloc(1)
    lender.lend(o, own)
    lender.touch(own.gpa, "read")
    (own,) = sender.alloc(2)
    sender.send(o, Span(own.gpa + 4096, 1))
    sender.touch(own.gpa + 4096, "write")
    (page,) = o.alloc(1)
    o.write(page.gpa, 1)
    o.lend(returner, page)
    (loan,) = spans_of(returner.one())
    returner.give_back(o, loan)
    returner.touch(loan.gpa, "write")
    o.lend(robbed, page)
    (loan,) = spans_of(robbed.one())
    o.reclaim(page)
    robbed.touch(loan.gpa, "write")
    (own,) = releaser.alloc(1)
    releaser.release(own)
    releaser.touch(own.gpa, "read")
    assert o.read(page.gpa) == [1]
    reasons = {name: str(machine.fault) for name, machine in monitor.machines.items()}
    assert "a page that it has lent" in reasons["lender"]
    assert "a page of the window it does not own" in reasons["sender"]
    assert "and whose owner has reclaimed it" in reasons["robbed"]


def test_pages_are_reclaimed_from_borrowers_that_spin_on_them(mover: str) -> None:
    with Monitor(mover=mover, pool="64M", workers=3) as monitor:
        a, b, c = Stage(monitor, "abc").puppets
        buffer = monitor.host.alloc(4096)
        monitor.host.lend(b.machine, buffer)
        (own,) = a.alloc(1)
        a.share(c, own, writable=False)
        loans = [spans_of(puppet.one())[0] for puppet in (b, c)]
        for puppet, loan in zip((b, c), loans, strict=True):
            puppet.send_order(SPIN, address=loan.gpa)

        def reclaim() -> None:
            monitor.host.reclaim(buffer)
            a.start(descriptor(Operation.RECLAIM, 0, own))

        timer = threading.Timer(0.03, reclaim)
        timer.start()
        monitor.run(60)
        timer.join()
        b.was_stopped(loans[0].gpa, "read")
        c.was_stopped(loans[1].gpa, "read")
        assert a.answers(1)[0].status == Status.OK
        assert (a.holds(own.gpa), a.read(own.gpa), buffer.read()) == (Hold.OWNED, [0], bytes(4096))
