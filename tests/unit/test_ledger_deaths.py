"""Deaths, in any order: no page is lost, none is freed twice."""

from __future__ import annotations

from collections.abc import Sequence

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
    bounce,
    bury,
    deliver,
    delivered,
    give_back,
    snapshot,
    states,
    transfer,
)

from vmm.ferry.books import Description, LedgerError
from vmm.ferry.plans import Homecoming
from vmm.guest.abi import Hold, Operation
from vmm.memory.frames import Frames
from vmm.memory.runs import Extent, Run

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
