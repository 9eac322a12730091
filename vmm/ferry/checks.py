"""What the ledger checks before anything changes, whatever is asked for: rules and limits. Pure.

Not thread-safe: the exchange calls it under its lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vmm.ferry.books import Books
from vmm.ferry.rules import RULES, Refusal
from vmm.guest.abi import Hold, Operation, Status
from vmm.memory.frames import Frames
from vmm.memory.runs import Extent, Run


class Checks(Books):
    """The books, and what may be done with them."""

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
        if not growth or self._tally.intervals + growth <= self._pieces:
            return
        if self.ask_for_pieces is not None:
            self.ask_for_pieces()
        if self._tally.intervals + growth > self._pieces:
            raise Refusal(Status.E_NO_MEMORY)

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

    def _free(self, frames: Iterable[Frames]) -> list[Frames]:
        freed = list(frames)
        for part in freed:
            self.pool.release(part)
        return freed
