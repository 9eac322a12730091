"""Pages taken out of windows and brought into others: all those of one operation, or none.

The ledger has planned the operation, and commits it afterwards; in between the mappings change
here, and are as before where the host refuses.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from types import TracebackType

from vmm.ferry.control import Notice
from vmm.ferry.ledger import Ledger
from vmm.ferry.message import Span
from vmm.ferry.peer import Peer
from vmm.ferry.places import joined, without
from vmm.ferry.roster import Roster
from vmm.ferry.rules import WRITABLE, Refusal
from vmm.guest.abi import PAGE_SIZE, Hold, Status
from vmm.memory.frames import Frames
from vmm.memory.movers import Stuck, Window
from vmm.memory.pool import PagePool
from vmm.memory.runs import Extent, Run


class Carrier:
    """Changes mappings as one. `with carrier.all_or_nothing() as moves: moves.hide(...)`."""

    def __init__(self, ledger: Ledger, roster: Roster, pool: PagePool) -> None:
        self._ledger = ledger
        self._roster = roster
        self._pool = pool

    def all_or_nothing(self) -> Moves:
        """Begin an operation's changes."""
        return Moves(self)

    def window(self, peer: int) -> Window:
        """Return a peer's window."""
        return self._roster[peer].window

    def hold_still(self, peer: int) -> None:
        """Keep a peer from looking while its window changes, if that shows."""
        self._roster[peer].hold_still()

    def left(self, peer: int, run: Run) -> list[Run]:
        """Return what, by the ledger, is still the peer's of a run that it had."""
        return [
            part
            for part in self._ledger.runs(peer, run.extent)
            if part.hold is run.hold and part.frame - part.page == run.frame - run.page
        ]

    def withhold(self, peer: int, run: Run) -> None:
        """Follow a host that does not show a run again: what was borrowed is so no more."""
        self.zero(self._ledger.withhold(peer, run))
        if run.hold is not Hold.OWNED:
            self._roster.notice(self._roster[peer], Notice.RECLAIM)

    def zero(self, freed: Sequence[Frames]) -> None:
        """Zero frames that have just been freed, as soon as that can no longer be undone, and let
        them be free then. What the host does not let be zeroed stays set aside.
        """
        if freed:
            self._ledger.set_aside(freed)
            self._pool.journal.later(partial(self.clean, tuple(freed)))

    def clean(self, wanted: Sequence[Frames] | None = None) -> None:
        """Zero what has been set aside, and is wanted: at once, whatever becomes of the turn."""
        self._ledger.mend()
        for frames in self._ledger.aside:
            if wanted is None or frames in wanted:
                with contextlib.suppress(OSError):
                    self._pool.zero((frames,))
                    self._ledger.set_free(frames)


class Moves:
    """The changes of one operation. An OSError within the block undoes them, and becomes
    Refusal(E_NO_MEMORY).

    What the host refuses to undo the ledger follows: it withholds what is not shown again, and lets
    a peer keep what is not hidden again. `keep` is called with that: it is the peer's now, and
    nobody else's to see.
    """

    def __init__(self, carrier: Carrier) -> None:
        self._carrier = carrier
        self._undo: list[Callable[[], None]] = []

    def hide(self, peer: int, runs: Sequence[Run]) -> None:
        """Take runs out of a peer's window, with one call for those that are adjacent."""
        left = list(runs)
        self._carrier.hold_still(peer)
        for extent in joined(run.extent for run in runs):
            self._carrier.window(peer).hide(*extent)
            while left and left[0].page < extent.end and left[0].page >= extent.page:
                self._undo.append(partial(self._show_again, peer, left.pop(0)))

    def make_shareable(self, peer: int, runs: Sequence[Run]) -> None:
        """Get runs that stay in their owner's window ready to be in others as well."""
        for extent in joined(run.extent for run in runs):
            self._carrier.window(peer).make_shareable(*extent)

    def show(self, peer: int, runs: Iterable[Run], keep: Callable[[Run], object]) -> None:
        """Bring runs into a peer's window, writable or not as their hold says."""
        for run in runs:
            try:
                show(self._carrier.window(peer), run)
            except Stuck as stuck:
                for part in parts(run, stuck):
                    keep(part)
                raise
            self._undo.append(partial(self._hide_again, peer, run, keep))

    def pass_on(
        self, peer: int, run: Run, other: int, there: Run, keep: Callable[[Run], object]
    ) -> None:
        """Take a run out of a peer's window and bring it into another's: the last of the changes,
        which is not undone.
        """
        self._carrier.hold_still(peer)
        window, writable = self._carrier.window(other), there.hold in WRITABLE
        try:
            passed = self._carrier.window(peer).pass_on(
                run.page, run.frame, run.pages, window, there.page, writable=writable
            )
        except Stuck as stuck:
            for part in parts(there, stuck):
                keep(part)
            passed = False
        if not passed:
            self._undo.append(partial(self._show_again, peer, run))
            raise OSError(errno.ENOMEM, "what has been hidden is not to be shown")

    def _show_again(self, peer: int, run: Run) -> None:
        for part in self._carrier.left(peer, run):
            try:
                show(self._carrier.window(peer), part)
            except OSError as error:
                for unseen in without(part, parts(part, error)):
                    self._carrier.withhold(peer, unseen)

    def _hide_again(self, peer: int, run: Run, keep: Callable[[Run], object]) -> None:
        try:
            self._carrier.window(peer).hide(*run.extent)
        except OSError:
            keep(run)

    def __enter__(self) -> Moves:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(value, OSError):
            for undo in reversed(self._undo):
                undo()
            raise Refusal(Status.E_NO_MEMORY) from None


def hide(peer: Peer, run: Run) -> None:
    """Take a single run out of a peer's window: nothing else has to be undone.

    Raises Refusal(E_NO_MEMORY).
    """
    peer.hold_still()
    try:
        peer.window.hide(run.page, run.pages)
    except OSError:
        raise Refusal(Status.E_NO_MEMORY) from None


def show(window: Window, run: Run) -> None:
    """Bring a run into a window. Raises OSError."""
    window.show(run.page, run.frame, run.pages, writable=run.hold in WRITABLE)


def parts(run: Run, error: OSError) -> list[Run]:
    """Return what is to be seen of a run that the host has refused to show."""
    if not isinstance(error, Stuck):
        return []
    return [run.clip(extent.page, extent.end) for extent in error.shown]


def spans(window: Window, extents: Iterable[Extent]) -> tuple[Span, ...]:
    """Return extents of a window by address."""
    base = window.region.base
    return tuple([Span(base + page * PAGE_SIZE, pages) for page, pages in extents])
