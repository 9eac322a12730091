"""Machines that are spawned to have their pages mapped as they arrive: `spawn(populate=True)`; and
messages in huge pages of their own.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from kvm import mappings
from kvm.puppets import Puppet, Span, Stage, spans_of

from vmm import Monitor, Status
from vmm.errors import ArgumentTypeError
from vmm.ferry.peer import Peer
from vmm.guest.abi import PAGE_SIZE, Hold, Operation
from vmm.host.hugepages import huge_pages
from vmm.memory import mapping
from vmm.memory.frames import LARGE
from vmm.memory.movers import MappedWindow, RemapMover
from vmm.memory.pagemap import populated
from vmm.memory.populating import AT_ONCE

Elf = Callable[[str], Path]
Open = Callable[..., Monitor]

PAGES = 64
ways = pytest.mark.parametrize(
    ("operation", "writable"),
    [(Operation.SEND, True), (Operation.LEND, True), (Operation.LEND, False), (Operation.SHARE, 0)],
)


that_map = pytest.mark.parametrize("mover", ["memfd", "remap"])  # memslots show what is mapped


@pytest.fixture
def stage(
    open_monitor: Open, mover: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Stage:
    """A sender, a receiver that has its pages mapped as they arrive, and one that has not.

    With `remap` small runs are the memfd's, as they are outside the tests.
    """
    monkeypatch.setattr(RemapMover, "large", LARGE)
    stage = Stage(open_monitor(mover=mover, pool="128M", audit=True), "a", window="64M")
    for name, populate in (("b", True), ("c", False)):
        stage.add(name, window="64M", populate=populate)
    return stage


def present(peer: Peer, span: Span) -> list[bool]:
    """Which pages of a window the kernel has mapped, whoever has touched them."""
    window = peer.window
    first = (span.gpa - window.region.base) // PAGE_SIZE
    at = window.address(first)
    return [populated(at + page * PAGE_SIZE, PAGE_SIZE) for page in range(span.pages)]


def maps_itself(puppet: Puppet) -> bool:
    """Whether its window is one whose mappings change: memslots are onto what is mapped already."""
    return isinstance(puppet.machine.peer.window, MappedWindow)


def give(stage: Stage, to: Puppet, operation: Operation, writable: bool, pages: int) -> None:
    """Let the host, which has written a number into each page, give them to a machine that waits;
    nobody runs.
    """
    host = stage.monitor.host
    buffer = host.alloc(pages * PAGE_SIZE)
    for page in range(pages):
        buffer.write((page + 1).to_bytes(8, "little"), page * PAGE_SIZE)
    if operation is Operation.SEND:
        host.send(to.machine, buffer)
    else:
        give = host.lend if operation is Operation.LEND else host.share
        give(to.machine, buffer, writable=bool(writable))


@ways
def test_what_arrives_is_mapped_and_right_and_nothing_more_is_to_be_seen(
    stage: Stage, operation: Operation, writable: bool
) -> None:
    _, b, c = stage.puppets
    for receiver in (b, c):
        give(stage, receiver, operation, writable, PAGES)
        seen = mappings.check(stage.monitor)[receiver.number]
        assert [(view.page, view.pages, view.writable) for view in seen] == [(0, PAGES, writable)]
        there = Span(receiver.base, PAGES)
        if maps_itself(receiver):  # before it has run
            assert present(receiver.machine.peer, there) == [receiver is b] * PAGES
        assert spans_of(receiver.one()) == [there]
        assert receiver.read(there.gpa, PAGES) == list(range(1, PAGES + 1))
        stage.monitor.audit(mappings=True)
    b.touch(b.base + PAGES * PAGE_SIZE, "read")
    b.was_stopped(b.base + PAGES * PAGE_SIZE, "read")
    stage.monitor.audit(mappings=True)


def test_what_is_only_to_be_read_cannot_be_written_although_it_is_mapped(stage: Stage) -> None:
    _, b, _ = stage.puppets
    give(stage, b, Operation.LEND, False, PAGES)
    (there,) = spans_of(b.one())
    assert b.read(there.gpa, PAGES)[-1] == PAGES
    b.touch(there.gpa, "write")
    b.was_stopped(there.gpa, "write")
    stage.monitor.audit(mappings=True)


def test_from_machine_to_machine_and_back_pages_are_mapped_at_who_wants_that(stage: Stage) -> None:
    a, b, c = stage.puppets
    (own,) = a.alloc(PAGES)
    a.write(own.gpa, 7, PAGES)
    span, holder = own, a
    for receiver in (b, c, b, a):
        assert holder.send(receiver, span) is Status.OK
        mappings.check(stage.monitor)
        (there,) = spans_of(receiver.one())
        assert receiver.read(there.gpa, PAGES) == list(range(7, 7 + PAGES))
        if maps_itself(holder):
            assert not any(present(holder.machine.peer, span))
        span, holder = there, receiver
    assert a.release(span) is Status.OK
    (new,) = b.alloc(PAGES)  # zeroed, and mapped at once
    if maps_itself(b):
        assert all(present(b.machine.peer, new))
    assert b.read(new.gpa, PAGES) == [0] * PAGES


def test_several_runs_of_one_message_are_mapped(stage: Stage) -> None:
    a, b, _ = stage.puppets
    spans = a.alloc(3, 5, 2)
    for span in spans:
        a.write(span.gpa, span.pages * 100, span.pages)
    assert a.send(b, spans[2], spans[0]) is Status.OK
    (message,) = b.inbox()
    for span, value in zip(spans_of(message), (200, 300), strict=True):
        if maps_itself(b):
            assert all(present(b.machine.peer, span))
        assert b.read(span.gpa, span.pages) == list(range(value, value + span.pages))


def test_pages_of_one_who_dies_before_it_has_looked_come_back(stage: Stage) -> None:
    a, b, _ = stage.puppets
    (own,) = a.alloc(PAGES)
    a.write(own.gpa, 7, PAGES)
    b.idle()
    assert a.send(b, own) is Status.OK
    mappings.check(stage.monitor)
    stage.monitor.kill(b.machine)
    back = a.one()
    assert (back.operation, back.status) == (Operation.UNDELIVERED, Status.E_DEAD)
    (there,) = spans_of(back)
    assert a.read(there.gpa, PAGES) == list(range(7, 7 + PAGES))
    assert a.release(there) is Status.OK
    totals = stage.monitor.audit(mappings=True)
    assert totals["free"] == sum(totals.values())


@that_map
def test_a_host_that_refuses_to_map_them_has_changed_nothing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, _ = stage.puppets
    (own,) = a.alloc(PAGES)
    a.write(own.gpa, 7, PAGES)
    show, refusals = mapping.show, []

    def refuse(*args: int, **options: bool) -> None:
        if options.get("populate") and not refusals:
            refusals.append(args)
            raise OSError(12, "no memory for page tables")
        show(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(mapping, "show", refuse)
    assert a.send(b, own) is Status.OK  # it is on its way, and shown when b runs
    (there,) = spans_of(b.one())
    assert len(refusals) == 1
    assert b.read(there.gpa, PAGES) == list(range(7, 7 + PAGES))
    stage.monitor.audit(mappings=True)


@that_map
def test_in_a_turn_only_so_much_is_mapped_at_once(stage: Stage) -> None:
    _, b, _ = stage.puppets
    host, each = stage.monitor.host, AT_ONCE // 5
    all_of_it = [host.alloc(each * PAGE_SIZE) for _ in range(15)]
    host.send(b.machine, *all_of_it[::2])  # frames that are not adjacent: a call for each
    spans = [span for message in b.inbox() for span in spans_of(message)]
    assert [span.pages for span in spans] == [each] * 8
    mapped = [sum(present(b.machine.peer, span)) for span in spans]
    assert mapped == [each] * 5 + [0] * 3
    assert b.read(spans[-1].gpa, 2) == [0, 0]
    host.send(b.machine, all_of_it[1])
    (there,) = spans_of(b.one())
    assert all(present(b.machine.peer, there))


@that_map
def test_what_is_too_much_for_a_turn_is_not_mapped_at_once(stage: Stage) -> None:
    _, b, _ = stage.puppets
    a_part, too_much = (stage.monitor.host.alloc(n * PAGE_SIZE) for n in (AT_ONCE, AT_ONCE + 1))
    stage.monitor.host.share(b.machine, a_part)
    (there,) = spans_of(b.one())
    assert all(present(b.machine.peer, there))
    stage.monitor.host.share(b.machine, too_much)
    (there,) = spans_of(b.one())
    assert not any(present(b.machine.peer, there))
    assert b.read(there.gpa, 3) == [0] * 3


@pytest.mark.parametrize("value", [1, None, "yes"])
def test_populate_is_true_or_false(open_monitor: Open, value: object) -> None:
    monitor = open_monitor(pool="8M")
    with pytest.raises(ArgumentTypeError, match="populate"):
        Puppet(monitor, "a", populate=value)
    assert not monitor.machines


# ---- In huge pages ----


def huge(peer: Peer) -> int:
    window = peer.window
    assert isinstance(window, MappedWindow)
    return mappings.huge(window.mapping.address, window.mapping.size)


def test_a_message_in_a_huge_page_goes_with_all_of_it_and_says_how_long_it_is(stage: Stage) -> None:
    monitor, (a, *_) = stage.monitor, stage.puppets
    free = monitor.audit()["free"]
    buffer = monitor.host.alloc(3 * PAGE_SIZE, huge=True)
    assert (buffer.size, buffer.extent.pages) == (3 * PAGE_SIZE, LARGE)
    assert buffer.extent.page % LARGE == 0
    assert monitor.audit()["free"] == free - LARGE
    buffer.write(b"\7" * buffer.size)
    monitor.host.send(a.machine, buffer)
    message = a.one()
    (there,) = spans_of(message)
    assert (message.length, there.pages, there.gpa % (LARGE * PAGE_SIZE)) == (
        *(3 * PAGE_SIZE, LARGE),
        0,
    )
    words = a.read(there.gpa, 4)
    assert words == [0x0707070707070707] * 3 + [0]
    assert a.do(Operation.SEND, 0, there, length=5) is Status.OK
    received = monitor.host.receive()
    assert received is not None
    (back,) = received.buffers
    assert (back.size, back.extent.pages, back.read()) == (5, LARGE, b"\7" * 5)
    monitor.host.release(back)
    assert monitor.audit(mappings=True)["free"] == free


def test_a_guest_sends_a_message_in_huge_pages(open_monitor: Open, test_guest: Elf) -> None:
    monitor = open_monitor(pool="16M")
    machine = monitor.spawn(test_guest("sends_huge"), window="16M")
    monitor.run(20)
    assert (machine.exit_code, machine.fault) == (0, None)
    message = monitor.host.receive()
    assert message is not None
    (buffer,) = message.buffers
    assert (buffer.size, buffer.extent.pages) == (300 << 10, LARGE)
    assert buffer.read() == b"x" * (300 << 10)
    assert struct.unpack("<5Q", message.payload) == (0, LARGE, LARGE, 2 * LARGE, 1 << 52)


@pytest.mark.skipif(not huge_pages().anonymous, reason="anonymous memory gets no huge pages")
def test_it_stays_one_huge_page_wherever_it_goes(
    open_monitor: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RemapMover, "large", LARGE)
    stage = Stage(open_monitor(mover="remap", pool="64M", audit=True), "ab", window="64M")
    host, (a, b) = stage.monitor.host, stage.puppets
    buffer = host.alloc(5, huge=True)
    buffer.write(b"hello")
    assert huge(host.peer) == LARGE
    host.send(a.machine, buffer)
    (there,) = spans_of(a.one())
    assert a.send(b, there) is Status.OK
    (there,) = spans_of(b.one())
    assert (huge(host.peer), huge(a.machine.peer), huge(b.machine.peer)) == (0, 0, LARGE)
    assert b.holds(there.gpa) is Hold.OWNED
    at = b.machine.peer.window.address((there.gpa - b.base) // PAGE_SIZE)
    assert ctypes.string_at(at, 6) == b"hello\0"


def test_whether_in_huge_pages_is_true_or_false_and_a_pool_that_is_too_small_says_so(
    open_monitor: Open,
) -> None:
    host = open_monitor(pool="1M").host
    with pytest.raises(ArgumentTypeError, match="huge"):
        host.alloc(5, huge=1)  # type: ignore[arg-type]
    with pytest.raises(Exception, match="1 MiB are left in the page pool"):
        host.alloc(5, huge=True)
    host.release(host.alloc(5))
