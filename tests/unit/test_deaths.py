"""Deaths: everybody else gets what is theirs, and is told; nobody gets what is not."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from unit.exchange_scene import Scene, extents_of, queued, told
from unit.refusing_host import every_way

from vmm.ferry.peer import Peer
from vmm.ferry.rules import READABLE
from vmm.guest import abi
from vmm.guest.abi import Hold, Operation, Status
from vmm.memory.runs import Extent

pytestmark = pytest.mark.usefixtures("each_pool")

# ---- A host that refuses ----


def dying(scene: Scene) -> None:
    """Leave b with something of every kind, in its window, its receive ring and its queue."""
    scene.exchange.roster.connect(scene.c, scene.b)
    scene.alloc(scene.b, 2)
    for operation in (Operation.LEND, Operation.SEND):
        scene.pass_on(scene.b, operation, *scene.alloc(scene.b, 1), to=scene.c)
        scene.done(scene.b, operation, *scene.alloc(scene.b, 1), to=scene.c)
    scene.pass_on(scene.a, Operation.LEND, *scene.alloc(scene.a, 2), to=scene.b)
    scene.pass_on(scene.c, Operation.SHARE, *scene.alloc(scene.c, 1), to=scene.b)
    scene.done(scene.c, Operation.LEND, *scene.alloc(scene.c, 1), to=scene.b)
    scene.done(scene.a, Operation.SEND, *scene.alloc(scene.a, 2), to=scene.b)
    scene.exchange.deliver(scene.b)
    scene.done(scene.a, Operation.EXCHANGE, *scene.alloc(scene.a, 1), to=scene.b)
    scene.done(scene.c, Operation.LEND, *scene.alloc(scene.c, 1), to=scene.b)


def test_whatever_the_host_refuses_a_death_takes_nothing_from_anybody_else() -> None:
    def attempt(plan: Sequence[bool]) -> Sequence[bool]:
        with Scene(plan) as scene:
            dying(scene)
            kept = {
                data: frame
                for frame, data in scene.contents().items()
                if data not in (b"b 0", b"b 1")
            }
            scene.host.armed = True
            scene.exchange.leave(scene.b)
            scene.host.armed = False
            scene.check()
            assert {data: frame for frame, data in scene.contents().items()} == kept
            if not scene.host.taken[0]:
                assert scene.mapped()["b"] == {}
            for peer in (scene.a, scene.c):
                check_told(scene, peer)
            if sum(scene.host.taken) % 2:  # else it is free when its owner dies as well
                scene.recover()
            scene.end()
            return scene.host.taken

    assert every_way(attempt) == 2 ** (1 + 7)  # hide b's window; show each that comes back


def check_told(scene: Scene, owner: Peer) -> None:
    """Every page that came back is named in a message, and its status says if all are shown."""
    back = [m for m in owner.queue if m.operation in (Operation.UNDELIVERED, Operation.RETURN)]
    shown = {m.number: set(scene.holds(owner, *extents_of(m))) <= READABLE for m in back}
    for message in back:
        expected = Status.E_DEAD if shown[message.number] else Status.E_NO_MEMORY
        assert message.status is expected
    own = [
        Extent(run.page, run.pages)
        for run in scene.ledger.window(owner.number)
        if run.hold is Hold.LENT and not scene.ledger.bonds([run])[0].borrowers
    ]
    named = {page for m in back for e in extents_of(m) for page in range(e.page, e.end)}
    assert {page for extent in own for page in range(extent.page, extent.end)} <= named


# ---- What the dead had not taken, and what it had borrowed ----


@pytest.mark.parametrize("taken", [False, True])
@pytest.mark.parametrize("operation", [Operation.SEND, Operation.LEND, Operation.SHARE])
def test_what_the_dead_had_not_taken_comes_back(
    scene: Scene, operation: Operation, taken: bool
) -> None:
    (own,) = scene.alloc(scene.a, 2)
    number = scene.done(scene.a, operation, own, to=scene.b, tag=4, payload=b"hi").number
    scene.exchange.deliver(scene.b)
    if taken:
        scene.took(scene.b)
    scene.exchange.leave(scene.b)
    if not taken:
        back = queued(scene.a)
        assert told(scene.a) == [(Operation.UNDELIVERED, Status.E_DEAD)]
        assert (back.number, back.tag, back.payload) == (number, 4, b"hi")
    elif operation is Operation.SEND:
        assert told(scene.a) == []
        assert scene.contents() == {}
        return
    else:
        back = queued(scene.a)
        assert told(scene.a) == [(Operation.RETURN, Status.E_DEAD)]
        assert (back.number, back.sender, back.length) == (0, 2, 8192)
    (place,) = extents_of(back)
    assert scene.holds(scene.a, place) == [Hold.OWNED] * 2
    assert scene.read(scene.a, place.page) == b"a 0"
    scene.check()


@pytest.mark.parametrize("delivered", [True, False])
def test_what_came_back_to_the_dead_dies_with_it(scene: Scene, delivered: bool) -> None:
    lent = scene.pass_on(scene.b, Operation.LEND, *scene.alloc(scene.b, 1), to=scene.a)
    scene.done(scene.b, Operation.SEND, *scene.alloc(scene.b, 1), to=scene.c)
    scene.done(scene.a, Operation.RETURN, *lent, to=scene.b)
    scene.host.plan, scene.host.armed = (True,), True
    assert scene.exchange.take(scene.c) is None
    scene.host.armed = False
    assert [operation for operation, _ in told(scene.b)] == [
        Operation.RETURN,
        Operation.UNDELIVERED,
    ]
    if delivered:
        scene.exchange.deliver(scene.b)
    scene.exchange.leave(scene.b)
    assert told(scene.a) == told(scene.b) == told(scene.c) == []
    assert scene.contents() == {}
    scene.check()


def test_an_index_that_makes_no_sense_makes_a_death_no_harder(scene: Scene) -> None:
    (own,) = scene.alloc(scene.a, 1)
    scene.done(scene.a, Operation.SEND, own, to=scene.b)
    scene.exchange.deliver(scene.b)
    scene.guest(scene.b).rx_tail = 99
    scene.exchange.leave(scene.b)
    assert told(scene.a) == [(Operation.UNDELIVERED, Status.E_DEAD)]


def test_what_the_dead_had_not_kept_does_not_come_back(scene: Scene) -> None:
    one, two = scene.alloc(scene.a, 1, 1)
    scene.done(scene.a, Operation.SEND, one, two, to=scene.b)
    scene.exchange.deliver(scene.b)
    scene.done(scene.b, Operation.RELEASE, Extent(1, 1))
    scene.exchange.leave(scene.b)
    assert queued(scene.a).spans == ()
    assert scene.contents() == {}


def test_who_has_no_room_any_more_gets_its_message_without_its_pages(scene: Scene) -> None:
    (own,) = scene.alloc(scene.a, 1)
    scene.done(scene.a, Operation.SEND, own, to=scene.b)
    scene.exchange.deliver(scene.b)
    scene.ledger.account(scene.a.number).quota = 0
    scene.exchange.leave(scene.b)
    assert told(scene.a) == [(Operation.UNDELIVERED, Status.E_DEAD)]
    assert (queued(scene.a).spans, scene.contents()) == ((), {})


def test_what_the_dead_borrowed_returns_in_as_many_messages_as_it_takes(scene: Scene) -> None:
    many = scene.alloc(scene.a, *[1] * (2 * abi.EXTENTS_MAX + 2))[::2]  # 17 that are apart
    scene.pass_on(scene.a, Operation.LEND, *many[:-1], to=scene.b)
    scene.pass_on(scene.a, Operation.SHARE, many[-1], to=scene.b)
    scene.exchange.leave(scene.b)
    first, second = scene.a.queue
    assert extents_of(first) + extents_of(second) == many
    assert (len(first.spans), first.length) == (abi.EXTENTS_MAX, abi.EXTENTS_MAX * abi.PAGE_SIZE)
    assert told(scene.a) == [(Operation.RETURN, Status.E_DEAD)] * 2
    assert set(scene.holds(scene.a, *many)) == {Hold.OWNED}


@pytest.mark.parametrize("delivered", [False, True])
def test_what_was_copied_for_the_dead_comes_back_beside_what_was_kept(
    scene: Scene, delivered: bool
) -> None:
    scene.exchange.operations.copy_below = 1 << 20
    (own,) = scene.alloc(scene.a, 2)
    scene.done(scene.a, Operation.EXCHANGE, own, to=scene.b)
    scene.write(scene.a, own.page, b"new")
    if delivered:
        scene.exchange.deliver(scene.b)
    scene.exchange.leave(scene.b)
    assert told(scene.a) == [(Operation.UNDELIVERED, Status.E_DEAD)]
    (place,) = extents_of(queued(scene.a))
    assert not place.overlaps(own)
    assert [scene.read(scene.a, place.page + index) for index in (0, 1)] == [b"a 0", b"a 1"]
    assert scene.read(scene.a, own.page) == b"new"
    scene.check()


# ---- What the dead had given to others ----


@pytest.mark.parametrize("operation", [Operation.SEND, Operation.EXCHANGE])
@pytest.mark.parametrize("copy_below", [0, 1 << 20])
def test_what_the_dead_had_sent_is_still_delivered(
    scene: Scene, operation: Operation, copy_below: int
) -> None:
    scene.exchange.operations.copy_below = copy_below
    (own,) = scene.alloc(scene.a, 1)
    scene.done(scene.a, operation, own, to=scene.b)
    scene.exchange.leave(scene.a)
    (place,) = scene.take(scene.b)
    assert scene.read(scene.b, place.page) == b"a 0"
    scene.check()


def test_a_borrower_keeps_what_is_the_deads_until_it_lets_go(scene: Scene) -> None:
    (own,) = scene.alloc(scene.a, 1)
    (there,) = scene.pass_on(scene.a, Operation.SHARE, own, to=scene.b)
    (also,) = scene.pass_on(scene.a, Operation.SHARE, own, to=scene.c)
    scene.exchange.leave(scene.a)
    assert scene.ledger.audit()["orphaned"] == 1
    scene.done(scene.b, Operation.RETURN, there, to=scene.a)
    assert scene.read(scene.c, also.page) == b"a 0"
    scene.exchange.leave(scene.c)
    assert scene.contents() == {}
    scene.check()


@pytest.mark.parametrize("copy_below", [0, 1 << 20])
def test_when_both_ends_have_died_everything_is_free(scene: Scene, copy_below: int) -> None:
    scene.exchange.operations.copy_below = copy_below
    for operation in (Operation.SEND, Operation.LEND, Operation.SHARE, Operation.EXCHANGE):
        scene.done(scene.a, operation, *scene.alloc(scene.a, 1), to=scene.b)
    scene.end()
    assert set(map(len, scene.mapped().values())) == {0}
