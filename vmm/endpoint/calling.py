"""The host's side of calls: pages shared with a machine for the time of one, and its answer."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import NamedTuple

from vmm.endpoint.host import HostEndpoint
from vmm.endpoint.refusals import refused
from vmm.endpoint.wholes import Undone, prepare, served
from vmm.engine.machine import Machine
from vmm.ferry import carry
from vmm.ferry.checks import RUNS_MAX
from vmm.ferry.message import Message, Request
from vmm.ferry.rules import READABLE
from vmm.guest.abi import EXTENTS_MAX, PAGE_SIZE, Hold, Operation, Status
from vmm.memory.runs import Extent

_KEPT = 8  # messages of a machine's, the last ones: its answer, if that is all that it sends
_AT_ONCE = 16  # messages that are taken in one turn
MESSAGES_MAX = 32  # of one call
_PIECES = "give the call copies of them (Sandbox.array), or fewer"
_TOO_LONG = f"an array lies in more than {RUNS_MAX} pieces, or is shared in as many: {_PIECES}"
_BORROWED = frozenset({Hold.BORROWED})


class Part(NamedTuple):
    """One message of those that ask for a call.

    extents    what the host shares, of its own window; none: only the payload
    writable   by the machine
    more       the payload of messages before it, if it takes several to bring the extents
    """

    payload: bytes
    extents: Sequence[Extent] = ()
    writable: bool = True
    more: bytes = b""


class Kept(NamedTuple):
    """Memory of the host's that a machine sees from one call to the next.

    extent     of the machine's window
    address    of its first byte, there
    source     of the host's window
    """

    extent: Extent
    address: int
    source: Extent


class Shown(NamedTuple):
    """An extent of the host's window, and where a machine sees it: at which of its addresses."""

    start: int
    extent: Extent


class Desk:
    """Calls of one monitor's machines. Thread-safe; one call at a time to a machine."""

    def __init__(self, host: HostEndpoint) -> None:
        self._host = host
        self._turns = host._turns
        self._answers: dict[int, tuple[Message, ...]] = {}  # by machine
        self.turn = 0  # Journal's

    def saved(self) -> dict[int, tuple[Message, ...]]:
        return dict(self._answers)

    def restore(self, saved: dict[int, tuple[Message, ...]]) -> None:
        self._answers = dict(saved)

    def keep(self, to: Machine, extent: Extent) -> Kept:
        """Share memory of the host's with a machine that waits for a call, for as long as it is
        there: it finds no message of that. Raises GuestError, and nothing has changed then.
        """
        host, turns, peer = self._host, self._turns, to.peer
        request = self._request(to, 0, Part(b"", (extent,)))
        prepare(host, request)
        try:
            with turns.telling, turns.lock, turns.change:
                status = Status.E_QUEUE_FULL if peer.queue else self._serve(request)
                message = host._exchange.take(peer) if status is Status.OK else None
                if message is None:
                    status = Status.E_NO_MEMORY if status is Status.OK else status
                    raise Undone(refused(f"share memory with {to.name}", status))
                peer.received -= 1
                return Kept(message.targets[0], message.spans[0].gpa, extent)
        except Undone as undone:
            raise undone.why from None

    def ask(
        self,
        to: Machine,
        tag: int,
        parts: Sequence[Part],
        fill: Callable[[], object] | None = None,
    ) -> None:
        """Put the messages of a call into a machine's queue: all, or none. Raises GuestError, of
        E_LENGTH for an array that lies in more pieces than a message may have.

        fill    called in the same turn: it puts what the machine is to find where that looks
        """
        turns, peer = self._turns, self._host.peer
        if len(parts) == 1 and not parts[0].extents:  # only a payload
            with turns.telling, turns.lock, turns.change:
                if self._host._exchange.post(peer, to.peer.number, tag, parts[0].payload):
                    if fill is not None:
                        fill()
                    return
        requests = [self._request(to, tag, one) for part in parts for one in self._split(part)]
        if len(requests) > MESSAGES_MAX:
            why = f"the arrays lie in too many pieces for {MESSAGES_MAX} messages: {_PIECES}"
            raise refused(f"call {to.name}", Status.E_LENGTH, why)
        for request in requests:
            if request.spans:
                prepare(self._host, request)
        try:
            with turns.telling, turns.lock, turns.change:
                for request in requests:
                    status = self._serve(request)
                    if status is not Status.OK:
                        words = _TOO_LONG if status is Status.E_LENGTH else None
                        raise Undone(refused(f"call {to.name}", status, words))
                if fill is not None:  # not before: what is refused is not to be seen by anybody
                    fill()
        except Undone as undone:
            raise undone.why from None

    def _split(self, part: Part) -> Sequence[Part]:
        """Return the messages that bring what one cannot: so many extents, or runs of them."""
        extents = part.extents
        if len(extents) < 2 or (
            len(extents) <= EXTENTS_MAX and sum([extent.pages for extent in extents]) <= RUNS_MAX
        ):
            return (part,)
        groups: list[list[Extent]] = []
        left = 0
        for extent in extents:
            runs = self._runs(extent)
            if runs > left or len(groups[-1]) == EXTENTS_MAX:
                groups.append([])
                left = RUNS_MAX
            groups[-1].append(extent)
            left -= runs
        *before, last = groups
        first = [part._replace(payload=part.more, extents=group) for group in before]
        return [*first, part._replace(extents=last)]

    def _runs(self, extent: Extent) -> int:
        """Return in how many pieces an extent of the host's is, or is shared already."""
        turns, ledger, number = self._turns, self._host._exchange.ledger, self._host.peer.number
        with turns.lock:
            runs = ledger.runs(number, extent)
            shared = ledger.bonds([run for run in runs if run.hold is Hold.SHARED])
            return max(len(runs), len(shared))

    def _request(self, to: Machine, tag: int, part: Part) -> Request:
        if not part.extents:
            return Request(to.peer.number, tag, payload=part.payload)
        spans = carry.spans(self._host.peer.window, part.extents)
        length = sum(span.pages for span in spans) * PAGE_SIZE
        share = Operation.SHARE
        return Request(to.number, tag, length, spans, part.payload, share, part.writable)

    def _serve(self, request: Request) -> Status:
        return served(self._host, lambda: request).status

    def shown(self, to: Machine, parts: Sequence[Part], kept: Kept | None) -> list[Shown]:
        """Return where a machine is to see what it has just been asked with, before it runs; and
        what it has `kept`.
        """
        own, number, ledger = self._host.peer.number, to.peer.number, self._host._exchange.ledger
        base, found = to.peer.window.region.base, list[Shown]()
        with self._turns.lock:
            for extent in (extent for part in parts for extent in part.extents):
                bond = next(iter(ledger.bonds(ledger.runs(own, extent))), None)
                place = [] if bond is None else [b for b in bond.borrowers if b.peer == number]
                found += [Shown(base + b.page * PAGE_SIZE, extent) for b in place[-1:]]
        return found if kept is None else [Shown(kept.address, kept.source), *found]

    def text(self, extent: Extent, start: int, limit: int) -> bytes | None:
        """Return the C string at an offset of what the host has; None if it has no end there, or
        among `limit` bytes. Raises AccessError, ClosedError.
        """
        turns, room = self._turns, min(extent.pages * PAGE_SIZE - start, limit)
        with turns.telling, turns.lock, turns.change:
            address = self._host._window.address(extent, READABLE) + start
            found: bytes = (ctypes.c_char * room).from_address(address).value
        return found if len(found) < room else None

    def answer(self, by: Machine, tag: int, least: int) -> bytes | None:
        """Return the payload, of `least` bytes or more, of a machine's answer to a call; None if it
        has sent none. What else it has sent is dropped.
        """
        for message in self._collect(by):
            if message.tag == tag and len(message.payload) >= least:
                return message.payload
        return None

    def forget(self, machine: Machine) -> None:
        """Drop what a machine has sent: it is no more."""
        self._collect(machine)

    def pages(self, machine: Machine) -> int:
        """Return how many pages of its window a machine has that are its own; none, if it has
        stopped.
        """
        turns, ledger = self._turns, self._host._exchange.ledger
        with turns.lock:
            if not machine.peer.alive:
                return 0
            return ledger.account(machine.peer.number).charged

    def borrows(self, machine: Machine, kept: Kept | None) -> bool:
        """Whether what a machine borrows is what it is to keep, all of that and nothing else. So it
        is if it has stopped.
        """
        turns, ledger = self._turns, self._host._exchange.ledger
        with turns.lock:
            if not machine.peer.alive:
                return True
            number = machine.peer.number
            loaned = ledger.account(number).loaned
            if kept is None:
                return not loaned
            if loaned != kept.extent.pages:
                return False
            # Not only as many: one page of these given back, and another kept, would be as many.
            hold, end, _ = ledger.piece(number, kept.extent.page)
            if hold is Hold.BORROWED and end == kept.extent.end:  # as a rule
                return True
            return ledger.holds(number, kept.extent, _BORROWED)

    def _collect(self, by: Machine) -> Sequence[Message]:
        """Sort what has come for the host by who has sent it; return what a machine has. Pages that
        have come are let go of: nobody has asked for any.
        """
        host, turns = self._host, self._turns
        queue = host.peer.queue
        # Of a machine that waits, or has stopped, all is there: not to wait for others that flood.
        left = len(queue)
        more = True
        while more:
            with turns.telling, turns.lock, turns.change:
                turns.journal.keep(self)
                for _ in range(min(_AT_ONCE, len(queue))):
                    message = host._exchange.take(host.peer)
                    if message is not None:  # else it has gone back
                        self._sort(message)
                left -= _AT_ONCE
                more = left > 0 and bool(queue)
                found = () if more else self._answers.pop(by.peer.number, ())
        host._clean()
        return found

    def _sort(self, message: Message) -> None:
        """Keep what may be an answer; give back, or free, pages. Called in a turn."""
        sender, operation = message.sender, message.operation
        if message.status is Status.OK and operation in (Operation.SEND, Operation.RETURN):
            self._answers[sender] = (*self._answers.get(sender, ())[1 - _KEPT :], message)
        if operation is Operation.SEND and message.spans:
            self._let_go(message, Operation.RELEASE, 0)
        elif operation in (Operation.LEND, Operation.SHARE):
            self._let_go(message, Operation.RETURN, sender)

    def _let_go(self, message: Message, how: Operation, receiver: int) -> None:
        length = sum(span.pages for span in message.spans) * PAGE_SIZE
        self._serve(Request(receiver, 0, length, message.spans, b"", how))
