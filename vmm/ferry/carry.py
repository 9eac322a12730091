"""Pages taken out of windows and brought into others: all those of one operation, or none.

The ledger has planned the operation, and commits it afterwards; in between the mappings change
here, and are as before where the host refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import TracebackType

from vmm.ferry.ledger import Ledger
from vmm.ferry.message import Span
from vmm.ferry.places import joined
from vmm.ferry.roster import Roster
from vmm.ferry.rules import WRITABLE, Refusal
from vmm.ferry.runs import Extent, Run
from vmm.guest.abi import PAGE_SIZE, Status
from vmm.memory.movers import Window
from vmm.memory.pool import PagePool


class Carrier:
    """Changes mappings as one. `with carrier.all_or_nothing() as moves: moves.hide(...)`."""

    def __init__(self, ledger: Ledger, roster: Roster, pool: PagePool) -> None:
        self._ledger = ledger
        self._roster = roster
        self._pool = pool

    def all_or_nothing(self) -> Moves:
        """Begin an operation's changes."""
        return Moves(lambda peer: self._roster[peer].window, self._withhold)

    def _withhold(self, peer: int, run: Run) -> None:
        self._pool.zero(self._ledger.withhold(peer, run))


class Moves:
    """The changes of one operation. An OSError within the block undoes them, and becomes
    Refusal(E_NO_MEMORY).

    withhold   called with a run that was hidden and cannot be shown again: what the host does, the
               ledger has to follow
    """

    def __init__(
        self, window: Callable[[int], Window], withhold: Callable[[int, Run], None]
    ) -> None:
        self._window = window
        self._withhold = withhold
        self._undo: list[tuple[Callable[[int, Run], None], int, Run]] = []

    def hide(self, peer: int, runs: Sequence[Run]) -> None:
        """Take runs out of a peer's window, with one call for those that are adjacent."""
        left = list(runs)
        for extent in joined(run.extent for run in runs):
            self._window(peer).hide(*extent)
            while left and left[0].page < extent.end and left[0].page >= extent.page:
                self._undo.append((self._show_again, peer, left.pop(0)))

    def show(self, peer: int, runs: Iterable[Run]) -> None:
        """Bring runs into a peer's window, writable or not as their hold says."""
        for run in runs:
            show(self._window(peer), run)
            self._undo.append((self._hide_again, peer, run))

    def _show_again(self, peer: int, run: Run) -> None:
        try:
            show(self._window(peer), run)
        except OSError:
            self._withhold(peer, run)

    def _hide_again(self, peer: int, run: Run) -> None:
        # Takes no mapping that showing it did not: there is nothing to run out of.
        self._window(peer).hide(*run.extent)

    def __enter__(self) -> Moves:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(value, OSError):
            for undo, peer, run in reversed(self._undo):
                undo(peer, run)
            raise Refusal(Status.E_NO_MEMORY) from None


def show(window: Window, run: Run) -> None:
    """Bring a run into a window. Raises OSError."""
    window.show(run.page, run.frame, run.pages, writable=run.hold in WRITABLE)


def spans(window: Window, extents: Iterable[Extent]) -> tuple[Span, ...]:
    """Return extents of a window by address."""
    base = window.region.base
    return tuple(Span(base + extent.page * PAGE_SIZE, extent.pages) for extent in extents)
