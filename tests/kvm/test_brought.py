"""Pages that are brought at once to a machine that waits, on the real device."""

from __future__ import annotations

import pytest
from kvm import mappings
from kvm.mappings import View
from kvm.puppets import WAIT, Puppet, Stage, descriptor, spans_of

from vmm import Machine, Monitor, State
from vmm.endpoint import Buffer, Received
from vmm.guest.abi import PAGE_SIZE, Hold, Operation, Status, WaitFor
from vmm.kvm import Exit

SEND, LEND, SHARE = Operation.SEND, Operation.LEND, Operation.SHARE
_THE_MONITORS_OWN = pytest.mark.not_in_ept("what the monitor does by itself")
FOREVER = (1 << 32) - 1  # as an order says it

each_kind = pytest.mark.parametrize(
    ("operation", "writable"), [(SEND, True), (LEND, True), (LEND, False)]
)


def pages_in(views: list[View]) -> dict[int, bool]:
    """The pages of a window that are seen, and which can be written."""
    return {v.page + index: v.writable for v in views for index in range(v.pages)}


def give(stage: Stage, operation: Operation, buffer: Buffer, writable: bool = True) -> None:
    """Let the host send or lend to b, and nobody run."""
    host, b = stage.monitor.host, stage.puppets[1].machine
    if operation is SEND:
        host.send(b, buffer)
    else:
        {LEND: host.lend, SHARE: host.share}[operation](b, buffer, writable=writable)


def filled(stage: Stage, pages: int = 3) -> Buffer:
    buffer = stage.monitor.host.alloc(pages * PAGE_SIZE)
    for page in range(pages):
        buffer.write(bytes([page + 1]), page * PAGE_SIZE)
    return buffer


@pytest.mark.parametrize(
    ("operation", "writable"), [(SEND, True), (LEND, True), (LEND, False), (SHARE, False)]
)
def test_who_waits_has_its_pages_before_it_runs(
    stage: Stage, operation: Operation, writable: bool
) -> None:
    b, host = stage.puppets[1], stage.monitor.host
    buffer = filled(stage)
    assert b.machine.state is State.PARKED
    give(stage, operation, buffer, writable)
    seen = mappings.check(stage.monitor)  # as the ledger says: at the host's no more, if not shared
    assert pages_in(seen[b.number]) == dict.fromkeys(range(3), writable)
    assert len(pages_in(seen[host.peer.number])) == (3 if operation is SHARE else 0)
    assert [message.brought for message in b.machine.peer.queue] == [True]
    (there,) = spans_of(b.one())
    assert there == (b.base, 3)
    assert b.read(there.gpa, 3) == [1, 2, 3]
    mappings.check(stage.monitor)
    if operation is not SEND:
        assert b.give_back(0, there) is Status.OK
        assert received(stage.monitor).buffers == (buffer,)
        host.release(buffer)


def received(monitor: Monitor) -> Received:
    message = monitor.host.receive()
    assert message is not None
    return message


@_THE_MONITORS_OWN
@pytest.mark.parametrize("wait_for", list(WaitFor))
def test_only_who_waits_for_a_message_has_its_pages_at_once(one: Stage, wait_for: WaitFor) -> None:
    """Who waits for something else may look at its ring first."""
    a, b, c = one.puppets
    c.idle()
    for sender in (a, b):  # there is no room for which to wait, not even b's own
        while (status := sender.send(c)) is Status.OK:
            pass
        assert status is Status.E_QUEUE_FULL
    b.send_order(WAIT, FOREVER, c.number, wait_for)
    one.monitor.run(60)
    assert b.machine.state is State.PARKED
    give(one, SEND, one.monitor.host.alloc(PAGE_SIZE))
    seen = mappings.check(one.monitor)
    brought = wait_for is WaitFor.MESSAGE
    assert pages_in(seen[b.number]) == ({0: True} if brought else {})
    c.awake()
    one.monitor.notice(b.machine, 1)
    b._reply()
    assert spans_of(b.one()) == [(b.base, 1)]
    c.inbox()


@_THE_MONITORS_OWN
def test_nobody_is_taken_for_one_who_waits_while_it_runs(
    one: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = one.puppets
    driver, waiting = one.monitor._driver, list[bool]()
    execute = driver.execute

    def look(machine: Machine) -> Exit:
        waiting.append(machine.peer.idle)
        return execute(machine)

    monkeypatch.setattr(driver, "execute", look)
    (own,) = a.alloc(1)
    assert a.send(b, own) is Status.OK
    assert b.send(c, *spans_of(b.one())) is Status.OK
    assert b.wait(WaitFor.MESSAGE, timeout_us=1000) is Status.E_TIMEOUT
    assert spans_of(c.one()) == [(c.base, 1)]
    assert len(waiting) > 4
    assert not any(waiting)
    assert [puppet.machine.peer.idle for puppet in one.puppets] == [True] * 3


def seen_before_entry(
    stage: Stage, puppet: Puppet, patch: pytest.MonkeyPatch
) -> list[dict[int, bool]]:
    """What a machine's window shows whenever it is about to be entered, all windows being sound."""
    driver = stage.monitor._driver
    prepare, found = driver.prepare, list[dict[int, bool]]()

    def look(machine: Machine) -> None:
        if machine is puppet.machine:
            found.append(pages_in(mappings.check(stage.monitor)[puppet.number]))
        prepare(machine)

    patch.setattr(driver, "prepare", look)
    return found


def test_what_machines_send_is_there_before_its_receiver_runs(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, _ = stage.puppets
    own = [(a.page(page), 1) for page in range(6)]
    a.alloc(6)
    a.write(a.base, 100, 6)
    with monkeypatch.context() as patch:
        found = seen_before_entry(stage, b, patch)
        answers = a.ask(
            descriptor(SEND, b.number, own[4], tag=1),  # apart
            descriptor(SEND, b.number, payload=b"between", tag=2),
            descriptor(LEND, b.number, own[0], tag=3),  # one run
            descriptor(LEND, b.number, own[1], tag=4),
        )
    assert [answer.status for answer in answers] == [Status.OK] * 4
    assert found[0] == {0: True, 1: True, 2: True}
    messages = b.inbox()
    assert [message.tag for message in messages] == [1, 2, 3, 4]
    assert [b.read(*span) for m in messages for span in spans_of(m)] == [[104], [100], [101]]
    assert (a.holds(own[4][0]), a.holds(own[0][0])) == (Hold.NONE, Hold.LENT)
    assert a.reclaim(own[0], own[1]) is Status.OK


@each_kind
def test_a_sender_that_uses_its_page_all_the_same_is_stopped(
    monitor: Monitor, operation: Operation, writable: bool
) -> None:
    a, b = Stage(monitor, "ab").puppets
    a.alloc(3)
    a.write(a.base, 5, 3)
    flags = 0 if writable else 1
    assert a.do(operation, b, (a.page(1), 1), flags=flags) is Status.OK
    a.touch(a.page(1) + 8, "write" if writable else "read")
    assert b.read(spans_of(b.inbox()[0])[0].gpa) == [6]


@_THE_MONITORS_OWN
@pytest.mark.parametrize("operation", [SEND, LEND])
def test_who_is_killed_before_it_runs_leaves_its_pages_to_who_sent_them(
    monitor: Monitor, operation: Operation
) -> None:
    stage = Stage(monitor, "ab")
    a, b = stage.puppets
    (own,) = b.alloc(2)
    b.write(own.gpa, 0x5EC0, 2)
    buffer = filled(stage)
    before = monitor.audit()
    give(stage, operation, buffer)
    monitor.kill(b.machine)
    seen = mappings.check(monitor)
    assert pages_in(seen[b.number]) == {}
    back = received(monitor)
    assert (back.operation, back.status) == (Operation.UNDELIVERED, Status.E_DEAD)
    (again,) = back.buffers
    assert [again.read(page * PAGE_SIZE, 1)[0] for page in range(3)] == [1, 2, 3]
    monitor.host.release(again)
    after = monitor.audit()
    assert (after["free"], after["owned"]) == (before["free"] + 5, 0)
    assert a.alive
