"""Large extents keep their huge pages wherever they go, with the mover that moves them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kvm import mappings
from kvm.puppets import Puppet, Span, Stage, spans_of
from tests_support import sized

from vmm import Monitor
from vmm.ferry.peer import Peer
from vmm.guest.abi import PAGE_SIZE, Hold, Operation, Status
from vmm.host.hugepages import huge_pages
from vmm.memory.frames import LARGE
from vmm.memory.movers import MappedWindow, RemapMover, SlotsWindow
from vmm.memory.movers.park import Park

PAGES = sized(32768, 2 * LARGE)  # 128 MiB
WINDOW = PAGES * PAGE_SIZE * 2
WORDS = 1024  # that a puppet reads or writes at a time

pytestmark = [
    pytest.mark.skipif(not huge_pages().anonymous, reason="anonymous memory gets no huge pages"),
    pytest.mark.smaller_in_lanes("4 MiB instead of 128"),
]


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """Two puppets with windows for two such messages, and the mover as it is outside the tests."""
    monkeypatch.setattr(RemapMover, "large", LARGE)
    with Monitor(mover="remap", pool=2 * WINDOW, audit=True) as monitor:
        yield Stage(monitor, "ab", window=WINDOW)


def huge(peer: Peer) -> int:
    window = peer.window
    assert isinstance(window, MappedWindow)
    return mappings.huge(window.mapping.address, window.mapping.size)


def fill(puppet: Puppet, span: Span, value: int) -> None:
    for page in range(0, span.pages, WORDS):
        puppet.write(span.gpa + page * PAGE_SIZE, value + page, min(WORDS, span.pages - page))


def filled(puppet: Puppet, span: Span, value: int) -> bool:
    """Whether each page has what `fill` wrote there."""
    return all(
        puppet.read(span.gpa + page * PAGE_SIZE, count)
        == list(range(value + page, value + page + count))
        for page in range(0, span.pages, WORDS)
        for count in [min(WORDS, span.pages - page)]
    )


def test_a_large_message_keeps_its_huge_pages_when_sent_lent_and_returned(stage: Stage) -> None:
    a, b = stage.puppets
    (own,) = a.alloc(PAGES)
    fill(a, own, 7)
    there_are = huge(a.machine.peer)
    assert there_are > PAGES // 2  # the kernel may be short of some
    assert a.lend(b, own) is Status.OK
    (loan,) = spans_of(b.one())
    assert (huge(a.machine.peer), huge(b.machine.peer)) == (0, there_are)
    assert filled(b, loan, 7)
    fill(b, loan, 9)
    assert b.give_back(a, loan) is Status.OK
    a.inbox()
    assert (huge(a.machine.peer), huge(b.machine.peer)) == (there_are, 0)
    assert a.lend(b, own, writable=False) is Status.OK
    b.inbox()
    assert huge(b.machine.peer) == there_are
    assert a.reclaim(own) is Status.OK
    assert a.send(b, own) is Status.OK
    (there,) = [span for message in b.inbox() for span in spans_of(message)]
    assert huge(b.machine.peer) == there_are
    assert filled(b, there, 9)


def test_among_many_machines_a_large_message_keeps_its_huge_pages_too(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RemapMover, "many", len(stage.puppets))
    late = [stage.add(name, window=WINDOW) for name in "cd"]
    a, (c, d) = stage.puppets[0], late
    (own,) = a.alloc(PAGES)
    fill(a, own, 7)
    there_are = huge(a.machine.peer)
    span, holder = own, a
    for receiver in (c, d, a, d):
        assert holder.send(receiver, span) is Status.OK
        (span,) = spans_of(receiver.one())
        assert filled(receiver, span, 7)
        holder = receiver
    assert isinstance(d.machine.peer.window, SlotsWindow)
    assert huge(a.machine.peer) == 0
    pool = stage.monitor._mover.pool
    assert isinstance(pool, Park)
    assert mappings.huge(pool.home(0), pool.frames * PAGE_SIZE) >= there_are


def test_the_hosts_large_buffer_goes_to_a_machine_and_back_with_its_huge_pages(
    stage: Stage,
) -> None:
    host, (a, _) = stage.monitor.host, stage.puppets
    buffer = host.alloc(PAGES * PAGE_SIZE)
    for page in range(0, PAGES, LARGE):
        buffer.write(bytes([page // LARGE + 1]), page * PAGE_SIZE)
    there_are = huge(host.peer)
    assert there_are > PAGES // 2
    host.lend(a.machine, buffer)
    (there,) = spans_of(a.one())
    assert (huge(host.peer), huge(a.machine.peer)) == (0, there_are)
    assert a.read(there.gpa) == [1]
    fill(a, there, 3)
    assert a.give_back(0, there) is Status.OK
    assert host.receive().buffers == (buffer,)
    assert huge(host.peer) == there_are
    assert buffer.read((PAGES - 1) * PAGE_SIZE, 8) == (PAGES + 2).to_bytes(8, "little")
    host.release(buffer)
    assert huge(host.peer) == 0


def test_what_is_sent_out_of_the_middle_of_a_huge_page_is_lost_to_nobody(stage: Stage) -> None:
    a, b = stage.puppets
    (own,) = a.alloc(2 * LARGE)
    fill(a, own, 100)
    middle = Span(own.gpa + 100 * PAGE_SIZE, 3)
    assert a.send(b, middle) is Status.OK
    (there,) = spans_of(b.one())
    assert filled(b, there, 200)
    assert filled(a, Span(own.gpa, 100), 100)
    assert filled(a, Span(own.gpa + 103 * PAGE_SIZE, 2 * LARGE - 103), 203)
    assert huge(a.machine.peer) <= LARGE
    assert b.send(a, there) is Status.OK
    (back,) = spans_of(a.one())
    assert filled(a, back, 200)


def test_a_large_extent_that_is_shared_is_seen_and_written_by_both(stage: Stage) -> None:
    a, b = stage.puppets
    (own,) = a.alloc(PAGES)
    fill(a, own, 50)
    assert a.share(b, own) is Status.OK
    (there,) = spans_of(b.one())
    assert filled(b, there, 50)
    assert filled(a, own, 50)
    fill(b, there, 60)
    assert filled(a, own, 60)
    a.write(own.gpa, 1)
    assert b.read(there.gpa) == [1]
    assert a.reclaim(own) is Status.OK
    assert a.send(b, own) is Status.OK
    (message,) = [m for m in b.inbox() if m.operation == Operation.SEND]
    assert b.read(spans_of(message)[0].gpa, 2) == [1, 61]


def test_the_middle_of_a_large_extent_can_be_shared_alone(stage: Stage) -> None:
    a, b = stage.puppets
    (own,) = a.alloc(2 * LARGE)
    fill(a, own, 5)
    assert a.share(b, Span(own.gpa + 10 * PAGE_SIZE, 2), writable=False) is Status.OK
    (there,) = spans_of(b.one())
    a.write(own.gpa + 11 * PAGE_SIZE, 77)
    assert b.read(there.gpa, 2) == [15, 77]
    assert a.holds(own.gpa) is Hold.OWNED
    assert filled(a, Span(own.gpa, 11), 5)
    assert filled(a, Span(own.gpa + 12 * PAGE_SIZE, 2 * LARGE - 12), 17)
    b.touch(there.gpa, "write")


def test_nothing_of_a_dead_machine_can_be_read(stage: Stage) -> None:
    """What it had borrowed is its owner's again; what it owned is zeros to whoever gets it next."""
    a, b = stage.puppets
    (own,) = a.alloc(LARGE)
    fill(a, own, 40)
    assert a.lend(b, own) is Status.OK
    b.inbox()
    (gone,) = b.alloc(PAGES // 2)
    fill(b, gone, 1)
    b.exit()
    assert (huge(b.machine.peer), stage.monitor.audit()["owned"]) == (0, LARGE)
    assert filled(a, own, 40)
    free = stage.monitor._exchange.ledger.pool.free
    buffers = [stage.monitor.host.alloc(size * PAGE_SIZE) for size in (PAGES // 2, PAGES // 2)]
    assert not any(any(chunk) for buffer in buffers for chunk in buffer.chunks())
    assert stage.monitor._exchange.ledger.pool.free == free - PAGES
