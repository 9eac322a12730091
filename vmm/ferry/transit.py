"""The ledger's part in a message: pages from one window into another, from plan to arrival. Pure.

Not thread-safe: the exchange calls it under its lock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vmm.ferry.books import Bond
from vmm.ferry.one_run import OneRun
from vmm.ferry.places import moved, reserve
from vmm.ferry.plans import Transfer
from vmm.ferry.rules import Refusal
from vmm.guest.abi import Hold, Operation, Status
from vmm.memory.frames import Frames
from vmm.memory.runs import Extent, Run

_GIVEN = frozenset({Operation.SEND, Operation.EXCHANGE})  # the receiver is to own the pages


class Transit(OneRun):
    """SEND, LEND, SHARE and EXCHANGE."""

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

        Refused, copied or not, as the rules say, and: E_LENGTH, E_REPEATED, E_QUOTA, E_WINDOW_FULL,
        E_NO_MEMORY. A plan for EXCHANGE holds frames: commit or `abandon` it.
        """
        if len(extents) == 1 and operation is not Operation.EXCHANGE:  # as most are
            one = self.transfer_one(operation, sender, receiver, *extents[0], writable)
            if one is not None:
                return one
        return self._transfer_runs(operation, sender, receiver, extents, writable, copied)

    def _transfer_runs(
        self,
        operation: Operation,
        sender: int,
        receiver: int,
        extents: Sequence[Extent],
        writable: bool,
        copied: bool,
    ) -> Transfer:
        target = self.accounts[receiver]
        runs = self.allowed(operation, sender, extents)
        shared = self.bonds([run for run in runs if run.hold is Hold.SHARED])
        self._check_runs(len(runs), len(shared))
        if any(b.peer == receiver for bond in shared for b in bond.borrowers):
            raise Refusal(Status.E_REPEATED)
        growth = self._check_pieces(sender, extents)
        counts = [extent.pages for extent in extents]
        targets = reserve(target.window, counts)
        if operation in _GIVEN and target.charged + sum(counts) > target.quota:
            raise Refusal(Status.E_QUOTA)
        if len(target.window) + len(runs) > target.pieces:
            raise Refusal(Status.E_WINDOW_FULL)
        if operation not in _GIVEN:
            self._check_loans_of(sender, receiver, sum(counts))
        arriving = {receiver: len(runs)}
        self._check_host({sender: growth, **arriving})
        homes, fresh, at = extents, list[Run](), [run.page for run in runs]
        if operation is Operation.EXCHANGE:
            homes, fresh = self._exchanged(sender, extents, growth, arriving)
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
        self, sender: int, extents: Sequence[Extent], growth: int, arriving: Mapping[int, int]
    ) -> tuple[list[Extent], list[Run]]:
        """Choose where exchanged pages go should they come back, as their places are taken again,
        and by what. Refused: E_QUOTA, E_WINDOW_FULL, E_NO_MEMORY.
        """
        account, counts = self.accounts[sender], [extent.pages for extent in extents]
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
        source, target = self.accounts[plan.sender], self.accounts[plan.receiver]
        if plan.fresh:  # which come where the others were
            for run in plan.runs:
                source.window.remove(run.page, run.pages)
        for run, home, there in zip(plan.runs, plan.homes, plan.places, strict=True):
            target.window.insert(Run(there, run.pages, run.frame, Hold.INCOMING))
            self._promise(plan, run, home, there)
        for run in plan.fresh:
            source.window.insert(run)
            source.charged += run.pages
        if plan.operation in _GIVEN:
            pages = sum([run.pages for run in plan.runs])
            target.charged += pages
            if plan.copied:  # what is in flight is the sender's until then, besides what it keeps
                source.charged += pages

    def arriving(self, peer: int, targets: Sequence[Extent]) -> list[Run]:
        """Return what is still to come to these places, as what it will be there, joined.

        What its owner has reclaimed meanwhile is not among it.
        """
        found: list[Run] = []
        window = self.accounts[peer].window
        for page, pages in targets:
            for place in window.within(page, pages):
                if place.hold is not Hold.INCOMING:
                    continue
                for bond in self.bonds_by_frame.within(place.frame, place.pages):
                    run = _arrived(bond, peer)
                    if found and found[-1].continues(run):
                        run = found.pop().lengthened(run.pages)
                    found.append(run)
        return found

    def arrive(self, peer: int, runs: Sequence[Run]) -> None:
        """Commit a delivery of what is `arriving`: it is the peer's, or borrowed by it."""
        window = self.accounts[peer].window
        for run in runs:
            window.replace(run)
            if run.hold is Hold.OWNED:
                for bond in self.bonds_by_frame.remove(run.frame, run.pages):
                    sender = self.accounts.get(bond.owner)
                    if sender is not None:  # it forgets what has been delivered
                        sender.window.remove(bond.page, bond.pages)
                        sender.charged -= bond.pages


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
