"""Accounts: what a peer has in its window, and how much it may have. Pure."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from vmm.memory.run_map import RunMap
from vmm.memory.runs import IntervalMap

UNLIMITED = 1 << 62


class Revoked(NamedTuple):
    """Places whose pages `lender` has reclaimed, and that the borrower has not let go of."""

    page: int
    pages: int
    lender: int

    def clip(self, start: int, end: int) -> Revoked:
        """Return the part that lies in start..end."""
        first, last = max(start, self.page), min(end, self.page + self.pages)
        return Revoked(first, last - first, self.lender)

    def continues(self, other: Revoked) -> bool:
        """Whether `other` directly follows, of the same lender."""
        return self.page + self.pages == other.page and self.lender == other.lender

    def lengthened(self, pages: int) -> Revoked:
        """Return it with so many places more at its end."""
        return self._replace(pages=self.pages + pages)


@dataclasses.dataclass(slots=True)
class Account:
    """One peer's window, and what it may have.

    quota    pages that may be its own at a time, those coming in to stay included
    charged  how many are
    pieces   runs that its window may be cut into
    loans    pages of its window that are taken up by what it borrows, is to borrow, or had
             borrowed until that was reclaimed: by their lenders
    revoked  which of them had been lent by whom
    loaned   how many they are together
    loan_limit  of `loaned`; of one lender's it is four sevenths of that
    """

    window: RunMap
    quota: int
    pieces: int
    revoked: IntervalMap[Revoked]
    loan_limit: int = UNLIMITED
    charged: int = 0
    loaned: int = 0
    loans: dict[int, int] = dataclasses.field(default_factory=dict)

    def lend(self, lender: int, pages: int) -> None:
        """So many pages more of the window are a lender's, or, below 0, so many less."""
        self.loaned += pages
        left = self.loans.get(lender, 0) + pages
        if left:
            self.loans[lender] = left
        else:
            self.loans.pop(lender, None)
