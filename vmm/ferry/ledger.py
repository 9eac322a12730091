"""The ledger: who owns every page, and what may become of it. Pure; nothing fails half way.

Every operation comes in two steps. The first checks all of it against the rules (`vmm.ferry.rules`,
the table) and the limits, reserves what it needs, and returns a plan, or raises `Refusal` and has
changed nothing. The second, `commit_...`, cannot fail. In between the exchange changes the
mappings, which is the one thing that can.

Not thread-safe: the exchange calls it under its lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vmm.ferry.books import UNLIMITED, Account, Bond, Books, Borrower, LedgerError
from vmm.ferry.frames import Frames
from vmm.ferry.places import joined, moved, place_for, reserve
from vmm.ferry.plans import Homecoming, Reclaim, Return, Transfer
from vmm.ferry.rules import READABLE, RULES, Refusal
from vmm.ferry.runs import Extent, IntervalMap, Run
from vmm.guest.abi import Hold, Operation, Status

_GIVEN = frozenset({Operation.SEND, Operation.EXCHANGE})  # the receiver is to own the pages
_PARTED = {Operation.SEND: Hold.SENT, Operation.EXCHANGE: Hold.SENT, Operation.LEND: Hold.LENT}


class Ledger(Books):
    """Ownership of the pool's frames among peers, each with a window of its own."""

    # ---- Peers ----

    def admit(self, peer: int, pages: int, quota: int = UNLIMITED, pieces: int = UNLIMITED) -> None:
        """Add a peer with an empty window of `pages` pages, and limits (see Account)."""
        if peer in self._accounts:
            raise LedgerError(f"peer {peer} is already there")
        self._accounts[peer] = Account(IntervalMap(pages, self._tally), quota, pieces)

    def dismiss(self, peer: int) -> list[Frames]:
        """Remove a peer that has let go of all it borrowed or was to get; return what is freed.

        What it has sent stays in flight; what others borrow of it stays theirs until they let go.
        """
        account = self._accounts[peer]
        if any(run.hold in (Hold.INCOMING, Hold.BORROWED, Hold.VIEWED) for run in account.window):
            raise LedgerError(f"peer {peer} has not let go of everything")
        del self._accounts[peer]
        runs = list(account.window)
        account.window.clear()
        freed = [Frames(run.frame, run.pages) for run in runs if run.hold is Hold.OWNED]
        for run in runs:
            if run.hold in (Hold.SENT, Hold.LENT, Hold.SHARED):
                freed += self._orphan(run)
        return self._free(freed)

    def _orphan(self, run: Run) -> list[Frames]:
        """Return what nobody borrows of a dead owner's run; its bonds go."""
        bonds = [bond for bond in self._bonds.within(run.frame, run.pages) if not bond.borrowers]
        for bond in bonds:
            self._bonds.remove(bond.frame, bond.pages)
        return [Frames(bond.frame, bond.pages) for bond in bonds]

    def _free(self, frames: Iterable[Frames]) -> list[Frames]:
        freed = list(frames)
        for part in freed:
            self.pool.release(part)
        return freed

    # ---- What every operation checks ----

    def allowed(self, operation: Operation, peer: int, extents: Sequence[Extent]) -> list[Run]:
        """Return what is in the extents, in their order. Refused as the rules say."""
        found = []
        window = self._accounts[peer].window
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
    def _check_rule(operation: Operation, hold: Hold) -> None:
        status = RULES[operation, hold]
        if status is not Status.OK:
            raise Refusal(status)

    def _check_pieces(self, peer: int, extents: Sequence[Extent]) -> int:
        """Return how many runs more a change of these extents makes, at most.

        Refused: E_QUOTA if that is too many. A change of whole runs makes none, and is never
        refused.
        """
        account = self._accounts[peer]
        growth = sum([account.window.cuts(*extent) for extent in extents])
        if growth and len(account.window) + growth > account.pieces:
            raise Refusal(Status.E_QUOTA)
        return growth

    def _check_host(self, growth: int) -> None:
        """Refused: E_NO_MEMORY if the host cannot be sure to have the mappings."""
        if growth and self._tally.intervals + growth > self._pieces:
            raise Refusal(Status.E_NO_MEMORY)

    # ---- From and to the pool ----

    def grant(self, peer: int, counts: Sequence[int]) -> tuple[list[Extent], list[Run]]:
        """Give a peer free pages, an extent for each count; return the extents and their runs.

        Refused: E_RANGE if a count is none, E_QUOTA, E_WINDOW_FULL, E_NO_MEMORY. Undone by
        `release`.
        """
        if any(count < 1 for count in counts):
            raise Refusal(Status.E_RANGE)
        account = self._accounts[peer]
        if account.charged + sum(counts) > account.quota:
            raise Refusal(Status.E_QUOTA)
        places = reserve(account.window, counts)
        runs = self._fresh(peer, places)
        for run in runs:
            account.window.insert(run)
        account.charged += sum(counts)
        return places, runs

    def _fresh(
        self, peer: int, places: Sequence[Extent], growth: int = 0, others: int = 0
    ) -> list[Run]:
        """Take free frames for these places of a window that grows by `growth` runs besides, as do
        other windows by `others`.

        Refused: E_NO_MEMORY, E_QUOTA if there would be too many runs; and none are taken.
        """
        account, runs = self._accounts[peer], list[Run]()
        try:
            for place in places:
                frames = self.pool.allocate(place.pages)
                if not frames:
                    raise Refusal(Status.E_NO_MEMORY)
                page = place.page
                for part in frames:
                    runs.append(Run(page, part.pages, part.first, Hold.OWNED))
                    page += part.pages
            if len(account.window) + growth + len(runs) > account.pieces:
                raise Refusal(Status.E_QUOTA)
            self._check_host(growth + len(runs) + others)
        except Refusal:
            self._free(Frames(run.frame, run.pages) for run in runs)
            raise
        return runs

    def releasing(self, peer: int, extents: Sequence[Extent]) -> list[Run]:
        """Return what a RELEASE of disjoint extents would let go of.

        Refused as the rules say, and: E_QUOTA, E_NO_MEMORY.
        """
        runs = self.allowed(Operation.RELEASE, peer, extents)
        self._check_host(self._check_pieces(peer, extents))
        return runs

    def release(self, peer: int, runs: Sequence[Run]) -> list[Frames]:
        """Commit: the places hold nothing, what was owned there is freed and returned."""
        account = self._accounts[peer]
        for run in runs:
            account.window.remove(*run.extent)
        freed = [Frames(run.frame, run.pages) for run in runs if run.hold is Hold.OWNED]
        account.charged -= sum(part.pages for part in freed)
        return self._free(freed)

    # ---- Messages with pages ----

    def transfer(
        self,
        operation: Operation,
        sender: int,
        receiver: int,
        extents: Sequence[Extent],
        *,
        writable: bool = True,
        copied: bool = False,
    ) -> Transfer:
        """Plan a SEND, LEND, SHARE or EXCHANGE of extents, disjoint and within the window.

        copied   whether an EXCHANGE is rather to be copied: the fresh frames go, and what is in the
                 extents stays. It is moved all the same where the fresh frames are in more pieces

        Refused, copied or not, as the rules say, and: E_REPEATED, E_QUOTA, E_WINDOW_FULL,
        E_NO_MEMORY. A plan for EXCHANGE holds frames: commit or `abandon` it.
        """
        if len(extents) == 1 and operation is not Operation.EXCHANGE:
            one = self._accounts[sender].window.part(*extents[0])
            if one is not None and one[0].hold is not Hold.SHARED:  # as most are
                return self._transfer_run(operation, sender, receiver, extents[0], *one, writable)
        return self._transfer_runs(operation, sender, receiver, extents, writable, copied)

    def _transfer_run(
        self,
        operation: Operation,
        sender: int,
        receiver: int,
        extent: Extent,
        run: Run,
        growth: int,
        writable: bool,
    ) -> Transfer:
        """Plan a SEND, LEND or SHARE of a run that is not shared yet, or of a part of one, without
        which it is in `growth` pieces more: what `_transfer_runs` would, in a third of the time.
        """
        status = RULES[operation, run.hold]
        if status is not Status.OK:
            raise Refusal(status)
        source, target = self._accounts[sender], self._accounts[receiver]
        if growth and len(source.window.items) + growth > source.pieces:
            raise Refusal(Status.E_QUOTA)
        page, pages, _, _ = run
        there = place_for(target.window, pages)
        if operation is Operation.SEND and target.charged + pages > target.quota:
            raise Refusal(Status.E_QUOTA)
        if len(target.window.items) >= target.pieces:
            raise Refusal(Status.E_WINDOW_FULL)
        if self._tally.intervals + growth + 1 > self._pieces:
            raise Refusal(Status.E_NO_MEMORY)
        runs, sources, targets = (run,), (extent,), (Extent(there, pages),)
        return Transfer(
            operation, sender, receiver, writable, runs, (page,), (there,), sources, targets
        )

    def _transfer_runs(
        self,
        operation: Operation,
        sender: int,
        receiver: int,
        extents: Sequence[Extent],
        writable: bool,
        copied: bool,
    ) -> Transfer:
        target = self._accounts[receiver]
        runs = self.allowed(operation, sender, extents)
        if operation is Operation.SHARE and any(
            b.peer == receiver
            for bond in self.bonds([run for run in runs if run.hold is Hold.SHARED])
            for b in bond.borrowers
        ):
            raise Refusal(Status.E_REPEATED)
        growth = self._check_pieces(sender, extents)
        counts = [extent.pages for extent in extents]
        targets = reserve(target.window, counts)
        if operation in _GIVEN and target.charged + sum(counts) > target.quota:
            raise Refusal(Status.E_QUOTA)
        if len(target.window) + len(runs) > target.pieces:
            raise Refusal(Status.E_WINDOW_FULL)
        self._check_host(growth + len(runs))
        homes, fresh, at = extents, list[Run](), [run.page for run in runs]
        if operation is Operation.EXCHANGE:
            homes, fresh = self._exchanged(sender, extents, growth, len(runs))
            at = moved(runs, extents, homes)
        plan = Transfer(
            operation,
            sender,
            receiver,
            writable,
            tuple(runs),
            tuple(at),
            tuple(moved(runs, extents, targets)),
            tuple(homes),
            tuple(targets),
            tuple(fresh),
        )
        # In no more pieces, for which there would have to be room where they arrive.
        return _copied(plan, extents) if copied and 0 < len(fresh) <= len(runs) else plan

    def _exchanged(
        self, sender: int, extents: Sequence[Extent], growth: int, arriving: int
    ) -> tuple[list[Extent], list[Run]]:
        """Choose where exchanged pages go should they come back, as their places are taken again,
        and by what. Refused: E_QUOTA, E_WINDOW_FULL, E_NO_MEMORY.
        """
        account, counts = self._accounts[sender], [extent.pages for extent in extents]
        if account.charged + sum(counts) > account.quota:
            raise Refusal(Status.E_QUOTA)
        homes = reserve(account.window, counts)
        return homes, self._fresh(sender, extents, growth, arriving)

    def abandon(self, plan: Transfer) -> list[Frames]:
        """Give back what a plan holds; return that."""
        held = plan.runs if plan.copied else plan.fresh
        return self._free(Frames(run.frame, run.pages) for run in held)

    def commit_transfer(self, plan: Transfer) -> None:
        """The pages are on their way: no longer the sender's to use, unless they are shared."""
        source, target = self._accounts[plan.sender], self._accounts[plan.receiver]
        hold = _PARTED.get(plan.operation, Hold.SHARED)
        if plan.fresh:  # which come where the others were
            for run in plan.runs:
                source.window.remove(run.page, run.pages)
        for (_, pages, frame, was), home, there in zip(
            plan.runs, plan.homes, plan.places, strict=True
        ):
            if was is not hold or plan.fresh:
                source.window.replace(Run(home, pages, frame, hold))
            target.window.insert(Run(there, pages, frame, Hold.INCOMING))
            borrower = Borrower(plan.receiver, there, plan.writable)
            if was is Hold.SHARED:
                self._bind(frame, pages, borrower)
            else:
                self._bonds.insert(Bond(frame, pages, hold, plan.sender, home, (borrower,)))
        for run in plan.fresh:
            source.window.insert(run)
            source.charged += run.pages
        if plan.operation in _GIVEN:
            pages = sum([run.pages for run in plan.runs])
            target.charged += pages
            if plan.copied:  # what is in flight is the sender's until then, besides what it keeps
                source.charged += pages

    def hand_over(self, plan: Transfer) -> None:
        """Commit a SEND, LEND or SHARE whose pages have reached their receiver already: as
        `commit_transfer` and `arrive` together.
        """
        source, target = self._accounts[plan.sender], self._accounts[plan.receiver]
        given = plan.operation is Operation.SEND
        arrived = Hold.OWNED if given else Hold.BORROWED if plan.writable else Hold.VIEWED
        for run, home, there in zip(plan.runs, plan.homes, plan.places, strict=True):
            _, pages, frame, _ = run
            target.window.insert(Run(there, pages, frame, arrived))
            if given:
                source.window.discard(home, pages)
                source.charged -= pages
                target.charged += pages
            else:
                self._lend(plan, run, home, there)

    def _lend(self, plan: Transfer, run: Run, home: int, there: int) -> None:
        """Let a run's receiver be one of its borrowers."""
        _, pages, frame, was = run
        hold = _PARTED.get(plan.operation, Hold.SHARED)
        borrower = Borrower(plan.receiver, there, plan.writable)
        if was is Hold.SHARED:
            self._bind(frame, pages, borrower)
            return
        self._accounts[plan.sender].window.replace(Run(home, pages, frame, hold))
        self._bonds.insert(Bond(frame, pages, hold, plan.sender, home, (borrower,)))

    def _bind(self, frame: int, pages: int, borrower: Borrower) -> None:
        """Bind frames that are shared already to one more borrower."""
        for bond in self._bonds.remove(frame, pages):
            own = borrower._replace(page=borrower.page + bond.frame - frame)
            self._bonds.insert(bond._replace(borrowers=(*bond.borrowers, own)))

    def arriving(self, peer: int, targets: Sequence[Extent]) -> list[Run]:
        """Return what is still to come to these places, as what it will be there, joined.

        What its owner has reclaimed meanwhile is not among it.
        """
        found: list[Run] = []
        window = self._accounts[peer].window
        for page, pages in targets:
            for place in window.within(page, pages):
                if place.hold is not Hold.INCOMING:
                    continue
                for bond in self._bonds.within(place.frame, place.pages):
                    run = _arrived(bond, peer)
                    if found and found[-1].continues(run):
                        run = found.pop().lengthened(run.pages)
                    found.append(run)
        return found

    def arrive(self, peer: int, runs: Sequence[Run]) -> None:
        """Commit a delivery of what is `arriving`: it is the peer's, or borrowed by it."""
        window = self._accounts[peer].window
        for run in runs:
            window.replace(run)
            if run.hold is Hold.OWNED:
                for bond in self._bonds.remove(run.frame, run.pages):
                    sender = self._accounts.get(bond.owner)
                    if sender is not None:  # it forgets what has been delivered
                        sender.window.remove(bond.page, bond.pages)
                        sender.charged -= bond.pages

    # ---- The way back ----

    def returning(self, peer: int, owner: int, extents: Sequence[Extent]) -> Return:
        """Plan a RETURN of extents that the peer borrows of `owner`, who may have stopped.

        Refused as the rules say, and: E_NOT_LENT if they are another's, E_QUOTA, E_NO_MEMORY.
        """
        runs = self.allowed(Operation.RETURN, peer, extents)
        bonds = list(self.bonds(runs))
        if any(bond.owner != owner for bond in bonds):
            raise Refusal(Status.E_NOT_LENT)
        self._check_host(2 * self._check_pieces(peer, extents))
        alive = owner in self._accounts
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
        growth = self._check_pieces(owner, extents)
        hidden: list[tuple[int, Run]] = []
        shown: list[Run] = []
        for bond in self.bonds(runs):
            if bond.hold is Hold.LENT:
                shown.append(bond.place)
            for peer, page, _ in bond.borrowers:
                place = Extent(page, bond.pages)
                growth += self._accounts[peer].window.cuts(*place)
                hidden += [(peer, r) for r in self.runs(peer, place) if r.hold in READABLE]
        self._check_host(growth)
        return Reclaim(owner, tuple(runs), tuple(hidden), tuple(shown))

    def commit_reclaim(self, plan: Reclaim) -> set[int]:
        """The owner has its pages again, alone; return who had borrowed them, or was to."""
        robbed: set[int] = set()
        window = self._accounts[plan.owner].window
        for run in plan.runs:
            window.replace(run._replace(hold=Hold.OWNED))
            for bond in self._bonds.remove(run.frame, run.pages):
                for peer, page, _ in bond.borrowers:
                    self._revoke(peer, Extent(page, bond.pages))
                    robbed.add(peer)
        return robbed

    def _revoke(self, peer: int, place: Extent) -> None:
        """Keep a borrower's place for nothing, until it lets go: nothing else appears there."""
        window = self._accounts[peer].window
        window.replace(Run(place.page, place.pages, place.page, Hold.REVOKED))

    def let_go(self, peer: int, runs: Iterable[Run], revoked: bool = False) -> Homecoming:
        """Commit: the peer no longer has, or waits for, what is not its own. Never refused.

        `revoked`: its places are kept, as after a RECLAIM.
        """
        home = Homecoming()
        account = self._accounts[peer]
        for run in runs:
            account.window.remove(*run.extent)
            if revoked:
                self._revoke(peer, run.extent)
            for bond in self._bonds.remove(run.frame, run.pages):
                if bond.hold is Hold.SENT:
                    account.charged -= bond.pages
                others = tuple(b for b in bond.borrowers if b.peer != peer)
                self._settle(bond._replace(borrowers=others), home)
        self._free(home.freed)
        return home

    def _settle(self, bond: Bond, home: Homecoming) -> None:
        """Keep what is left of a bond after one of its borrowers has gone."""
        owner = self._accounts.get(bond.owner)
        if bond.borrowers:
            self._bonds.insert(bond)
        elif owner is None:
            home.freed.append(Frames(bond.frame, bond.pages))
        else:
            owner.window.remove(*bond.place.extent)
            if bond.hold is Hold.SHARED:
                owner.window.insert(bond.place._replace(hold=Hold.OWNED))
                return
            bond = bond._replace(hold=Hold.LENT)
            owner.window.insert(bond.place)
            self._bonds.insert(bond)
            home.back.append((bond.owner, bond.place))

    def restore(self, owner: int, runs: Iterable[Run]) -> None:
        """Commit: what is LENT to nobody is its owner's, who sees it again."""
        window = self._accounts[owner].window
        for run in runs:
            window.replace(run._replace(hold=Hold.OWNED))
            self._bonds.remove(run.frame, run.pages)

    def withhold(self, peer: int, run: Run) -> list[Frames]:
        """Follow a host that has hidden a run, OWNED, BORROWED or VIEWED, and refuses to show it
        again: nobody sees it.

        What was the peer's own is LENT to nobody (RECLAIM gets it back), what was borrowed has
        been let go of; return what that freed.
        """
        if run.hold is not Hold.OWNED:
            return self.let_go(peer, [run], revoked=True).freed
        window = self._accounts[peer].window
        window.replace(run._replace(hold=Hold.LENT))
        self._bonds.insert(Bond(run.frame, run.pages, Hold.LENT, peer, run.page, ()))
        return []


def _copied(plan: Transfer, extents: Sequence[Extent]) -> Transfer:
    """Return an EXCHANGE's plan with the fresh frames going, and not what is in the extents."""
    homes = moved(plan.fresh, extents, plan.sources)
    runs = [run._replace(page=home) for run, home in zip(plan.fresh, homes, strict=True)]
    return plan._replace(
        runs=tuple(runs),
        homes=tuple(homes),
        places=tuple(moved(plan.fresh, extents, plan.targets)),
        fresh=(),
        copied=plan.runs,
    )


def _arrived(bond: Bond, peer: int) -> Run:
    """Return what one of its borrowers has of a bond when it has been delivered."""
    borrower = bond.borrowers[0] if len(bond.borrowers) == 1 else bond.borrower(peer)
    hold = Hold.BORROWED if borrower.writable else Hold.VIEWED
    if bond.hold is Hold.SENT:
        hold = Hold.OWNED
    return Run(borrower.page, bond.pages, bond.frame, hold)
