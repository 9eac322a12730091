"""QUERY: what a machine may know of its pages, and of what it may have."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from unit.exchange_scene import FRAMES, PAGES, Scene

from vmm.guest import abi
from vmm.guest.abi import Hold, Operation, Status
from vmm.memory.runs import Extent

pytestmark = pytest.mark.usefixtures("each_pool")

A, B, C = 1, 2, 3


def query(scene: Scene, *extents: Extent) -> abi.Answer:
    answer = scene.done(scene.a, Operation.QUERY, *extents)
    return abi.Answer.from_buffer_copy(answer.payload)


# ---- What a page is ----


def nothing(scene: Scene) -> Extent:
    scene.alloc(scene.a, 3)
    return Extent(3, 5)


def owned(scene: Scene) -> Extent:
    return scene.alloc(scene.a, 1)[0]


def parted(operation: Operation) -> Callable[[Scene], Extent]:
    def prepare(scene: Scene) -> Extent:
        (own,) = scene.alloc(scene.a, 1)
        scene.pass_on(scene.a, operation, own, to=scene.b)
        return own

    return prepare


def shared_with_two(scene: Scene) -> Extent:
    own = parted(Operation.SHARE)(scene)
    scene.done(scene.a, Operation.SHARE, own, to=scene.c)
    return own


def sent(scene: Scene) -> Extent:
    (own,) = scene.alloc(scene.a, 1)
    scene.done(scene.a, Operation.SEND, own, to=scene.b)
    return own


def incoming(scene: Scene) -> Extent:
    scene.done(scene.b, Operation.SEND, *scene.alloc(scene.b, 1), to=scene.a)
    return Extent(0, 1)


def borrowed(scene: Scene) -> Extent:
    (own,) = scene.alloc(scene.b, 1)
    scene.done(scene.b, Operation.SHARE, own, to=scene.c)  # of whom a knows nothing
    return scene.pass_on(scene.b, Operation.SHARE, own, to=scene.a)[0]


def viewed(scene: Scene) -> Extent:
    own = scene.alloc(scene.b, 1)
    return scene.pass_on(scene.b, Operation.LEND, *own, to=scene.a, writable=False)[0]


def orphaned(scene: Scene) -> Extent:
    place = viewed(scene)
    scene.exchange.leave(scene.b)
    return place


def revoked(scene: Scene) -> Extent:
    (own,) = scene.alloc(scene.b, 1)
    (place,) = scene.pass_on(scene.b, Operation.LEND, own, to=scene.a)
    scene.done(scene.b, Operation.RECLAIM, own)
    return place


@pytest.mark.parametrize(
    ("prepare", "hold", "owner", "borrowers"),
    [
        (nothing, Hold.NONE, abi.NO_PEER, []),
        (owned, Hold.OWNED, A, []),
        (parted(Operation.SHARE), Hold.SHARED, A, [B]),
        (shared_with_two, Hold.SHARED, A, [B, C]),
        (parted(Operation.LEND), Hold.LENT, A, [B]),
        (sent, Hold.SENT, A, [B]),
        (incoming, Hold.INCOMING, abi.NO_PEER, []),
        (borrowed, Hold.BORROWED, B, [A]),
        (viewed, Hold.VIEWED, B, [A]),
        (orphaned, Hold.VIEWED, B, [A]),
        (revoked, Hold.REVOKED, abi.NO_PEER, []),
    ],
)
def test_a_page_is_answered_with_its_hold_its_owner_and_its_borrowers(
    scene: Scene,
    prepare: Callable[[Scene], Extent],
    hold: Hold,
    owner: int,
    borrowers: list[int],
) -> None:
    extent = prepare(scene)
    before = scene.snapshot()
    answer = query(scene, extent)
    assert (Hold(answer.hold), answer.pages, answer.owner) == (hold, extent.pages, owner)
    assert answer.borrower_count == len(borrowers)
    assert list(answer.borrowers) == borrowers + [0] * (abi.ANSWER_BORROWERS - len(borrowers))
    assert scene.snapshot() == before


def test_an_answer_is_true_of_as_many_pages_as_it_says(scene: Scene) -> None:
    (own,) = scene.alloc(scene.a, 5)  # of which no two frames are adjacent
    scene.pass_on(scene.a, Operation.SHARE, Extent(own.page + 1, 2), to=scene.b)
    for page, hold, pages in ((0, Hold.OWNED, 1), (1, Hold.SHARED, 1), (5, Hold.NONE, 4)):
        answer = query(scene, Extent(page, 9 - page))
        assert (Hold(answer.hold), answer.pages) == (hold, pages)


def test_of_many_borrowers_the_first_are_named_and_all_are_counted(scene: Scene) -> None:
    (own,) = scene.alloc(scene.a, 1)
    many = [scene.peer(10 + index, f"m{index}") for index in range(abi.ANSWER_BORROWERS + 1)]
    for peer in many:
        scene.exchange.roster.connect(scene.a, peer)
        scene.done(scene.a, Operation.SHARE, own, to=peer)
    answer = query(scene, own)
    assert answer.borrower_count == len(many)
    assert list(answer.borrowers) == [peer.number for peer in many[:-1]]


# ---- What a machine has ----


def test_without_an_extent_the_answer_is_of_the_machine_alone(scene: Scene) -> None:
    scene.alloc(scene.a, 2, 1)
    scene.done(scene.b, Operation.SEND, *scene.alloc(scene.b, 1), to=scene.a)
    answer = query(scene)
    assert (answer.hold, answer.pages, answer.borrower_count) == (0, 0, 0)
    assert answer.owner == abi.NO_PEER
    assert (answer.pages_held, answer.pages_quota) == (4, FRAMES)  # what comes to stay as well
    assert (answer.pieces_held, answer.pieces_quota) == (4, PAGES)
    assert answer.pool_free == FRAMES // 2 - 4


@pytest.mark.parametrize(
    ("extents", "status"),
    [
        ([Extent(0, 1), Extent(1, 1)], Status.E_LENGTH),
        ([Extent(0, 0)], Status.E_RANGE),
        ([Extent(PAGES, 1)], Status.E_RANGE),
    ],
)
def test_a_question_of_anything_but_one_extent_of_the_window_is_refused(
    scene: Scene, extents: list[Extent], status: Status
) -> None:
    assert scene.ask(scene.a, Operation.QUERY, *extents).status is status
