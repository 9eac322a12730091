"""What is kept for each of those that have something in common: frames of the pool, pieces."""

from __future__ import annotations

import itertools

import pytest
from unit.ledger_scene import A, B, C, bury, delivered, give_back, refused, release, take_back

from vmm.ferry.accounts import UNLIMITED
from vmm.ferry.ledger import Ledger
from vmm.ferry.rules import Refusal
from vmm.guest.abi import PEER_HOST, Operation, Status
from vmm.memory.runs import Extent

SHARE = 4


def pool(frames: int = 64, *peers: int) -> Ledger:
    ledger = Ledger(frames, frames_share=SHARE)
    for peer in peers or (A, B, C):
        ledger.admit(peer, 128)
    return ledger


def takes(ledger: Ledger, peer: int) -> int:
    """Let a peer take all that it may have, page by page; return how many."""
    count = 0
    while ledger.shares.available(peer):
        ledger.grant(peer, [1])
        count += 1
    assert refused(ledger, lambda: ledger.grant(peer, [1])) is Status.E_NO_MEMORY
    return count


def kept(ledger: Ledger) -> dict[int, int]:
    ledger.audit()
    assert ledger.shares.kept == sum(ledger.shares._kept.values()) <= ledger.pool.free
    return ledger.shares._kept.copy()


def test_who_comes_first_gets_all_but_the_shares_of_the_others() -> None:
    ledger = pool()
    assert takes(ledger, A) == 64 - 2 * SHARE
    assert takes(ledger, B) == SHARE
    assert takes(ledger, C) == SHARE
    assert kept(ledger) == {A: 0, B: 0, C: 0}


def test_what_is_free_again_fills_up_shares_first_and_that_of_who_freed_it_before_all() -> None:
    ledger = pool()
    for peer in (A, B, C):
        takes(ledger, peer)
    release(ledger, C, Extent(0, 3))
    assert kept(ledger) == {A: 0, B: 0, C: 3}
    release(ledger, A, Extent(0, 10))
    assert kept(ledger) == {A: 4, B: 4, C: 4}
    assert ledger.shares.available(B) == SHARE + 1


def test_who_passes_its_share_on_does_not_get_another_at_the_cost_of_others() -> None:
    ledger = pool()
    for _ in range(3):
        while ledger.shares.available(A):
            ledger.grant(A, [1])
            delivered(ledger, Operation.SEND, A, B, Extent(0, 1))
    assert takes(ledger, A) == 0
    assert takes(ledger, C) == SHARE


def test_the_share_of_the_dead_is_the_others() -> None:
    ledger = pool()
    takes(ledger, A)
    bury(ledger, B)
    assert ledger.shares.available(A) == SHARE
    bury(ledger, A)
    assert kept(ledger) == {C: SHARE}
    assert ledger.pool.free == 64


def test_the_host_may_have_the_shares_of_all() -> None:
    ledger = pool(64, PEER_HOST, A, B)
    assert takes(ledger, PEER_HOST) == 64
    assert kept(ledger) == {PEER_HOST: 0, A: 0, B: 0}


@pytest.mark.parametrize("count", [1, 5, 40, 300])
def test_however_many_there_are_some_frames_are_for_whoever_comes_first(count: int) -> None:
    ledger = pool(256, *range(1, count + 1))
    shares = kept(ledger)
    assert all(0 <= share <= SHARE for share in shares.values())
    assert ledger.shares.kept < 256
    ledger.grant(1, [1])


# ---- Pieces ----


def cut(ledger: Ledger, peer: int) -> int:
    """Cut a peer's window as far as it goes; return into how many pieces. Each cut needs room for
    two more, of which it makes one.
    """
    for page in itertools.count(1, 2):
        try:
            ledger.release(peer, ledger.releasing(peer, [Extent(page, 1)]))
        except Refusal as refusal:
            assert refusal.status is Status.E_NO_MEMORY
            break
    return len(ledger.window(peer))


def test_each_may_have_its_share_of_the_pieces_and_the_first_the_rest() -> None:
    ledger = Ledger(1024, 60, share=10)
    for peer in (A, B, C):
        ledger.admit(peer, 256)
        ledger.grant(peer, [200])
    assert cut(ledger, A) == 60 - 2 * 10 - 1
    assert cut(ledger, B) == 10
    assert cut(ledger, C) == 10
    assert ledger._tally.intervals == 59


def test_the_shares_of_all_together_are_half_of_the_pieces_at_most() -> None:
    ledger = Ledger(64, 60, share=10)
    for peer in range(1, 11):
        ledger.admit(peer, 16)
        assert ledger._reserve == min(10, 30 // peer)
    for peer in range(1, 11):
        bury(ledger, peer)
    assert ledger._reserved == 0


# ---- Loans in a window ----


def lent(limit: int = 14) -> Ledger:
    ledger = Ledger(64)
    for peer in (A, B, C):
        ledger.admit(peer, 16, UNLIMITED, UNLIMITED, limit)
    ledger.grant(A, [12])
    ledger.grant(C, [12])
    return ledger


@pytest.mark.parametrize("operation", [Operation.LEND, Operation.SHARE])
def test_a_lender_takes_up_half_of_a_window_at_most_and_all_of_them_seven_eighths(
    operation: Operation,
) -> None:
    ledger = lent()
    delivered(ledger, operation, A, B, Extent(0, 8))
    nine = [Extent(8, 1)]
    ask = ledger.transfer
    assert refused(ledger, lambda: ask(operation, A, B, nine)) is Status.E_WINDOW_FULL
    delivered(ledger, operation, C, B, Extent(0, 6))
    assert refused(ledger, lambda: ask(operation, C, B, nine)) is Status.E_WINDOW_FULL
    delivered(ledger, Operation.SEND, C, B, Extent(8, 2))


def test_what_was_reclaimed_counts_until_the_borrower_lets_go() -> None:
    ledger = lent()
    (there,) = delivered(ledger, Operation.LEND, A, B, Extent(0, 8))
    take_back(ledger, A, Extent(0, 8))
    ask = ledger.transfer
    one = [Extent(0, 1)]
    assert refused(ledger, lambda: ask(Operation.LEND, A, B, one)) is Status.E_WINDOW_FULL
    release(ledger, B, Extent(there.page, 1))
    (back,) = delivered(ledger, Operation.LEND, A, B, Extent(0, 1))
    assert refused(ledger, lambda: ask(Operation.LEND, A, B, [Extent(1, 1)]))
    give_back(ledger, B, A, back)
    release(ledger, B, Extent(there.page + 1, 7))
    assert (ledger.account(B).loaned, ledger.account(B).loans) == (0, {})
    delivered(ledger, Operation.LEND, A, B, Extent(0, 8))


def test_what_a_lender_left_when_it_died_counts_until_the_borrower_lets_go() -> None:
    ledger = lent()
    (there,) = delivered(ledger, Operation.LEND, A, B, Extent(0, 8))
    take_back(ledger, A, Extent(0, 4))
    bury(ledger, A)
    assert ledger.account(B).loaned == 8
    ledger.audit()
    release(ledger, B, Extent(there.page, 4))
    give_back(ledger, B, A, Extent(there.page + 4, 4))
    assert ledger.account(B).loaned == 0
    ledger.audit()
