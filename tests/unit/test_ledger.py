"""The ledger: the protocol by example, what is refused, and that the audit sees contradictions.

A and B talk to each other, C is a third; every window begins empty, and is filled from its bottom.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest

from vmm.ferry.books import UNLIMITED, Bond, Borrower, Description, LedgerError
from vmm.ferry.frames import LARGE, Frames
from vmm.ferry.ledger import Ledger
from vmm.ferry.plans import Homecoming, Reclaim, Return
from vmm.ferry.rules import READABLE, WRITABLE, Refusal
from vmm.ferry.runs import Extent, Run
from vmm.guest.abi import Hold, Operation, Status

A, B, C = 1, 2, 3
SEND, LEND, SHARE, EXCHANGE = Operation.SEND, Operation.LEND, Operation.SHARE, Operation.EXCHANGE
TRANSFERS = [SEND, LEND, SHARE, EXCHANGE]


def three_peers(frames: int = 32, pages: int = 16, pieces: int = UNLIMITED) -> Ledger:
    ledger = Ledger(frames, pieces)
    for peer in (A, B, C):
        ledger.admit(peer, pages)
    return ledger


def a_has(count: int, *, cut: bool = False, pieces: int = UNLIMITED) -> Ledger:
    """The first pages of A are its own; frame n is page n, or `cut`: no two frames are adjacent."""
    ledger = three_peers(64, 16, pieces)
    if not cut:
        ledger.grant(A, [count])
        return ledger
    for _ in range(count):
        ledger.grant(A, [1])
        ledger.grant(C, [1])
    ledger.release(C, ledger.releasing(C, [Extent(0, count)]))
    return ledger


def transfer(
    ledger: Ledger,
    operation: Operation,
    sender: int,
    receiver: int,
    *extents: Extent,
    writable: bool = True,
) -> tuple[Extent, ...]:
    """The extents are on their way; return their places in the receiver's window."""
    plan = ledger.transfer(operation, sender, receiver, extents, writable=writable)
    ledger.commit_transfer(plan)
    return plan.targets


def deliver(ledger: Ledger, peer: int, *targets: Extent) -> None:
    ledger.arrive(peer, ledger.arriving(peer, targets))


def delivered(
    ledger: Ledger,
    operation: Operation,
    sender: int,
    receiver: int,
    *extents: Extent,
    writable: bool = True,
) -> tuple[Extent, ...]:
    targets = transfer(ledger, operation, sender, receiver, *extents, writable=writable)
    deliver(ledger, receiver, *targets)
    return targets


def bounce(ledger: Ledger, peer: int, *targets: Extent) -> Homecoming:
    """What is on its way to these places cannot be delivered, and goes back."""
    incoming = [
        run for target in targets for run in ledger.runs(peer, target) if run.hold is Hold.INCOMING
    ]
    return ledger.let_go(peer, incoming)


def give_back(ledger: Ledger, peer: int, owner: int, *extents: Extent) -> list[Frames]:
    return ledger.commit_return(ledger.returning(peer, owner, extents))


def take_back(ledger: Ledger, owner: int, *extents: Extent) -> set[int]:
    return ledger.commit_reclaim(ledger.reclaiming(owner, extents))


def release(ledger: Ledger, peer: int, *extents: Extent) -> list[Frames]:
    return ledger.release(peer, ledger.releasing(peer, extents))


def bury(ledger: Ledger, peer: int) -> list[Frames]:
    """A peer has died: what is not its own goes back, what is its own is freed; return that."""
    foreign = {Hold.INCOMING, Hold.BORROWED, Hold.VIEWED}
    home = ledger.let_go(peer, [run for run in ledger.window(peer) if run.hold in foreign])
    for owner, run in home.back:
        ledger.restore(owner, [run])
    return sorted(home.freed + ledger.dismiss(peer))


def states(ledger: Ledger) -> dict[str, int]:
    """The pages in each state that there is any in, free ones left out."""
    return {state: n for state, n in ledger.audit().items() if n and state != "free"}


def snapshot(ledger: Ledger) -> object:
    """All that an operation could have changed."""
    accounts = {
        peer: (tuple(account.window), account.charged, account.quota, account.pieces)
        for peer, account in ledger._accounts.items()
    }
    bonds, tally = tuple(ledger._bonds), ledger._tally.intervals
    return ledger.pool.runs, ledger.pool.free, accounts, bonds, tally, ledger.audit()


def refused(ledger: Ledger, operation: Callable[[], object]) -> Status:
    """The status that an operation is refused with, having changed nothing."""
    before = snapshot(ledger)
    with pytest.raises(Refusal) as caught:
        operation()
    assert snapshot(ledger) == before
    return caught.value.status


def refused_transfer(
    ledger: Ledger, operation: Operation, sender: int, receiver: int, *extents: Extent
) -> Status:
    return refused(ledger, lambda: ledger.transfer(operation, sender, receiver, extents))


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


# ---- SEND ----


def test_a_page_in_flight_is_nobodys_and_its_places_are_kept_on_both_sides() -> None:
    ledger = a_has(4)
    assert transfer(ledger, SEND, A, B, Extent(0, 4)) == (Extent(0, 4),)
    assert ledger.window(A) == (Run(0, 4, 0, Hold.SENT),)
    assert ledger.window(B) == (Run(0, 4, 0, Hold.INCOMING),)
    assert states(ledger) == {"in_flight": 4}


def test_a_page_in_flight_counts_against_both_quotas() -> None:
    ledger = a_has(4)
    transfer(ledger, SEND, A, B, Extent(0, 4))
    assert (ledger.account(A).charged, ledger.account(B).charged) == (4, 4)
    deliver(ledger, B, Extent(0, 4))
    assert (ledger.account(A).charged, ledger.account(B).charged) == (0, 4)


def test_a_page_that_has_arrived_is_the_receivers_and_the_senders_place_is_a_hole() -> None:
    ledger = a_has(4)
    delivered(ledger, SEND, A, B, Extent(1, 2))
    assert ledger.window(A) == (Run(0, 1, 0, Hold.OWNED), Run(3, 1, 3, Hold.OWNED))
    assert ledger.window(B) == (Run(0, 2, 1, Hold.OWNED),)
    assert states(ledger) == {"owned": 4}


def test_several_extents_land_in_their_order() -> None:
    ledger = a_has(8)
    plan = ledger.transfer(SEND, A, B, [Extent(5, 2), Extent(0, 3)])
    assert plan.runs == (Run(5, 2, 5, Hold.OWNED), Run(0, 3, 0, Hold.OWNED))
    assert plan.homes == (5, 0)
    assert plan.places == (0, 2)
    assert plan.sources == (Extent(5, 2), Extent(0, 3))
    assert plan.targets == (Extent(0, 2), Extent(2, 3))


def test_an_extent_in_pieces_arrives_as_one_in_the_same_order() -> None:
    ledger = a_has(3, cut=True)
    plan = ledger.transfer(SEND, A, B, [Extent(0, 3)])
    assert plan.places == (0, 1, 2)
    assert plan.targets == (Extent(0, 3),)
    delivered(ledger, SEND, A, B, Extent(0, 3))
    assert [run.frame for run in ledger.window(B)] == [0, 2, 4]


def test_what_arrives_is_shown_in_as_few_runs_as_can_be() -> None:
    ledger = a_has(6)
    transfer(ledger, SEND, A, B, Extent(0, 3), Extent(3, 3))
    assert ledger.arriving(B, [Extent(0, 3), Extent(3, 3)]) == [Run(0, 6, 0, Hold.OWNED)]


def test_a_message_without_pages_changes_nothing() -> None:
    ledger = three_peers()
    before = snapshot(ledger)
    assert transfer(ledger, SEND, A, B) == ()
    deliver(ledger, B)
    assert snapshot(ledger) == before


def test_a_plan_that_is_not_committed_has_changed_nothing() -> None:
    ledger = a_has(8)
    for operation in (SEND, LEND, SHARE):
        before = snapshot(ledger)
        ledger.abandon(ledger.transfer(operation, A, B, [Extent(0, 2), Extent(4, 2)]))
        assert snapshot(ledger) == before


def test_undelivered_pages_are_the_senders_again_when_they_are_shown_there() -> None:
    ledger = a_has(4)
    before = snapshot(ledger)
    targets = transfer(ledger, SEND, A, B, Extent(1, 2))
    home = bounce(ledger, B, *targets)
    assert home == Homecoming(back=[(A, Run(1, 2, 1, Hold.LENT))], freed=[])
    assert ledger.describe(A, Extent(1, 2)) == Description(Hold.LENT, 2, A, ())
    assert states(ledger) == {"owned": 2, "lent": 2}
    assert ledger.window(B) == ()
    ledger.restore(A, [Run(1, 2, 1, Hold.LENT)])
    assert snapshot(ledger) == before


def test_undelivered_pages_that_the_host_cannot_show_are_reclaimed_later() -> None:
    ledger = a_has(4)
    before = snapshot(ledger)
    bounce(ledger, B, *transfer(ledger, SEND, A, B, Extent(1, 2)))
    assert refused_transfer(ledger, SEND, A, B, Extent(1, 2)) is Status.E_LENT
    plan = ledger.reclaiming(A, [Extent(1, 2)])
    assert (plan.hidden, plan.shown) == ((), (Run(1, 2, 1, Hold.LENT),))
    assert ledger.commit_reclaim(plan) == set()
    assert snapshot(ledger) == before


# ---- LEND ----


def test_a_lent_page_is_the_borrowers_alone_until_it_is_returned() -> None:
    ledger = a_has(4)
    before = snapshot(ledger)
    transfer(ledger, LEND, A, B, Extent(1, 2))
    assert ledger.window(B) == (Run(0, 2, 1, Hold.INCOMING),)
    deliver(ledger, B, Extent(0, 2))
    assert ledger.runs(A, Extent(1, 2)) == [Run(1, 2, 1, Hold.LENT)]
    assert ledger.window(B) == (Run(0, 2, 1, Hold.BORROWED),)
    assert states(ledger) == {"owned": 2, "lent": 2}
    plan = ledger.returning(B, A, [Extent(0, 2)])
    assert plan == Return(
        B, A, (Run(0, 2, 1, Hold.BORROWED),), (Run(1, 2, 1, Hold.LENT),), (Extent(1, 2),)
    )
    assert ledger.commit_return(plan) == []
    assert snapshot(ledger) == before


def test_a_page_that_is_lent_to_read_is_viewed() -> None:
    ledger = a_has(2)
    delivered(ledger, LEND, A, B, Extent(0, 2), writable=False)
    assert ledger.window(B) == (Run(0, 2, 0, Hold.VIEWED),)
    assert ledger.holds(B, Extent(0, 2), READABLE)
    assert not ledger.holds(B, Extent(0, 2), WRITABLE)
    assert not ledger.holds(A, Extent(0, 2), READABLE)


def test_what_is_lent_counts_against_its_owners_quota_alone() -> None:
    ledger = a_has(4)
    delivered(ledger, LEND, A, B, Extent(0, 4))
    assert (ledger.account(A).charged, ledger.account(B).charged) == (4, 0)


def test_an_undelivered_loan_comes_back() -> None:
    ledger = a_has(4)
    before = snapshot(ledger)
    home = bounce(ledger, B, *transfer(ledger, LEND, A, B, Extent(0, 4)))
    assert home.back == [(A, Run(0, 4, 0, Hold.LENT))]
    ledger.restore(A, [run for _, run in home.back])
    assert snapshot(ledger) == before


# ---- SHARE ----


def test_a_shared_page_is_seen_by_its_owner_and_by_all_it_is_shared_with() -> None:
    ledger = a_has(4)
    delivered(ledger, SHARE, A, B, Extent(0, 4))
    delivered(ledger, SHARE, A, C, Extent(2, 2), writable=False)
    assert ledger.window(A) == (Run(0, 4, 0, Hold.SHARED),)
    assert ledger.window(B) == (Run(0, 4, 0, Hold.BORROWED),)
    assert ledger.window(C) == (Run(0, 2, 2, Hold.VIEWED),)
    assert states(ledger) == {"shared": 4}
    assert ledger.holds(A, Extent(0, 4), WRITABLE)


def test_pages_that_are_shared_with_different_peers_are_shared_with_one_more() -> None:
    ledger = a_has(4)
    ledger.admit(4, 16)
    delivered(ledger, SHARE, A, B, Extent(0, 2))
    delivered(ledger, SHARE, A, C, Extent(2, 2))
    delivered(ledger, SHARE, A, 4, Extent(0, 4))
    assert ledger.window(4) == (Run(0, 4, 0, Hold.BORROWED),)
    assert ledger.describe(A, Extent(0, 4)) == Description(Hold.SHARED, 2, A, (B, 4))
    assert ledger.describe(A, Extent(2, 2)) == Description(Hold.SHARED, 2, A, (C, 4))
    assert states(ledger) == {"shared": 4}


def test_a_shared_page_is_its_owners_alone_when_the_last_has_returned_it() -> None:
    ledger = a_has(4)
    before = snapshot(ledger)
    delivered(ledger, SHARE, A, B, Extent(0, 4))
    delivered(ledger, SHARE, A, C, Extent(0, 4))
    plan = ledger.returning(B, A, [Extent(0, 4)])
    assert (plan.shown, plan.spans) == ((), (Extent(0, 4),))  # the owner saw it all the time
    assert ledger.commit_return(plan) == []
    assert ledger.window(A) == (Run(0, 4, 0, Hold.SHARED),)
    assert give_back(ledger, C, A, Extent(0, 4)) == []
    assert snapshot(ledger) == before


def test_an_undelivered_share_is_the_owners_alone_at_once() -> None:
    ledger = a_has(4)
    before = snapshot(ledger)
    home = bounce(ledger, B, *transfer(ledger, SHARE, A, B, Extent(0, 4)))
    assert home == Homecoming()
    assert snapshot(ledger) == before


def test_a_page_is_shared_with_a_peer_once() -> None:
    ledger = a_has(4)
    targets = transfer(ledger, SHARE, A, B, Extent(1, 2))
    assert refused_transfer(ledger, SHARE, A, B, Extent(0, 2)) is Status.E_REPEATED
    deliver(ledger, B, *targets)
    assert refused_transfer(ledger, SHARE, A, B, Extent(2, 2)) is Status.E_REPEATED
    delivered(ledger, SHARE, A, B, Extent(0, 1), Extent(3, 1))
    give_back(ledger, B, A, *targets)
    delivered(ledger, SHARE, A, B, Extent(1, 2))


# ---- EXCHANGE ----


def test_exchanged_pages_have_other_frames_in_their_places_at_once() -> None:
    ledger = a_has(4)
    plan = ledger.transfer(EXCHANGE, A, B, [Extent(1, 2)])
    assert plan.fresh == (Run(1, 2, 4, Hold.OWNED),)
    assert (plan.homes, plan.sources) == ((4,), (Extent(4, 2),))
    ledger.commit_transfer(plan)
    assert ledger.window(A) == (
        Run(0, 1, 0, Hold.OWNED),
        Run(1, 2, 4, Hold.OWNED),
        Run(3, 1, 3, Hold.OWNED),
        Run(4, 2, 1, Hold.SENT),
    )
    assert (ledger.account(A).charged, ledger.account(B).charged) == (6, 2)
    deliver(ledger, B, Extent(0, 2))
    assert ledger.window(B) == (Run(0, 2, 1, Hold.OWNED),)
    assert ledger.window(A)[-1] == Run(3, 1, 3, Hold.OWNED)
    assert ledger.account(A).charged == 4


def test_exchanged_pages_that_are_not_delivered_come_back_to_a_place_of_their_own() -> None:
    ledger = a_has(4)
    home = bounce(ledger, B, *transfer(ledger, EXCHANGE, A, B, Extent(1, 2)))
    assert home.back == [(A, Run(4, 2, 1, Hold.LENT))]
    ledger.restore(A, [run for _, run in home.back])
    assert ledger.runs(A, Extent(4, 2)) == [Run(4, 2, 1, Hold.OWNED)]
    assert ledger.runs(A, Extent(1, 2)) == [Run(1, 2, 4, Hold.OWNED)]


def test_an_exchange_holds_its_frames_until_it_is_committed_or_abandoned() -> None:
    ledger = a_has(4)
    before = snapshot(ledger)
    plan = ledger.transfer(EXCHANGE, A, B, [Extent(0, 4)])
    assert ledger.pool.free == 56
    ledger.abandon(plan)
    assert snapshot(ledger) == before


@pytest.mark.parametrize(
    ("frames", "pages", "quota", "status"),
    [
        pytest.param(7, 7, 6, Status.E_QUOTA, id="quota"),
        pytest.param(7, 6, 7, Status.E_WINDOW_FULL, id="place"),
        pytest.param(6, 7, 7, Status.E_NO_MEMORY, id="memory"),
    ],
)
def test_an_exchange_needs_quota_place_and_memory_for_the_fresh_pages(
    frames: int, pages: int, quota: int, status: Status
) -> None:
    ledger = Ledger(frames)
    ledger.admit(A, pages, quota)
    ledger.admit(B, 16)
    ledger.grant(A, [4])
    assert refused_transfer(ledger, EXCHANGE, A, B, Extent(0, 3)) is status
    transfer(ledger, EXCHANGE, A, B, Extent(0, 2))


# ---- RETURN ----


def test_a_part_of_a_loan_is_returned_to_where_it_was() -> None:
    ledger = a_has(8)
    delivered(ledger, LEND, A, B, Extent(2, 4))
    assert give_back(ledger, B, A, Extent(1, 2)) == []
    assert ledger.runs(A, Extent(2, 4)) == [
        Run(2, 1, 2, Hold.LENT),
        Run(3, 2, 3, Hold.OWNED),
        Run(5, 1, 5, Hold.LENT),
    ]
    assert ledger.window(B) == (Run(0, 1, 2, Hold.BORROWED), Run(3, 1, 5, Hold.BORROWED))


def test_several_loans_are_returned_at_once_in_any_order() -> None:
    ledger = a_has(6)
    before = snapshot(ledger)
    first = delivered(ledger, LEND, A, B, Extent(0, 2))
    shared = delivered(ledger, SHARE, A, B, Extent(2, 2))
    last = delivered(ledger, LEND, A, B, Extent(4, 2))
    plan = ledger.returning(B, A, [*last, *first, *shared])
    assert plan.shown == (Run(4, 2, 4, Hold.LENT), Run(0, 2, 0, Hold.LENT))
    assert plan.spans == (Extent(4, 2), Extent(0, 4))
    ledger.commit_return(plan)
    assert snapshot(ledger) == before


def test_a_page_is_returned_to_its_owner_only() -> None:
    ledger = a_has(2)
    ledger.grant(C, [2])
    delivered(ledger, LEND, A, B, Extent(0, 2))
    delivered(ledger, LEND, C, B, Extent(0, 2))
    for owner, extent in (
        (C, Extent(0, 2)),
        (A, Extent(1, 2)),
        (C, Extent(1, 2)),
        (7, Extent(0, 2)),
    ):
        wrong = refused(ledger, partial(ledger.returning, B, owner, [extent]))
        assert wrong is Status.E_NOT_LENT
    assert give_back(ledger, B, A, Extent(0, 2)) == []
    assert give_back(ledger, B, C, Extent(2, 2)) == []


@pytest.mark.parametrize("operation", [LEND, SHARE])
def test_what_is_returned_to_a_dead_owner_is_freed(operation: Operation) -> None:
    ledger = a_has(4)
    delivered(ledger, operation, A, B, Extent(0, 4))
    assert bury(ledger, A) == []
    plan = ledger.returning(B, A, [Extent(1, 2)])
    assert (plan.shown, plan.spans) == ((), ())
    assert ledger.commit_return(plan) == [Frames(1, 2)]
    assert states(ledger) == {"orphaned": 2}


def test_a_dead_owners_page_is_freed_when_the_last_borrower_returns_it() -> None:
    ledger = a_has(4)
    delivered(ledger, SHARE, A, B, Extent(0, 4))
    delivered(ledger, SHARE, A, C, Extent(0, 4))
    bury(ledger, A)
    assert give_back(ledger, B, A, Extent(0, 4)) == []
    assert give_back(ledger, C, A, Extent(0, 4)) == [Frames(0, 4)]
    assert states(ledger) == {}


# ---- RECLAIM ----


def test_a_loan_is_reclaimed_from_its_borrower_whose_place_is_kept() -> None:
    ledger = a_has(4)
    before = ledger.window(A)
    delivered(ledger, LEND, A, B, Extent(0, 4))
    plan = ledger.reclaiming(A, [Extent(0, 4)])
    assert plan == Reclaim(
        A,
        (Run(0, 4, 0, Hold.LENT),),
        ((B, Run(0, 4, 0, Hold.BORROWED)),),
        (Run(0, 4, 0, Hold.LENT),),
    )
    assert ledger.commit_reclaim(plan) == {B}
    assert ledger.window(A) == before
    assert ledger.describe(B, Extent(0, 16)) == Description(Hold.REVOKED, 4, None, ())
    assert states(ledger) == {"owned": 4}


def test_a_revoked_place_is_nobody_elses_until_it_is_released() -> None:
    ledger = a_has(4)
    delivered(ledger, LEND, A, B, Extent(0, 2))
    take_back(ledger, A, Extent(0, 2))
    assert refused(ledger, lambda: ledger.returning(B, A, [Extent(0, 2)])) is Status.E_RECLAIMED
    assert ledger.grant(B, [1])[0] == [Extent(2, 1)]
    assert transfer(ledger, SEND, A, B, Extent(3, 1)) == (Extent(3, 1),)
    assert release(ledger, B, Extent(0, 2)) == []
    assert ledger.grant(B, [2])[0] == [Extent(0, 2)]


def test_revoked_and_own_pages_are_released_together() -> None:
    ledger = a_has(4)
    delivered(ledger, LEND, A, B, Extent(0, 2))
    ledger.grant(B, [2])
    take_back(ledger, A, Extent(0, 2))
    assert release(ledger, B, Extent(0, 4)) == [Frames(4, 2)]
    assert ledger.window(B) == ()


def test_a_loan_that_is_reclaimed_before_it_is_delivered_never_arrives() -> None:
    ledger = a_has(8)
    transfer(ledger, LEND, A, C, Extent(0, 4))
    targets = transfer(ledger, LEND, A, B, Extent(4, 4))
    plan = ledger.reclaiming(A, [Extent(4, 4)])
    assert plan.hidden == ()
    assert ledger.commit_reclaim(plan) == {B}
    assert ledger.arriving(B, targets) == []
    assert ledger.describe(B, Extent(0, 16)) == Description(Hold.REVOKED, 4, None, ())


def test_what_is_reclaimed_in_part_arrives_in_part() -> None:
    ledger = a_has(8)
    targets = transfer(ledger, LEND, A, B, Extent(0, 4), Extent(6, 2))
    assert take_back(ledger, A, Extent(1, 2), Extent(7, 1)) == {B}
    assert ledger.arriving(B, targets) == [
        Run(0, 1, 0, Hold.BORROWED),
        Run(3, 1, 3, Hold.BORROWED),
        Run(4, 1, 6, Hold.BORROWED),
    ]
    deliver(ledger, B, *targets)
    assert [(run.page, run.hold) for run in ledger.window(B)] == [
        (0, Hold.BORROWED),
        (1, Hold.REVOKED),
        (3, Hold.BORROWED),
        (4, Hold.BORROWED),
        (5, Hold.REVOKED),
    ]
    assert states(ledger) == {"owned": 5, "lent": 3}


def test_what_is_reclaimed_in_part_comes_back_in_part() -> None:
    ledger = a_has(4)
    targets = transfer(ledger, LEND, A, B, Extent(0, 4))
    take_back(ledger, A, Extent(1, 2))
    home = bounce(ledger, B, *targets)
    assert home.back == [(A, Run(0, 1, 0, Hold.LENT)), (A, Run(3, 1, 3, Hold.LENT))]
    assert ledger.window(B) == (Run(1, 2, 1, Hold.REVOKED),)


def test_a_loan_is_reclaimed_in_part() -> None:
    ledger = a_has(4)
    delivered(ledger, LEND, A, B, Extent(0, 4))
    take_back(ledger, A, Extent(1, 2))
    assert ledger.window(A) == (
        Run(0, 1, 0, Hold.LENT),
        Run(1, 2, 1, Hold.OWNED),
        Run(3, 1, 3, Hold.LENT),
    )
    assert give_back(ledger, B, A, Extent(0, 1), Extent(3, 1)) == []
    assert ledger.window(A) == (Run(0, 4, 0, Hold.OWNED),)
    assert ledger.window(B) == (Run(1, 2, 1, Hold.REVOKED),)


def test_a_shared_page_is_reclaimed_from_all_who_have_it_or_wait_for_it() -> None:
    ledger = a_has(4)
    delivered(ledger, SHARE, A, B, Extent(0, 4))
    transfer(ledger, SHARE, A, C, Extent(2, 2))
    plan = ledger.reclaiming(A, [Extent(1, 2)])
    assert plan.hidden == ((B, Run(1, 1, 1, Hold.BORROWED)), (B, Run(2, 1, 2, Hold.BORROWED)))
    assert plan.shown == ()
    assert ledger.commit_reclaim(plan) == {B, C}
    assert ledger.runs(A, Extent(1, 2)) == [Run(1, 2, 1, Hold.OWNED)]
    assert ledger.runs(B, Extent(1, 2)) == [Run(1, 2, 1, Hold.REVOKED)]
    assert [run.hold for run in ledger.window(C)] == [Hold.REVOKED, Hold.INCOMING]
    assert states(ledger) == {"owned": 2, "shared": 2}


def test_lent_and_shared_pages_are_reclaimed_together() -> None:
    ledger = a_has(4)
    before = ledger.window(A)
    delivered(ledger, LEND, A, B, Extent(0, 2))
    delivered(ledger, SHARE, A, C, Extent(2, 2), writable=False)
    plan = ledger.reclaiming(A, [Extent(0, 4)])
    assert plan.hidden == ((B, Run(0, 2, 0, Hold.BORROWED)), (C, Run(0, 2, 2, Hold.VIEWED)))
    assert plan.shown == (Run(0, 2, 0, Hold.LENT),)
    assert ledger.commit_reclaim(plan) == {B, C}
    assert ledger.window(A) == before


def test_a_place_may_be_lent_again_while_the_old_one_is_revoked() -> None:
    ledger = a_has(2)
    delivered(ledger, LEND, A, B, Extent(0, 2))
    take_back(ledger, A, Extent(0, 2))
    assert delivered(ledger, LEND, A, B, Extent(0, 2)) == (Extent(2, 2),)
    assert [run.hold for run in ledger.window(B)] == [Hold.REVOKED, Hold.BORROWED]


# ---- Deaths ----


def test_a_dead_peers_own_pages_are_freed() -> None:
    ledger = a_has(4)
    assert ledger.dismiss(A) == [Frames(0, 4)]
    assert states(ledger) == {}
    with pytest.raises(KeyError):
        ledger.window(A)


def test_what_a_dead_sender_has_sent_still_arrives() -> None:
    ledger = a_has(4)
    targets = transfer(ledger, SEND, A, B, Extent(0, 3))
    assert bury(ledger, A) == [Frames(3, 1)]
    assert states(ledger) == {"in_flight": 3}
    deliver(ledger, B, *targets)
    assert ledger.window(B) == (Run(0, 3, 0, Hold.OWNED),)


@pytest.mark.parametrize("operation", TRANSFERS)
def test_what_goes_back_to_a_dead_sender_is_freed(operation: Operation) -> None:
    ledger = a_has(4)
    targets = transfer(ledger, operation, A, B, Extent(0, 4))
    bury(ledger, A)
    assert bounce(ledger, B, *targets) == Homecoming(back=[], freed=[Frames(0, 4)])
    assert ledger.window(B) == ()
    assert ledger.account(B).charged == 0
    assert states(ledger) == {}


@pytest.mark.parametrize("arrived", [False, True])
@pytest.mark.parametrize("operation", [LEND, SHARE])
def test_what_a_dead_receiver_borrowed_or_was_to_get_is_its_owners_again(
    operation: Operation, arrived: bool
) -> None:
    ledger = a_has(4)
    before = ledger.window(A)
    (delivered if arrived else transfer)(ledger, operation, A, B, Extent(1, 2))
    assert bury(ledger, B) == []
    assert ledger.window(A) == before
    assert states(ledger) == {"owned": 4}


def test_what_was_in_flight_to_a_dead_receiver_is_its_senders_again() -> None:
    ledger = a_has(4)
    before = ledger.window(A)
    transfer(ledger, SEND, A, B, Extent(1, 2))
    assert bury(ledger, B) == []
    assert ledger.window(A) == before


def test_what_is_borrowed_of_a_dead_owner_stays_until_it_is_let_go_of() -> None:
    ledger = a_has(4)
    delivered(ledger, LEND, A, B, Extent(0, 2))
    undelivered = transfer(ledger, LEND, A, C, Extent(2, 2), writable=False)
    assert bury(ledger, A) == []
    assert states(ledger) == {"orphaned": 4}
    deliver(ledger, C, *undelivered)
    assert ledger.window(B) == (Run(0, 2, 0, Hold.BORROWED),)
    assert ledger.window(C) == (Run(0, 2, 2, Hold.VIEWED),)
    assert ledger.describe(C, Extent(0, 2)) == Description(Hold.VIEWED, 2, A, (C,))
    assert bury(ledger, B) == [Frames(0, 2)]
    assert give_back(ledger, C, A, Extent(0, 2)) == [Frames(2, 2)]


@pytest.mark.parametrize(
    "order", [(A, B, C), (A, C, B), (B, A, C), (B, C, A), (C, A, B), (C, B, A)]
)
@pytest.mark.parametrize("arrived", [False, True])
def test_whoever_dies_first_every_page_is_free_in_the_end(
    arrived: bool, order: Sequence[int]
) -> None:
    ledger = a_has(8)
    give = delivered if arrived else transfer
    give(ledger, SEND, A, B, Extent(0, 1))
    give(ledger, LEND, A, B, Extent(1, 1))
    give(ledger, SHARE, A, B, Extent(2, 2))
    give(ledger, SHARE, A, C, Extent(3, 2), writable=False)
    give(ledger, EXCHANGE, A, C, Extent(5, 1))
    freed = 0
    for peer in order:
        freed += sum(part.pages for part in bury(ledger, peer))
        assert ledger.audit()["free"] == 64 - 9 + freed
    assert freed == 9


def test_a_peer_that_has_not_let_go_of_everything_is_not_dismissed() -> None:
    for operation, writable in ((SEND, True), (LEND, True), (SHARE, False)):
        ledger = a_has(4)
        targets = transfer(ledger, operation, A, B, Extent(0, 4), writable=writable)
        for arrived in (False, True):
            if arrived and operation is not SEND:
                deliver(ledger, B, *targets)
            before = snapshot(ledger)
            with pytest.raises(LedgerError, match="peer 2 has not let go"):
                ledger.dismiss(B)
            assert snapshot(ledger) == before


def test_a_peer_is_admitted_once() -> None:
    ledger = a_has(4)
    before = snapshot(ledger)
    with pytest.raises(LedgerError, match="peer 1 is already there"):
        ledger.admit(A, 16)
    assert snapshot(ledger) == before


# ---- A host that does not show again what it has hidden ----


def test_withheld_pages_of_ones_own_are_reclaimed_once_the_host_can() -> None:
    ledger = a_has(4)
    before = snapshot(ledger)
    assert ledger.withhold(A, Run(1, 2, 1, Hold.OWNED)) == []
    assert ledger.describe(A, Extent(1, 2)) == Description(Hold.LENT, 2, A, ())
    assert not ledger.holds(A, Extent(1, 1), READABLE)
    assert take_back(ledger, A, Extent(1, 2)) == set()
    assert snapshot(ledger) == before


def test_withheld_pages_are_freed_with_their_owner() -> None:
    ledger = a_has(4)
    ledger.withhold(A, Run(1, 2, 1, Hold.OWNED))
    assert sorted(ledger.dismiss(A)) == [Frames(0, 1), Frames(1, 2), Frames(3, 1)]
    assert states(ledger) == {}


def test_a_withheld_loan_waits_for_its_owner_and_the_place_is_revoked() -> None:
    ledger = a_has(4)
    before = ledger.window(A)
    delivered(ledger, LEND, A, B, Extent(0, 4))
    assert ledger.withhold(B, Run(1, 2, 1, Hold.BORROWED)) == []
    assert ledger.runs(B, Extent(1, 2)) == [Run(1, 2, 1, Hold.REVOKED)]
    assert ledger.describe(A, Extent(1, 3)) == Description(Hold.LENT, 2, A, ())
    assert take_back(ledger, A, Extent(0, 4)) == {B}
    assert ledger.window(A) == before


def test_a_withheld_share_is_one_borrower_less() -> None:
    ledger = a_has(2)
    delivered(ledger, SHARE, A, B, Extent(0, 2), writable=False)
    delivered(ledger, SHARE, A, C, Extent(0, 2))
    assert ledger.withhold(B, Run(0, 2, 0, Hold.VIEWED)) == []
    assert ledger.describe(A, Extent(0, 2)) == Description(Hold.SHARED, 2, A, (C,))
    assert ledger.withhold(C, Run(0, 2, 0, Hold.BORROWED)) == []
    assert ledger.describe(A, Extent(0, 2)) == Description(Hold.OWNED, 2, A, ())
    assert ledger.describe(B, Extent(0, 2)).hold is Hold.REVOKED


def test_what_is_withheld_of_a_dead_owners_is_freed() -> None:
    ledger = a_has(4)
    delivered(ledger, LEND, A, B, Extent(0, 4))
    bury(ledger, A)
    assert ledger.withhold(B, Run(1, 2, 1, Hold.BORROWED)) == [Frames(1, 2)]
    assert states(ledger) == {"orphaned": 2}


# ---- Refused for what a page is (every pair of them: test_rules.py) ----


def ask(ledger: Ledger, operation: Operation, *extents: Extent) -> object:
    """A asks; whatever is to go somewhere is to go to B."""
    if operation is Operation.RELEASE:
        return ledger.releasing(A, extents)
    if operation is Operation.RECLAIM:
        return ledger.reclaiming(A, extents)
    if operation is Operation.RETURN:
        return ledger.returning(A, B, extents)
    return ledger.transfer(operation, A, B, extents)


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


# ---- Refused for want of a place ----


@pytest.mark.parametrize("operation", TRANSFERS)
def test_a_message_is_refused_that_finds_no_place(operation: Operation) -> None:
    ledger = Ledger(64)
    ledger.admit(A, 64)
    ledger.admit(B, 16)
    ledger.grant(A, [32])
    assert refused_transfer(ledger, operation, A, B, Extent(0, 17)) is Status.E_WINDOW_FULL
    # Each extent would fit alone, and so would the first two.
    three = [Extent(0, 8), Extent(8, 8), Extent(16, 1)]
    assert refused_transfer(ledger, operation, A, B, *three) is Status.E_WINDOW_FULL
    assert transfer(ledger, operation, A, B, *three[:2]) == (Extent(0, 8), Extent(8, 8))
    # What is on its way has its place already.
    assert refused_transfer(ledger, operation, A, B, Extent(16, 1)) is Status.E_WINDOW_FULL


def test_places_are_chosen_beside_revoked_ones_without_a_trace() -> None:
    ledger = a_has(8)
    delivered(ledger, LEND, A, B, Extent(0, 2))
    take_back(ledger, A, Extent(0, 2))
    assert refused(ledger, lambda: ledger.grant(B, [8, 6, 1])) is Status.E_WINDOW_FULL
    before = snapshot(ledger)
    plan = ledger.transfer(SEND, A, B, [Extent(4, 4), Extent(0, 4)])
    assert plan.targets == (Extent(2, 4), Extent(6, 4))
    assert snapshot(ledger) == before


# ---- Quotas ----


def test_a_grant_beyond_the_quota_is_refused() -> None:
    ledger = Ledger(32)
    ledger.admit(A, 16, quota=6)
    assert refused(ledger, lambda: ledger.grant(A, [4, 3])) is Status.E_QUOTA
    ledger.grant(A, [4, 2])
    assert refused(ledger, lambda: ledger.grant(A, [1])) is Status.E_QUOTA
    release(ledger, A, Extent(0, 1))
    ledger.grant(A, [1])


@pytest.mark.parametrize("operation", [SEND, EXCHANGE])
def test_what_would_be_the_receivers_beyond_its_quota_is_refused(operation: Operation) -> None:
    ledger = Ledger(32)
    ledger.admit(A, 16)
    ledger.admit(B, 16, quota=6)
    ledger.grant(A, [8])
    ledger.grant(B, [3])
    assert refused_transfer(ledger, operation, A, B, Extent(0, 4)) is Status.E_QUOTA
    targets = transfer(ledger, operation, A, B, Extent(0, 2))
    assert refused_transfer(ledger, operation, A, B, Extent(4, 2)) is Status.E_QUOTA
    bounce(ledger, B, *targets)
    transfer(ledger, operation, A, B, Extent(4, 3))


@pytest.mark.parametrize("operation", [LEND, SHARE])
def test_what_is_borrowed_does_not_count(operation: Operation) -> None:
    ledger = Ledger(32)
    ledger.admit(A, 16)
    ledger.admit(B, 16, quota=0)
    ledger.grant(A, [8])
    delivered(ledger, operation, A, B, Extent(0, 8))
    assert ledger.account(B).charged == 0


def one_run(operation: Operation, *, pieces: int = UNLIMITED, host: int = UNLIMITED) -> Ledger:
    """A's pages 0-3 are one run, and such that it may do this with it."""
    ledger = Ledger(32, host)
    ledger.admit(A, 16, pieces=pieces)
    ledger.admit(B, 16)
    ledger.grant(B if operation is Operation.RETURN else A, [4])
    if operation is Operation.RETURN:
        delivered(ledger, LEND, B, A, Extent(0, 4))
    elif operation is Operation.RECLAIM:
        delivered(ledger, LEND, A, B, Extent(0, 4))
    return ledger


def do(ledger: Ledger, operation: Operation, *extents: Extent) -> None:
    """What A asks for is done."""
    if operation is Operation.RELEASE:
        release(ledger, A, *extents)
    elif operation is Operation.RECLAIM:
        take_back(ledger, A, *extents)
    elif operation is Operation.RETURN:
        give_back(ledger, A, B, *extents)
    else:
        transfer(ledger, operation, A, B, *extents)


# The pieces that A's window may come to have, and all windows together, by cutting one in three.
CUT_IN_THREE = {
    SEND: (3, 4),  # and one piece that arrives
    LEND: (3, 4),
    SHARE: (3, 4),
    EXCHANGE: (4, 5),  # and another that may come back
    Operation.RELEASE: (3, 3),
    Operation.RECLAIM: (3, 6),  # three on both sides
    Operation.RETURN: (3, 6),
}


@pytest.mark.parametrize("operation", CUT_IN_THREE)
def test_a_window_is_cut_into_as_many_pieces_as_it_may_have(operation: Operation) -> None:
    pieces, _ = CUT_IN_THREE[operation]
    ledger = one_run(operation, pieces=pieces - 1)
    assert refused(ledger, lambda: ask(ledger, operation, Extent(1, 2))) is Status.E_QUOTA
    ledger = one_run(operation, pieces=pieces)
    do(ledger, operation, Extent(1, 2))
    assert len(ledger.window(A)) <= pieces


@pytest.mark.parametrize("operation", CUT_IN_THREE)
def test_all_windows_are_cut_into_as_many_pieces_as_the_host_can_map(
    operation: Operation,
) -> None:
    _, pieces = CUT_IN_THREE[operation]
    ledger = one_run(operation, host=pieces - 1)
    assert refused(ledger, lambda: ask(ledger, operation, Extent(1, 2))) is Status.E_NO_MEMORY
    ledger = one_run(operation, host=pieces)
    do(ledger, operation, Extent(1, 2))
    assert sum(len(ledger.window(peer)) for peer in (A, B)) <= pieces


@pytest.mark.parametrize("operation", set(CUT_IN_THREE) - {EXCHANGE})
def test_a_change_of_whole_runs_is_never_too_many_pieces(operation: Operation) -> None:
    ledger = one_run(operation, pieces=1)
    assert refused(ledger, lambda: ask(ledger, operation, Extent(0, 3))) is Status.E_QUOTA
    do(ledger, operation, Extent(0, 4))


@pytest.mark.parametrize("operation", [Operation.RELEASE, Operation.RECLAIM, Operation.RETURN])
def test_whole_runs_go_back_however_little_the_host_has_left(operation: Operation) -> None:
    ledger = one_run(operation, host=2)
    do(ledger, operation, Extent(0, 4))


def test_fresh_pages_in_more_pieces_than_there_may_be_are_refused() -> None:
    for host, pieces, status in (
        (UNLIMITED, 1, Status.E_QUOTA),
        (3, UNLIMITED, Status.E_NO_MEMORY),
    ):
        ledger = Ledger(6, host)
        ledger.admit(A, 16, pieces=pieces)
        ledger.admit(B, 16)
        ledger.grant(B, [6])
        release(ledger, B, Extent(0, 1))
        release(ledger, B, Extent(3, 1))
        assert refused(ledger, partial(ledger.grant, A, [2])) is status
        ledger.grant(A, [1])


@pytest.mark.parametrize("operation", TRANSFERS)
@pytest.mark.parametrize(
    "extents",
    [
        pytest.param([Extent(0, 3)], id="a hole in its frames"),
        pytest.param([Extent(0, 1), Extent(2, 1)], id="two extents"),
    ],
)
def test_a_message_in_more_pieces_than_the_receiver_may_have_is_refused(
    operation: Operation, extents: list[Extent]
) -> None:
    ledger = Ledger(32)
    ledger.admit(A, 16)
    ledger.admit(B, 16, pieces=1)
    ledger.grant(A, [4])
    transfer(ledger, EXCHANGE, A, B, Extent(1, 1))
    bury(ledger, B)
    ledger.admit(C, 16, pieces=1)
    assert refused_transfer(ledger, operation, A, C, *extents) is Status.E_WINDOW_FULL
    transfer(ledger, operation, A, C, Extent(2, 2))


def test_what_comes_back_may_cut_a_window_further_and_whole_runs_still_go() -> None:
    ledger = Ledger(32, 7)
    ledger.admit(A, 16, pieces=3)
    ledger.admit(B, 16)
    ledger.admit(C, 16)
    ledger.grant(A, [5])
    for page, borrower in ((1, B), (0, C), (2, C), (3, B), (4, C)):
        delivered(ledger, LEND, A, borrower, Extent(page, 1))
    assert ledger.window(A) == (Run(0, 5, 0, Hold.LENT),)
    ledger.grant(B, [1])
    give_back(ledger, B, A, Extent(0, 2))
    assert [len(ledger.window(peer)) for peer in (A, B, C)] == [5, 1, 3]
    assert refused(ledger, lambda: ledger.grant(A, [1])) is Status.E_QUOTA
    assert refused(ledger, lambda: ledger.grant(B, [1])) is Status.E_NO_MEMORY
    release(ledger, A, Extent(1, 1))
    give_back(ledger, C, A, Extent(0, 1))
    assert take_back(ledger, A, Extent(4, 1)) == {C}


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


# ---- The audit ----


def one_of_each() -> Ledger:
    """Frames 0-1 are A's, 2-3 on their way to B, 4-5 lent to B, 6-7 shared with B, who reads them,
    and with C, who has still to get them; 8-9 are a dead peer's, and lent to B.
    """
    ledger = three_peers()
    ledger.grant(A, [8])
    transfer(ledger, SEND, A, B, Extent(2, 2))
    delivered(ledger, LEND, A, B, Extent(4, 2))
    delivered(ledger, SHARE, A, B, Extent(6, 2), writable=False)
    transfer(ledger, SHARE, A, C, Extent(6, 2))
    ledger.admit(4, 16)
    ledger.grant(4, [4])
    delivered(ledger, LEND, 4, B, Extent(0, 4))
    ledger.commit_reclaim(ledger.reclaiming(4, [Extent(2, 2)]))
    bury(ledger, 4)
    return ledger


def test_every_frame_is_in_one_state() -> None:
    ledger = one_of_each()
    assert ledger.audit() == {
        "free": 22,
        "owned": 2,
        "in_flight": 2,
        "lent": 2,
        "shared": 2,
        "orphaned": 2,
    }
    assert [(run.page, run.hold.name) for run in ledger.window(A)] == [
        (0, "OWNED"),
        (2, "SENT"),
        (4, "LENT"),
        (6, "SHARED"),
    ]
    assert [(run.page, run.hold.name) for run in ledger.window(B)] == [
        (0, "INCOMING"),
        (2, "BORROWED"),
        (4, "VIEWED"),
        (6, "BORROWED"),
        (8, "REVOKED"),
    ]


Corruption = Callable[[Ledger], object]


def lose(peer: int, page: int) -> Corruption:
    """A page of a window is forgotten."""
    return lambda ledger: ledger._accounts[peer].window.remove(page, 1)


def change(peer: int, extent: Extent, **changed: Any) -> Corruption:
    """What a window says of an extent is changed."""

    def corrupt(ledger: Ledger) -> None:
        window = ledger._accounts[peer].window
        (run,) = window.remove(*extent)
        window.insert(run._replace(**changed))

    return corrupt


def invent(peer: int, run: Run) -> Corruption:
    """A window has a run out of nothing."""
    return lambda ledger: ledger._accounts[peer].window.insert(run)


def rebind(frame: int, **changed: Any) -> Corruption:
    """A bond is changed."""

    def corrupt(ledger: Ledger) -> None:
        (bond,) = ledger._bonds.remove(frame, 2)
        ledger._bonds.insert(bond._replace(**changed))

    return corrupt


def bind_once_more(frame: int, hold: Hold) -> Corruption:
    """What one peer alone may have, C has as well, in its window, too."""

    def corrupt(ledger: Ledger) -> None:
        (bond,) = ledger._bonds.remove(frame, 2)
        borrowers = (*bond.borrowers, Borrower(C, 8, True))
        ledger._bonds.insert(bond._replace(borrowers=borrowers))
        ledger._accounts[C].window.insert(Run(8, 2, frame, hold))

    return corrupt


def owned_at(*places: int) -> Corruption:
    """C owns free frames, and is charged for them, at impossible places."""

    def corrupt(ledger: Ledger) -> None:
        account = ledger._accounts[C]
        for place in places:
            (frames,) = ledger.pool.allocate(1)
            account.window.insert(Run(place, 1, frames.first, Hold.OWNED))
            account.charged += 1

    return corrupt


def miscount(peer: int) -> Corruption:
    def corrupt(ledger: Ledger) -> None:
        ledger._accounts[peer].charged += 1

    return corrupt


def mistally(ledger: Ledger) -> None:
    ledger._tally.intervals -= 1


LENT_TO_B, SHARED_BY_A = Borrower(B, 2, True), (Borrower(B, 4, False), Borrower(C, 0, True))

CORRUPTIONS: dict[str, Corruption] = {
    # the partition
    "a free frame is lost": lambda ledger: ledger.pool.allocate(1),
    "an owned frame is free": lambda ledger: ledger.pool.release(Frames(0, 1)),
    "a lent frame is free": lambda ledger: ledger.pool.release(Frames(4, 1)),
    "an owned page is lost": lose(A, 0),
    "a frame has two owners": invent(C, Run(9, 1, 0, Hold.OWNED)),
    "a frame is one's own and another's loan": invent(C, Run(9, 1, 4, Hold.OWNED)),
    "a frame that is none": invent(C, Run(9, 1, 32, Hold.OWNED)),
    "what is on its way is bound no more": lambda ledger: ledger._bonds.remove(2, 2),
    "what is lent is bound no more": lambda ledger: ledger._bonds.remove(4, 2),
    "what is shared is bound no more": lambda ledger: ledger._bonds.remove(7, 1),
    "an orphan is bound no more": lambda ledger: ledger._bonds.remove(8, 2),
    # the owner's place
    "the way back of what is sent is lost": lose(A, 2),
    "the way back of what is lent is lost": lose(A, 5),
    "the owner has lost what it shares": lose(A, 6),
    "the way back is elsewhere": change(A, Extent(4, 2), page=12),
    "the way back is of another frame": change(A, Extent(4, 2), frame=5),
    "an owner sees what it has lent": change(A, Extent(4, 2), hold=Hold.SHARED),
    "an owner does not see what it shares": change(A, Extent(6, 2), hold=Hold.LENT),
    "an owner may send what it shares": change(A, Extent(6, 2), hold=Hold.OWNED),
    "a way back for nothing": invent(C, Run(9, 1, 2, Hold.SENT)),
    "a second way back": invent(A, Run(12, 1, 4, Hold.LENT)),
    # the borrower's place
    "the place of what is to come is lost": lose(B, 0),
    "a borrowed page is lost": lose(B, 3),
    "a viewed page is lost": lose(B, 4),
    "a dead owner's page is lost": lose(B, 6),
    "a borrowed page is elsewhere": change(B, Extent(2, 2), page=12),
    "a borrowed page is another frame": change(B, Extent(2, 2), frame=5),
    "a borrowed page is one's own": change(B, Extent(2, 2), hold=Hold.OWNED),
    "a borrowed page is revoked": change(B, Extent(2, 2), hold=Hold.REVOKED),
    "a viewer may write": change(B, Extent(4, 2), hold=Hold.BORROWED),
    "what is to come is seen": change(B, Extent(0, 2), hold=Hold.BORROWED),
    "a loan out of nothing": invent(C, Run(9, 1, 4, Hold.BORROWED)),
    "a place for nothing": invent(C, Run(9, 1, 2, Hold.INCOMING)),
    # the bonds
    "another owner": rebind(4, owner=C),
    "a dead owner": rebind(6, owner=7),
    "another way back": rebind(4, page=3),
    "another hold": rebind(4, hold=Hold.SHARED),
    "no receiver": rebind(2, borrowers=()),
    "another receiver": rebind(2, borrowers=(Borrower(C, 0, True),)),
    "a borrower who is not there": rebind(4, borrowers=(Borrower(7, 2, True),)),
    "a borrower less": rebind(6, borrowers=SHARED_BY_A[:1]),
    "a borrower twice": rebind(6, borrowers=(*SHARED_BY_A, SHARED_BY_A[0])),
    "a loan to nobody": rebind(4, borrowers=()),
    "a share with nobody": rebind(6, borrowers=()),
    "an orphan of nobody's": rebind(8, borrowers=()),
    "a loan elsewhere": rebind(4, borrowers=(LENT_TO_B._replace(page=6),)),
    "a loan to read": rebind(4, borrowers=(LENT_TO_B._replace(writable=False),)),
    "a loan to two": bind_once_more(4, Hold.BORROWED),
    "a message to two": bind_once_more(2, Hold.INCOMING),
    "a dead owner's loan to two": bind_once_more(8, Hold.BORROWED),
    "a bond of a free frame": lambda ledger: ledger._bonds.insert(
        Bond(20, 1, Hold.LENT, A, 12, ())
    ),
    # the windows
    "beyond the window": owned_at(16),
    "two frames in one place": owned_at(9, 9),
    # the counts
    "an owner is charged too much": miscount(A),
    "a receiver is charged too much": miscount(B),
    "the tally is wrong": mistally,
}


@pytest.mark.parametrize("corrupt", CORRUPTIONS.values(), ids=CORRUPTIONS.keys())
def test_the_audit_sees_a_contradiction(corrupt: Corruption) -> None:
    ledger = one_of_each()
    corrupt(ledger)
    with pytest.raises(LedgerError):
        ledger.audit()
