"""The ledger: who owns every page, and what may become of it. Pure; nothing fails half way.

Every operation comes in two steps. The first checks all of it against the rules (`vmm.ferry.rules`,
the table) and the limits, reserves what it needs, and returns a plan, or raises `Refusal` and has
changed nothing. The second, `commit_...`, cannot fail. In between the exchange changes the
mappings, which is the one thing that can.

Not thread-safe: the exchange calls it under its lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

from vmm.ferry.accounts import UNLIMITED, Account, Revoked
from vmm.ferry.books import Bond, LedgerError
from vmm.ferry.places import joined, reserve
from vmm.ferry.plans import Homecoming, Reclaim, Return
from vmm.ferry.rules import READABLE, Refusal
from vmm.ferry.transit import Transit
from vmm.guest.abi import Hold, Operation, Status
from vmm.memory.frames import Frames
from vmm.memory.run_map import RunMap
from vmm.memory.runs import Extent, IntervalMap, Run


class Ledger(Transit):
    """Ownership of the pool's frames among peers, each with a window of its own."""

    # ---- Peers ----

    def admit(
        self,
        peer: int,
        pages: int,
        quota: int = UNLIMITED,
        pieces: int = UNLIMITED,
        loan_limit: int = UNLIMITED,
    ) -> None:
        """Add a peer with an empty window of `pages` pages, and limits (see Account)."""
        if peer in self.accounts:
            raise LedgerError(f"peer {peer} is already there")
        window = RunMap(pages, self._tally, self.journal)
        revoked = IntervalMap[Revoked](pages, None, self.journal)
        self.keep_accounts()
        self.accounts[peer] = Account(window, quota, pieces, revoked, loan_limit)
        self._share_out()
        self.shares.join(peer)

    def dismiss(self, peer: int) -> list[Frames]:
        """Remove a peer that has let go of all it borrowed or was to get; return what is freed.

        What it has sent stays in flight; what others borrow of it stays theirs until they let go.
        """
        account = self.accounts[peer]
        if any(run.hold in (Hold.INCOMING, Hold.BORROWED, Hold.VIEWED) for run in account.window):
            raise LedgerError(f"peer {peer} has not let go of everything")
        self.keep_accounts()
        del self.accounts[peer]
        self._share_out()
        self.shares.leave(peer)
        runs = list(account.window)
        account.window.clear()
        freed = [Frames(run.frame, run.pages) for run in runs if run.hold is Hold.OWNED]
        for run in runs:
            if run.hold in (Hold.SENT, Hold.LENT, Hold.SHARED):
                freed += self._orphan(run)
        return self._free(freed)

    def _orphan(self, run: Run) -> list[Frames]:
        """Return what nobody borrows of a dead owner's run; its bonds go."""
        bonds = [
            bond for bond in self.bonds_by_frame.within(run.frame, run.pages) if not bond.borrowers
        ]
        for bond in bonds:
            self.bonds_by_frame.remove(bond.frame, bond.pages)
        return [Frames(bond.frame, bond.pages) for bond in bonds]

    # ---- From and to the pool ----

    def grant(self, peer: int, counts: Sequence[int]) -> tuple[list[Extent], list[Run]]:
        """Give a peer free pages, an extent for each count; return the extents and their runs.

        Refused: E_RANGE if a count is none, E_QUOTA, E_WINDOW_FULL, E_NO_MEMORY. Undone by
        `release`.
        """
        if any(count < 1 for count in counts):
            raise Refusal(Status.E_RANGE)
        account = self.accounts[peer]
        if account.charged + sum(counts) > account.quota:
            raise Refusal(Status.E_QUOTA)
        places = reserve(account.window, counts)
        runs = self._fresh(peer, places)
        for run in runs:
            account.window.insert(run)
        account.charged += sum(counts)
        return places, runs

    def releasing(self, peer: int, extents: Sequence[Extent]) -> list[Run]:
        """Return what a RELEASE of disjoint extents would let go of.

        Refused as the rules say, and: E_QUOTA, E_NO_MEMORY.
        """
        runs = self.allowed(Operation.RELEASE, peer, extents)
        self._check_host({peer: self._check_pieces(peer, extents)})
        return runs

    def release(self, peer: int, runs: Sequence[Run]) -> list[Frames]:
        """Commit: the places hold nothing, what was owned there is freed and returned."""
        account = self.accounts[peer]
        for run in runs:
            account.window.remove(*run.extent)
            if run.hold is Hold.REVOKED:
                for place in account.revoked.remove(*run.extent):
                    account.lend(place.lender, -place.pages)
        freed = [Frames(run.frame, run.pages) for run in runs if run.hold is Hold.OWNED]
        account.charged -= sum(part.pages for part in freed)
        return self._free(freed, peer)

    def set_aside(self, freed: Sequence[Frames]) -> None:
        """Keep frames from everybody that have just been freed, until they are zeroed."""
        self.journal.undo(partial(setattr, self, "aside", self.aside))
        self.aside = [*self.aside, *freed]
        for frames in freed:
            self.pool.withdraw(frames)
        self.shares.took()

    def set_free(self, frames: Frames) -> None:
        """Let frames that were set aside, and have been zeroed since, be free."""
        self.mend()
        self._torn = True  # if we are cut off here, what is free is counted again
        self.aside = [other for other in self.aside if other != frames]
        self.pool.release(frames)
        self.shares.refill()
        self._torn = False

    def mend(self) -> None:
        """Put right what a `set_free` that was cut off has left."""
        if self._torn:
            self.recount()
            self._torn = False

    # ---- The way back ----

    def returning(self, peer: int, owner: int, extents: Sequence[Extent]) -> Return:
        """Plan a RETURN of extents that the peer borrows of `owner`, who may have stopped.

        Refused as the rules say, and: E_LENGTH, E_NOT_LENT if they are another's, E_QUOTA,
        E_NO_MEMORY.
        """
        runs = self.allowed(Operation.RETURN, peer, extents)
        bonds = list(self.bonds(runs))
        self._check_runs(len(runs), len(bonds))
        if any(bond.owner != owner for bond in bonds):
            raise Refusal(Status.E_NOT_LENT)
        growth = self._check_pieces(peer, extents)
        alive = owner in self.accounts
        self._check_host({peer: growth, owner: growth} if alive else {peer: growth})
        if growth and alive:  # it must not cut up the owner's window either
            self._check_pieces(owner, [bond.place.extent for bond in bonds])
        shown = tuple(b.place for b in bonds if b.hold is Hold.LENT) if alive else ()
        spans = tuple(joined(bond.place.extent for bond in bonds)) if alive else ()
        return Return(peer, owner, tuple(runs), shown, spans)

    def commit_return(self, plan: Return) -> list[Frames]:
        """The owner has its pages again; return what was freed, as nobody's any more."""
        freed = self.let_go(plan.peer, plan.runs).freed
        if plan.shown:
            self.restore(plan.owner, plan.shown)
        return freed

    def reclaiming(self, owner: int, extents: Sequence[Extent]) -> Reclaim:
        """Plan a RECLAIM of extents, lent or shared as they may be.

        Refused as the rules say, and: E_QUOTA, E_NO_MEMORY.
        """
        runs = self.allowed(Operation.RECLAIM, owner, extents)
        growth = {owner: self._check_pieces(owner, extents)}
        hidden: list[tuple[int, Run]] = []
        shown: list[Run] = []
        for bond in self.bonds(runs):
            if bond.hold is Hold.LENT:
                shown.append(bond.place)
            for peer, page, _ in bond.borrowers:
                place = Extent(page, bond.pages)
                cuts = self.accounts[peer].window.cuts(*place)
                growth[peer] = growth.get(peer, 0) + cuts
                hidden += [(peer, r) for r in self.runs(peer, place) if r.hold in READABLE]
        if growth[
            owner
        ]:  # of a part of what it lent: it must not cut up a borrower's window either
            self._check_cuts(growth)
        self._check_host(growth)
        return Reclaim(owner, tuple(runs), tuple(hidden), tuple(shown))

    def commit_reclaim(self, plan: Reclaim) -> set[int]:
        """The owner has its pages again, alone; return who had borrowed them, or was to."""
        robbed: set[int] = set()
        window = self.accounts[plan.owner].window
        for run in plan.runs:
            window.replace(run._replace(hold=Hold.OWNED))
            for bond in self.bonds_by_frame.remove(run.frame, run.pages):
                for peer, page, _ in bond.borrowers:
                    self._revoke(peer, Extent(page, bond.pages), plan.owner)
                    robbed.add(peer)
        return robbed

    def _revoke(self, peer: int, place: Extent, lender: int) -> None:
        """Keep a borrower's place for nothing, until it lets go: nothing else appears there."""
        account = self.accounts[peer]
        account.window.replace(Run(place.page, place.pages, place.page, Hold.REVOKED))
        account.revoked.insert(Revoked(place.page, place.pages, lender))

    def let_go(self, peer: int, runs: Iterable[Run], revoked: bool = False) -> Homecoming:
        """Commit: the peer no longer has, or waits for, what is not its own. Never refused.

        `revoked`: its places are kept, as after a RECLAIM.
        """
        home = Homecoming()
        account = self.accounts[peer]
        for run in runs:
            account.window.remove(*run.extent)
            for bond in self.bonds_by_frame.remove(run.frame, run.pages):
                if bond.hold is Hold.SENT:
                    account.charged -= bond.pages
                elif not revoked:
                    account.lend(bond.owner, -bond.pages)
                if revoked:
                    place = Extent(bond.borrower(peer).page, bond.pages)
                    self._revoke(peer, place, bond.owner)
                others = tuple(b for b in bond.borrowers if b.peer != peer)
                self._settle(bond._replace(borrowers=others), home)
        home.freed = self._free(home.freed)
        return home

    def _settle(self, bond: Bond, home: Homecoming) -> None:
        """Keep what is left of a bond after one of its borrowers has gone."""
        owner = self.accounts.get(bond.owner)
        if bond.borrowers:
            self.bonds_by_frame.insert(bond)
        elif owner is None:
            home.freed.append(Frames(bond.frame, bond.pages))
        else:
            owner.window.remove(*bond.place.extent)
            if bond.hold is Hold.SHARED:
                owner.window.insert(bond.place._replace(hold=Hold.OWNED))
                return
            bond = bond._replace(hold=Hold.LENT)
            owner.window.insert(bond.place)
            self.bonds_by_frame.insert(bond)
            home.back.append((bond.owner, bond.place))

    def restore(self, owner: int, runs: Iterable[Run]) -> None:
        """Commit: what is LENT to nobody is its owner's, who sees it again."""
        window = self.accounts[owner].window
        for run in runs:
            window.replace(run._replace(hold=Hold.OWNED))
            self.bonds_by_frame.remove(run.frame, run.pages)

    def withhold(self, peer: int, run: Run) -> list[Frames]:
        """Follow a host that has hidden a run, OWNED, BORROWED or VIEWED, and refuses to show it
        again: nobody sees it.

        What was the peer's own is LENT to nobody (RECLAIM gets it back), what was borrowed has
        been let go of; return what that freed.
        """
        if run.hold is not Hold.OWNED:
            return self.let_go(peer, [run], revoked=True).freed
        window = self.accounts[peer].window
        window.replace(run._replace(hold=Hold.LENT))
        self.bonds_by_frame.insert(Bond(run.frame, run.pages, Hold.LENT, peer, run.page, ()))
        return []
