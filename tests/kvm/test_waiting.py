"""Waiting: for a message, for room in a queue, for a notice, or for the time to pass."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from kvm.puppets import FLOOD, ROOM, WAIT, Puppet, Stage

from vmm import Monitor, State
from vmm.guest import abi
from vmm.guest.abi import PeerFlags, Status, WaitFor

FOREVER = (1 << 32) - 1  # as an order says it
ANY = WaitFor.MESSAGE | WaitFor.ROOM | WaitFor.NOTICE
FULL = PeerFlags.ALIVE | PeerFlags.SEND
FREE = FULL | PeerFlags.ROOM


@pytest.fixture
def stage(open_monitor: Callable[..., Monitor]) -> Stage:
    """Connected are a, b, and d, whose queue takes two messages, and which idles."""
    stage = Stage(open_monitor(pool="64M"), "ab")
    stage.add("d", queue=2).idle()
    return stage


def fill(sender: Puppet, receiver: Puppet) -> None:
    """Send what the queue of one that idles takes."""
    while sender.send(receiver) is Status.OK:
        pass


def begin(puppet: Puppet, wait_for: int, peer: int = 0) -> None:
    """Let it wait, for ever if need be."""
    puppet.send_order(WAIT, FOREVER, peer, wait_for)
    puppet.monitor.run(60)
    assert puppet.machine.state is State.PARKED


def begin_for_room(puppet: Puppet, peer: int) -> None:
    """The same by pf_wait_room."""
    puppet.send_order(ROOM, FOREVER, value=peer)
    puppet.monitor.run(60)


def end(puppet: Puppet) -> Status:
    """Return how a wait that was begun has ended."""
    puppet._reply()
    return Status(puppet.desk.result)


def test_a_wait_ends_with_its_time(stage: Stage) -> None:
    a, _, d = stage.puppets
    fill(a, d)
    for wait_for in (0, WaitFor.MESSAGE, WaitFor.ROOM, WaitFor.NOTICE, ANY):
        assert a.wait(wait_for, d.number) is Status.E_TIMEOUT
    start = time.monotonic()
    assert a.wait(ANY, d.number, 20_000) is Status.E_TIMEOUT
    assert time.monotonic() - start >= 0.02


def test_what_holds_already_ends_a_wait_at_once(stage: Stage) -> None:
    a, b, d = stage.puppets
    for wait_for in (WaitFor.ROOM, WaitFor.ROOM | WaitFor.NOTICE, ANY):
        assert a.wait(wait_for, b.number) is Status.OK
    fill(b, d)
    for wait_for in (WaitFor.NOTICE, ANY):
        assert a.wait(wait_for, d.number, unseen=1) is Status.OK
    for wait_for in (0, WaitFor.MESSAGE, ANY):
        a.send_order(WAIT, FOREVER, d.number, wait_for)
        stage.monitor.host.send(a.machine)
        assert end(a) is Status.OK


def happen(stage: Stage, event: WaitFor) -> None:
    """Let one of three things come about that a may wait for."""
    a, b, d = stage.puppets
    if event is WaitFor.MESSAGE:
        assert b.send(a) is Status.OK
    elif event is WaitFor.NOTICE:
        stage.monitor.notice(a.machine, 8)
    else:
        d.awake()
    stage.monitor.run(60)


@pytest.mark.parametrize("event", list(WaitFor))
def test_what_a_machine_waits_for_wakes_it_and_nothing_else_does(
    stage: Stage, event: WaitFor
) -> None:
    a, b, d = stage.puppets
    for wait_for in (event, ANY, ANY & ~event):
        fill(b, d)
        fill(a, d)  # its own place
        begin(a, wait_for, d.number)
        happen(stage, event)
        assert a.done() == bool(wait_for & event)
        if not a.done():
            happen(stage, WaitFor.MESSAGE if wait_for & WaitFor.MESSAGE else WaitFor.NOTICE)
        assert end(a) is Status.OK
        if event is WaitFor.ROOM:
            d.idle()


def test_a_wait_that_makes_no_sense_is_refused(stage: Stage) -> None:
    a, b, d = stage.puppets
    fill(b, d)
    stranger = Puppet(stage.monitor, "stranger")
    oneway = Puppet(stage.monitor, "oneway")
    stage.monitor.connect(oneway.machine, a.machine, both=False)
    oneway.boot()
    for number in (stranger.number, a.number, 9999, abi.NO_PEER):
        assert a.wait(WaitFor.ROOM, number) is Status.E_PEER
        assert a.wait(ANY, number, unseen=1) is Status.OK  # for the notice
    assert a.wait(WaitFor.ROOM, oneway.number) is Status.OK  # no channel, but it is known
    for wait_for in (8, ANY | 8, 1 << 31, (1 << 32) - 1):
        assert a.wait(wait_for, d.number) is Status.E_BELL


def test_who_waits_for_room_at_one_that_dies_is_told(stage: Stage) -> None:
    a, b, d = stage.puppets
    fill(a, d)
    fill(b, d)  # its own place
    begin(a, WaitFor.ROOM, d.number)
    begin_for_room(b, d.number)
    stage.monitor.kill(d.machine)
    assert [end(a), end(b)] == [Status.E_DEAD, Status.PENDING]  # what b has sent is back
    b.inbox()
    begin_for_room(b, d.number)
    assert end(b) is Status.E_DEAD
    assert a.wait(WaitFor.ROOM, d.number) is Status.E_DEAD
    assert a.peer_flags(d) == PeerFlags.SEND


# ---- What a machine sees without an exit ----


def test_the_flag_says_whether_there_is_room_and_is_up_to_date(stage: Stage) -> None:
    a, b, d = stage.puppets

    def seen() -> list[PeerFlags]:
        return [puppet.peer_flags(d) for puppet in (a, b)]

    assert (seen(), a.entry(d).room) == ([FREE] * 2, 2)
    assert a.send(d) is Status.OK
    assert (seen(), a.entry(d).room) == ([FREE] * 2, 1)
    assert b.send(d) is Status.OK  # takes the last place, and a sees that
    assert (seen(), b.entry(d).room) == ([FULL] * 2, 0)
    assert a.send(d) is Status.E_QUEUE_FULL
    assert a.wait(WaitFor.ROOM, d.number) is Status.E_TIMEOUT
    d.awake()
    assert seen() == [FREE] * 2
    # What comes back is queued, full or not; the flag follows.
    begin_for_room(a, d.number)
    assert end(a) is Status.OK
    pages = d.alloc(1, 1, 1)
    a.idle()
    for page in pages:
        assert d.lend(a, page) is Status.OK
    d.idle()
    fill(b, d)
    stage.monitor.kill(a.machine)
    assert len(d.machine.peer.queue) == 2 + 3
    assert b.peer_flags(d) == FULL


def test_notices_are_counted_by_what_they_are_about(stage: Stage) -> None:
    a, b, d = stage.puppets

    def counts() -> tuple[int, ...]:
        c = a.control()
        return c.peer_notices, c.reclaim_notices, c.host_notices, c.notice_count

    peers, reclaims, hosts, all_ = counts()
    assert (reclaims, hosts, all_) == (0, 0, peers)  # d came when a was running
    stage.monitor.notice(a.machine, 1)
    stage.monitor.notice(a.machine, 1 << 31)
    assert a.control().notices == 1 << 31 | 1
    assert counts() == (peers, 0, 2, peers + 2)
    (page,) = b.alloc(1)
    b.lend(a, page)
    b.reclaim(page)
    stage.add("late")
    stage.monitor.kill(d.machine)
    peers_now = counts()[0]
    assert counts() == (peers_now, 1, 2, peers_now + 3)
    assert peers_now > peers + 1


# ---- Room ----


def test_the_library_waits_for_room_or_for_what_is_to_be_taken_first(stage: Stage) -> None:
    a, b, d = stage.puppets
    begin_for_room(a, d.number)
    assert end(a) is Status.OK
    begin_for_room(a, 9999)
    assert end(a) is Status.E_PEER
    fill(b, d)
    fill(a, d)
    a.send_order(ROOM, 1000, value=d.number)
    assert end(a) is Status.E_TIMEOUT
    begin_for_room(a, d.number)
    b.send(a)
    assert end(a) is Status.PENDING
    begin_for_room(a, d.number)
    d.awake()
    assert end(a) is Status.OK


def test_two_that_send_to_each_other_with_full_queues_both_get_on(stage: Stage) -> None:
    e, f = (stage.add(name, queue=2) for name in ("e", "f"))
    count = 40
    for one, other in ((e, f), (f, e)):
        one.send_order(FLOOD, count, value=other.number)
    stage.monitor.run(60)
    for one in (e, f):
        assert end(one) is Status.OK
    for one, other in ((e, f), (f, e)):
        got = [(message.sender, message.tag) for message in one.inbox()]
        assert got == [(other.number, tag) for tag in range(count)]


def test_all_who_wait_for_room_at_one_get_it_in_the_end(stage: Stage) -> None:
    a, b, d = stage.puppets
    c = stage.add("c")
    d.idle()  # it was woken by the notice that c has come
    for puppet in (a, b, c):
        puppet.send_order(FLOOD, 10, value=d.number)
    stage.monitor.run(60)
    assert not any(puppet.done() for puppet in (a, b, c))
    d.awake()
    assert [end(puppet) for puppet in (a, b, c)] == [Status.OK] * 3
    messages = d.inbox()
    for puppet in (a, b, c):
        assert [m.tag for m in messages if m.sender == puppet.number] == list(range(10))
