"""Several descriptors in one doorbell, several messages in one delivery: one call for what is
adjacent, and whatever the host refuses of it, each message is done as a whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from unit.exchange_scene import Scene, Snapshot, extents_of, told
from unit.refusing_host import Fragile, every_way

from vmm.ferry.books import LedgerError
from vmm.ferry.message import Message
from vmm.ferry.peer import Peer
from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, Hold, Operation, Status
from vmm.memory.runs import Extent

pytestmark = pytest.mark.usefixtures("each_pool")

SEND, LEND, SHARE = Operation.SEND, Operation.LEND, Operation.SHARE
Call = tuple[str, int, int]  # "hide" or "show", a page of a's window or of b's, and how many
Calls = list[Call]


@pytest.fixture
def calls(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What windows are asked to do, in order; small extents are placed from below in both."""
    seen: Calls = []
    show, hide = Fragile.show, Fragile.hide

    def note_show(
        window: Fragile, page: int, frame: int, count: int, *, writable: bool = True
    ) -> None:
        seen.append(("show", page, count))
        show(window, page, frame, count, writable=writable)

    def note_hide(window: Fragile, page: int, count: int) -> None:
        seen.append(("hide", page, count))
        hide(window, page, count)

    monkeypatch.setattr(Fragile, "show", note_show)
    monkeypatch.setattr(Fragile, "hide", note_hide)
    return seen


def transmit(scene: Scene, *entries: abi.Descriptor) -> list[Status]:
    """Ring for what a has put into its ring; return how each of it was answered."""
    assert scene.exchange.transmit(scene.a) is Status.OK
    assert scene.guest(scene.a).tx_tail == scene.guest(scene.a).tx_head
    return [Status(entry.status) for entry in entries]


def pages(scene: Scene, count: int) -> list[Extent]:
    """Give a adjacent pages, each in an extent of its own; d has every other frame."""
    (first,) = scene.alloc(scene.a, count)
    return [Extent(first.page + index, 1) for index in range(count)]


# ---- One doorbell ----


@pytest.mark.parametrize("operation", [SEND, LEND])
def test_adjacent_pages_of_several_messages_are_hidden_with_one_call(
    scene: Scene, calls: Calls, operation: Operation
) -> None:
    own = pages(scene, 5)
    calls.clear()
    entries = [scene.put(scene.a, operation, page, to=scene.b, tag=page.page) for page in own]
    assert transmit(scene, *entries) == [Status.OK] * 5
    assert calls == [("hide", own[0].page, 5)]
    assert [message.tag for message in scene.b.queue] == [page.page for page in own]
    assert [entry.message for entry in entries] == [message.number for message in scene.b.queue]
    assert (scene.a.sent, scene.a.refused) == (5, 0)
    scene.check()


def test_messages_of_both_kinds_and_to_several_are_hidden_together(
    scene: Scene, calls: Calls
) -> None:
    own = pages(scene, 4)
    calls.clear()
    entries = [
        scene.put(scene.a, SEND, own[0], to=scene.b),
        scene.put(scene.a, LEND, own[1], to=scene.c, flags=abi.Flags.READONLY),
        scene.put(scene.a, SEND, to=scene.b, payload=b"without pages"),
        scene.put(scene.a, SEND, own[2], own[3], to=scene.c),
    ]
    assert transmit(scene, *entries) == [Status.OK] * 4
    assert calls == [("hide", own[0].page, 4)]
    assert [len(peer.queue) for peer in (scene.b, scene.c)] == [2, 2]
    scene.check()


def test_what_is_not_adjacent_or_not_in_order_takes_a_call_each(scene: Scene, calls: Calls) -> None:
    own = pages(scene, 6)
    calls.clear()
    for page in (own[4], own[5], own[0], own[2], own[1]):
        scene.put(scene.a, SEND, page, to=scene.b)
    transmit(scene)
    assert calls == [("hide", page.page, count) for page, count in (
        (own[4], 2), (own[0], 1), (own[2], 1), (own[1], 1)
    )]  # fmt: skip
    scene.check()


def test_inline_messages_hide_nothing(scene: Scene, calls: Calls) -> None:
    entries = [scene.put(scene.a, SEND, to=scene.b, payload=b"hi") for _ in range(3)]
    assert transmit(scene, *entries) == [Status.OK] * 3
    assert calls == []


def test_a_descriptor_that_is_refused_does_not_part_its_neighbours(
    scene: Scene, calls: Calls
) -> None:
    own = pages(scene, 2)
    calls.clear()
    entries = [
        scene.put(scene.a, SEND, own[0], to=scene.b),
        scene.put(scene.a, SEND, own[0], to=scene.b),  # sent already
        scene.put(scene.a, LEND, own[0], to=scene.c),
        scene.put(scene.a, SEND, to=99),
        scene.put(scene.a, 77),  # no operation at all
        scene.put(scene.a, SEND, own[1], to=scene.b),
    ]
    assert transmit(scene, *entries) == [
        Status.OK,
        Status.E_OWNERSHIP,
        Status.E_OWNERSHIP,
        Status.E_PEER,
        Status.E_OPERATION,
        Status.OK,
    ]
    assert calls == [("hide", own[0].page, 2)]
    assert (scene.a.sent, scene.a.refused, len(scene.b.queue)) == (2, 4, 2)
    scene.check()


def test_a_queue_that_fills_up_refuses_the_rest_of_a_doorbell() -> None:
    with Scene(depth=2) as scene:
        own = pages(scene, 4)
        entries = [scene.put(scene.a, SEND, page, to=scene.b) for page in own]
        assert transmit(scene, *entries) == [Status.OK] * 2 + [Status.E_QUEUE_FULL] * 2
        assert scene.holds(scene.a, *own) == [Hold.SENT] * 2 + [Hold.OWNED] * 2
        scene.check()


# What comes between a SEND of one page and a SEND of the next: what it is, and what a is asked to
# do after the first has been hidden. Page 2 is lent by then, 3 shared.
BETWEEN: dict[str, tuple[Callable[[Scene, Sequence[Extent]], abi.Descriptor], Calls]] = {
    "alloc": (
        lambda scene, own: scene.put(
            scene.a, Operation.ALLOC, Extent(-abi.WINDOW_GPA // PAGE_SIZE, 1)
        ),
        [("show", 5, 1)],
    ),
    "release": (lambda scene, own: scene.put(scene.a, Operation.RELEASE, own[4]), [("hide", 4, 1)]),
    "share": (lambda scene, own: scene.put(scene.a, SHARE, own[4], to=scene.c), []),
    "reclaim": (lambda scene, own: scene.put(scene.a, Operation.RECLAIM, own[2]), [("show", 2, 1)]),
    "exchange": (
        lambda scene, own: scene.put(scene.a, Operation.EXCHANGE, own[4], to=scene.c),
        [("hide", 4, 1), ("show", 4, 1)],
    ),
    "query": (lambda scene, own: scene.put(scene.a, Operation.QUERY, own[0]), []),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_an_operation_of_another_kind_has_what_came_before_hidden_first(
    scene: Scene, calls: Calls, name: str
) -> None:
    own = pages(scene, 5)
    scene.done(scene.a, LEND, own[2], to=scene.b)
    scene.done(scene.a, SHARE, own[3], to=scene.b)
    calls.clear()
    put, between = BETWEEN[name]
    entries = [
        scene.put(scene.a, SEND, own[0], to=scene.b),
        put(scene, own),
        scene.put(scene.a, SEND, own[1], to=scene.b),
    ]
    assert transmit(scene, *entries) == [Status.OK] * 3
    assert calls == [("hide", 0, 1), *between, ("hide", 1, 1)]
    scene.check()


def test_a_page_is_lent_and_reclaimed_with_one_doorbell(scene: Scene, calls: Calls) -> None:
    (own,) = pages(scene, 1)
    calls.clear()
    entries = [
        scene.put(scene.a, LEND, own, to=scene.b),
        scene.put(scene.a, Operation.RECLAIM, own),
        scene.put(scene.a, SEND, own, to=scene.c),
    ]
    assert transmit(scene, *entries) == [Status.OK] * 3
    assert calls == [("hide", 0, 1), ("show", 0, 1), ("hide", 0, 1)]
    assert scene.guest(scene.b).reclaim_notices == 1
    (place,) = scene.take(scene.c)
    assert scene.read(scene.c, place.page) == b"a 0"
    scene.check()


def test_nothing_can_be_at_the_place_of_what_is_sent_with_the_same_doorbell(scene: Scene) -> None:
    """Which is kept, in case it comes back."""
    (own,) = pages(scene, 1)
    alloc = Extent(-abi.WINDOW_GPA // PAGE_SIZE, 1)
    send = scene.put(scene.a, SEND, own, to=scene.b)
    more = scene.put(scene.a, Operation.ALLOC, alloc)
    assert transmit(scene, send, more) == [Status.OK] * 2
    assert more.extents[0].gpa == abi.WINDOW_GPA + PAGE_SIZE
    scene.check()


def test_what_others_are_told_of_a_doorbell_is_told_in_order(scene: Scene) -> None:
    own = pages(scene, 2)
    events = scene.listen()
    scene.put(scene.a, SEND, own[0], to=scene.b, tag=1)
    scene.put(scene.a, 77)
    scene.put(scene.a, LEND, own[1], to=scene.c, tag=3)
    transmit(scene)
    assert [(e.kind, e.fields["status"]) for e in events] == [
        ("send", "OK"),
        ("refuse", "E_OPERATION"),
        ("lend", "OK"),
    ]
    assert [e.fields["took_us"] > 0 for e in events if e.kind != "refuse"] == [True] * 2


@pytest.mark.parametrize("audit", [True, False])
def test_an_audit_follows_a_doorbell_with_several(audit: bool) -> None:
    with Scene(audit=audit) as scene:
        for _ in range(2):
            scene.put(scene.a, SEND, to=scene.b)
        scene.ledger.account(scene.d.number).charged += 1
        if audit:
            with pytest.raises(LedgerError, match="peer 4 has"):
                scene.exchange.transmit(scene.a)
        else:
            transmit(scene)


# ---- A host that refuses to hide ----


def check_answers(scene: Scene, entries: Sequence[abi.Descriptor]) -> int:
    """Whatever was refused, each message is done or undone, and its sender knows; return how many
    are undone.
    """
    undone = 0
    queued = {m.number for peer in (scene.b, scene.c) for m in peer.queue}
    for entry in entries:
        extents = [
            Extent((e.gpa - abi.WINDOW_GPA) // PAGE_SIZE, e.pages)
            for e in entry.extents[: entry.extent_count]
        ]
        holds = set(scene.holds(scene.a, *extents))
        if entry.status == Status.OK:
            assert entry.message in queued
            assert holds <= {Hold.SENT if entry.operation == SEND else Hold.LENT}
        else:
            undone += 1
            assert entry.status == Status.E_NO_MEMORY
            assert entry.message == 0
            assert holds <= {Hold.OWNED, Hold.LENT}
    assert len(queued) == len(entries) - undone
    assert (scene.a.sent, scene.a.refused) == (len(queued), undone)
    for peer in (scene.b, scene.c):
        assert peer.queue.room == peer.queue.depth - len(peer.queue)
    return undone


def see_all_again(scene: Scene, entries: Sequence[abi.Descriptor]) -> None:
    """The sender sees what was refused, as it was, and can do the same again."""
    scene.recover()
    for entry in entries:
        if entry.status != Status.OK:
            for extent in entry.extents[: entry.extent_count]:
                page = (extent.gpa - abi.WINDOW_GPA) // PAGE_SIZE
                assert set(scene.holds(scene.a, Extent(page, extent.pages))) == {Hold.OWNED}
                assert scene.read(scene.a, page) == f"a {page}".encode()


Put = Callable[[Scene], list[abi.Descriptor]]


def adjacent(scene: Scene) -> list[abi.Descriptor]:
    own = pages(scene, 3)
    return [
        scene.put(scene.a, SEND, own[0], to=scene.b),
        scene.put(scene.a, LEND, own[1], to=scene.c),
        scene.put(scene.a, SEND, own[2], to=scene.b),
    ]


def scattered(scene: Scene) -> list[abi.Descriptor]:
    own = pages(scene, 6)
    return [
        scene.put(scene.a, SEND, own[0], own[3], to=scene.b),
        scene.put(scene.a, LEND, own[1], to=scene.c),
        scene.put(scene.a, LEND, own[4], own[2], to=scene.b),
    ]


def several_runs(scene: Scene) -> list[abi.Descriptor]:
    one, two, three = scene.alloc(scene.a, 3, 2, 1)
    return [
        scene.put(scene.a, SEND, three, Extent(one.page + 1, 2), to=scene.b),
        scene.put(scene.a, SEND, Extent(one.page, 1), two, to=scene.b),
    ]


def in_a_row(scene: Scene) -> list[abi.Descriptor]:
    """A run of three messages to one, and one of two to another."""
    own = pages(scene, 5)
    receivers = [scene.b] * 3 + [scene.c] * 2
    return [scene.put(scene.a, SEND, page, to=to) for page, to in zip(own, receivers, strict=True)]


@pytest.mark.parametrize("put", [adjacent, scattered, several_runs, in_a_row])
def test_what_the_host_refuses_to_hide_its_sender_has_again(put: Put) -> None:
    undisturbed: list[Snapshot] = []

    def attempt(plan: Sequence[bool]) -> Sequence[bool]:
        with Scene(plan) as scene:
            entries = put(scene)
            before = scene.snapshot()
            scene.host.armed = True
            assert scene.exchange.transmit(scene.a) is Status.OK
            scene.host.armed = False
            taken = scene.host.taken
            scene.check()
            assert before.contents.items() <= scene.contents().items()
            undone = check_answers(scene, entries)
            if sum(taken) <= 1:  # one by one it was all done
                assert undone == 0
                undisturbed.append(scene.snapshot())
                assert undisturbed[0].windows == undisturbed[-1].windows
                assert undisturbed[0].mapped == undisturbed[-1].mapped
            see_all_again(scene, entries)
            for peer in (scene.b, scene.c):
                while peer.queue:
                    assert scene.exchange.take(peer) is not None
            scene.check()
            assert before.contents.items() <= scene.contents().items()
            scene.end()
            return taken

    assert every_way(attempt) > 3


def test_who_is_refused_by_the_host_is_refused_before_what_is_asked_next(scene: Scene) -> None:
    """A RELEASE in the same doorbell finds the page where it was."""
    (own,) = pages(scene, 1)
    send = scene.put(scene.a, SEND, own, to=scene.b)
    release = scene.put(scene.a, Operation.RELEASE, own)
    scene.host.plan, scene.host.armed = (True, True), True
    assert transmit(scene, send, release) == [Status.E_NO_MEMORY, Status.OK]
    assert scene.ledger.window(scene.a.number) == ()
    assert (scene.a.sent, scene.a.refused, len(scene.b.queue)) == (0, 1, 0)
    scene.check()


@pytest.mark.parametrize("refused", [True, False])
def test_what_came_and_could_not_be_sent_on_goes_back_from_the_dead(
    scene: Scene, refused: bool
) -> None:
    """A message that is still in the ring of one who dies; its page has gone on, or it has not."""
    (own,) = scene.alloc(scene.b, 1)
    scene.done(scene.b, SEND, own, to=scene.a)
    assert scene.exchange.deliver(scene.a) == 1
    entries = [
        scene.put(scene.a, SEND, *scene.a.untaken[0].targets, to=scene.c),
        scene.put(scene.a, SEND, to=scene.c),
    ]
    scene.host.plan, scene.host.armed = (refused, refused), True
    statuses = transmit(scene, *entries)
    scene.host.armed = False
    assert statuses == [Status.E_NO_MEMORY if refused else Status.OK, Status.OK]
    scene.exchange.leave(scene.a)
    assert told(scene.b) == [(Operation.UNDELIVERED, Status.E_DEAD)]
    (back,) = scene.b.queue
    assert extents_of(back) == ([own] if refused else [])
    assert scene.holds(scene.b, own) == [Hold.OWNED if refused else Hold.NONE]
    scene.check()


def test_room_that_a_refusal_makes_again_is_told(scene: Scene) -> None:
    own = pages(scene, scene.b.queue.depth)[::-1]  # in disorder: none goes with another
    entries = [scene.put(scene.a, SEND, page, to=scene.b) for page in own]
    scene.host.plan, scene.host.armed = (True, True), True  # the first, twice
    scene.woken.clear()
    statuses = transmit(scene, *entries)
    assert statuses == [Status.E_NO_MEMORY] + [Status.OK] * (len(own) - 1)
    flags = scene.guest(scene.a).peers[0].flags
    assert flags & abi.PeerFlags.ROOM
    assert not scene.b.full
    scene.check()


# ---- One delivery ----


def read_all(scene: Scene, peer: Peer, message: Message) -> list[bytes]:
    return [scene.read(peer, page) for e in extents_of(message) for page in range(e.page, e.end)]


def test_pages_that_are_adjacent_here_and_in_the_pool_are_shown_with_one_call(
    scene: Scene, calls: Calls
) -> None:
    scene.join_frames()
    own = pages(scene, 5)
    for page in own:
        scene.done(scene.a, SEND, page, to=scene.b)
    calls.clear()
    assert scene.exchange.deliver(scene.b) == 5
    assert calls == [("show", 0, 5)]
    assert [scene.read(scene.b, page) for page in range(5)] == [f"a {n}".encode() for n in range(5)]
    assert [read_all(scene, scene.b, m) for m in scene.b.untaken] == [
        [f"a {page.page}".encode()] for page in own
    ]
    assert (scene.b.received, scene.holds(scene.b, Extent(0, 5))) == (5, [Hold.OWNED] * 5)
    scene.check()


def test_what_differs_in_its_hold_or_is_not_adjacent_in_the_pool_takes_a_call_each(
    scene: Scene, calls: Calls
) -> None:
    scene.join_frames()
    own = pages(scene, 6)
    scene.done(scene.a, SEND, own[0], to=scene.b)
    scene.done(scene.a, LEND, own[1], to=scene.b)
    scene.done(scene.a, LEND, own[2], to=scene.b, writable=False)
    scene.done(scene.a, SHARE, own[3], to=scene.b, writable=False)
    scene.done(scene.a, SEND, to=scene.b, payload=b"without pages")
    scene.done(scene.a, SEND, own[5], to=scene.b)
    calls.clear()
    assert scene.exchange.deliver(scene.b) == 6
    assert calls == [("show", 0, 1), ("show", 1, 1), ("show", 2, 2), ("show", 4, 1)]
    scene.check()


def test_a_take_brings_one_and_a_delivery_the_rest(scene: Scene, calls: Calls) -> None:
    scene.join_frames()
    for page in pages(scene, 3):
        scene.done(scene.a, SEND, page, to=scene.b)
    calls.clear()
    (place,) = scene.take(scene.b)
    assert (place, len(scene.b.queue)) == (Extent(0, 1), 2)
    assert scene.exchange.deliver(scene.b) == 2
    assert scene.exchange.deliver(scene.b) == 2  # nothing more, and nothing twice
    assert calls == [("show", 0, 1), ("show", 1, 2)]


def test_each_delivery_is_told(scene: Scene) -> None:
    for page in pages(scene, 2):
        scene.done(scene.a, SEND, page, to=scene.b, tag=page.page)
    events = scene.listen()
    scene.exchange.deliver(scene.b)
    assert [(e.kind, e.fields["tag"]) for e in events] == [("deliver", 0), ("deliver", 1)]


def load_sent(scene: Scene) -> None:
    for page in pages(scene, 3):
        scene.done(scene.a, SEND, page, to=scene.b, payload=b"hello")


def load_mixed(scene: Scene) -> None:
    one, two, three = pages(scene, 3)
    scene.done(scene.a, SEND, one, to=scene.b, payload=b"hello")
    scene.done(scene.a, LEND, two, to=scene.b, writable=False, payload=b"hello")
    scene.done(scene.a, SEND, to=scene.b, payload=b"hello")
    scene.done(scene.a, SHARE, three, to=scene.b, payload=b"hello")


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("load", [load_sent, load_mixed])
def test_what_the_host_refuses_to_show_goes_back_and_the_rest_is_delivered(
    load: Callable[[Scene], None], joined: bool
) -> None:
    def attempt(plan: Sequence[bool]) -> Sequence[bool]:
        with Scene(plan) as scene:
            if joined:
                scene.join_frames()
            load(scene)
            before = scene.snapshot()
            waiting = list(scene.b.queue)
            scene.host.armed = True
            pending = scene.exchange.deliver(scene.b)
            scene.host.armed = False
            taken = scene.host.taken
            scene.check()
            assert before.contents.items() <= scene.contents().items()
            delivered, back = list(scene.b.untaken), list(scene.a.queue)
            assert pending == len(delivered) == scene.b.received
            assert sorted(m.number for m in (*delivered, *back)) == [m.number for m in waiting]
            assert told(scene.a) == [(Operation.UNDELIVERED, Status.E_NO_MEMORY)] * len(back)
            assert {m.payload for m in (*delivered, *back)} == {b"hello"}
            assert not scene.b.queue
            if sum(taken) <= 1:  # one by one it was all delivered
                assert not back
            for message in delivered:
                assert set(scene.holds(scene.b, *extents_of(message))) <= {
                    Hold.OWNED,
                    Hold.BORROWED,
                    Hold.VIEWED,
                }
            scene.recover()
            scene.end()
            return taken

    assert every_way(attempt) > 2
