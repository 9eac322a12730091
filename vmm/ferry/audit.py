"""The audit: every frame is in one state only, and each window says what the bonds say. Pure."""

from __future__ import annotations

from vmm.ferry.books import Bond, Books, LedgerError
from vmm.guest.abi import Hold
from vmm.memory.runs import Run


class Audit(Books):
    """Books that can be checked."""

    def audit(self) -> dict[str, int]:
        """Check that every frame is in one state only, and both ends of each bond; return the pages
        in each state, whose sum is the pool; `unclean` only if there are any.

        Raises LedgerError.
        """
        states: dict[str, list[tuple[int, int]]] = {
            "free": [(run.first, run.pages) for run in self.pool.runs],
            "owned": [
                (run.frame, run.pages)
                for account in self.accounts.values()
                for run in account.window
                if run.hold is Hold.OWNED
            ],
            **{state: [] for state in ("in_flight", "lent", "shared", "orphaned")},
        }
        unclean = [*self.pool.unclean, *self.aside]
        if unclean:
            states["unclean"] = [(run.first, run.pages) for run in unclean]
        for bond in self.bonds_by_frame:
            states[self._state(bond)].append((bond.frame, bond.pages))
        self._check_partition(sorted(run for runs in states.values() for run in runs))
        self._check_windows()
        self._check_bonds()
        self._check_accounts()
        return {state: sum(count for _, count in runs) for state, runs in states.items()}

    def _state(self, bond: Bond) -> str:
        if bond.hold is Hold.SENT:
            return "in_flight"
        if bond.owner not in self.accounts:
            return "orphaned"
        return "lent" if bond.hold is Hold.LENT else "shared"

    def _check_partition(self, runs: list[tuple[int, int]]) -> None:
        expected = 0
        for frame, count in runs:
            if frame != expected:
                raise LedgerError(f"frame {min(frame, expected)} is in no state, or in two")
            expected = frame + count
        if expected != self.pool.total:
            raise LedgerError(f"frame {expected} is in no state")

    def _check_windows(self) -> None:
        for peer, account in self.accounts.items():
            starts = [*(run.page for run in account.window), account.window.pages]
            ends = [0, *(run.end for run in account.window)]
            if any(end > start for end, start in zip(ends, starts, strict=True)):
                raise LedgerError(
                    f"peer {peer} has two pages in one place, or one beyond its window"
                )

    def _check_bonds(self) -> None:
        """Check that each bond is to be seen in its peers' windows, and nothing else is there."""
        owners = borrowers = 0
        for bond in self.bonds_by_frame:
            if bond.owner in self.accounts:
                self._check_place(bond.owner, bond.place, {bond.hold})
                owners += bond.pages
            if not bond.borrowers and (
                bond.hold is not Hold.LENT or bond.owner not in self.accounts
            ):
                raise LedgerError(f"frame {bond.frame} is bound to nobody")
            if len(bond.borrowers) > 1 and bond.hold is not Hold.SHARED:
                raise LedgerError(f"frame {bond.frame} is promised to several, and not shared")
            for peer, page, writable in bond.borrowers:
                arrived = Hold.BORROWED if writable else Hold.VIEWED
                holds = {Hold.INCOMING} if bond.hold is Hold.SENT else {Hold.INCOMING, arrived}
                place = Run(page, bond.pages, bond.frame, Hold.INCOMING)
                self._check_place(peer, place, holds)
                borrowers += bond.pages
        held = dict.fromkeys(Hold, 0)
        for account in self.accounts.values():
            for run in account.window:
                held[run.hold] += run.pages
        if owners != held[Hold.SENT] + held[Hold.LENT] + held[Hold.SHARED]:
            raise LedgerError("the places kept by owners are not those of what is bound")
        if borrowers != held[Hold.INCOMING] + held[Hold.BORROWED] + held[Hold.VIEWED]:
            raise LedgerError("what peers borrow, or wait for, is not what is bound to them")

    def _check_place(self, peer: int, place: Run, holds: set[Hold]) -> None:
        page, frame = place.page, place.frame
        if peer not in self.accounts:
            raise LedgerError(f"frame {frame} is bound to peer {peer}, which is not there")
        for run in self.runs(peer, place.extent):
            if (run.page, run.frame) != (page, frame) or run.hold not in holds:
                break
            page, frame = page + run.pages, frame + run.pages
        if page != place.end:
            raise LedgerError(f"page {page} of peer {peer} is not what frame {frame} is bound to")

    def _check_accounts(self) -> None:
        charged = self._charges()
        for peer, account in self.accounts.items():
            if account.charged != charged[peer]:
                raise LedgerError(f"peer {peer} has {charged[peer]} pages, not {account.charged}")
        self._check_loans()
        pieces = sum(len(account.window) for account in self.accounts.values())
        if pieces != self._tally.intervals:
            raise LedgerError(f"the windows have {pieces} runs, not {self._tally.intervals}")

    def _check_loans(self) -> None:
        """Check that what loans take up is what is borrowed, or was until it was reclaimed."""
        loans = self._loans()
        for peer, account in self.accounts.items():
            revoked = [run.extent for run in account.window if run.hold is Hold.REVOKED]
            if sum(place.pages for place in account.revoked) != sum(e.pages for e in revoked):
                raise LedgerError(f"peer {peer} has other places revoked than were lent")
            if loans[peer] != account.loans or account.loaned != loans[peer].total():
                raise LedgerError(f"peer {peer} has {dict(loans[peer])} lent, not {account.loans}")
