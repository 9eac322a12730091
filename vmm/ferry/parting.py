"""Pages on their way out of a window: SEND, LEND, SHARE and EXCHANGE, from plan to commit.

Not thread-safe: the monitor calls it under its lock.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

from vmm.ferry import carry
from vmm.ferry.carry import Carrier
from vmm.ferry.ledger import Ledger
from vmm.ferry.message import Message, Request, Span, overlap
from vmm.ferry.peer import Peer
from vmm.ferry.places import joined, without
from vmm.ferry.plans import Transfer
from vmm.ferry.roster import Roster
from vmm.ferry.rules import Refusal
from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, Operation, Status
from vmm.memory import mapping
from vmm.memory.movers import Stuck
from vmm.memory.pool import PagePool
from vmm.memory.runs import Extent, Run

PARTING = frozenset(
    {Operation.SEND, Operation.EXCHANGE, Operation.RETURN, Operation.RELEASE}
)  # by which other pages can come to the same places


class Parted(NamedTuple):
    """Messages in their receiver's queue whose pages are still to be hidden from their sender."""

    receiver: Peer
    messages: Sequence[Message]
    runs: tuple[Run, ...]


class Parting:
    """Takes pages from their owner, and brings them to who waits for them.

    copy_below   an EXCHANGE of fewer bytes is copied: to move it takes three calls and the faults
                 after them
    """

    def __init__(
        self,
        ledger: Ledger,
        roster: Roster,
        carrier: Carrier,
        pool: PagePool,
        copy_below: int = 0,
    ) -> None:
        self._ledger = ledger
        self._roster = roster
        self._carrier = carrier
        self._pool = pool
        self.copy_below = copy_below
        self.numbers = itertools.count(1)

    @staticmethod
    def note_parted(peer: Peer, operation: Operation, there: Sequence[Span]) -> None:
        """Remember which messages a peer has not taken, and has parted with pages of."""
        if peer.untaken and operation in PARTING:
            peer.parted |= {m.number for m in peer.untaken if overlap(m.spans, there)}

    def _part(
        self,
        sender: Peer,
        receiver: Peer,
        request: Request,
        extents: Sequence[Extent],
        *,
        hide: bool,
        messages: int = 1,
    ) -> tuple[Transfer, bool]:
        """Take the pages of so many messages from their owner into flight; return whether they
        have been brought to their receiver as well.

        hide    whether they are to be hidden now, and not by `hide_together`, which could not bring
                them anywhere
        """
        plan = self._ledger.transfer(
            request.operation,
            sender.number,
            receiver.number,
            extents,
            writable=request.writable,
            copied=request.operation is Operation.EXCHANGE and self._to_be_copied(extents),
        )
        if plan.copied:
            self._copy(sender, plan)
            return plan, False
        if not hide:
            self._ledger.commit_transfer(plan)
            return plan, False
        if (
            receiver.idle
            and len(plan.runs) == 1
            and not plan.fresh
            and len(receiver.queue) + messages <= abi.RX_ENTRIES  # as its ring takes at its entry
        ):
            return plan, self._pass_on(sender, receiver, plan)
        kept: list[Run] = []

        def keep(fresh: Run) -> None:
            kept.append(fresh)
            self._replace(plan, fresh)

        try:
            if plan.fresh or len(plan.runs) > 1 or request.operation is Operation.SHARE:
                with self._carrier.all_or_nothing() as moves:
                    if request.operation is Operation.SHARE:
                        moves.make_shareable(sender.number, plan.runs)
                    else:
                        moves.hide(sender.number, plan.runs)
                    moves.show(sender.number, plan.fresh, keep)
            else:
                carry.hide(sender, plan.runs[0])
        except Refusal:
            fresh = tuple(part for run in plan.fresh for part in without(run, kept))
            self._carrier.zero(self._ledger.abandon(plan._replace(fresh=fresh)))
            raise
        self._ledger.commit_transfer(plan)
        return plan, False

    def _pass_on(self, sender: Peer, receiver: Peer, plan: Transfer) -> bool:
        """Bring the pages of a SEND, LEND or SHARE to an idle receiver at once, while they are at
        hand; if the host refuses that, they are in flight, but for what can be seen there. Return
        whether they have been brought.
        """
        ((page, pages, frame, _),) = plan.runs
        writable = plan.writable or plan.operation is Operation.SEND
        window, place = receiver.window, plan.places[0]
        there: Sequence[Extent] = ()
        sender.hold_still()
        try:
            if plan.operation is Operation.SHARE:
                sender.window.make_shareable(page, pages)
                brought = window.try_to_show(place, frame, pages, writable=writable)
            else:
                brought = sender.window.pass_on(
                    page, frame, pages, window, place, writable=writable
                )
        except Stuck as stuck:
            brought, there = False, stuck.shown
        except OSError:
            raise Refusal(Status.E_NO_MEMORY) from None
        if brought:
            self._ledger.hand_over(plan)
            return True
        self._ledger.commit_transfer(plan)
        if there:
            self._ledger.arrive(receiver.number, self._ledger.arriving(receiver.number, there))
        return False

    def _to_be_copied(self, extents: Sequence[Extent]) -> bool:
        size = sum([extent.pages for extent in extents]) * PAGE_SIZE
        return size < self.copy_below and self._pool.fillable

    def _copy(self, sender: Peer, plan: Transfer) -> None:
        """Let an EXCHANGE's fresh frames have the bytes of the sender's pages, and those be zeros.

        Nobody writes to these meanwhile: they are nobody else's to see, and the sender is in its
        doorbell, or, if it is the host, under the monitor's lock. Raises Refusal(E_NO_MEMORY).
        """
        window, cleared = sender.window, list[tuple[int, int]]()
        try:
            for (page, pages, _, _), (_, _, frame, _) in plan.copies():
                for address, count in window.pieces(page, pages):
                    self._pool.fill_for_now(frame, address, count * PAGE_SIZE)
                    cleared.append((address, count * PAGE_SIZE))
                    frame += count
        except OSError:
            self._carrier.zero(self._ledger.abandon(plan))
            raise Refusal(Status.E_NO_MEMORY) from None
        self._ledger.commit_transfer(plan)
        for address, size in cleared:
            self._pool.journal.later(partial(mapping.clear, address, size))

    def hide_together(
        self, sender: Peer, parted: Sequence[Parted]
    ) -> Iterator[tuple[Parted, list[Run]]]:
        """Hide what messages have left to be hidden, with one call for what is adjacent.

        Yields those of which the host refuses that, and what their sender still sees of each.
        """
        sender.hold_still()
        hidden: list[Extent] = []
        try:
            for extent in joined([run.extent for part in parted for run in part.runs]):
                sender.window.hide(*extent)
                hidden.append(extent)
        except OSError:
            for part in parted:
                seen = [run for run in part.runs if not any(map(run.extent.overlaps, hidden))]
                try:
                    while seen:
                        sender.window.hide(*seen[0].extent)
                        del seen[0]
                except OSError:
                    yield part, seen

    def _replace(self, plan: Transfer, fresh: Run) -> None:
        """Let a sender keep some of an EXCHANGE's fresh pages, although it is refused.

        What they have replaced is LENT to nobody, at the place that was for it to come back to.
        """
        runs: list[Run] = []
        homes: list[int] = []
        places: list[int] = []
        for run, home, place in zip(plan.runs, plan.homes, plan.places, strict=True):
            part = run.clip(fresh.page, fresh.end)
            if part.pages > 0:
                runs.append(part)
                homes.append(home + part.page - run.page)
                places.append(place + part.page - run.page)
        part_of = plan._replace(
            runs=tuple(runs), homes=tuple(homes), places=tuple(places), fresh=(fresh,)
        )
        self._ledger.commit_transfer(part_of)
        coming = [run._replace(page=place) for run, place in zip(runs, places, strict=True)]
        self._ledger.let_go(plan.receiver, coming)
