"""The audit sees each way in which the books can contradict themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from unit.ledger_scene import (
    LEND,
    SEND,
    SHARE,
    A,
    B,
    C,
    bury,
    delivered,
    three_peers,
    transfer,
)

from vmm.ferry.books import Bond, Borrower, LedgerError
from vmm.ferry.ledger import Ledger
from vmm.guest.abi import Hold
from vmm.memory.frames import Frames
from vmm.memory.runs import Extent, Run

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
    return lambda ledger: ledger.accounts[peer].window.remove(page, 1)


def change(peer: int, extent: Extent, **changed: Any) -> Corruption:
    """What a window says of an extent is changed."""

    def corrupt(ledger: Ledger) -> None:
        window = ledger.accounts[peer].window
        (run,) = window.remove(*extent)
        window.insert(run._replace(**changed))

    return corrupt


def invent(peer: int, run: Run) -> Corruption:
    """A window has a run out of nothing."""
    return lambda ledger: ledger.accounts[peer].window.insert(run)


def rebind(frame: int, **changed: Any) -> Corruption:
    """A bond is changed."""

    def corrupt(ledger: Ledger) -> None:
        (bond,) = ledger.bonds_by_frame.remove(frame, 2)
        ledger.bonds_by_frame.insert(bond._replace(**changed))

    return corrupt


def bind_once_more(frame: int, hold: Hold) -> Corruption:
    """What one peer alone may have, C has as well, in its window, too."""

    def corrupt(ledger: Ledger) -> None:
        (bond,) = ledger.bonds_by_frame.remove(frame, 2)
        borrowers = (*bond.borrowers, Borrower(C, 8, True))
        ledger.bonds_by_frame.insert(bond._replace(borrowers=borrowers))
        ledger.accounts[C].window.insert(Run(8, 2, frame, hold))

    return corrupt


def owned_at(*places: int) -> Corruption:
    """C owns free frames, and is charged for them, at impossible places."""

    def corrupt(ledger: Ledger) -> None:
        account = ledger.accounts[C]
        for place in places:
            (frames,) = ledger.pool.allocate(1)
            account.window.insert(Run(place, 1, frames.first, Hold.OWNED))
            account.charged += 1

    return corrupt


def miscount(peer: int) -> Corruption:
    def corrupt(ledger: Ledger) -> None:
        ledger.accounts[peer].charged += 1

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
    "what is on its way is bound no more": lambda ledger: ledger.bonds_by_frame.remove(2, 2),
    "what is lent is bound no more": lambda ledger: ledger.bonds_by_frame.remove(4, 2),
    "what is shared is bound no more": lambda ledger: ledger.bonds_by_frame.remove(7, 1),
    "an orphan is bound no more": lambda ledger: ledger.bonds_by_frame.remove(8, 2),
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
    "a bond of a free frame": lambda ledger: ledger.bonds_by_frame.insert(
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
