"""The ledger's part in what most messages are: one run from one window into another. Pure.

With nothing made that nobody looks at, and few calls. Not thread-safe: the exchange calls it under
its lock.
"""

from __future__ import annotations

from bisect import bisect_right

from vmm.ferry.books import Bond, Borrower
from vmm.ferry.checks import Checks
from vmm.ferry.places import place_for
from vmm.ferry.plans import Transfer
from vmm.ferry.rules import RULES, Refusal
from vmm.guest.abi import Hold, Operation, Status
from vmm.memory.frames import GIANT, LARGE
from vmm.memory.runs import Extent, Run

_PARTED = {Operation.SEND: Hold.SENT, Operation.EXCHANGE: Hold.SENT, Operation.LEND: Hold.LENT}
_BORROWS = (Hold.BORROWED, Hold.VIEWED)
_new = tuple.__new__


class OneRun(Checks):
    """SEND, LEND and SHARE of a run, and RETURN of a loan."""

    def transfer_one(
        self,
        operation: Operation,
        sender: int,
        receiver: int,
        page: int,
        pages: int,
        writable: bool,
    ) -> Transfer | None:
        """Plan a SEND, LEND or SHARE of an extent that is one run, or a part of one, and not shared
        yet; None if it is not.

        Refused as the rules say, and: E_QUOTA, E_WINDOW_FULL, E_NO_MEMORY.
        """
        accounts, end = self.accounts, page + pages
        source, target = accounts[sender], accounts[receiver]
        window = source.window
        index = bisect_right(window.starts, page) - 1
        if index < 0 or window.ends[index] < end:
            return None
        first, count, frame, hold = window.items[index]
        if hold is Hold.SHARED:
            return None
        status = RULES[operation, hold]
        if status is not Status.OK:
            raise Refusal(status)
        growth = (first != page) + (first + count != end)
        if growth and len(window.items) + growth > source.pieces:
            raise Refusal(Status.E_QUOTA)
        if pages < LARGE:  # as `place_for`, in fewer calls
            there = target.window.gap(pages)
        else:
            there = target.window.gap_from_top(pages, LARGE) if pages < GIANT else None
            if there is None:
                there = place_for(target.window, pages)
        if there is None:
            raise Refusal(Status.E_WINDOW_FULL)
        if operation is Operation.SEND and target.charged + pages > target.quota:
            raise Refusal(Status.E_QUOTA)
        if len(target.window.items) >= target.pieces:
            raise Refusal(Status.E_WINDOW_FULL)
        if operation is not Operation.SEND:
            self._check_loans_of(sender, receiver, pages)
        if self._tally.intervals + growth + 1 + self._reserved > self._pieces:
            self._check_host({sender: growth, receiver: 1})
        runs = (_new(Run, (page, pages, frame + page - first, hold)),)
        sources, targets = (_new(Extent, (page, pages)),), (_new(Extent, (there, pages)),)
        plan = (operation, sender, receiver, writable, runs, (page,), (there,), sources, targets)
        return _new(Transfer, (*plan, (), ()))

    def hand_over(self, plan: Transfer) -> None:
        """Commit a SEND, LEND or SHARE whose pages have reached their receiver already: as
        `commit_transfer` and `arrive` together.
        """
        operation, sender, receiver, writable, runs, homes, places, *_ = plan
        source, target = self.accounts[sender], self.accounts[receiver]
        given = operation is Operation.SEND
        arrived = Hold.OWNED if given else Hold.BORROWED if writable else Hold.VIEWED
        for run, home, there in zip(runs, homes, places, strict=True):
            _, pages, frame, _ = run
            target.window.insert(_new(Run, (there, pages, frame, arrived)))
            if given:
                source.window.discard(home, pages)
                source.charged -= pages
                target.charged += pages
            else:
                self._promise(plan, run, home, there)

    def _promise(self, plan: Transfer, run: Run, home: int, there: int) -> None:
        """Keep a run's place for its owner, and bind it to its receiver."""
        _, pages, frame, was = run
        hold = _PARTED.get(plan.operation, Hold.SHARED)
        borrower = _new(Borrower, (plan.receiver, there, plan.writable))
        if hold is not Hold.SENT:
            self.accounts[plan.receiver].lend(plan.sender, pages)
        if was is Hold.SHARED:
            self._bind(frame, pages, borrower)
            return
        self.accounts[plan.sender].window.replace(_new(Run, (home, pages, frame, hold)))
        bond = (frame, pages, hold, plan.sender, home, (borrower,))
        self.bonds_by_frame.insert(_new(Bond, bond))

    def _bind(self, frame: int, pages: int, borrower: Borrower) -> None:
        """Bind frames that are shared already to one more borrower."""
        for bond in self.bonds_by_frame.remove(frame, pages):
            own = borrower._replace(page=borrower.page + bond.frame - frame)
            self.bonds_by_frame.insert(bond._replace(borrowers=(*bond.borrowers, own)))

    # ---- And back ----

    def loan(self, peer: int, owner: int, page: int, pages: int) -> Bond | None:
        """Return the bond of pages that a peer borrows, if they are all of it, it is their only
        borrower, and they are this owner's, who is there; else None.
        """
        window, bonds = self.accounts[peer].window, self.bonds_by_frame
        index = bisect_right(window.starts, page) - 1
        if index < 0 or owner not in self.accounts:
            return None
        first, count, frame, hold = window.items[index]
        if first != page or count != pages or hold not in _BORROWS:
            return None
        index = bisect_right(bonds.starts, frame) - 1
        bond = bonds.items[index]
        whole = bond[0] == frame and bond[1] == pages
        return bond if whole and bond[3] == owner and len(bond[5]) == 1 else None

    def give_back(self, peer: int, bond: Bond) -> None:
        """Commit a RETURN of a `loan` that its owner sees again: as `commit_return`."""
        frame, pages, _, owner, page, (borrower,) = bond
        account = self.accounts[peer]
        account.window.discard(borrower[1], pages)
        account.lend(owner, -pages)
        self.bonds_by_frame.discard(frame, pages)
        self.accounts[owner].window.replace(_new(Run, (page, pages, frame, Hold.OWNED)))
