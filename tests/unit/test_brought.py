"""Pages that are brought at once, to one who waits: they are there before the message is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
from unit.exchange_scene import Scene, extents_of, queued, told
from unit.refusing_host import every_way

from vmm.ferry.queue import Queue
from vmm.ferry.rules import READABLE
from vmm.guest import abi
from vmm.guest.abi import Hold, Operation, Status
from vmm.memory.runs import Extent

pytestmark = pytest.mark.usefixtures("each_pool")

SEND, LEND, SHARE = Operation.SEND, Operation.LEND, Operation.SHARE
EXCHANGE = Operation.EXCHANGE

each_kind = pytest.mark.parametrize(
    ("operation", "writable"),
    [(SEND, True), (LEND, True), (LEND, False), (SHARE, True), (SHARE, False)],
)
# What a page is to its sender when it is another's, too.
LEFT = {SEND: Hold.NONE, LEND: Hold.LENT, SHARE: Hold.SHARED}


def hold_there(operation: Operation, writable: bool) -> Hold:
    return Hold.OWNED if operation is SEND else Hold.BORROWED if writable else Hold.VIEWED


def begin(scene: Scene) -> Scene:
    """Let b wait, and adjacent pages be adjacent frames: what is one extent is one run."""
    scene.join_frames()
    scene.b.idle = True
    return scene


@pytest.fixture
def scene(no_leaks: None) -> Iterator[Scene]:
    with Scene(audit=True) as scene:
        yield begin(scene)


# ---- Where the pages are ----


@each_kind
def test_pages_are_there_before_their_message_and_it_is_delivered_once(
    scene: Scene, operation: Operation, writable: bool
) -> None:
    scene.alloc(scene.b, 1)
    (own,) = scene.alloc(scene.a, 5)
    part = Extent(own.page + 1, 3)
    hold = hold_there(operation, writable)
    fields = {"tag": 9, "length": 8192, "payload": b"news", "writable": writable}
    number = scene.done(scene.a, operation, part, to=scene.b, **fields).number
    waiting = queued(scene.b)
    (there,) = waiting.targets
    assert scene.holds(scene.b, there) == [hold] * 3
    assert scene.holds(scene.a, own) == [Hold.OWNED, *[LEFT[operation]] * 3, Hold.OWNED]
    assert [scene.read(scene.b, there.page + i) for i in range(3)] == [b"a 1", b"a 2", b"a 3"]
    scene.check()
    scene.host.plan, scene.host.armed = (True,) * 9, True
    assert scene.enter(scene.b) == 1
    assert scene.host.taken == []  # nothing is left to be done
    assert list(scene.b.untaken) == [waiting]
    assert scene.enter(scene.b) == 1
    read = scene.guest(scene.b).rx[0]
    assert (scene.guest(scene.b).rx_head, scene.b.received, scene.a.sent) == (1, 1, 1)
    assert (read.operation, read.sender, read.message) == (operation, 1, number)
    assert (read.tag, read.length, bytes(read.payload[:4])) == (9, 8192, b"news")
    assert extents_of(waiting) == [there]
    assert (read.extents[0].gpa, read.extents[0].pages) == waiting.spans[0]
    scene.check()


def unlike(name: str) -> Callable[[Scene], object]:
    """Something that is not brought at once, for one reason each."""

    def send(scene: Scene) -> object:
        one, two = scene.alloc(scene.a, 2, 1)
        if name == "a peer that runs":
            scene.b.idle = False
        if name == "several runs":
            return scene.done(scene.a, SEND, two, one, to=scene.b)
        operation = EXCHANGE if name == "exchange" else SEND
        return scene.done(scene.a, operation, one, to=scene.b)

    return send


@pytest.mark.parametrize("name", ["a peer that runs", "several runs", "exchange"])
def test_what_else_is_sent_is_on_its_way_until_it_is_delivered(scene: Scene, name: str) -> None:
    unlike(name)(scene)
    waiting = queued(scene.b)
    assert set(scene.holds(scene.b, *waiting.targets)) == {Hold.INCOMING}
    assert scene.mapped()["b"] == {}
    scene.check()
    assert scene.enter(scene.b) == 1
    assert set(scene.holds(scene.b, *waiting.targets)) <= READABLE
    assert scene.read(scene.b, waiting.targets[-1].page) == b"a 0"
    scene.check()


def test_messages_of_every_kind_are_delivered_in_the_order_in_which_they_were_sent(
    scene: Scene,
) -> None:
    own = scene.alloc(scene.a, *[1] * 7)
    scene.done(scene.a, SEND, to=scene.b, tag=0, payload=b"before")
    scene.done(scene.a, SEND, own[0], to=scene.b, tag=1)
    scene.done(scene.a, SEND, own[4], own[2], to=scene.b, tag=2)  # on its way
    scene.done(scene.a, LEND, own[1], to=scene.b, tag=3, writable=False)
    scene.put(scene.a, SEND, to=scene.b, tag=4, payload=b"between")
    scene.exchange.transmit(scene.a)
    scene.done(scene.a, SHARE, own[3], to=scene.b, tag=5)
    scene.done(scene.a, LEND, own[5], to=scene.b, tag=6)
    scene.done(scene.a, SEND, to=scene.b, tag=7, payload=b"after")
    scene.check()
    assert scene.enter(scene.b) == 8
    guest = scene.guest(scene.b)
    assert [guest.rx[i].tag for i in range(8)] == list(range(8))
    read = [[scene.read(scene.b, e.page) for e in extents_of(m)] for m in scene.b.untaken]
    assert read == [[], [b"a 0"], [b"a 4", b"a 2"], [b"a 1"], [], [b"a 3"], [b"a 5"], []]
    scene.check()


def test_its_sender_holds_still_before_its_pages_go(scene: Scene) -> None:
    (own,) = scene.alloc(scene.a, 1)
    seen: list[bytes] = []
    scene.a.hold_still = lambda: seen.append(scene.read(scene.a, own.page))
    scene.done(scene.a, SEND, own, to=scene.b)
    assert seen == [b"a 0"]


# ---- Refused ----


REFUSED: dict[Status, Callable[[Scene, Extent], object]] = {
    Status.E_QUEUE_FULL: lambda scene, own: setattr(scene.b, "queue", Queue(0)),
    Status.E_WINDOW_FULL: lambda scene, own: setattr(
        scene.ledger.account(scene.b.number), "pieces", 0
    ),
    Status.E_QUOTA: lambda scene, own: setattr(scene.ledger.account(scene.a.number), "pieces", 1),
    Status.E_LENT: lambda scene, own: scene.done(scene.a, LEND, own, to=scene.c),
    Status.E_OWNERSHIP: lambda scene, own: scene.done(scene.a, SEND, own, to=scene.b),
    Status.E_DEAD: lambda scene, own: scene.exchange.leave(scene.b),
    Status.E_PEER: lambda scene, own: scene.a.table.pop(scene.b.number),
}


@pytest.mark.parametrize("operation", [SEND, LEND, SHARE])
@pytest.mark.parametrize("status", REFUSED)
def test_who_is_refused_has_not_parted_with_anything(
    scene: Scene, status: Status, operation: Operation
) -> None:
    (own,) = scene.alloc(scene.a, 3)
    REFUSED[status](scene, own)
    before = scene.snapshot()
    answer = scene.ask(scene.a, operation, Extent(own.page + 1, 1), to=scene.b)
    assert (answer.status, answer.number) == (status, 0)
    assert scene.snapshot() == before
    scene.ledger.account(scene.a.number).pieces = 9  # or it is no sound ledger
    scene.check()


def test_what_is_brought_takes_its_place_in_a_queue_and_gives_it_back_at_delivery() -> None:
    with Scene(depth=2) as scene:
        begin(scene)
        own = scene.alloc(scene.a, *[1] * 3)
        statuses = [scene.ask(scene.a, SEND, page, to=scene.b).status for page in own]
        assert statuses == [Status.OK, Status.OK, Status.E_QUEUE_FULL]
        assert not scene.guest(scene.a).peers[0].flags & abi.PeerFlags.ROOM
        assert scene.holds(scene.a, *own) == [Hold.NONE, Hold.NONE, Hold.OWNED]
        scene.check()
        assert scene.enter(scene.b) == 2
        assert scene.guest(scene.a).peers[0].flags & abi.PeerFlags.ROOM
        scene.done(scene.a, SEND, own[2], to=scene.b)


@pytest.mark.parametrize("first", [abi.RX_ENTRIES, 0], ids=["pages", "payloads"])
def test_no_more_are_brought_than_the_ring_takes(first: int) -> None:
    """Those behind them are delivered when it has room, and may have to go back until then."""
    count = abi.RX_ENTRIES + 2
    with Scene(depth=count) as scene:
        begin(scene)
        (own,) = scene.alloc(scene.a, count if first else 3)
        for index in range(count if first else abi.RX_ENTRIES - 1):
            page = [Extent(own.page + index, 1)] if first else []
            scene.done(scene.a, SEND, *page, to=scene.b)
        if not first:
            for page in range(3):
                scene.done(scene.a, SEND, Extent(own.page + page, 1), to=scene.b)
        brought = first or 1
        places = Extent(0, own.pages)
        waiting = own.pages - brought
        assert scene.holds(scene.b, places) == [Hold.OWNED] * brought + [Hold.INCOMING] * waiting
        scene.check()
        assert scene.enter(scene.b) == abi.RX_ENTRIES
        assert (len(scene.b.queue), scene.b.received) == (2, abi.RX_ENTRIES)
        assert scene.holds(scene.b, places)[-2:] == [Hold.INCOMING] * 2
        scene.check()
        scene.took(scene.b)
        assert scene.enter(scene.b) == 2
        assert set(scene.holds(scene.b, places)) == {Hold.OWNED}


# ---- A host that refuses ----


@each_kind
def test_what_the_host_refuses_to_hide_has_not_been_sent(
    scene: Scene, operation: Operation, writable: bool
) -> None:
    (own,) = scene.alloc(scene.a, 3)
    before = scene.snapshot()
    scene.host.plan, scene.host.armed = (True,), True
    answer = scene.ask(scene.a, operation, own, to=scene.b, writable=writable)
    scene.host.armed = False
    assert answer.status is Status.E_NO_MEMORY
    assert scene.snapshot() == before
    assert (scene.a.sent, scene.a.refused) == (0, 1)
    scene.check()


@each_kind
def test_what_the_host_refuses_to_show_is_on_its_way_and_delivered_or_goes_back(
    operation: Operation, writable: bool
) -> None:
    def attempt(plan: Sequence[bool]) -> Sequence[bool]:
        with Scene((False, True, *plan), audit=True) as scene:
            begin(scene)
            (own,) = scene.alloc(scene.a, 3)
            before = scene.contents()
            scene.host.armed = True
            scene.done(scene.a, operation, own, to=scene.b, writable=writable, payload=b"hello")
            waiting = queued(scene.b)
            assert scene.holds(scene.b, *waiting.targets) == [Hold.INCOMING] * 3
            gone = Hold.SENT if operation is SEND else LEFT[operation]
            assert scene.holds(scene.a, own) == [gone] * 3
            scene.check()
            pending = scene.enter(scene.b)
            scene.host.armed = False
            scene.check()
            assert scene.contents() == before
            taken = scene.host.taken[2:]
            if any(taken):
                assert (pending, told(scene.a)) == (
                    0,
                    [(Operation.UNDELIVERED, Status.E_NO_MEMORY)],
                )
                assert extents_of(queued(scene.a)) == [own]
                scene.recover()
                assert set(scene.holds(scene.a, own)) == {Hold.OWNED}
            else:
                assert (pending, told(scene.a), list(scene.b.untaken)) == (1, [], [waiting])
                hold = hold_there(operation, writable)
                assert scene.holds(scene.b, *waiting.targets) == [hold] * 3
            scene.end()
            return taken

    # Shown there; shown back, if it was hidden; neither.
    assert every_way(attempt) == (2 if operation is SHARE else 3)


# ---- Taken back ----


@pytest.mark.parametrize("part", [Extent(0, 3), Extent(1, 1)], ids=["all", "part"])
@pytest.mark.parametrize("operation", [LEND, SHARE])
def test_a_loan_is_reclaimed_before_its_message_is_delivered(
    scene: Scene, part: Extent, operation: Operation
) -> None:
    (own,) = scene.alloc(scene.a, 3)
    scene.done(scene.a, operation, own, to=scene.b)
    (there,) = queued(scene.b).targets
    notices = scene.guest(scene.b).reclaim_notices
    scene.done(scene.a, Operation.RECLAIM, Extent(own.page + part.page, part.pages))
    scene.check()
    assert scene.read(scene.a, own.page + part.page) == f"a {own.page + part.page}".encode()
    assert scene.guest(scene.b).reclaim_notices == notices + 1
    revoked = Extent(there.page + part.page, part.pages)
    assert scene.ask(scene.b, Operation.RELEASE, revoked).status is Status.E_OWNERSHIP
    held = [Hold.REVOKED if part.page <= i < part.end else Hold.BORROWED for i in range(3)]
    assert scene.holds(scene.b, there) == held
    assert scene.enter(scene.b) == 1
    assert scene.holds(scene.b, there) == held
    scene.done(scene.b, Operation.RELEASE, revoked)
    scene.check()
