"""The exchange: the monitor's supervision of every message.

The way of one message, in one direction, no module visited twice:

    transmit  copy the descriptor out of shared memory, once; check the copy     message
              check against rules and limits, and plan                           ledger
              take the pages out of the sender's window                          carry, movers
              commit: they are in flight                                         ledger
              put the message into the receiver's queue                          roster, queue
    deliver   dequeue, bring the pages into the receiver's window                delivery
              write the descriptor into its control structure                    control

Not thread-safe: the monitor calls it under its lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from vmm.ferry import carry, slices
from vmm.ferry.carry import Carrier
from vmm.ferry.checks import RUNS_MAX
from vmm.ferry.control import ControlStructure
from vmm.ferry.delivery import Delivery
from vmm.ferry.events import Trace
from vmm.ferry.ledger import Ledger
from vmm.ferry.message import Answer, Message, Request, Span, descriptors
from vmm.ferry.message import requests as read_requests
from vmm.ferry.operations import Operations
from vmm.ferry.peer import Peer
from vmm.ferry.repair import Repair
from vmm.ferry.roster import Roster
from vmm.ferry.rules import Refusal
from vmm.ferry.sending import TOGETHER, Parted, overlap
from vmm.ferry.sight import check_mappings
from vmm.ferry.slices import Slices
from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, Hold, Operation, Status
from vmm.memory.pool import PagePool
from vmm.memory.runs import Extent

_OK, _RX_ENTRIES = Status.OK, abi.RX_ENTRIES
_FREES = frozenset({Operation.RELEASE, Operation.RETURN})
_TAKES = frozenset({Operation.ALLOC, Operation.EXCHANGE})


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
        self.delivery = Delivery(ledger, self.roster, carrier, trace, self._tell_delivery)
        self._trace = trace
        self.audited = audit
        self._start = 0
        self.freed: set[int] = set()  # whose doorbells have left something to be zeroed

    def join(self, peer: Peer, quota: int, pieces: int) -> None:
        """Admit a peer with an empty window, no channels, and limits (see books.Account).

        An eighth of its window is kept from lenders: a message that gives pages has room there.
        """
        pages = peer.window.region.pages
        self.ledger.admit(peer.number, pages, quota, pieces, loan_limit=pages - pages // 8)
        self.roster.join(peer)

    def leave(self, peer: Peer) -> bool:
        """A peer has stopped; see Delivery.bury. False if there is more to be done about it, in
        turns of their own: it must not run meanwhile.
        """
        self.journal.keep(peer)
        self._start = time.perf_counter_ns()
        if peer.alive:
            peer.alive = False
            self._forget_taken(peer)
            self.slices.forget(peer)
        if not self.delivery.bury(peer):
            self._check()
            return False
        self.roster.leave(peer)
        self._check()
        return True

    def _check(self) -> None:
        if self.audited:
            self.ledger.audit()

    def audit(self, *, mappings: bool = False) -> dict[str, int]:
        """Check the books, and the windows if they are to be; see Books.audit, check_mappings."""
        states = self.ledger.audit()
        if mappings:
            check_mappings(self.ledger, self.roster)
        return states

    def hold(self, peer: Peer, gpa: int) -> Hold:
        """Return what the page at an address of its window is to a peer."""
        page = Extent(peer.window.region.offset(gpa, 0) // PAGE_SIZE, 1)
        return self.ledger.describe(peer.number, page).hold

    # ---- Requests ----

    def transmit(self, sender: Peer) -> Status | None:
        """Process a machine's transmit ring; each descriptor gets its own answer.

        Returns OK, or E_RING if the guest's index makes no sense, and nothing was processed; None
        if there are descriptors left, to be processed in a turn of their own.
        """
        control = sender.control
        assert control is not None
        if self.freed and self._clean(sender):
            return None
        if sender.turn != self.journal.turn:
            self.journal.keep(sender)
        try:
            indices = control.transmit_indices()
        except Refusal as refusal:
            return refusal.status
        if not indices:
            return Status.OK
        self.ledger.soiled = False
        done = self._transmit_many(sender, control, indices)
        return None if self._soiled(sender) or done < len(indices) else Status.OK

    def _soiled(self, sender: Peer) -> bool:
        """Whether a sender has freed so much that it is zeroed later: by itself, in this doorbell,
        so that it is its own time that this takes.
        """
        if self.ledger.soiled:
            self.freed.add(sender.number)
        return self.ledger.soiled

    def _clean(self, sender: Peer) -> bool:
        """Zero a slice if a sender has left anything to be zeroed. True if more is left."""
        if sender.number not in self.freed:
            return False
        if not self.slices.chores():
            self.freed.clear()
        return bool(self.freed)

    def _answer(self, sender: Peer, control: ControlStructure, index: int, answer: Answer) -> None:
        """Answer a descriptor; what is put where the guest has asked is undone with the turn."""
        if answer.spans or answer.payload:
            asked = control.descriptor(index)
            self.journal.undo(partial(control.put_descriptor, index, asked))
        control.answer(index, sender.number, answer)

    def post(self, sender: Peer, to: int, tag: int, payload: bytes) -> bool:
        """Do what `serve` does for a payload of the host's, which has been checked, sent to a peer
        whose queue has room. False, with nothing done, if it is to be refused, or if somebody wants
        to know of each operation.
        """
        if self._trace.on or self.audited:
            return False
        self.journal.keep(sender)
        return self.operations.post(sender, to, tag, payload) is not None

    def _transmit_many(self, sender: Peer, control: ControlStructure, indices: range) -> int:
        """Process several descriptors, in order. What adjacent ones send to one peer is one run to
        the ledger; what they send to several is hidden together: before anything else is done with
        these pages, and before anybody can see them elsewhere. Returns how many were processed.
        """
        self._start = time.perf_counter_ns()
        requests = read_requests(control.copy_descriptors(indices))
        requests = _one_turn(self.slices.first(sender, requests))
        answers: list[Answer] = []
        refused: set[int] = set()
        together: list[Parted] = []
        limit = self._start + slices.LONG * 1e9
        runs = _runs(requests)
        place = 0
        while place < len(runs):
            if answers and (time.perf_counter_ns() > limit or _many(together)):
                break
            run, touched = runs[place]
            place += 1
            if isinstance(run, Status):
                answers.append(Answer(run))
                continue
            request = run[0]
            if together and request.operation not in TOGETHER:
                refused |= self._hide(sender, together)
            idle = not touched and _idle(sender, request)
            if idle and (alike := _apart(runs, place - 1)):
                brought = self.operations.bring(sender, alike, limit)
                if brought:
                    answers += brought
                    place += len(brought) - 1
                    continue
            joint = None if idle else together
            if len(run) == 1:
                answers.append(self._ask(sender, request, joint))
                continue
            served = self.operations.transfer_run(sender, run, joint)
            answers += served or [self._ask(sender, each, together) for each in run]
        refused |= self._hide(sender, together)
        stamps: list[tuple[Status, int]] = []
        told = False  # of more than whether it was done
        for number, answer in enumerate(answers):
            if answer[1] in refused:
                answers[number] = answer = Answer(Status.E_NO_MEMORY)
            status, name, spans, payload, _ = answer
            stamps.append((status, name))
            sender.refused += status is not _OK
            told = told or bool(spans or payload)
        if self._trace.on:
            for asked, answer in zip(requests, answers, strict=False):
                self._tell_answer(sender, None if isinstance(asked, Status) else asked, answer)
        if told:
            for index, answer in zip(indices, answers, strict=False):
                self._answer(sender, control, index, answer)
        else:
            control.stamp_all(indices.start, sender.number, stamps)
        if self.audited:
            self._check()
        return len(answers)

    def _ask(self, peer: Peer, request: Request, together: list[Parted] | None) -> Answer:
        try:
            return self.slices.parts.done(peer) or self.operations.serve(peer, request, together)
        except Refusal as refusal:
            return Answer(refusal.status)

    def _hide(self, sender: Peer, together: list[Parted]) -> set[int]:
        """Hide what is to be hidden together; return the numbers of the messages that the host
        refuses, and that are taken back.
        """
        refused = set[int]()
        if not together:
            return refused
        for part, seen in self.operations.hide_together(sender, together):
            for message in part.messages:
                self.delivery.take_back(part.receiver, message, seen)
                refused.add(message.number)
            sender.sent -= len(part.messages)
        if sender.untaken:
            self._note_parted(sender, together, refused)
        together.clear()
        return refused

    def _note_parted(self, sender: Peer, together: Sequence[Parted], refused: set[int]) -> None:
        for part in together:
            for message in part.messages:
                if message.number not in refused:
                    homes = carry.spans(sender.window, message.homes)
                    self.operations.note_parted(sender, message.operation, homes)

    def serve(self, peer: Peer, read: Callable[..., Request], *what: object) -> Answer | None:
        """Do what a peer asks for; `read(*what)` reads and checks it. The answer says if it was
        done. None if a slice of it has been, and the rest belongs into a turn of its own.
        """
        if self._trace.on:
            self._start = time.perf_counter_ns()
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
            self._tell_answer(peer, request, answer)
        if self.audited:
            self.ledger.audit()
        return answer

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
            control.deliver(descriptors(messages))
            peer.untaken.extend(messages)
            pending += len(messages)
        return pending

    def take(self, peer: Peer) -> Message | None:
        """Dequeue one message, its pages mapped; see Delivery.take."""
        taken = self._take(peer, 1)
        return taken[0] if taken else None

    def _take(self, peer: Peer, count: int) -> Sequence[Message]:
        if self._trace.on:
            self._start = time.perf_counter_ns()
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

    # ---- The trace ----

    def _tell_answer(self, peer: Peer, request: Request | None, answer: Answer) -> None:
        """Tell of a request and how it was answered, done or not."""
        if request is None:
            self._trace.emit("refuse", machine=peer.name, status=answer.status.name)
            return
        receiver = self.roster.name(request.receiver)
        self._emit(
            request.operation.name.lower(),
            message=answer.number,
            op=request.operation.name.lower(),
            sender=peer.name,
            receiver=receiver if request.has_receiver else None,
            tag=request.tag,
            bytes=request.length or len(request.payload),
            extents=answer.spans or request.spans,
            status=answer.status.name,
            brought=answer.brought,
        )

    def _tell_delivery(self, kind: str, message: Message) -> None:
        self._emit(
            kind,
            message=message.number,
            op=message.operation.name.lower(),
            sender=self.roster.name(message.sender),
            receiver=self.roster.name(message.receiver),
            tag=message.tag,
            bytes=message.length or len(message.payload),
            extents=message.spans,
            status=message.status.name,
            brought=message.brought,
        )

    def _emit(self, kind: str, *, extents: Iterable[Span], **fields: Any) -> None:
        took_us = (time.perf_counter_ns() - self._start) / 1000
        runs = [{"gpa": span.gpa, "pages": span.pages} for span in extents]
        self._trace.emit(kind, **fields, extents=runs, took_us=took_us)


def _one_turn(requests: list[Request | Status]) -> list[Request | Status]:
    """Return the requests that can be processed in one turn.

    What is freed in a turn is zeroed when nothing can undo that any more, and not given out before;
    so is what a copied exchange leaves, with which nothing else is done before.
    """
    freed, exchanged = False, list[Span]()
    for index, request in enumerate(requests):
        if isinstance(request, Status):
            continue
        if freed and request.operation in _TAKES:
            return requests[:index]
        if exchanged and overlap(exchanged, request.spans):
            return requests[:index]
        if request.operation is Operation.EXCHANGE:
            exchanged += request.spans
        freed = freed or request.operation in _FREES
    return requests


def _many(together: Sequence[Parted]) -> bool:
    """Whether there is as much to be hidden as takes a few milliseconds."""
    return sum([len(parted.runs) for parted in together]) >= RUNS_MAX


def _idle(sender: Peer, request: Request) -> bool:
    """Whether a request is to one whose pages can be brought at once."""
    receiver = sender.receiver(request.receiver)
    return receiver is not None and receiver.idle


def _apart(runs: Sequence[tuple[list[Request] | Status, bool]], first: int) -> list[Request]:
    """Return the requests from one of these runs on that are to one peer, each of one extent that
    touches no other's.
    """
    found: list[Request] = []
    for number in range(first, len(runs)):
        run, touched = runs[number]
        if touched or isinstance(run, Status) or len(run) > 1:
            break
        (request,) = run
        if request[5] not in TOGETHER or len(request[3]) != 1:  # operation, spans
            break
        if found and request[0] != found[0][0]:  # receiver
            break
        found.append(request)
    return found


def _runs(requests: Iterable[Request | Status]) -> list[tuple[list[Request] | Status, bool]]:
    """Return the requests in runs, each adjacent to the one before, and with each run whether its
    pages touch those of a neighbour. What is no request is a run of its own.
    """
    runs: list[tuple[list[Request] | Status, bool]] = []
    run: list[Request] = []
    end, like = -1, None  # where the last request's pages end, if others can follow, and what it is
    for request in requests:
        if isinstance(request, Status):
            runs.append((request, False))
            end = -1
            continue
        receiver, _, _, spans, _, operation, writable = request
        if not spans or operation not in TOGETHER:
            runs.append(([request], False))
            end = -1
            continue
        kind = (operation, receiver, writable) if len(spans) == 1 else None
        if end != spans[0][0]:
            run = [request]
            runs.append((run, False))
        elif kind is not None and kind == like:
            run.append(request)
        else:
            runs[-1] = runs[-1][0], True
            run = [request]
            runs.append((run, True))
        gpa, pages = spans[-1]
        end, like = gpa + pages * PAGE_SIZE, kind
    return runs
