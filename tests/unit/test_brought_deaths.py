"""The deaths of those between whom pages were brought at once, before their message is taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from unit.exchange_scene import Scene, extents_of, queued, told
from unit.refusing_host import every_way

from vmm.ferry.peer import Peer
from vmm.guest.abi import Hold, Operation, Status
from vmm.memory.runs import Extent

pytestmark = pytest.mark.usefixtures("each_pool")

SEND, LEND, SHARE = Operation.SEND, Operation.LEND, Operation.SHARE

each_kind = pytest.mark.parametrize(
    ("operation", "writable"),
    [(SEND, True), (LEND, True), (LEND, False), (SHARE, True), (SHARE, False)],
)


def begin(scene: Scene) -> Scene:
    scene.join_frames()
    scene.b.idle = scene.c.idle = True
    return scene


@pytest.fixture
def scene(no_leaks: None) -> Iterator[Scene]:
    with Scene(audit=True) as scene:
        yield begin(scene)


@pytest.mark.parametrize("entered", [False, True])
@each_kind
def test_what_the_dead_had_not_taken_comes_back_delivered_or_not(
    scene: Scene, operation: Operation, writable: bool, entered: bool
) -> None:
    scene.alloc(scene.b, 2)
    (own,) = scene.alloc(scene.a, 3)
    part = Extent(own.page + 1, 2)
    fields = {"tag": 4, "payload": b"hi", "writable": writable}
    number = scene.done(scene.a, operation, part, to=scene.b, **fields).number
    if entered:
        scene.enter(scene.b)
    scene.exchange.leave(scene.b)
    assert told(scene.a) == [(Operation.UNDELIVERED, Status.E_DEAD)]
    back = queued(scene.a)
    assert (back.number, back.tag, back.payload, back.targets) == (number, 4, b"hi", ())
    (place,) = extents_of(back)
    assert scene.holds(scene.a, place) == [Hold.OWNED] * 2
    assert [scene.read(scene.a, place.page + i) for i in range(2)] == [b"a 1", b"a 2"]
    assert sorted(scene.contents().values()) == [b"a 0", b"a 1", b"a 2"]
    scene.check()
    scene.end()


def test_all_that_waited_comes_back_in_its_order(scene: Scene) -> None:
    own = scene.alloc(scene.a, *[1] * 6)
    scene.done(scene.a, SEND, to=scene.b, tag=0)
    scene.done(scene.a, SEND, own[0], to=scene.b, tag=1)
    scene.done(scene.a, SEND, own[2], own[4], to=scene.b, tag=2)  # on its way
    scene.done(scene.a, LEND, own[1], to=scene.b, tag=3)
    scene.done(scene.a, LEND, own[5], to=scene.b, tag=4)
    scene.done(scene.a, Operation.RECLAIM, own[5])
    scene.exchange.leave(scene.b)
    assert [message.tag for message in scene.a.queue] == [0, 1, 2, 3, 4]
    assert told(scene.a) == [(Operation.UNDELIVERED, Status.E_DEAD)] * 5
    read = [[scene.read(scene.a, e.page) for e in extents_of(m)] for m in scene.a.queue]
    assert read == [[], [b"a 0"], [b"a 2", b"a 4"], [b"a 1"], [b"a 5"]]
    scene.check()
    assert scene.mapped()["b"] == {}


@each_kind
def test_whatever_the_host_refuses_at_a_death_pages_are_their_senders(
    operation: Operation, writable: bool
) -> None:
    def attempt(plan: Sequence[bool]) -> Sequence[bool]:
        with Scene(plan, audit=True) as scene:
            begin(scene)
            (own,) = scene.alloc(scene.a, 2)
            scene.done(scene.a, operation, own, to=scene.b, writable=writable)
            before = scene.contents()
            scene.host.armed = True
            scene.exchange.leave(scene.b)
            scene.host.armed = False
            taken = scene.host.taken
            scene.check()
            assert scene.contents() == before
            hidden = not taken[0]
            shown = operation is SHARE or not taken[1]  # its owner sees it all the time
            status = Status.E_DEAD if shown else Status.E_NO_MEMORY
            assert told(scene.a) == [(Operation.UNDELIVERED, status)]
            (place,) = extents_of(queued(scene.a))
            if hidden:
                assert scene.mapped()["b"] == {}
            scene.recover()
            assert scene.holds(scene.a, place) == [Hold.OWNED] * 2
            assert scene.read(scene.a, place.page) == b"a 0"
            scene.end()
            return taken

    # Hide b's window, or not; show it at a, if it is not there, or not.
    assert every_way(attempt) == (2 if operation is SHARE else 4)


def test_who_has_no_room_any_more_gets_its_message_without_its_pages(scene: Scene) -> None:
    """It may have used what it no longer has: nothing is kept for it that has been brought."""
    (own,) = scene.alloc(scene.a, 2)
    scene.done(scene.a, SEND, own, to=scene.b)
    scene.ledger.account(scene.a.number).quota = 0
    scene.exchange.leave(scene.b)
    assert told(scene.a) == [(Operation.UNDELIVERED, Status.E_DEAD)]
    assert (queued(scene.a).spans, scene.contents()) == ((), {})
    scene.check()


def test_another_page_may_have_come_to_the_place_of_one_that_comes_back(scene: Scene) -> None:
    (own,) = scene.alloc(scene.a, 1)
    scene.done(scene.a, SEND, own, to=scene.b)
    (other,) = scene.exchange.operations.grant(scene.a, [1])
    assert other == own
    scene.write(scene.a, other.page, b"new")
    scene.exchange.leave(scene.b)
    (place,) = extents_of(queued(scene.a))
    assert not place.overlaps(own)
    assert (scene.read(scene.a, place.page), scene.read(scene.a, own.page)) == (b"a 0", b"new")
    scene.check()


@each_kind
def test_a_senders_death_takes_nothing_from_who_has_its_pages_already(
    scene: Scene, operation: Operation, writable: bool
) -> None:
    (own,) = scene.alloc(scene.a, 1)
    scene.done(scene.a, operation, own, to=scene.b, writable=writable)
    scene.exchange.leave(scene.a)
    assert scene.ledger.audit()["orphaned"] == (operation is not SEND)
    assert scene.enter(scene.b) == 1
    (place,) = scene.b.untaken[0].targets
    assert scene.read(scene.b, place.page) == b"a 0"
    scene.check()
    scene.exchange.leave(scene.b)
    assert (scene.contents(), told(scene.b)) == ({}, [])


@pytest.mark.parametrize("first", ["a", "b"])
def test_when_both_ends_have_died_everything_is_free(scene: Scene, first: str) -> None:
    own = scene.alloc(scene.a, 1, 1, 1)
    for operation, page, writable in zip((SEND, LEND, LEND), own, (True, True, False), strict=True):
        scene.done(scene.a, operation, page, to=scene.b, writable=writable)
    for peer in sorted((scene.a, scene.b), key=lambda peer: peer.name != first):
        scene.exchange.leave(peer)
        scene.check()
    assert scene.contents() == {}
    scene.end()


# ---- Pages that came by a message that was not taken, and have gone on ----


def ring(scene: Scene, sender: Peer, *pages: Extent) -> None:
    for page in pages:
        scene.put(sender, SEND, page, to=scene.c)
    assert scene.exchange.transmit(sender) is Status.OK


@pytest.mark.parametrize("several", [1, 2, 3], ids=["one", "a run", "apart"])
def test_what_was_not_taken_and_has_gone_on_at_once_goes_back_to_nobody(
    scene: Scene, several: int
) -> None:
    """What comes to its place afterwards is not what the message brought."""
    (own,) = scene.alloc(scene.b, 3)
    scene.done(scene.b, SEND, own, to=scene.a)
    assert scene.enter(scene.a) == 1
    (here,) = scene.a.untaken[0].targets
    pages = [Extent(here.page + index, 1) for index in range(3)]
    ring(scene, scene.a, *{1: pages[:1], 2: pages[:2], 3: pages[::2]}[several])
    assert {m.brought for m in scene.c.queue} == {True}
    again = scene.exchange.operations.grant(scene.a, {1: [1], 2: [2], 3: [1, 1]}[several])
    assert scene.holds(scene.a, here) == [Hold.OWNED] * 3
    scene.write(scene.a, again[0].page, b"a's own")
    scene.exchange.leave(scene.a)
    assert told(scene.b) == [(Operation.UNDELIVERED, Status.E_DEAD)]
    assert queued(scene.b).spans == ()
    left = {1: [b"b 0"], 2: [b"b 0", b"b 1"], 3: [b"b 0", b"b 2"]}[several]
    assert sorted(scene.contents().values()) == left
    scene.check()
