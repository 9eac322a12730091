"""The ledger's books: what every window holds, which frames bind peers to each other. Pure.

A frame (a page of the pool) is at any time in exactly one of these states, and the audit proves it:

    free       in the pool, reading as zeros
    unclean    nobody's, and to be zeroed before it is free: in the pool, or set aside
    owned      one peer's, at one place in its window, and nobody else's
    in flight  on its way from a sender's window to a receiver's
    lent       its owner's, with a borrower in its stead, or with nobody (taken back, not yet shown)
    shared     its owner's, and borrowers'
    orphaned   its owner has stopped; free as soon as its borrowers have let go of it

What is owned is in a window's map alone; what follows it is a bond as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from vmm.ferry.accounts import UNLIMITED, Account
from vmm.ferry.shares import FrameShares
from vmm.guest.abi import Hold
from vmm.memory.frames import FramePool, Frames
from vmm.memory.journal import IDLE, Journal
from vmm.memory.runs import Extent, IntervalMap, Run, Tally


class LedgerError(AssertionError):
    """The ledger contradicts itself: a mistake in pageferry, never in a guest."""


class Borrower(NamedTuple):
    """A peer that a frame was promised to, or that has it; `page` is where in its window."""

    peer: int
    page: int
    writable: bool


def _moved(borrowers: tuple[Borrower, ...], by: int) -> tuple[Borrower, ...]:
    """Return the same borrowers, at places so many pages further."""
    return tuple([Borrower(peer, page + by, writable) for peer, page, writable in borrowers])


class Bond(NamedTuple):
    """`pages` adjacent frames that bind an owner to others.

    hold       what they are to the owner: SENT, LENT or SHARED
    page       where they are, or will be again, in the owner's window
    borrowers  in the order in which they came; the receiver, for SENT
    """

    frame: int
    pages: int
    hold: Hold
    owner: int
    page: int
    borrowers: tuple[Borrower, ...]

    @property
    def end(self) -> int:
        """The first frame after these."""
        return self.frame + self.pages

    def clip(self, start: int, end: int) -> Bond:
        """Return the part of the bond that concerns the frames in start..end."""
        frame, pages, hold, owner, page, borrowers = self
        last = min(frame + pages, end)
        by = start - frame
        if by > 0:
            frame, page, borrowers = start, page + by, _moved(borrowers, by)
        return Bond(frame, last - frame, hold, owner, page, borrowers)

    def continues(self, other: Bond) -> bool:
        """Whether `other` directly follows, for the same peers, at the places that follow."""
        frame, pages, hold, owner, page, borrowers = self
        return (
            frame + pages == other.frame
            and page + pages == other.page
            and hold is other.hold
            and owner == other.owner
            and _moved(borrowers, pages) == other.borrowers
        )

    def lengthened(self, pages: int) -> Bond:
        """Return the bond with as many frames more at its end."""
        frame, own, hold, owner, page, borrowers = self
        return Bond(frame, own + pages, hold, owner, page, borrowers)

    @property
    def place(self) -> Run:
        """The owner's place."""
        return Run(self.page, self.pages, self.frame, self.hold)

    def borrower(self, peer: int) -> Borrower:
        """Return what one of the borrowers was promised."""
        return next(b for b in self.borrowers if b.peer == peer)


class Description(NamedTuple):
    """What is true of the first `pages` pages of an extent, as one peer may know it."""

    hold: Hold
    pages: int
    owner: int | None
    borrowers: tuple[int, ...]


class Books:
    """What the ledger knows. Not thread-safe: the exchange uses it under its lock.

    accounts   by peer, and bonds_by_frame, that bind them: to be read only
    pieces   runs that all windows may be cut into together (each costs the host two mappings)
    ask_for_pieces  called when there are too few: it may `allow` more
    share    of these, kept for each peer; half of them at most, for all
    frames_share  frames that are kept for each peer (see FrameShares)
    """

    ask_for_pieces: Callable[[], object] | None = None

    def __init__(
        self,
        frames: int,
        pieces: int = UNLIMITED,
        journal: Journal = IDLE,
        *,
        share: int = 0,
        frames_share: int = 0,
    ) -> None:
        self.journal = journal
        self.pool = FramePool(frames)
        self.shares = FrameShares(self.pool, frames_share)
        self.aside: list[Frames] = []  # to be zeroed as soon as that can no longer be undone
        self._torn = False
        self._pieces = pieces
        self.soiled = False  # whether any has been freed so, for who looks at that
        self.lazy = False  # whether what is freed, and is much, is zeroed later (FramePool.unclean)
        self._share = share
        self._reserve = 0  # pieces that each peer has for itself
        self._reserved = 0  # and all of them
        self._tally = Tally()
        self.accounts: dict[int, Account] = {}
        self.bonds_by_frame: IntervalMap[Bond] = IntervalMap(frames, journal=journal)

    def keep_accounts(self) -> None:
        """Keep who has an account, before somebody gets or loses one."""
        self.journal.undo(partial(self._have_accounts, self.accounts.copy()))

    def _have_accounts(self, accounts: dict[int, Account]) -> None:
        self.accounts.clear()
        self.accounts.update(accounts)

    def recount(self) -> None:
        """Derive again what the windows and the bonds say, after they have been restored."""
        self._tally.intervals = sum(len(account.window) for account in self.accounts.values())
        for peer, charged in self._charges().items():
            self.accounts[peer].charged = charged
        taken = [(bond.frame, bond.pages) for bond in self.bonds_by_frame]
        taken += self.aside
        taken += [
            (run.frame, run.pages)
            for account in self.accounts.values()
            for run in account.window
            if run.hold is Hold.OWNED
        ]
        self.pool.keep_but(sorted([*taken, *self.pool.unclean]))
        self._share_out()
        self.shares.recount(self.accounts)
        for peer, loans in self._loans().items():
            self.accounts[peer].loans = dict(loans)
            self.accounts[peer].loaned = loans.total()

    def _share_out(self) -> None:
        """Say how many pieces are kept for each of the peers that there are."""
        count = len(self.accounts)
        self._reserve = min(self._share, self._pieces // 2 // count) if count else 0
        self._reserved = self._reserve * count

    def pieces_used(self) -> int:
        """Return how many runs all windows are cut into."""
        return self._tally.intervals

    def allow(self, pieces: int) -> None:
        """Let the windows be cut into as many runs from now on."""
        self._pieces = pieces
        self._share_out()

    def account(self, peer: int) -> Account:
        """Return a peer's account, to be read."""
        return self.accounts[peer]

    def window(self, peer: int) -> tuple[Run, ...]:
        """Return what a peer's window holds, in order."""
        return tuple(self.accounts[peer].window)

    def runs(self, peer: int, extent: Extent) -> list[Run]:
        """Return what one extent of a peer's window holds, clipped to it."""
        return self.accounts[peer].window.within(*extent)

    def piece(self, peer: int, page: int) -> tuple[Hold, int, int]:
        """Return what is changed as one from a page of a peer's window on: what it is, where it
        ends, and in how many windows it is.
        """
        run = self.accounts[peer].window.at(page)
        if run is None:
            return Hold.NONE, page + 1, 1
        frame = run.frame + page - run.page
        bond = self.bonds_by_frame.at(frame) if run.hold in (Hold.LENT, Hold.SHARED) else None
        if bond is None:
            return run.hold, run.end, 1
        left = bond.frame + bond.pages - frame
        return run.hold, min(run.end, page + left), 1 + len(bond.borrowers)

    def holds(self, peer: int, extent: Extent, holds: frozenset[Hold]) -> bool:
        """Whether every page of the extent is one of these to the peer."""
        runs = self.runs(peer, extent)
        return sum(r.pages for r in runs) == extent.pages and all(r.hold in holds for r in runs)

    def bonds(self, runs: Sequence[Run]) -> list[Bond]:
        """Return the bonds on the frames of these runs, in order."""
        if len(runs) == 1:
            return self.bonds_by_frame.within(runs[0].frame, runs[0].pages)
        return [bond for run in runs for bond in self.bonds_by_frame.within(run.frame, run.pages)]

    def describe(self, peer: int, extent: Extent) -> Description:
        """Return what the beginning of an extent is to a peer, and to whom else, as far as it may
        know: who borrows what is its own, or whose it is that it borrows.
        """
        first = next(iter(self.runs(peer, extent)), None)
        if first is None or first.page > extent.page:
            pages = extent.pages if first is None else first.page - extent.page
            return Description(Hold.NONE, pages, None, ())
        if first.hold is Hold.OWNED:
            return Description(first.hold, first.pages, peer, ())
        if first.hold in (Hold.REVOKED, Hold.INCOMING):
            return Description(first.hold, first.pages, None, ())
        bond = self.bonds([first])[0]
        everyone = tuple(b.peer for b in bond.borrowers)
        borrowers = everyone if bond.owner == peer else (peer,)
        return Description(first.hold, bond.pages, bond.owner, borrowers)

    # ---- Derived ----

    def _charges(self) -> dict[int, int]:
        """Return how many pages are each peer's own, those coming in to stay included."""
        owners = {Hold.OWNED, Hold.SENT, Hold.LENT, Hold.SHARED}
        charged = {
            peer: sum(run.pages for run in account.window if run.hold in owners)
            for peer, account in self.accounts.items()
        }
        for bond in self.bonds_by_frame:
            if bond.hold is Hold.SENT:
                charged[bond.borrowers[0].peer] += bond.pages
        return charged

    def _loans(self) -> dict[int, Counter[int]]:
        """Return what lenders' loans take up of each window, those that were reclaimed included."""
        loans: dict[int, Counter[int]] = {peer: Counter() for peer in self.accounts}
        for bond in self.bonds_by_frame:
            if bond.hold is not Hold.SENT:
                for borrower in bond.borrowers:
                    loans[borrower.peer][bond.owner] += bond.pages
        for peer, account in self.accounts.items():
            for place in account.revoked:
                loans[peer][place.lender] += place.pages
        return loans
