"""Limits: windows, quotas, pieces. What is over one is refused, and nothing has changed."""

from __future__ import annotations

from functools import partial

import pytest
from unit.ledger_scene import (
    EXCHANGE,
    LEND,
    SEND,
    SHARE,
    TRANSFERS,
    A,
    B,
    C,
    a_has,
    ask,
    bounce,
    bury,
    delivered,
    give_back,
    refused,
    refused_transfer,
    release,
    snapshot,
    take_back,
    transfer,
)

from vmm.ferry.accounts import UNLIMITED
from vmm.ferry.ledger import Ledger
from vmm.guest.abi import Hold, Operation, Status
from vmm.memory.runs import Extent, Run

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
