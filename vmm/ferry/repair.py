"""After a turn that was cut off: what is derived, and what the kernel maps, follows the tables.

The tables say again what they said before the turn (vmm.memory.journal).
"""

from __future__ import annotations

from vmm.ferry.carry import parts
from vmm.ferry.ledger import Ledger
from vmm.ferry.peer import Peer
from vmm.ferry.places import without
from vmm.ferry.roster import Roster
from vmm.ferry.rules import READABLE, WRITABLE
from vmm.memory.movers import Window
from vmm.memory.pool import PagePool
from vmm.memory.runs import Extent, Run


class Repair:
    """Puts right what a roll-back leaves. `repair` may be cut off, and be called again."""

    def __init__(self, ledger: Ledger, roster: Roster, pool: PagePool) -> None:
        self._ledger = ledger
        self._roster = roster
        self._pool = pool

    def repair(self) -> None:
        """Follow the tables. Raises OSError where the host refuses to hide something: then nothing
        may run, and it is to be tried again.
        """
        journal = self._pool.journal
        self._ledger.recount()
        self._pool.undo_moves()
        for settle in journal.settled:
            settle()
        self._pool.recount()
        touched = self._touched()
        # All that is to be hidden, before anything is shown that may be the same memory.
        for peer, extents in touched:
            self._hide(peer, extents)
        for peer, extents in touched:
            for extent in [Extent(0, peer.window.region.pages)] if peer.window.blinks else extents:
                for run in self._seen(peer, extent):
                    self._show(peer, run)

    def _touched(self) -> list[tuple[Peer, list[Extent]]]:
        """Return whose windows have been touched, and where, each page once."""
        found: dict[int, list[Extent]] = {}
        for window, page, count in self._pool.journal.touched:
            found.setdefault(id(window), []).append(Extent(page, count))
        return [
            (peer, _disjoint(found[id(peer.window)]))
            for peer in self._roster
            if id(peer.window) in found
        ]

    def _seen(self, peer: Peer, extent: Extent) -> list[Run]:
        return [run for run in self._ledger.runs(peer.number, extent) if run.hold in READABLE]

    def _hide(self, peer: Peer, extents: list[Extent]) -> None:
        window: Window = peer.window
        if window.blinks:
            peer.hold_still()
            window.forget()
            return
        for extent in extents:
            page = extent.page
            for run in (*self._seen(peer, extent), None):
                end = extent.end if run is None else run.page
                if end > page:
                    window.hide(page, end - page)
                page = end if run is None else run.end

    def _show(self, peer: Peer, run: Run) -> None:
        page, pages, frame, hold = run
        try:
            peer.window.show_again(page, frame, pages, writable=hold in WRITABLE)
        except OSError as error:
            for part in without(run, parts(run, error)):
                self._pool.zero(self._ledger.withhold(peer.number, part))


def _disjoint(extents: list[Extent]) -> list[Extent]:
    """Return the same pages, in order, as extents that have none in common."""
    found: list[Extent] = []
    for page, pages in sorted(extents):
        if found and page <= found[-1].end:
            last = found.pop()
            found.append(Extent(last.page, max(last.end, page + pages) - last.page))
        else:
            found.append(Extent(page, pages))
    return found
