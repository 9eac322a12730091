"""Pages on their way: SEND, LEND, SHARE, EXCHANGE, and what is delivered."""

from __future__ import annotations

from functools import partial

import pytest
from unit.ledger_scene import (
    EXCHANGE,
    LEND,
    SEND,
    SHARE,
    A,
    B,
    C,
    a_has,
    bounce,
    bury,
    deliver,
    delivered,
    give_back,
    refused,
    refused_transfer,
    release,
    snapshot,
    states,
    three_peers,
    transfer,
)

from vmm.ferry.books import Description
from vmm.ferry.ledger import Ledger
from vmm.ferry.plans import Homecoming, Return, Transfer
from vmm.ferry.rules import READABLE, WRITABLE
from vmm.guest.abi import Hold, Operation, Status
from vmm.memory.frames import Frames
from vmm.memory.runs import Extent, Run

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
    copy = partial(ledger.transfer, EXCHANGE, A, B, [Extent(0, 3)], copied=True)
    assert refused(ledger, copy) is status
    transfer(ledger, EXCHANGE, A, B, Extent(0, 2))


# ---- EXCHANGE, copied ----


def copied(ledger: Ledger, *extents: Extent) -> Transfer:
    """A's pages are on their way to B, as copies."""
    plan = ledger.transfer(EXCHANGE, A, B, extents, copied=True)
    assert plan.copied
    ledger.commit_transfer(plan)
    ledger.audit()
    return plan


def test_copied_pages_stay_and_free_frames_go_from_a_place_of_their_own() -> None:
    ledger = a_has(4)
    plan = copied(ledger, Extent(1, 2))
    assert (plan.runs, plan.fresh) == ((Run(4, 2, 4, Hold.OWNED),), ())
    assert plan.copied == (Run(1, 2, 1, Hold.OWNED),)
    assert (plan.homes, plan.sources) == ((4,), (Extent(4, 2),))
    assert ledger.window(A) == (Run(0, 4, 0, Hold.OWNED), Run(4, 2, 4, Hold.SENT))
    assert (ledger.account(A).charged, ledger.account(B).charged) == (6, 2)
    deliver(ledger, B, Extent(0, 2))
    assert ledger.window(B) == (Run(0, 2, 4, Hold.OWNED),)
    assert ledger.window(A) == (Run(0, 4, 0, Hold.OWNED),)
    assert (ledger.account(A).charged, states(ledger)) == (4, {"owned": 6})


def test_copies_that_are_not_delivered_come_back_to_where_those_moved_do() -> None:
    ledger = a_has(4)
    home = bounce(ledger, B, *copied(ledger, Extent(1, 2)).targets)
    assert home.back == [(A, Run(4, 2, 4, Hold.LENT))]
    ledger.restore(A, [run for _, run in home.back])
    assert ledger.window(A) == (Run(0, 6, 0, Hold.OWNED),)


def test_copies_are_delivered_after_their_senders_death_and_free_after_both() -> None:
    ledger = a_has(4)
    targets = copied(ledger, Extent(0, 1), Extent(3, 1)).targets
    bury(ledger, A)
    assert states(ledger) == {"in_flight": 2}
    deliver(ledger, B, *targets)
    assert states(ledger) == {"owned": 2}
    bury(ledger, B)
    assert states(ledger) == {}


def test_a_copy_holds_its_frames_until_it_is_committed_or_abandoned() -> None:
    ledger = a_has(4)
    before = snapshot(ledger)
    plan = ledger.transfer(EXCHANGE, A, B, [Extent(0, 4)], copied=True)
    assert ledger.pool.free == 56
    assert ledger.abandon(plan) == [Frames(4, 4)]
    assert snapshot(ledger) == before


def test_what_is_in_pieces_is_copied_piece_by_piece() -> None:
    ledger = a_has(3, cut=True)
    plan = copied(ledger, Extent(0, 3))
    frames = [(source.frame, target.frame, source.pages) for source, target in plan.copies()]
    assert frames == [(0, 5, 1), (2, 6, 1), (4, 7, 1)]
    assert [target.page for _, target in plan.copies()] == [3, 4, 5]


def test_what_would_come_in_more_pieces_than_it_is_in_is_moved() -> None:
    ledger = three_peers(8)
    ledger.grant(A, [4])
    ledger.grant(C, [4])
    release(ledger, C, Extent(1, 1))
    release(ledger, C, Extent(3, 1))
    plan = ledger.transfer(EXCHANGE, A, B, [Extent(0, 2)], copied=True)
    assert (len(plan.fresh), plan.copied) == (2, ())
    ledger.abandon(plan)
    assert ledger.transfer(EXCHANGE, A, B, [Extent(0, 1), Extent(2, 1)], copied=True).copied


@pytest.mark.parametrize("operation", [SEND, LEND, SHARE])
def test_nothing_else_is_copied(operation: Operation) -> None:
    plan = a_has(4).transfer(operation, A, B, [Extent(0, 2)], copied=True)
    assert (plan.copied, plan.fresh) == ((), ())
