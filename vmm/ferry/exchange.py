"""The exchange: the monitor's supervision of every message.

The way of a doorbell's descriptors, a batch of which one is the usual number:

    doorbell   copied out of shared memory, once; the copy is checked               rings, batch
               run by run: checked against rules and limits, planned,               sending, one_run
               taken out of the sender's window, committed: they are in flight      parting, movers
               put into the receiver's queue; each descriptor is answered           roster, rings
    deliver    dequeued, their pages brought into the receiver's window             delivery
               written into its receive ring                                        rings

The usual turn does all of this at once (vmm.engine.turn).

Not thread-safe: the monitor calls it under its lock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vmm.ferry.carry import Carrier, spans
from vmm.ferry.deaths import Deaths
from vmm.ferry.delivery import Delivery
from vmm.ferry.doorbell import Doorbell
from vmm.ferry.events import Trace
from vmm.ferry.ledger import Ledger
from vmm.ferry.message import Answer, Message, Request
from vmm.ferry.operations import Operations
from vmm.ferry.peer import Peer
from vmm.ferry.repair import Repair
from vmm.ferry.roster import Roster
from vmm.ferry.rules import Refusal
from vmm.ferry.sight import check_mappings
from vmm.ferry.slices import Slices
from vmm.ferry.telling import Telling
from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, Hold, Operation, Status
from vmm.memory.pool import PagePool
from vmm.memory.runs import Extent

_RX_ENTRIES = abi.RX_ENTRIES


class Exchange:
    """Peers and the messages between them.

    wake    called with a peer for which something has changed: it may be waiting for that
    audit   whether the ledger is audited after every operation, delivery and death
    copy_below   bytes: see Operations
    """

    def __init__(
        self,
        ledger: Ledger,
        pool: PagePool,
        trace: Trace,
        wake: Callable[[Peer], None],
        *,
        audit: bool = False,
        copy_below: int = 0,
    ) -> None:
        self.ledger = ledger
        self.journal = pool.journal
        self.roster = Roster(wake, self.journal)
        self.journal.repair = Repair(ledger, self.roster, pool).repair
        carrier = Carrier(ledger, self.roster, pool)
        self.operations = Operations(ledger, self.roster, carrier, pool, copy_below)
        self.slices = Slices(ledger, pool, carrier.window, self.operations)
        self.telling = Telling(trace, self.roster)
        tell = self.telling.delivery
        self.delivery = Delivery(ledger, self.roster, carrier, trace, tell)
        self._deaths = Deaths(ledger, self.roster, carrier, trace, tell)
        self.doorbell = Doorbell(
            ledger, self.operations, self.slices, self.delivery, self.telling, audited=audit
        )
        self.transmit = self.doorbell.transmit
        self._trace = trace
        self.audited = audit

    def join(self, peer: Peer, quota: int, pieces: int) -> None:
        """Admit a peer with an empty window, no channels, and limits (see books.Account).

        An eighth of its window is kept from lenders: a message that gives pages has room there.
        """
        pages = peer.window.region.pages
        self.ledger.admit(peer.number, pages, quota, pieces, loan_limit=pages - pages // 8)
        self.roster.join(peer)

    def leave(self, peer: Peer) -> bool:
        """A peer has stopped; see Deaths.bury. False if there is more to be done about it, in
        turns of their own: it must not run meanwhile.
        """
        self.journal.keep(peer)
        self.telling.begin()
        if peer.alive:
            peer.alive = False
            self._forget_taken(peer)
            self.slices.forget(peer)
        if not self._deaths.bury(peer):
            self._check()
            return False
        self.roster.leave(peer)
        self._check()
        return True

    def _check(self) -> None:
        if self.audited:
            self.ledger.audit()

    def audit(self, *, mappings: bool = False) -> dict[str, int]:
        """Check the books, and the windows if they are to be; see Audit.audit, check_mappings."""
        states = self.ledger.audit()
        if mappings:
            check_mappings(self.ledger, self.roster)
        return states

    def hold(self, peer: Peer, gpa: int) -> Hold:
        """Return what the page at an address of its window is to a peer."""
        page = Extent(peer.window.region.offset(gpa, 0) // PAGE_SIZE, 1)
        return self.ledger.describe(peer.number, page).hold

    # ---- Requests ----

    def post(self, sender: Peer, to: int, tag: int, payload: bytes) -> bool:
        """Do what `serve` does for a payload of the host's, which has been checked, sent to a peer
        whose queue has room. False, with nothing done, if it is to be refused, or if somebody wants
        to know of each operation.
        """
        if self._trace.on or self.audited:
            return False
        self.journal.keep(sender)
        return self.operations.post(sender, to, tag, payload) is not None

    def serve(self, peer: Peer, read: Callable[..., Request], *what: object) -> Answer | None:
        """Do what a peer asks for; `read(*what)` reads and checks it. The answer says if it was
        done. None if a slice of it has been, and the rest belongs into a turn of its own.
        """
        if self._trace.on:
            self.telling.begin()
        request: Request | None = None
        self.journal.keep(peer)
        try:
            request = read(*what)
            if self.slices.needs(request) and self.slices.prepare(peer, request):
                return None
            answer = self.slices.parts.done(peer) or self.operations.serve(peer, request)
        except Refusal as refusal:
            answer = Answer(refusal.status)
            peer.refused += 1
        if self._trace.on:
            self.telling.answer(peer, request, answer)
        if self.audited:
            self.ledger.audit()
        return answer

    def withdraw(self, peer: Peer, owner: int, extents: Sequence[Extent]) -> Status:
        """Have a peer that is not running give back what it borrows of an owner, who knows."""
        if self._trace.on:
            self.telling.begin()
        self.journal.keep(peer)
        answer = Answer(Status.OK)
        try:
            self.operations.withdraw(peer, owner, extents)
        except Refusal as refusal:
            answer = Answer(refusal.status)
        if self._trace.on:
            asked = Request(owner, spans=spans(peer.window, extents), operation=Operation.RETURN)
            self.telling.answer(peer, asked, answer)
        self._check()
        return answer.status

    # ---- Delivering ----

    def deliver(self, peer: Peer) -> int | None:
        """Dequeue into a machine's control structure as much as its receive ring takes; less where
        that has very many extents: the rest then comes when it is entered the next time.

        Returns how many messages it now has to take, those of before included; None if its index
        makes no sense.
        """
        if peer.turn != self.journal.turn:
            self.journal.keep(peer)
        pending = 0 if peer.idle else self._forget_taken(peer)
        if pending is not None and peer.queue:
            control = peer.control
            assert control is not None
            waiting = len(peer.queue)
            room = _RX_ENTRIES - pending
            count = waiting if waiting < room else room
            messages = self._take(peer, count)
            control.deliver(messages)
            peer.untaken.extend(messages)
            pending += len(messages)
        return pending

    def take(self, peer: Peer) -> Message | None:
        """Dequeue one message, its pages mapped; see Delivery.take."""
        taken = self._take(peer, 1)
        return taken[0] if taken else None

    def _take(self, peer: Peer, count: int) -> Sequence[Message]:
        if self._trace.on:
            self.telling.begin()
        if count == 1:
            message = self.delivery.take(peer)
            taken = [] if message is None else [message]
        else:
            taken = self.delivery.take_many(peer, count) if count else []
        if self.audited:
            self.ledger.audit()
        return taken

    @staticmethod
    def _forget_taken(peer: Peer) -> int | None:
        """Drop the messages that a machine has taken from its receive ring.

        Return how many are left; None if its index makes no sense: it has nothing to take, and gets
        nothing, until it does.
        """
        if peer.control is None:
            return 0
        try:
            pending = peer.control.pending()
        except Refusal:
            return None
        untaken = peer.untaken
        while len(untaken) > pending:
            peer.parted.discard(untaken.popleft().number)
        return pending
