"""What peers may ask for, and what the host may refuse of it: all of it is done, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from unit.exchange_scene import Scene, Snapshot, queued
from unit.refusing_host import every_way

from vmm.ferry.message import Answer
from vmm.ferry.peer import Peer
from vmm.guest import abi
from vmm.guest.abi import Hold, Operation, Status
from vmm.memory.runs import Extent

pytestmark = pytest.mark.usefixtures("each_pool")

COPIED = 1 << 20  # bytes: more than anybody exchanges here

Act = Callable[[], Answer]
Prepare = Callable[[Scene], Act]


def notices(scene: Scene, peer: Peer) -> int:
    return int(scene.guest(peer).reclaim_notices)


# ---- A host that refuses: extents in disorder, of several runs each; parts of what was lent ----


def transfer(operation: Operation, *, copied: bool = False) -> Prepare:
    def prepare(scene: Scene) -> Act:
        scene.exchange.operations.copy_below = COPIED if copied else 0
        first, second, third = scene.alloc(scene.a, 3, 2, 1)
        middle = Extent(first.page + 1, 1)
        return lambda: scene.ask(scene.a, operation, third, middle, second, to=scene.b, tag=7)

    return prepare


def give_back(scene: Scene) -> Act:
    lent = scene.pass_on(scene.a, Operation.LEND, *scene.alloc(scene.a, 3, 2), to=scene.b)
    shared = scene.pass_on(scene.a, Operation.SHARE, *scene.alloc(scene.a, 2), to=scene.b)
    parts = (lent[1], Extent(lent[0].page + 1, 1), Extent(shared[0].page, 1))
    return lambda: scene.ask(scene.b, Operation.RETURN, *parts, to=scene.a, payload=b"here")


def reclaim(scene: Scene) -> Act:
    lent, shared, waiting, going = scene.alloc(scene.a, 3, 2, 1, 1)
    scene.pass_on(scene.a, Operation.LEND, lent, to=scene.b)
    scene.pass_on(scene.a, Operation.SHARE, shared, to=scene.b, writable=False)
    scene.pass_on(scene.a, Operation.SHARE, shared, to=scene.c)
    scene.done(scene.a, Operation.LEND, going, to=scene.b)
    scene.done(scene.a, Operation.SHARE, waiting, to=scene.c)
    middle = Extent(lent.page + 1, 2)
    return lambda: scene.ask(scene.a, Operation.RECLAIM, shared, middle, going, waiting)


def alloc(scene: Scene) -> Act:
    scene.alloc(scene.a, 1)
    return lambda: scene.ask_alloc(scene.a, 2, 1, 2)


def release(scene: Scene) -> Act:
    first, second, third = scene.alloc(scene.a, 3, 2, 1)
    middle = Extent(first.page + 1, 1)
    return lambda: scene.ask(scene.a, Operation.RELEASE, third, middle, second)


# What is asked for, and at least how many calls of the host's it takes.
OPERATIONS: dict[str, tuple[Prepare, int]] = {
    "send": (transfer(Operation.SEND), 3),
    "lend": (transfer(Operation.LEND), 3),
    "share": (transfer(Operation.SHARE), 0),
    "exchange": (transfer(Operation.EXCHANGE), 7),
    "exchange, copied": (transfer(Operation.EXCHANGE, copied=True), 4),
    "return": (give_back, 6),
    "reclaim": (reclaim, 8),
    "alloc": (alloc, 5),
    "release": (release, 3),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_the_host_refuses_is_refused_with_everything_as_before(name: str) -> None:
    """Or, where it refuses to undo it as well, with nothing lost, and no more seen than is so."""
    prepare, calls = OPERATIONS[name]
    undisturbed: list[Snapshot] = []

    def attempt(plan: Sequence[bool]) -> Sequence[bool]:
        with Scene(plan) as scene:
            act = prepare(scene)
            before = scene.snapshot()
            scene.host.armed = True
            answer = act()
            scene.host.armed = False
            taken = scene.host.taken
            scene.check()
            if not any(taken):
                assert answer.status is Status.OK
                assert len(taken) >= calls
                undisturbed.append(scene.snapshot())
                return taken
            assert answer == Answer(Status.E_NO_MEMORY)
            if sum(taken) == 1:
                assert scene.snapshot() == before
                assert act().status is Status.OK
                assert [scene.snapshot()] == undisturbed
            else:
                assert before.contents.items() <= scene.contents().items()
                scene.recover()
                assert before.contents.items() <= scene.contents().items()
            return taken

    assert every_way(attempt) >= 1 + calls


def test_a_borrower_from_whom_a_page_cannot_but_be_taken_gets_a_notice(scene: Scene) -> None:
    own, other = scene.alloc(scene.a, 1, 1)
    scene.pass_on(scene.a, Operation.LEND, own, to=scene.b)
    scene.pass_on(scene.a, Operation.SHARE, other, to=scene.c)
    scene.host.plan, scene.host.armed = (False, True, True), True  # the second, and its undoing
    assert scene.ask(scene.a, Operation.RECLAIM, own, other).status is Status.E_NO_MEMORY
    assert (notices(scene, scene.b), notices(scene, scene.c)) == (1, 0)
    assert scene.holds(scene.b, Extent(0, 1)) == [Hold.REVOKED]
    assert scene.holds(scene.a, own, other) == [Hold.LENT, Hold.SHARED]


# ---- Messages ----


def test_an_exchange_sends_what_was_there_and_leaves_zeros_in_its_place(scene: Scene) -> None:
    (own,) = scene.alloc(scene.a, 2)
    frames = [scene.mapped()["a"][page][0] for page in (own.page, own.page + 1)]
    (there,) = scene.pass_on(scene.a, Operation.EXCHANGE, own, to=scene.b)
    assert scene.holds(scene.a, own) == [Hold.OWNED] * 2
    assert scene.read(scene.a, own.page) == b""
    assert [scene.mapped()["b"][there.page + index][0] for index in (0, 1)] == frames
    assert scene.read(scene.b, there.page) == b"a 0"
    assert scene.a.sent == scene.b.received == 1


def test_a_small_exchange_is_copied_and_looks_the_same(scene: Scene) -> None:
    own, other = scene.alloc(scene.a, 3, 1)
    scene.exchange.operations.copy_below = 4 * abi.PAGE_SIZE
    before = scene.mapped()["a"]
    middle = Extent(own.page + 1, 1)
    there = scene.pass_on(scene.a, Operation.EXCHANGE, other, middle, to=scene.b)
    assert scene.mapped()["a"] == before
    assert not {f for f, _ in scene.mapped()["b"].values()} & {f for f, _ in before.values()}
    assert [scene.read(scene.b, place.page) for place in there] == [b"a 3", b"a 1"]
    assert [scene.read(scene.a, page) for page in range(4)] == [b"a 0", b"", b"a 2", b""]
    assert scene.holds(scene.a, own, other) == [Hold.OWNED] * 4
    scene.write(scene.a, middle.page, b"new")
    assert scene.read(scene.b, there[1].page) == b"a 1"
    scene.check()
    scene.done(scene.b, Operation.RELEASE, *there)
    scene.check()
    scene.end()


def test_an_exchange_of_as_much_as_the_limit_is_moved(scene: Scene) -> None:
    one, two = scene.alloc(scene.a, 2, 2)
    scene.exchange.operations.copy_below = 4 * abi.PAGE_SIZE
    before = scene.mapped()["a"]
    scene.done(scene.a, Operation.EXCHANGE, one, two, to=scene.b)
    assert not set(scene.mapped()["a"].values()) & set(before.values())


def test_pages_that_were_never_touched_are_exchanged_too(scene: Scene) -> None:
    scene.exchange.operations.copy_below = COPIED
    (own,) = scene.exchange.operations.grant(scene.a, [2])
    (there,) = scene.pass_on(scene.a, Operation.EXCHANGE, own, to=scene.b)
    assert [scene.read(scene.b, there.page), scene.read(scene.a, own.page)] == [b"", b""]
    scene.check()


@pytest.mark.parametrize("operation", [Operation.SEND, Operation.LEND, Operation.SHARE])
def test_without_a_channel_a_peer_cannot_be_told_from_one_that_does_not_exist(
    scene: Scene, operation: Operation
) -> None:
    (own,) = scene.alloc(scene.c, 1)
    before = scene.snapshot()
    for nobody in (scene.a, scene.c, 99):
        assert scene.ask(scene.c, operation, own, to=nobody) == Answer(Status.E_PEER)
    assert scene.snapshot() == before


@pytest.mark.parametrize("operation", [Operation.SEND, Operation.EXCHANGE, Operation.SHARE])
def test_a_full_queue_is_a_refusal_that_changes_nothing(operation: Operation) -> None:
    with Scene(depth=1) as scene:
        (own,) = scene.alloc(scene.a, 1)
        scene.done(scene.a, Operation.SEND, to=scene.b)
        before = scene.snapshot()
        assert scene.ask(scene.a, operation, own, to=scene.b) == Answer(Status.E_QUEUE_FULL)
        assert scene.snapshot() == before


def test_a_message_to_the_dead_is_refused(scene: Scene) -> None:
    (own,) = scene.alloc(scene.a, 1)
    scene.exchange.leave(scene.b)
    assert scene.ask(scene.a, Operation.SEND, own, to=scene.b) == Answer(Status.E_DEAD)


def test_a_borrower_sees_what_is_lent_and_writes_where_it_may(scene: Scene) -> None:
    one, two, three = scene.alloc(scene.a, 1, 1, 1)
    (lent,) = scene.pass_on(scene.a, Operation.LEND, one, to=scene.b)
    (viewed,) = scene.pass_on(scene.a, Operation.LEND, two, to=scene.b, writable=False)
    (shared,) = scene.pass_on(scene.a, Operation.SHARE, three, to=scene.b, writable=False)
    seen = scene.mapped()
    assert [seen["b"][place.page][1] for place in (lent, viewed, shared)] == [True, False, False]
    assert seen["a"] == {three.page: (seen["b"][shared.page][0], True)}
    scene.check()


# ---- The way back ----


def test_what_is_borrowed_is_returned_where_no_channel_leads_back(scene: Scene) -> None:
    (own,) = scene.alloc(scene.a, 2)
    (there,) = scene.pass_on(scene.a, Operation.LEND, own, to=scene.c)
    scene.write(scene.c, there.page, b"changed")
    answer = scene.done(scene.c, Operation.RETURN, there, to=scene.a, tag=5, length=10)
    back = queued(scene.a)
    assert (back.number, back.operation, back.status) == (answer.number, Operation.RETURN, 0)
    assert (back.sender, back.receiver, back.tag, back.length) == (3, 1, 5, 10)
    assert scene.holds(scene.a, own) == [Hold.OWNED] * 2  # at once, before it takes the message
    assert scene.read(scene.a, own.page) == b"changed"
    assert scene.take(scene.a) == [own]
    assert scene.c.sent == scene.a.received == 1


@pytest.mark.parametrize("full", [False, True])
def test_a_return_tells_nothing_where_no_channel_leads(scene: Scene, full: bool) -> None:
    (own,) = scene.alloc(scene.a, 1)
    (there,) = scene.pass_on(scene.a, Operation.LEND, own, to=scene.c)
    if full:
        for _ in range(scene.a.queue.depth):
            scene.done(scene.b, Operation.SEND, to=scene.a)
    before = scene.snapshot()
    answer = scene.ask(scene.c, Operation.RETURN, there, to=scene.a, payload=b"psst")
    assert answer == Answer(Status.E_PEER)
    assert scene.snapshot() == before


def test_a_return_waits_for_room_in_its_owners_queue(scene: Scene) -> None:
    (own,) = scene.alloc(scene.a, 2)
    (there,) = scene.pass_on(scene.a, Operation.LEND, own, to=scene.c)
    first, there = Extent(there.page, 1), Extent(there.page + 1, 1)
    scene.done(scene.c, Operation.RETURN, first, to=scene.a)
    for _ in range(scene.a.queue.depth - 1):
        scene.done(scene.b, Operation.SEND, to=scene.a)
    before = scene.snapshot()
    assert scene.ask(scene.c, Operation.RETURN, there, to=scene.a) == Answer(Status.E_QUEUE_FULL)
    assert scene.snapshot() == before
    scene.take(scene.a)
    scene.done(scene.c, Operation.RETURN, there, to=scene.a)


def test_what_its_owner_has_in_too_many_places_is_returned_by_parts(scene: Scene) -> None:
    many = scene.alloc(scene.a, *[1] * (2 * abi.EXTENTS_MAX + 2))[::2]  # 17 that are apart
    first = scene.pass_on(scene.a, Operation.LEND, *many[:-1], to=scene.b)
    (last,) = scene.pass_on(scene.a, Operation.LEND, many[-1], to=scene.b)
    together = Extent(first[0].page, len(many))
    assert last.end == together.end
    before = scene.snapshot()
    assert scene.ask(scene.b, Operation.RETURN, together, to=scene.a) == Answer(Status.E_LENGTH)
    assert scene.snapshot() == before
    for extent in (Extent(together.page, abi.EXTENTS_MAX), last):
        scene.done(scene.b, Operation.RETURN, extent, to=scene.a)
    assert [len(message.spans) for message in scene.a.queue] == [abi.EXTENTS_MAX, 1]


def test_what_is_returned_to_the_dead_is_zeroed_and_free_and_nobody_is_told(scene: Scene) -> None:
    (own,) = scene.alloc(scene.a, 2)
    (there,) = scene.pass_on(scene.a, Operation.LEND, own, to=scene.b)
    scene.exchange.leave(scene.a)
    assert scene.read(scene.b, there.page) == b"a 0"
    free = scene.ledger.pool.free
    assert scene.done(scene.b, Operation.RETURN, there, to=scene.a, payload=b"gone").number == 0
    assert scene.ledger.pool.free == free + 2
    assert b"a 0" not in scene.contents().values()
    scene.check()


def test_a_reclaim_takes_from_all_who_borrow_and_tells_each_of_them_once(scene: Scene) -> None:
    one, two, three = scene.alloc(scene.a, 1, 1, 1)
    (lent,) = scene.pass_on(scene.a, Operation.LEND, one, to=scene.b)
    (shared,) = scene.pass_on(scene.a, Operation.SHARE, two, to=scene.b)
    scene.pass_on(scene.a, Operation.SHARE, two, to=scene.c)
    scene.done(scene.a, Operation.LEND, three, to=scene.c)
    scene.woken.clear()
    scene.done(scene.a, Operation.RECLAIM, three, one, two)
    assert scene.holds(scene.a, one, two, three) == [Hold.OWNED] * 3
    assert scene.holds(scene.b, lent, shared) == [Hold.REVOKED] * 2
    assert (notices(scene, scene.b), notices(scene, scene.c)) == (1, 1)
    assert scene.woken == ["b", "c"]
    scene.check()
    assert scene.exchange.take(scene.c) is not None  # its message comes, without the page
    assert scene.ask(scene.b, Operation.RETURN, lent, to=scene.a).status is Status.E_RECLAIMED
    scene.host.armed = True
    scene.done(scene.b, Operation.RELEASE, lent, shared)
    assert scene.host.taken == []  # nothing that the host could refuse
    assert scene.ledger.window(scene.b.number) == ()


def test_a_reclaimed_place_stays_its_messages_until_that_is_delivered(scene: Scene) -> None:
    (own,) = scene.alloc(scene.a, 1)
    (secret,) = scene.alloc(scene.b, 1)
    scene.done(scene.a, Operation.SHARE, own, to=scene.c)
    place = queued(scene.c).targets[0]
    scene.done(scene.a, Operation.RECLAIM, own)
    assert scene.ask(scene.c, Operation.RELEASE, place) == Answer(Status.E_OWNERSHIP)
    scene.done(scene.b, Operation.SEND, secret, to=scene.c)
    assert scene.take(scene.c) == [place]
    assert scene.holds(scene.c, place) == [Hold.REVOKED]  # and no page of b's
    assert scene.take(scene.c) != [place]
    scene.done(scene.c, Operation.RELEASE, place)


# ---- The pool ----


def test_an_alloc_answers_where_its_pages_are(scene: Scene) -> None:
    (own,) = scene.alloc(scene.a, 1)
    answer = scene.ask_alloc(scene.a, 3, 1)
    assert [span.pages for span in answer.spans] == [3, 1]
    first, second = ((span.gpa - abi.WINDOW_GPA) // abi.PAGE_SIZE for span in answer.spans)
    assert {first, second}.isdisjoint({own.page})
    assert scene.holds(scene.a, Extent(first, 3), Extent(second, 1)) == [Hold.OWNED] * 4
    assert [scene.read(scene.a, page) for page in (first, second)] == [b"", b""]


def test_what_is_released_reads_as_zeros_to_its_next_owner(scene: Scene) -> None:
    (own,) = scene.alloc(scene.a, 2)
    frame = scene.mapped()["a"][own.page][0]
    scene.done(scene.a, Operation.RELEASE, own)
    scene.ask_alloc(scene.b, 2)
    assert scene.mapped()["b"][0][0] == frame
    assert scene.read(scene.b, 0) == b""
