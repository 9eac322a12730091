"""Pages on their way back: RETURN, RECLAIM, and a host that does not show them again."""

from __future__ import annotations

from functools import partial

import pytest
from unit.ledger_scene import (
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
    release,
    snapshot,
    states,
    take_back,
    transfer,
)

from vmm.ferry.books import Description
from vmm.ferry.plans import Reclaim
from vmm.ferry.rules import READABLE
from vmm.guest.abi import Hold, Operation, Status
from vmm.memory.frames import Frames
from vmm.memory.runs import Extent, Run

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
