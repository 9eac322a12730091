"""Messages on their way: to their receivers, back to their senders, and past the dead."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from unit.exchange_scene import Scene, Snapshot, extents_of, queued, told
from unit.refusing_host import every_way

from vmm.ferry.message import Message
from vmm.guest.abi import Hold, Operation, Status
from vmm.memory.runs import Extent

pytestmark = pytest.mark.usefixtures("each_pool")

Act = Callable[[], object]
Prepare = Callable[[Scene], Act]


# ---- Delivery ----


@pytest.mark.parametrize(
    ("operation", "writable", "hold"),
    [
        (Operation.SEND, True, Hold.OWNED),
        (Operation.EXCHANGE, True, Hold.OWNED),
        (Operation.LEND, True, Hold.BORROWED),
        (Operation.LEND, False, Hold.VIEWED),
        (Operation.SHARE, True, Hold.BORROWED),
        (Operation.SHARE, False, Hold.VIEWED),
    ],
)
def test_a_message_brings_its_pages(
    scene: Scene, operation: Operation, writable: bool, hold: Hold
) -> None:
    scene.alloc(scene.b, 1)
    one, two = scene.alloc(scene.a, 2, 1)
    scene.done(scene.a, operation, two, one, to=scene.b, writable=writable, tag=9, length=8192)
    waiting = queued(scene.b)
    assert scene.holds(scene.b, *waiting.targets) == [Hold.INCOMING] * 3
    scene.check()
    assert scene.exchange.take(scene.b) is waiting
    assert (waiting.sender, waiting.receiver, waiting.tag, waiting.length) == (1, 2, 9, 8192)
    assert scene.holds(scene.b, *extents_of(waiting)) == [hold] * 3
    assert [scene.read(scene.b, place.page) for place in extents_of(waiting)] == [b"a 2", b"a 0"]
    scene.check()


def test_what_was_reclaimed_meanwhile_is_not_brought(scene: Scene) -> None:
    (own,) = scene.alloc(scene.a, 3)
    scene.done(scene.a, Operation.LEND, own, to=scene.b)
    scene.done(scene.a, Operation.RECLAIM, Extent(own.page + 1, 1))
    (place,) = scene.take(scene.b)
    assert scene.holds(scene.b, place) == [Hold.BORROWED, Hold.REVOKED, Hold.BORROWED]
    scene.check()


# ---- A host that refuses to bring them ----


def loaded(
    operation: Operation, *, writable: bool = True, reclaimed: bool = False, copied: bool = False
) -> Prepare:
    def prepare(scene: Scene) -> Act:
        scene.exchange.operations.copy_below = 1 << 20 if copied else 0
        first, second, third = scene.alloc(scene.a, 3, 2, 1)
        extents = (third, Extent(first.page + 1, 1), second)
        scene.done(scene.a, operation, *extents, to=scene.b, writable=writable, payload=b"hello")
        if reclaimed:
            scene.done(scene.a, Operation.RECLAIM, Extent(second.page, 1))
        return lambda: scene.exchange.deliver(scene.b)

    return prepare


LOADED = {
    "send": loaded(Operation.SEND),
    "exchange": loaded(Operation.EXCHANGE),
    "exchange, copied": loaded(Operation.EXCHANGE, copied=True),
    "lend": loaded(Operation.LEND),
    "share": loaded(Operation.SHARE, writable=False),
    "lend, in part reclaimed": loaded(Operation.LEND, reclaimed=True),
}


@pytest.mark.parametrize("name", LOADED)
def test_a_message_that_the_host_refuses_goes_back_to_its_sender_with_all_it_brought(
    name: str,
) -> None:
    def attempt(plan: Sequence[bool]) -> Sequence[bool]:
        with Scene(plan) as scene:
            act = LOADED[name](scene)
            before = scene.snapshot()
            message = queued(scene.b)
            scene.host.armed = True
            pending = act()
            scene.host.armed = False
            scene.check()
            assert before.contents.items() <= scene.contents().items()
            assert len(scene.b.queue) == 0
            if any(scene.host.taken):
                assert (pending, told(scene.b), len(scene.b.untaken)) == (0, [], 0)
                check_undelivered(scene, message, before)
            else:
                assert (pending, list(scene.b.untaken), told(scene.a)) == (1, [message], [])
            scene.recover()
            assert before.contents.items() <= scene.contents().items()
            return scene.host.taken

    assert every_way(attempt) >= 1 + 3


def check_undelivered(scene: Scene, message: Message, before: Snapshot) -> None:
    back = queued(scene.a)
    assert (back.number, back.payload, back.targets) == (message.number, b"hello", ())
    assert told(scene.a) == [(Operation.UNDELIVERED, Status.E_NO_MEMORY)]
    assert extents_of(back) == list(message.homes)
    if sum(scene.host.taken) == 1:  # all is shown, then
        assert set(scene.holds(scene.a, *extents_of(back))) == {Hold.OWNED}
        assert {run.hold for run in scene.ledger.window(scene.b.number)} <= {Hold.REVOKED}


def test_a_loan_of_the_dead_that_the_host_refuses_is_free(scene: Scene) -> None:
    (own,) = scene.alloc(scene.a, 2)
    scene.done(scene.a, Operation.LEND, own, to=scene.b)
    scene.exchange.leave(scene.a)
    free = scene.ledger.pool.free
    scene.host.plan, scene.host.armed = (True,), True
    assert scene.exchange.take(scene.b) is None
    assert scene.ledger.pool.free == free + 2
    assert b"a 0" not in scene.contents().values()
    scene.check()
