"""Deaths: everyone gets what is theirs, whatever the dead machine was, and however it died.

The victim, v, has each of the roles at once: it owns, it has lent and shared, it borrows, messages
of its are in flight, and it has not taken others.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from kvm.puppets import DONE, EXIT, READ, SPIN, WRITE, Stage, descriptor, spans_of

from vmm import Monitor
from vmm.endpoint import Received
from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, Hold, Operation, PeerFlags, Status

O, S = Operation, Status  # noqa: E741


class Doom:
    """What is there when v is to die: everything below is a page, with its name's bytes in it.

    own                         v's, and nobody else's
    lent, shared                to b; the latter to c too, read-only
    given                       lent to the host
    flying, flying_loan         sent, and lent, to d, which has not got them
    loan, view, hosts           b's, c's and the host's, which v borrows
    untaken, untaken_loan       b's and c's, in v's receive ring
    late, late_loan, exchanged  b's and c's, in v's queue; so is the host's `late_host`
    """

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self.stage = Stage(monitor, "vbcd", queue=128)
        self.v, self.b, self.c, self.d = self.stage.puppets
        self.before = monitor.audit()
        self._part_with_pages()
        self._borrow()
        self.d.idle()
        assert self.v.send(self.d, self.flying, tag=1) is S.OK
        assert self.v.lend(self.d, self.flying_loan, tag=2) is S.OK
        self.secret = {run.frame + i for run in self.v.held() for i in range(run.pages)}
        self.notices = [p.control().peer_notices for p in (self.b, self.c, self.d)]

    def _part_with_pages(self) -> None:
        v = self.v
        self.own, self.lent, self.shared, self.flying, self.flying_loan, given = v.alloc(*[1] * 6)
        v.write(v.base, 0x5EC0, 6)
        assert v.lend(self.b, self.lent) is S.OK
        assert v.share(self.b, self.shared) is S.OK
        assert v.share(self.c, self.shared, writable=False) is S.OK
        assert v.do(O.LEND, abi.PEER_HOST, given, tag=3, length=PAGE_SIZE) is S.OK
        (self.given,) = received(self.monitor)[0].buffers
        (self.at_b,), (self.shared_b,) = (spans_of(message) for message in self.b.inbox())
        (self.shared_c,) = spans_of(self.c.one())

    def _borrow(self) -> None:
        b, c, v, host = self.b, self.c, self.v, self.monitor.host
        self.loan, self.untaken, self.late, self.exchanged = b.alloc(1, 1, 1, 1)
        self.view, self.untaken_loan, self.late_loan = c.alloc(1, 1, 1)
        b.write(self.loan.gpa, 0xB0, 4)
        c.write(self.view.gpa, 0xC0, 3)
        self.hosts, self.late_host = host.alloc(PAGE_SIZE), host.alloc(PAGE_SIZE)
        assert b.lend(v, self.loan) is S.OK
        assert c.share(v, self.view, writable=False) is S.OK
        host.lend(v.machine, self.hosts)
        loans = [spans_of(message)[0] for message in v.inbox()]
        v.write(loans[0].gpa, 0x77)
        v.write(loans[2].gpa, 0x78)

    def draw_near(self, order: int, address: int = 0) -> None:
        """Fill v's receive ring and queue; the first that it takes is this order."""
        v, b, c = self.v, self.b, self.c
        v.idle()
        v.send_order(order, 1, address)
        assert b.send(v, self.untaken, tag=10) is S.OK
        assert c.lend(v, self.untaken_loan, tag=20) is S.OK
        last = (
            descriptor(O.SEND, v.number, self.late, tag=12),
            descriptor(O.EXCHANGE, v.number, self.exchanged, tag=13),
        )
        fillers = (descriptor(O.SEND, v.number, tag=11) for _ in range(abi.RX_ENTRIES - 3))
        assert {answer.status for answer in b.ask(*fillers)} == {S.OK}
        assert {answer.status for answer in b.ask(*last)} == {S.OK}
        assert c.share(v, self.late_loan, tag=21) is S.OK
        self.monitor.host.lend(v.machine, self.late_host, tag=30)
        self.monitor.notice(v.machine, 1)


def received(monitor: Monitor) -> list[Received]:
    """Return what there is for the host, but for what puppets say of themselves."""
    got = iter(monitor.host.receive, None)
    return [message for message in got if message.tag != DONE]


# ---- Ways to die ----


def leave(doom: Doom) -> None:
    doom.draw_near(EXIT)
    doom.monitor.run(60)
    assert (doom.v.machine.exit_code, doom.v.machine.fault) == (0, None)


def fault(doom: Doom) -> None:
    doom.draw_near(READ, doom.v.page(500))
    doom.monitor.run(60)
    doom.v.was_stopped(doom.v.page(500), "read")


def be_killed(doom: Doom) -> None:
    doom.draw_near(SPIN)
    timer = threading.Timer(0.03, doom.monitor.kill, (doom.v.machine, "no reason"))
    timer.start()
    doom.monitor.run(60)
    timer.join()
    assert "no reason" in str(doom.v.machine.fault)


@pytest.mark.parametrize(
    ("die", "mover"), [(leave, "slots"), (fault, "memfd"), (be_killed, "slots")]
)
def test_all_get_what_is_theirs_from_a_dead_machine(
    monitor: Monitor, die: Callable[[Doom], None]
) -> None:
    doom = Doom(monitor)
    die(doom)
    b, c, v = doom.b, doom.c, doom.v
    assert monitor.audit()["orphaned"] == 4
    # Messages that it had not taken, and what it borrowed, are back, in this order.
    back = b.inbox()
    filled = [11] * (abi.RX_ENTRIES - 3)
    assert [message.tag for message in back] == [10, *filled, 12, 13, 0]
    assert {message.operation for message in back[:-1]} == {O.UNDELIVERED}
    assert {message.status for message in back} == {S.E_DEAD}
    again, late, exchanged, loan = (spans_of(back[index])[0] for index in (0, -3, -2, -1))
    assert (back[-1].operation, back[-1].sender) == (O.RETURN, v.number)
    assert (late, loan) == (doom.late, doom.loan)
    assert exchanged != doom.exchanged
    words = [b.read(gpa)[0] for gpa, _ in (again, late, exchanged, loan, doom.exchanged)]
    assert words == [0xB1, 0xB2, 0xB3, 0x77, 0]
    back = c.inbox()
    assert [(message.operation, message.tag) for message in back] == [
        (O.UNDELIVERED, 20),
        (O.UNDELIVERED, 21),
        (O.RETURN, 0),
    ]
    assert [spans_of(m) for m in back] == [[doom.untaken_loan], [doom.late_loan], [doom.view]]
    assert c.read(doom.view.gpa, 3) == [0xC0, 0xC1, 0xC2]
    assert {run.hold for run in c.held()} == {Hold.OWNED, Hold.VIEWED}
    assert c.reclaim(doom.view) is S.E_NOT_LENT
    the_host_has_its_own(doom)
    # They can see it.
    assert [p.control().peer_notices for p in (b, c, doom.d)] == [n + 1 for n in doom.notices]
    assert {p.peer_flags(v) for p in (b, c, doom.d)} == {PeerFlags.SEND}
    assert [b.send(v), b.send(v, loan)] == [S.E_DEAD] * 2
    borrowers_keep_what_it_had_lent(doom, die is be_killed)
    nothing_of_it_is_left(doom)


def the_host_has_its_own(doom: Doom) -> None:
    """The very buffers that it had lent, and what it borrows."""
    back = received(doom.monitor)
    assert [(m.operation, m.status, m.sender) for m in back] == [
        (O.UNDELIVERED, S.E_DEAD, abi.PEER_HOST),
        (O.RETURN, S.E_DEAD, doom.v.number),
    ]
    assert [m.buffers for m in back] == [(doom.late_host,), (doom.hosts,)]
    assert doom.hosts.read(0, 1) == b"\x78"
    assert doom.given.read(0, 2) == (0x5EC5).to_bytes(2, "little")
    for buffer in (doom.late_host, doom.hosts):
        doom.monitor.host.release(buffer)
    doom.monitor.host.give_back(doom.given)


def borrowers_keep_what_it_had_lent(doom: Doom, they_die: bool) -> None:
    """Until they let go of it, by returning it or by dying as well."""
    b, c, d = doom.b, doom.c, doom.d
    assert b.query(doom.at_b).owner == doom.v.number
    b.write(doom.at_b.gpa, 1)
    b.write(doom.shared_b.gpa, 2)
    assert c.read(doom.shared_c.gpa) == [2]
    assert b.send(c, doom.at_b) is S.E_BORROWED
    assert b.give_back(doom.v, doom.shared_b) is S.OK
    assert (c.read(doom.shared_c.gpa), doom.monitor.audit()["orphaned"]) == ([2], 3)
    if they_die:
        for puppet in (b, c, d):
            doom.monitor.kill(puppet.machine)
        return
    assert b.give_back(doom.v, doom.at_b, payload=b"for nobody") is S.OK
    assert c.give_back(doom.v, doom.shared_c) is S.OK
    messages = d.inbox()  # that it has taken when the notice of the death woke it
    assert [(m.operation, m.sender, m.tag) for m in messages] == [
        (O.SEND, doom.v.number, 1),
        (O.LEND, doom.v.number, 2),
    ]
    (sent,), (loan,) = (spans_of(message) for message in messages)
    assert [d.holds(sent.gpa), d.holds(loan.gpa)] == [Hold.OWNED, Hold.BORROWED]
    assert d.read(sent.gpa, 2) == [0x5EC3, 0x5EC4]
    assert d.give_back(doom.v, loan) is S.OK
    doom.stage.clear()


def nothing_of_it_is_left(doom: Doom) -> None:
    """The pool has every page again, and zeroed."""
    assert doom.monitor.audit() == doom.before
    rest = doom.monitor.host.alloc(32 * PAGE_SIZE)
    runs = doom.monitor._exchange.ledger.runs(abi.PEER_HOST, rest.extent)
    assert doom.secret <= {run.frame + i for run in runs for i in range(run.pages)}
    assert rest.read() == bytes(rest.size)


@pytest.mark.parametrize("mover", ["memfd"])
def test_at_a_time_out_all_machines_die_and_the_host_has_its_own(monitor: Monitor) -> None:
    doom = Doom(monitor)
    doom.draw_near(SPIN)
    monitor.run(0.05)
    assert {puppet.machine.fault.kind for puppet in doom.stage.puppets} == {"timeout"}
    the_host_has_its_own(doom)
    nothing_of_it_is_left(doom)


@pytest.mark.parametrize(("first", "mover"), [("v", "memfd"), ("d", "slots")])
def test_what_nobody_is_left_to_have_is_free(monitor: Monitor, first: str) -> None:
    """Of a sender and a receiver that die one after the other, with no step in between."""
    stage = Stage(monitor, "vd")
    v, d = stage.puppets
    before = monitor.audit()
    pages = v.alloc(*[1] * 4)
    v.write(v.base, 1, 4)
    d.idle()
    for operation, page in zip((O.SEND, O.LEND, O.SHARE, O.EXCHANGE), pages, strict=True):
        assert v.do(operation, d, page) is S.OK
    for puppet in sorted(stage.puppets, key=lambda puppet: puppet.name != first):
        monitor.kill(puppet.machine)
        monitor.audit()
    assert monitor.audit() == before
    assert monitor.host.alloc(8 * PAGE_SIZE).read() == bytes(8 * PAGE_SIZE)


@pytest.mark.parametrize("mover", ["memfd"])
def test_what_a_ring_that_makes_no_sense_keeps_from_its_machine_goes_back(monitor: Monitor) -> None:
    v, b = Stage(monitor, "vb").puppets
    (own,) = b.alloc(1)
    v.machine.peer.idle = False  # the ring of one that is, is known to be empty, and not looked at
    v.machine.guest.memory.write(abi.CONTROL_GPA + abi.Control.rx_tail.offset, b"\x40\0\0\x80")
    assert b.send(v, own) is S.OK
    assert v.machine.fault is not None
    assert v.machine.fault.kind == "panic"  # over PF_E_RING
    message = b.one()
    assert (message.operation, message.status) == (O.UNDELIVERED, S.E_DEAD)
    assert spans_of(message) == [own]


@pytest.mark.parametrize("mover", ["memfd"])
def test_other_pages_in_the_place_of_a_message_that_was_not_taken_go_to_nobody(
    monitor: Monitor,
) -> None:
    """A machine may use a message's pages before it moves rx_tail past it, and part with them."""
    v, b = Stage(monitor, "vb", queue=128).puppets
    (page,) = b.alloc(1)
    v.idle()
    v.start(descriptor(O.RELEASE, 0, (v.base, 1)), descriptor(O.ALLOC, 0, (0, 1)))
    v.send_order(WRITE, 1, v.base, 0x5EC0)
    v.send_order(EXIT)
    assert b.send(v, page) is S.OK
    monitor.notice(v.machine, 1)
    monitor.run(60)
    assert v.machine.exit_code == 0
    message = b.one()
    assert (message.operation, message.status) == (O.UNDELIVERED, S.E_DEAD)
    assert (spans_of(message), b.held()) == ([], ())
