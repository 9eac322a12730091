"""The ledger: pages from and to the pool, what is refused for what a page is, queries."""

from __future__ import annotations

import pytest
from unit.ledger_scene import (
    LEND,
    SEND,
    SHARE,
    TRANSFERS,
    A,
    B,
    C,
    a_has,
    ask,
    delivered,
    refused,
    refused_transfer,
    release,
    states,
    three_peers,
    transfer,
)

from vmm.ferry.books import Description
from vmm.guest.abi import Hold, Operation, Status
from vmm.memory.frames import GIANT, LARGE, Frames
from vmm.memory.runs import Extent, Run

# ---- From and to the pool ----


def test_granted_pages_are_owned_and_come_from_the_pool() -> None:
    ledger = three_peers()
    assert ledger.grant(A, [4]) == ([Extent(0, 4)], [Run(0, 4, 0, Hold.OWNED)])
    assert ledger.window(A) == (Run(0, 4, 0, Hold.OWNED),)
    assert ledger.account(A).charged == 4
    assert ledger.audit() == {
        "free": 28,
        "owned": 4,
        "in_flight": 0,
        "lent": 0,
        "shared": 0,
        "orphaned": 0,
    }


def test_a_grant_of_several_extents_is_one_or_nothing() -> None:
    ledger = three_peers(frames=8)
    assert refused(ledger, lambda: ledger.grant(A, [4, 5])) is Status.E_NO_MEMORY
    extents, _ = ledger.grant(A, [4, 2])
    assert extents == [Extent(0, 4), Extent(4, 2)]
    assert ledger.grant(A, []) == ([], [])


def test_a_grant_takes_what_frames_there_are() -> None:
    ledger = three_peers(frames=6)
    ledger.grant(A, [6])
    release(ledger, A, Extent(1, 2), Extent(4, 2))
    extents, runs = ledger.grant(B, [3])
    assert extents == [Extent(0, 3)]
    assert runs == [Run(0, 2, 1, Hold.OWNED), Run(2, 1, 4, Hold.OWNED)]


def test_released_pages_go_back_to_the_pool() -> None:
    ledger = a_has(8)
    assert release(ledger, A, Extent(2, 3)) == [Frames(2, 3)]
    assert ledger.window(A) == (Run(0, 2, 0, Hold.OWNED), Run(5, 3, 5, Hold.OWNED))
    assert ledger.account(A).charged == 5
    assert states(ledger) == {"owned": 5}


def test_large_extents_lie_aligned_at_the_top_and_small_ones_below() -> None:
    ledger = three_peers(frames=8 * LARGE, pages=4 * LARGE)
    extents, _ = ledger.grant(A, [1, LARGE, LARGE + 1])
    assert extents == [Extent(0, 1), Extent(3 * LARGE, LARGE), Extent(LARGE, LARGE + 1)]


def test_an_extent_of_a_gib_lies_at_a_multiple_of_it_where_there_is_room() -> None:
    ledger = three_peers(frames=4 * GIANT, pages=2 * GIANT + LARGE)
    extents, _ = ledger.grant(A, [LARGE, GIANT, GIANT])
    assert extents == [Extent(2 * GIANT, LARGE), Extent(GIANT, GIANT), Extent(0, GIANT)]
    ledger = three_peers(frames=4 * GIANT, pages=GIANT + 2 * LARGE)
    extents, _ = ledger.grant(A, [1, GIANT])
    assert extents == [Extent(0, 1), Extent(2 * LARGE, GIANT)]


def test_a_large_extent_that_cannot_be_aligned_lies_where_it_can() -> None:
    ledger = three_peers(frames=4 * LARGE, pages=1000)
    extents, _ = ledger.grant(A, [1, LARGE])
    assert extents == [Extent(0, 1), Extent(1, LARGE)]


def test_a_grant_is_refused_beyond_pool_or_window() -> None:
    ledger = three_peers(frames=12, pages=8)
    assert refused(ledger, lambda: ledger.grant(A, [9])) is Status.E_WINDOW_FULL
    assert refused(ledger, lambda: ledger.grant(A, [4, 5])) is Status.E_WINDOW_FULL
    ledger.grant(B, [8])
    assert refused(ledger, lambda: ledger.grant(A, [5])) is Status.E_NO_MEMORY
    ledger.grant(A, [4])


@pytest.mark.parametrize("count", [0, -1])
def test_a_grant_of_no_pages_is_refused(count: int) -> None:
    ledger = three_peers()
    assert refused(ledger, lambda: ledger.grant(A, [2, count])) is Status.E_RANGE


# ---- Refused for what a page is (every pair of them: test_rules.py) ----


@pytest.mark.parametrize("operation", [*TRANSFERS, Operation.RELEASE])
@pytest.mark.parametrize(
    "extents",
    [
        pytest.param([Extent(3, 2)], id="a page too many at the end"),
        pytest.param([Extent(5, 2)], id="a page too many at the start"),
        pytest.param([Extent(2, 6)], id="a hole in the middle"),
        pytest.param([Extent(4, 1)], id="nothing at all"),
        pytest.param([Extent(0, 2), Extent(4, 1)], id="one bad extent of two"),
    ],
)
def test_one_page_that_is_not_there_refuses_the_whole(
    operation: Operation, extents: list[Extent]
) -> None:
    ledger = a_has(8)
    release(ledger, A, Extent(4, 2))
    assert refused(ledger, lambda: ask(ledger, operation, *extents)) is Status.E_OWNERSHIP


def test_the_first_page_that_may_not_says_why() -> None:
    ledger = a_has(8)
    delivered(ledger, LEND, A, B, Extent(2, 2))
    transfer(ledger, SEND, A, B, Extent(4, 1))
    for extents, status in (
        ([Extent(0, 8)], Status.E_LENT),
        ([Extent(4, 4), Extent(0, 4)], Status.E_OWNERSHIP),
        ([Extent(0, 2), Extent(3, 2)], Status.E_LENT),
    ):
        assert refused_transfer(ledger, SEND, A, B, *extents) is status


# ---- Queries ----


def test_a_peer_is_told_what_its_pages_are_as_far_as_that_is_all_the_same() -> None:
    ledger = a_has(8)
    assert ledger.describe(A, Extent(9, 3)) == Description(Hold.NONE, 3, None, ())
    assert ledger.describe(A, Extent(1, 15)) == Description(Hold.OWNED, 7, A, ())
    release(ledger, A, Extent(2, 2))
    assert ledger.describe(A, Extent(0, 8)) == Description(Hold.OWNED, 2, A, ())
    assert ledger.describe(A, Extent(2, 6)) == Description(Hold.NONE, 2, None, ())


def test_an_owner_is_told_who_borrows_and_a_borrower_whose_it_is() -> None:
    ledger = a_has(8)
    delivered(ledger, SHARE, A, C, Extent(0, 4))
    transfer(ledger, SHARE, A, B, Extent(2, 4))
    assert ledger.describe(A, Extent(0, 8)) == Description(Hold.SHARED, 2, A, (C,))
    assert ledger.describe(A, Extent(2, 6)) == Description(Hold.SHARED, 2, A, (C, B))
    assert ledger.describe(A, Extent(4, 4)) == Description(Hold.SHARED, 2, A, (B,))
    assert ledger.describe(C, Extent(2, 2)) == Description(Hold.BORROWED, 2, A, (C,))


def test_of_what_is_on_its_way_only_the_sender_is_told_more() -> None:
    ledger = a_has(2)
    transfer(ledger, SEND, A, B, Extent(0, 2))
    assert ledger.describe(A, Extent(0, 2)) == Description(Hold.SENT, 2, A, (B,))
    assert ledger.describe(B, Extent(0, 2)) == Description(Hold.INCOMING, 2, None, ())
