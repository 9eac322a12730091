"""What the ledger checks before anything changes, whatever is asked for: rules and limits. Pure.

Not thread-safe: the exchange calls it under its lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from vmm.ferry.accounts import UNLIMITED
from vmm.ferry.audit import Audit
from vmm.ferry.rules import RULES, Refusal
from vmm.guest.abi import Hold, Operation, Status
from vmm.memory.frames import MANY, Frames
from vmm.memory.runs import Extent, Run

ZEROED_AT_ONCE = 4096  # pages (16 MiB), which takes the kernel a millisecond or two
_PARTS_AT_ONCE = 64  # runs, each a call
RUNS_MAX = MANY  # of one message, or ALLOC: each is a call or two, which takes some 40 µs at most


class Checks(Audit):
    """The books, and what may be done with them."""

    def allowed(self, operation: Operation, peer: int, extents: Sequence[Extent]) -> list[Run]:
        """Return what is in the extents, in their order. Refused as the rules say."""
        found = []
        window = self.accounts[peer].window
        for page, pages in extents:
            end = page + pages
            for run in window.within(page, pages):
                if run.page != page:
                    break
                self._check_rule(operation, run.hold)
                found.append(run)
                page += run.pages
            if page != end:
                self._check_rule(operation, Hold.NONE)
        return found

    @staticmethod
    def _check_runs(*counts: int) -> None:
        """Refused: E_LENGTH if what is to be done in one go has too many runs, or bonds."""
        if max(counts) > RUNS_MAX:
            raise Refusal(Status.E_LENGTH)

    @staticmethod
    def _check_rule(operation: Operation, hold: Hold) -> None:
        status = RULES[operation, hold]
        if status is not Status.OK:
            raise Refusal(status)

    def _check_pieces(self, peer: int, extents: Sequence[Extent]) -> int:
        """Return how many runs more a change of these extents makes, at most.

        Refused: E_QUOTA if that is too many. A change of whole runs makes none, and is never
        refused.
        """
        account = self.accounts[peer]
        growth = sum([account.window.cuts(*extent) for extent in extents])
        if growth and len(account.window) + growth > account.pieces:
            raise Refusal(Status.E_QUOTA)
        return growth

    def _check_cuts(self, growth: Mapping[int, int]) -> None:
        """Refused: E_QUOTA if windows that grow by so many runs would have too many."""
        for peer, more in growth.items():
            account = self.accounts[peer]
            if more and len(account.window) + more > account.pieces:
                raise Refusal(Status.E_QUOTA)

    def _check_host(self, growth: Mapping[int, int]) -> None:
        """Check that the host has the mappings if windows grow by so many runs, each by its own.

        Refused: E_NO_MEMORY. A window that is within its peer's share is not.
        """
        more = sum(growth.values())
        if not more or self._tally.intervals + more + self._reserved <= self._pieces:
            return
        if self.ask_for_pieces is not None:
            self.ask_for_pieces()
        beyond = 0
        for peer, runs in growth.items():
            left = self._left_of_share(peer)
            beyond += max(runs - max(left, 0), 0)
        if beyond > max(self._left_for_all(), 0):
            raise Refusal(Status.E_NO_MEMORY)

    def _left_of_share(self, peer: int) -> int:
        """Return by how many runs a peer's window may grow, whatever the others have."""
        return self._reserve - len(self.accounts[peer].window)

    def _left_for_all(self) -> int:
        """Return how many runs there may be besides those that are there, or kept for somebody."""
        reserve, accounts = self._reserve, self.accounts.values()
        used = sum([max(len(account.window), reserve) for account in accounts])
        return self._pieces - used

    def growth_left(self, peer: int) -> int:
        """Return by how many runs a peer's window may grow, by its own limit and the host's."""
        account = self.accounts[peer]
        left = max(self._left_of_share(peer), 0) + max(self._left_for_all(), 0)
        return min(account.pieces - len(account.window), left)

    def _check_loans_of(self, lender: int, borrower: int, pages: int) -> None:
        """Check that there is room for a lender's loan in a borrower's window, of which a part is
        kept from lenders, and another from each of them. Refused: E_WINDOW_FULL.
        """
        account = self.accounts[borrower]
        limit, half = account.loan_limit, account.pieces // 2
        if limit is UNLIMITED:
            return
        if account.loaned + pages > limit or account.loans.get(lender, 0) + pages > limit * 4 // 7:
            raise Refusal(Status.E_WINDOW_FULL)
        # Whose the pieces are takes a while, and is asked only where there are many.
        if len(account.window.items) >= half and self._pieces_of(lender, borrower) >= half:
            raise Refusal(Status.E_WINDOW_FULL)

    def _pieces_of(self, lender: int, borrower: int) -> int:
        """Return how many pieces of a window are loans of one lender's."""
        account = self.accounts[borrower]
        holds = (Hold.INCOMING, Hold.BORROWED, Hold.VIEWED)
        runs = [run for run in account.window if run.hold in holds]
        lent = sum(bond.owner == lender for run in runs for bond in self.bonds([run]))
        return lent + sum(place.lender == lender for place in account.revoked)

    def _fresh(
        self,
        peer: int,
        places: Sequence[Extent],
        growth: int = 0,
        others: Mapping[int, int] | None = None,
    ) -> list[Run]:
        """Take free frames for these places of a window that grows by `growth` runs besides, as do
        the windows of `others`.

        Refused: E_NO_MEMORY, also if there are only smaller runs than can be taken in one go;
        E_QUOTA if the window would have too many. And none are taken.
        """
        account, runs = self.accounts[peer], list[Run]()
        if sum([place.pages for place in places]) > self.shares.available(peer):
            raise Refusal(Status.E_NO_MEMORY)
        try:
            for place in places:
                frames = self.pool.allocate(place.pages)
                if not frames:
                    raise Refusal(Status.E_NO_MEMORY)
                page = place.page
                for part in frames:
                    runs.append(Run(page, part.pages, part.first, Hold.OWNED))
                    page += part.pages
            if len(runs) > RUNS_MAX:
                raise Refusal(Status.E_NO_MEMORY)
            if len(account.window) + growth + len(runs) > account.pieces:
                raise Refusal(Status.E_QUOTA)
            self._check_host({peer: growth + len(runs), **(others or {})})
        except Refusal:
            for run in runs:
                self.pool.release(Frames(run.frame, run.pages))
            raise
        self.shares.took(peer)
        return runs

    def _free(self, frames: Iterable[Frames], peer: int | None = None) -> list[Frames]:
        """Give frames back to the pool, for a peer that has had them; return those that are to be
        zeroed before anything else happens. If the ledger is `lazy`, what is too much for that is
        unclean.
        """
        freed, later, pages = list[Frames](), list[Frames](), 0
        for part in frames:
            if self.lazy and (pages + part.pages > ZEROED_AT_ONCE or len(freed) == _PARTS_AT_ONCE):
                later.append(part)
                continue
            pages += part.pages
            self.pool.release(part)
            freed.append(part)
        if later:
            self.keep_unclean()
            self.pool.unclean.extend(later)
            self.soiled = True
        if freed:
            self.shares.refill(peer)
        return freed

    def keep_unclean(self) -> None:
        """Keep what is to be zeroed, before it changes."""
        if self.journal.active:
            self.journal.undo(partial(self.pool.have_unclean, tuple(self.pool.unclean)))

    def cleaned(self, frames: Frames) -> None:
        """Follow frames that were unclean and have been zeroed: they are free."""
        self.pool.release(frames)
        self.shares.refill()
