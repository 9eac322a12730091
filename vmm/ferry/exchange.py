"""The exchange: the monitor's supervision of every message.

The way of one message, in one direction, no module visited twice:

    transmit  copy the descriptor out of shared memory, once; check the copy     message
    send      commit: the pages are in flight                                    ledger
              take them out of the sender's window                               mover
              put the message into the receiver's queue                          queue
    deliver   dequeue, bring the pages into the receiver's window                mover, ledger
              write the descriptor into its control structure                    control

Not thread-safe: the monitor calls it under its lock.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial

from vmm.ferry import carry
from vmm.ferry.ledger import Ledger, Parcel, Refusal
from vmm.ferry.message import Message, Request, Span
from vmm.ferry.peer import Peer
from vmm.ferry.runs import Extent, Hold
from vmm.guest.abi import PAGE_SIZE, Operation, PeerFlags, Status
from vmm.memory.movers import Mover
from vmm.trace import Trace


class Exchange:
    """Peers, the channels between them, and the messages on their way.

    wake      called with a peer when a message has been put into its queue
    """

    def __init__(
        self, ledger: Ledger, mover: Mover, trace: Trace, wake: Callable[[Peer], None]
    ) -> None:
        self.ledger = ledger
        self._mover = mover
        self._trace = trace
        self._wake = wake
        self._peers: dict[int, Peer] = {}
        self._names: dict[int, str] = {}  # of the dead too: their messages live on
        self._numbers = itertools.count(1)

    # ---- Peers ----

    def join(self, peer: Peer) -> None:
        """Admit a peer with an empty window and no channels."""
        self.ledger.admit(peer.number, peer.window.region.pages)
        self._peers[peer.number] = peer
        self._names[peer.number] = peer.name

    def connect(self, sender: Peer, receiver: Peer) -> None:
        """Open a channel: from now on `sender` may send to `receiver`, and each sees the other."""
        sender.channels[receiver.number] = receiver
        self._list(sender, receiver, True)
        self._list(receiver, sender, sender.number in receiver.channels)

    def _list(self, peer: Peer, other: Peer, may_send: bool) -> None:
        """Write `other` into the peer table of `peer`."""
        known = [entry for entry, _ in peer.listed]
        index = known.index(other) if other in known else len(known)
        peer.listed[index : index + 1] = [(other, may_send)]
        if peer.control is not None:
            flags = PeerFlags.ALIVE * other.alive | PeerFlags.SEND * may_send
            peer.control.put_peer(
                index, other.number, other.name, PeerFlags(flags), other.queue.room
            )

    def leave(self, peer: Peer) -> None:
        """A peer has stopped: return what it had not taken, free what it owned, tell its peers.

        Messages in its queue go back to their senders with E_DEAD, and so do those in its receive
        ring that it had not taken, as far as their pages are still its own. Its window is hidden.
        """
        peer.alive = False
        self._forget_taken(peer)
        for message in peer.untaken:
            self._send_back(peer, message)
        while peer.queue:
            self._return(peer.queue.get(), Status.E_DEAD)
        for run in self.ledger.window(peer.number):
            if run.hold is Hold.OWNED:
                peer.window.hide(run.page, run.pages)
        self._mover.pool.zero(self.ledger.dismiss(peer.number))
        del self._peers[peer.number]
        for other, _ in peer.listed:
            self._list(other, peer, peer.number in other.channels)

    # ---- Sending ----

    def transmit(self, sender: Peer) -> Status:
        """Process a machine's transmit ring; each descriptor gets its own status.

        Returns OK, or E_RING if the guest's index makes no sense, and nothing was processed.
        """
        control = sender.control
        assert control is not None
        try:
            indices = control.transmit_indices()
        except Refusal as refusal:
            return refusal.status
        for index in indices:
            descriptor = control.copy_descriptor(index)
            status, number = self.serve(sender, partial(Request.from_descriptor, descriptor))
            control.answer(index, status, sender.number, number)
        return Status.OK

    def serve(self, sender: Peer, read: Callable[[], Request]) -> tuple[Status, int]:
        """Do what a machine asks for; `read` reads and checks it.

        Return status and message number.
        """
        try:
            request = read()
            if request.operation is Operation.RELEASE:
                self.release(sender, request.extents(sender.window.region))
                return Status.OK, 0
            return Status.OK, self.send(sender, request).number
        except Refusal as refusal:
            if self._trace:
                self._trace.emit("refuse", machine=sender.name, status=refusal.status.name)
            return refusal.status, 0

    def send(self, sender: Peer, request: Request) -> Message:
        """Send: all of it, or nothing and a Refusal that says why."""
        start = time.perf_counter_ns()
        receiver = sender.channels.get(request.receiver)
        if receiver is None:
            raise Refusal(Status.E_PEER)
        if not receiver.alive:
            raise Refusal(Status.E_DEAD)
        extents = request.extents(sender.window.region)
        if not receiver.queue.room:
            raise Refusal(Status.E_QUEUE_FULL)
        parcel = self.ledger.begin(sender.number, receiver.number, extents)
        try:
            carry.hide(self.ledger, sender, extents)
        except Refusal:
            self.ledger.cancel(parcel)
            raise
        message = self._message(sender, receiver, request, parcel)
        receiver.queue.put(message)
        sender.sent += 1
        if self._trace:
            self._trace_move("send", message, request.spans, start)
        self._wake(receiver)
        return message

    def _message(self, sender: Peer, receiver: Peer, request: Request, parcel: Parcel) -> Message:
        """Make the message, with both identities in it: the sender's is the monitor's word."""
        return Message(
            number=next(self._numbers),
            operation=Operation.SEND,
            status=Status.OK,
            sender=sender.number,
            receiver=receiver.number,
            tag=request.tag,
            length=request.length,
            payload=request.payload,
            parcel=parcel if parcel.pieces else None,
            spans=carry.spans(receiver.window, parcel.targets),
        )

    # ---- Delivering ----

    def deliver(self, peer: Peer) -> int:
        """Dequeue into a machine's control structure as much as its receive ring takes.

        Returns how many messages it now has to take, those of before included.
        """
        control = peer.control
        assert control is not None
        for _ in range(min(len(peer.queue), control.room())):
            message = self.take(peer)
            if message is not None:
                control.deliver(message.descriptor())
                peer.untaken.append(message)
        return self._forget_taken(peer)

    @staticmethod
    def _forget_taken(peer: Peer) -> int:
        """Drop the messages that a machine has taken from its receive ring.

        Return how many are left.
        """
        if peer.control is None:
            return 0
        try:
            pending = peer.control.pending()
        except Refusal:  # its index makes no sense: it has nothing to take until it does
            return 0
        while len(peer.untaken) > pending:
            peer.untaken.popleft()
        return pending

    def take(self, peer: Peer) -> Message | None:
        """Dequeue one message and bring its pages into the peer's window.

        None if the host refuses to map them: the message has then gone back to its sender.
        """
        message = peer.queue.get()
        start = time.perf_counter_ns()
        if message.parcel is not None:
            try:
                carry.show(peer, message.parcel)
            except OSError:
                self._return(message, Status.E_NO_MEMORY)
                return None
            self.ledger.complete(message.parcel)
        peer.received += 1
        if self._trace:
            self._trace_move("deliver", message, message.spans, start)
        return message

    def _return(self, message: Message, status: Status) -> None:
        """Give an undelivered message back to its sender, pages and all.

        Without a sender, free them.
        """
        parcel, sender = message.parcel, self._peers.get(message.sender)
        if parcel is not None:
            self._mover.pool.zero(self.ledger.cancel(parcel))
        if sender is None or message.operation is Operation.UNDELIVERED:
            return
        spans: tuple[Span, ...] = ()
        if parcel is not None and self._show_again(sender, parcel):
            spans = carry.spans(sender.window, carry.sources(parcel))
        back = dataclasses.replace(
            message, operation=Operation.UNDELIVERED, status=status, parcel=None, spans=spans
        )
        sender.queue.put_back(back)
        if self._trace:
            self._trace_move("return", back, spans, time.perf_counter_ns())
        self._wake(sender)

    def _show_again(self, sender: Peer, parcel: Parcel) -> bool:
        """Show a cancelled parcel's pages in its sender's window again.

        If the host refuses even that, the pages are given up; the message goes back without them.
        """
        shown: list[Extent] = []
        try:
            for piece in parcel.pieces:
                sender.window.show(piece.source, piece.frame, piece.pages)
                shown.append(Extent(piece.source, piece.pages))
        except OSError:
            for extent in shown:
                sender.window.hide(*extent)
            lost = self.ledger.release(sender.number, carry.sources(parcel))
            self._mover.pool.zero(lost)
            return False
        return True

    def _send_back(self, peer: Peer, message: Message) -> None:
        """Send a delivered message back to where it came from, on behalf of a peer that has died.

        Without a sender, or without room in its window, the pages stay with the dead, to be freed.
        """
        sender = self._peers.get(message.sender)
        if sender is None or not sender.alive or message.operation is Operation.UNDELIVERED:
            return
        base = peer.window.region.base
        extents = [Extent((span.gpa - base) // PAGE_SIZE, span.pages) for span in message.spans]
        try:
            parcel = self.ledger.begin(peer.number, sender.number, extents)
        except Refusal:
            return
        for extent in extents:
            peer.window.hide(*extent)
        back = dataclasses.replace(
            message,
            operation=Operation.UNDELIVERED,
            status=Status.E_DEAD,
            parcel=parcel if parcel.pieces else None,
            spans=carry.spans(sender.window, parcel.targets),
        )
        sender.queue.put_back(back)
        self._wake(sender)

    # ---- The pool ----

    def grant(self, peer: Peer, pages: int) -> Extent:
        """Give a peer zeroed pages of the pool, adjacent in its window. Raises Refusal."""
        extent, runs = self.ledger.grant(peer.number, pages)
        try:
            for run in runs:
                peer.window.show(run.page, run.frame, run.pages)
        except OSError:
            peer.window.hide(*extent)
            self.ledger.release(peer.number, [extent])
            raise Refusal(Status.E_NO_MEMORY) from None
        return extent

    def release(self, peer: Peer, extents: Sequence[Extent]) -> None:
        """Take disjoint extents back into the pool; they read as zeros from now on.

        Raises Refusal.
        """
        if not all(self.ledger.owns(peer.number, extent) for extent in extents):
            raise Refusal(Status.E_OWNERSHIP)
        carry.hide(self.ledger, peer, extents)
        self._mover.pool.zero(self.ledger.release(peer.number, extents))
        if self._trace:
            spans = [{"gpa": s.gpa, "pages": s.pages} for s in carry.spans(peer.window, extents)]
            self._trace.emit("release", machine=peer.name, extents=spans)

    def _trace_move(self, kind: str, message: Message, spans: tuple[Span, ...], start: int) -> None:
        self._trace.emit(
            kind,
            message=message.number,
            op=message.operation.name.lower(),
            sender=self._names[message.sender],
            receiver=self._names[message.receiver],
            tag=message.tag,
            bytes=message.length or len(message.payload),
            extents=[{"gpa": span.gpa, "pages": span.pages} for span in spans],
            took_us=(time.perf_counter_ns() - start) / 1000,
        )
