"""The ledger: who owns every page, what is refused, and that the audit sees a contradiction."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vmm.ferry.frames import LARGE, Frames
from vmm.ferry.ledger import Ledger, LedgerError, Parcel, Piece, Refusal
from vmm.ferry.runs import Extent, Hold, Run
from vmm.guest.abi import Status

A, B = 1, 2


def snapshot(ledger: Ledger) -> object:
    """All that an operation could have changed."""
    return ledger.pool.runs, ledger.pool.free, ledger.window(A), ledger.window(B), ledger.audit()


def two_peers(frames: int = 32, pages: int = 16) -> Ledger:
    ledger = Ledger(frames)
    ledger.admit(A, pages)
    ledger.admit(B, pages)
    return ledger


def refused(ledger: Ledger, operation: Callable[[], object]) -> Status:
    """The status that an operation is refused with, having changed nothing."""
    before = snapshot(ledger)
    with pytest.raises(Refusal) as caught:
        operation()
    assert snapshot(ledger) == before
    return caught.value.status


# ---- The way of a page ----


def test_a_granted_page_is_owned_and_comes_from_the_pool() -> None:
    ledger = two_peers()
    extent, runs = ledger.grant(A, 4)
    assert extent == Extent(0, 4)
    assert runs == [Run(0, 4, 0, Hold.OWNED)]
    assert ledger.owns(A, extent)
    assert not ledger.owns(B, extent)
    assert ledger.audit() == {"free": 28, "owned": 4, "in_flight": 0}


def test_a_page_in_flight_is_nobodys_and_its_places_are_kept_on_both_sides() -> None:
    ledger = two_peers()
    extent, _ = ledger.grant(A, 4)
    parcel = ledger.begin(A, B, [extent])
    assert parcel == Parcel(A, B, (Piece(0, 4, 0, 0),), (Extent(0, 4),))
    assert ledger.window(A) == (Run(0, 4, 0, Hold.OUTGOING),)
    assert ledger.window(B) == (Run(0, 4, 0, Hold.INCOMING),)
    assert ledger.audit() == {"free": 28, "owned": 0, "in_flight": 4}


def test_a_completed_parcel_is_the_receivers_and_the_senders_place_is_a_hole() -> None:
    ledger = two_peers()
    parcel = ledger.begin(A, B, [ledger.grant(A, 4)[0]])
    ledger.complete(parcel)
    assert ledger.window(A) == ()
    assert ledger.window(B) == (Run(0, 4, 0, Hold.OWNED),)


def test_a_cancelled_parcel_is_the_senders_again_where_it_was() -> None:
    ledger = two_peers()
    ledger.grant(A, 2)
    extent, _ = ledger.grant(A, 4)
    before = snapshot(ledger)
    assert ledger.cancel(ledger.begin(A, B, [extent])) == []
    assert snapshot(ledger) == before


def test_released_pages_go_back_to_the_pool() -> None:
    ledger = two_peers()
    ledger.grant(A, 8)
    assert ledger.release(A, [Extent(2, 3)]) == [Frames(2, 3)]
    assert ledger.runs(A, Extent(0, 8)) == [Run(0, 2, 0, Hold.OWNED), Run(5, 3, 5, Hold.OWNED)]
    assert ledger.audit()["free"] == 27


def test_several_extents_travel_as_one_parcel_and_land_in_their_order() -> None:
    ledger = two_peers()
    ledger.grant(A, 8)
    parcel = ledger.begin(A, B, [Extent(5, 2), Extent(0, 3)])
    assert parcel.targets == (Extent(0, 2), Extent(2, 3))
    assert parcel.pieces == (Piece(5, 2, 5, 0), Piece(0, 3, 0, 2))


def test_a_message_without_pages_is_never_in_flight() -> None:
    ledger = two_peers()
    before = snapshot(ledger)
    parcel = ledger.begin(A, B, [])
    assert snapshot(ledger) == before
    ledger.complete(parcel)
    ledger.complete(parcel)
    assert snapshot(ledger) == before


def test_large_extents_lie_aligned_at_the_top_and_small_ones_below() -> None:
    ledger = two_peers(frames=8 * LARGE, pages=4 * LARGE)
    assert ledger.grant(A, 1)[0] == Extent(0, 1)
    assert ledger.grant(A, LARGE)[0] == Extent(3 * LARGE, LARGE)
    assert ledger.grant(A, LARGE + 1)[0] == Extent(LARGE, LARGE + 1)


def test_a_large_extent_that_cannot_be_aligned_lies_where_it_can() -> None:
    ledger = two_peers(frames=4 * LARGE, pages=1000)
    ledger.grant(A, 1)
    assert ledger.grant(A, LARGE)[0] == Extent(1, LARGE)


# ---- Deaths ----


def test_a_dismissed_peers_pages_are_freed() -> None:
    ledger = two_peers()
    ledger.grant(A, 4)
    assert ledger.dismiss(A) == [Frames(0, 4)]
    assert ledger.audit() == {"free": 32, "owned": 0, "in_flight": 0}


def test_what_a_dead_sender_had_sent_still_arrives() -> None:
    ledger = two_peers()
    parcel = ledger.begin(A, B, [ledger.grant(A, 4)[0]])
    assert ledger.dismiss(A) == []
    assert ledger.audit()["in_flight"] == 4
    ledger.complete(parcel)
    assert ledger.owns(B, Extent(0, 4))
    assert ledger.audit()["owned"] == 4


def test_what_goes_back_to_a_dead_sender_is_freed() -> None:
    ledger = two_peers()
    parcel = ledger.begin(A, B, [ledger.grant(A, 4)[0]])
    ledger.dismiss(A)
    assert ledger.cancel(parcel) == [Frames(0, 4)]
    assert ledger.dismiss(B) == []
    assert ledger.audit() == {"free": 32, "owned": 0, "in_flight": 0}


def test_a_peer_is_dismissed_only_when_nothing_is_on_its_way_to_it() -> None:
    ledger = two_peers()
    parcel = ledger.begin(A, B, [ledger.grant(A, 4)[0]])
    before = snapshot(ledger)
    with pytest.raises(LedgerError, match="still in flight to peer 2"):
        ledger.dismiss(B)
    assert snapshot(ledger) == before
    ledger.cancel(parcel)
    assert ledger.dismiss(B) == []


# ---- Refusals: a status, and nothing changed ----


def test_a_grant_beyond_the_pool_is_refused() -> None:
    ledger = two_peers(frames=8)
    assert refused(ledger, lambda: ledger.grant(A, 9)) is Status.E_NO_MEMORY
    assert ledger.grant(A, 8)[0] == Extent(0, 8)


def test_a_grant_beyond_the_window_is_refused() -> None:
    ledger = two_peers(pages=16)
    assert refused(ledger, lambda: ledger.grant(A, 17)) is Status.E_WINDOW_FULL
    assert ledger.grant(A, 16)[0] == Extent(0, 16)


@pytest.mark.parametrize("count", [0, -1])
def test_a_grant_of_no_pages_is_refused(count: int) -> None:
    ledger = two_peers()
    assert refused(ledger, lambda: ledger.grant(A, count)) is Status.E_RANGE


def test_only_the_owner_sends_or_releases_a_page() -> None:
    ledger = two_peers()
    ledger.grant(A, 4)
    for extent in (Extent(3, 2), Extent(4, 1), Extent(0, 5)):  # partly a hole, a hole, one too many
        assert refused(ledger, lambda e=extent: ledger.begin(A, B, [e])) is Status.E_OWNERSHIP
        assert refused(ledger, lambda e=extent: ledger.release(A, [e])) is Status.E_OWNERSHIP
    assert refused(ledger, lambda: ledger.begin(B, A, [Extent(0, 1)])) is Status.E_OWNERSHIP


def test_one_bad_extent_refuses_the_whole_message() -> None:
    ledger = two_peers()
    ledger.grant(A, 4)
    bad = [Extent(0, 2), Extent(8, 1)]
    assert refused(ledger, lambda: ledger.begin(A, B, bad)) is Status.E_OWNERSHIP
    assert refused(ledger, lambda: ledger.release(A, bad)) is Status.E_OWNERSHIP


def test_a_page_in_flight_is_neither_sides_to_send_or_release() -> None:
    ledger = two_peers()
    ledger.grant(A, 4)
    ledger.begin(A, B, [Extent(1, 2)])
    for peer, other, extent in ((A, B, Extent(1, 1)), (A, B, Extent(0, 4)), (B, A, Extent(0, 1))):
        again = refused(ledger, lambda p=peer, o=other, e=extent: ledger.begin(p, o, [e]))
        assert again is Status.E_OWNERSHIP
        let_go = refused(ledger, lambda p=peer, e=extent: ledger.release(p, [e]))
        assert let_go is Status.E_OWNERSHIP


def test_a_message_beyond_the_receivers_window_is_refused() -> None:
    ledger = Ledger(64)
    ledger.admit(A, 32)
    ledger.admit(B, 16)
    ledger.grant(A, 32)
    assert refused(ledger, lambda: ledger.begin(A, B, [Extent(0, 17)])) is Status.E_WINDOW_FULL
    # Each extent would fit alone, and so would the first two.
    three = [Extent(0, 8), Extent(8, 8), Extent(16, 1)]
    assert refused(ledger, lambda: ledger.begin(A, B, three)) is Status.E_WINDOW_FULL
    assert ledger.begin(A, B, three[:2]).targets == (Extent(0, 8), Extent(8, 8))
    # What is in flight has its place already.
    assert refused(ledger, lambda: ledger.begin(A, B, [Extent(16, 1)])) is Status.E_WINDOW_FULL


# ---- Mistakes of the monitor's own ----


def test_a_parcel_lands_once() -> None:
    ledger = two_peers()
    parcel = ledger.begin(A, B, [ledger.grant(A, 4)[0]])
    ledger.complete(parcel)
    before = snapshot(ledger)
    for again in (ledger.complete, ledger.cancel):
        with pytest.raises(LedgerError, match="not in flight"):
            again(parcel)
        assert snapshot(ledger) == before


def test_a_peer_is_admitted_once() -> None:
    ledger = two_peers()
    ledger.grant(A, 1)
    with pytest.raises(LedgerError, match="peer 1 is already there"):
        ledger.admit(A, 16)
    assert ledger.owns(A, Extent(0, 1))


def _keep_another_frames_place(ledger: Ledger) -> None:
    run = ledger._windows[B].remove(Extent(0, 2))[0]
    ledger._windows[B].insert(run._replace(frame=run.frame + 1))


def _keep_the_way_back_elsewhere(ledger: Ledger) -> None:
    run = ledger._windows[A].remove(Extent(2, 2))[0]
    ledger._windows[A].insert(run._replace(page=run.page + 1))


CORRUPTIONS: dict[str, Callable[[Ledger], object]] = {
    "a free frame is lost": lambda ledger: ledger.pool.allocate(1),
    "an owned frame is free": lambda ledger: ledger.pool.release(Frames(0, 1)),
    "an owned page is lost": lambda ledger: ledger._windows[A].remove(Extent(0, 1)),
    "a frame has two owners": lambda ledger: ledger._windows[B].insert(Run(9, 1, 0, Hold.OWNED)),
    "a frame that is none": lambda ledger: ledger._windows[B].insert(Run(9, 1, 32, Hold.OWNED)),
    "a parcel is lost": lambda ledger: ledger._in_flight.clear(),
    "the receiver's place is lost": lambda ledger: ledger._windows[B].remove(Extent(0, 1)),
    "the way back is lost": lambda ledger: ledger._windows[A].remove(Extent(2, 1)),
    "a place for another frame": _keep_another_frames_place,
    "a way back elsewhere": _keep_the_way_back_elsewhere,
}


@pytest.mark.parametrize("corrupt", CORRUPTIONS.values(), ids=CORRUPTIONS.keys())
def test_the_audit_sees_a_contradiction(corrupt: Callable[[Ledger], object]) -> None:
    ledger = two_peers()
    ledger.grant(A, 4)
    ledger.begin(A, B, [Extent(2, 2)])
    assert ledger.audit() == {"free": 28, "owned": 2, "in_flight": 2}
    corrupt(ledger)
    with pytest.raises(LedgerError):
        ledger.audit()
