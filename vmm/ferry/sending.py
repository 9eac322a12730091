"""Messages put into queues: SEND, LEND, SHARE and EXCHANGE, one by one or several together.

Not thread-safe: the monitor calls it under its lock.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

from vmm.ferry import carry
from vmm.ferry.carry import Carrier, spans
from vmm.ferry.ledger import Ledger
from vmm.ferry.message import Answer, Message, Request, Span
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

_PARTING = frozenset(
    {Operation.SEND, Operation.EXCHANGE, Operation.RETURN, Operation.RELEASE}
)  # by which other pages can come to the same places


# What may be taken out of a window together: nothing else is done with its pages meanwhile.
TOGETHER = frozenset({Operation.SEND, Operation.LEND})


class Parted(NamedTuple):
    """Messages in their receiver's queue whose pages are still to be hidden from their sender."""

    receiver: Peer
    messages: Sequence[Message]
    runs: tuple[Run, ...]


class Sending:
    """The operations that are messages.

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
        self._numbers = itertools.count(1)

    @staticmethod
    def note_parted(peer: Peer, operation: Operation, there: Sequence[Span]) -> None:
        """Remember which messages a peer has not taken, and has parted with pages of."""
        if peer.untaken and operation in _PARTING:
            peer.parted |= {m.number for m in peer.untaken if overlap(m.spans, there)}

    def transfer(
        self, sender: Peer, request: Request, together: list[Parted] | None = None
    ) -> Answer:
        """SEND, LEND, SHARE, EXCHANGE: put a message into the receiver's queue."""
        number, tag, length, spans_, payload, operation, writable = request
        receiver = sender.receiver(number)
        if receiver is None:  # the host may send to all that there are
            raise Refusal(Status.E_PEER if sender.control is not None else Status.E_DEAD)
        if not receiver.alive:
            raise Refusal(Status.E_DEAD)
        extents: Sequence[Extent] = ()
        if spans_ or length or operation is not Operation.SEND or len(payload) > abi.PAYLOAD_MAX:
            extents = request.extents(sender.window.region)
        if not receiver.queue.room and not receiver.queue.takes(sender.number):
            raise Refusal(Status.E_QUEUE_FULL)
        plan: Transfer | None = None
        brought = False
        arrived: tuple[tuple[Span, ...], tuple[Extent, ...], tuple[Extent, ...]] = (), (), ()
        if extents:
            plan, brought = self._part(sender, receiver, request, extents, hide=together is None)
            arrived = spans(receiver.window, plan.targets), plan.targets, plan.sources
        message = Message(
            next(self._numbers),
            Operation.SEND if operation is Operation.EXCHANGE else operation,
            Status.OK,
            sender.number,  # the monitor's word, as the receiver's is
            receiver.number,
            tag,
            length,
            payload,
            *arrived,
            writable,
            brought,
        )
        sender.sent += 1
        self._roster.put(sender, receiver, message)
        if plan is not None and together is not None:
            together.append(Parted(receiver, (message,), plan.runs))
        return Answer(Status.OK, message.number, brought=brought)

    def post(self, sender: Peer, to: int, tag: int, payload: bytes) -> int | None:
        """SEND a payload and nothing else, of a length that its caller has checked; return its
        number. None, with nothing done, if `transfer` is to look at it: it refuses, as a rule.
        """
        receiver = sender.receiver(to)
        if receiver is None or not receiver.alive or not receiver.queue.room:
            return None
        number = next(self._numbers)
        sender.sent += 1
        message = Message.letter(number, sender.number, receiver.number, tag, payload)
        self._roster.put(sender, receiver, message)
        return number

    def transfer_run(
        self, sender: Peer, requests: Sequence[Request], together: list[Parted] | None = None
    ) -> list[Answer] | None:
        """SEND or LEND several `adjacent` requests' pages as the one run that they are: the ledger
        is asked once, whatever their number. `together` is as for `serve`.

        Returns None, with nothing done, if they cannot go together: one by one, each will get the
        status that it should.
        """
        first = requests[0]
        receiver = sender.receiver(first.receiver)
        if receiver is None or not receiver.alive or receiver.queue.room < len(requests):
            return None
        counts = [request.spans[0].pages for request in requests]
        if not all(counts) or any(
            request.length > count * PAGE_SIZE
            for request, count in zip(requests, counts, strict=True)
        ):
            return None
        whole = first._replace(spans=(Span(first.spans[0].gpa, sum(counts)),), length=0)
        try:
            extents = whole.extents(sender.window.region)
            plan, brought = self._part(
                sender, receiver, whole, extents, hide=together is None, messages=len(requests)
            )
        except Refusal:
            return None
        target, home = plan.targets[0].page, plan.sources[0].page
        base, numbers = receiver.window.region.base, self._numbers
        messages = []
        for _, tag, length, ((_, count),), payload, operation, writable in requests:
            messages.append(
                Message(
                    next(numbers),
                    operation,
                    Status.OK,
                    sender.number,
                    receiver.number,
                    tag,
                    length,
                    payload,
                    (Span(base + target * PAGE_SIZE, count),),
                    (Extent(target, count),),
                    (Extent(home, count),),
                    writable,
                    brought,
                )
            )
            target, home = target + count, home + count
        sender.sent += len(messages)
        self._roster.put(sender, receiver, *messages)
        if together is None:
            self.note_parted(sender, whole.operation, whole.spans)
        else:
            together.append(Parted(receiver, messages, plan.runs))
        return [Answer(Status.OK, message.number, brought=brought) for message in messages]

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


def touching(one: Request, other: Request) -> bool:
    """Whether the pages of two requests can be hidden with one call: the last of the one and the
    first of the other are adjacent.
    """
    return (
        bool(one.spans and other.spans)
        and one.spans[-1].end == other.spans[0].gpa
        and one.operation in TOGETHER
        and other.operation in TOGETHER
    )


def adjacent(one: Request, other: Request) -> bool:
    """Whether two requests that touch are alike, to one peer, and of an extent each."""
    return (
        other.operation is one.operation
        and other.receiver == one.receiver
        and other.writable is one.writable
        and len(one.spans) == 1
        and len(other.spans) == 1
    )


def overlap(some: Sequence[Span], others: Sequence[Span]) -> bool:
    """Whether any of some extents has a page in common with any of others."""
    return any(a.gpa < b.end and b.gpa < a.end for a in some for b in others)
