"""A doorbell's descriptors, as one batch: read, checked and planned, carried out, and answered.

One message is a batch of one. What adjacent descriptors send is one run to the ledger, whatever
their number.

Not thread-safe: the monitor calls it under its lock.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import partial

from vmm.ferry import carry, slices
from vmm.ferry.checks import RUNS_MAX
from vmm.ferry.control import ControlStructure
from vmm.ferry.delivery import Delivery
from vmm.ferry.ledger import Ledger
from vmm.ferry.message import Answer, Request, Span
from vmm.ferry.message import requests as read_requests
from vmm.ferry.operations import Operations
from vmm.ferry.parting import TOGETHER, Parted, overlap
from vmm.ferry.peer import Peer
from vmm.ferry.rules import Refusal
from vmm.ferry.slices import Slices
from vmm.ferry.telling import Telling
from vmm.guest.abi import PAGE_SIZE, Operation, Status

_OK = Status.OK
_FREES = frozenset({Operation.RELEASE, Operation.RETURN})
_TAKES = frozenset({Operation.ALLOC, Operation.EXCHANGE})


class Doorbell:
    """Processes what machines ask for.

    audited   whether the ledger is audited after each batch
    freed     whose batches have left something to be zeroed
    """

    def __init__(
        self,
        ledger: Ledger,
        operations: Operations,
        slices: Slices,
        delivery: Delivery,
        telling: Telling,
        *,
        audited: bool,
    ) -> None:
        self._ledger = ledger
        self._journal = ledger.journal
        self._operations = operations
        self._slices = slices
        self._delivery = delivery
        self._telling = telling
        self.audited = audited
        self.freed: set[int] = set()

    def transmit(self, sender: Peer) -> Status | None:
        """Process a machine's transmit ring; each descriptor gets its own answer.

        Returns OK, or E_RING if the guest's index makes no sense, and nothing was processed; None
        if there are descriptors left, to be processed in a turn of their own.
        """
        control = sender.control
        assert control is not None
        if self.freed and self._clean(sender):
            return None
        if sender.turn != self._journal.turn:
            self._journal.keep(sender)
        try:
            indices = control.transmit_indices()
        except Refusal as refusal:
            return refusal.status
        if not indices:
            return Status.OK
        self._ledger.soiled = False
        done = self.batch(sender, control, indices)
        return None if self._soiled(sender) or done < len(indices) else Status.OK

    def _soiled(self, sender: Peer) -> bool:
        """Whether a sender has freed so much that it is zeroed later: by itself, in this doorbell,
        so that it is its own time that this takes.
        """
        if self._ledger.soiled:
            self.freed.add(sender.number)
        return self._ledger.soiled

    def _clean(self, sender: Peer) -> bool:
        """Zero a slice if a sender has left anything to be zeroed. True if more is left."""
        if sender.number not in self.freed:
            return False
        if not self._slices.chores():
            self.freed.clear()
        return bool(self.freed)

    def _answer(self, sender: Peer, control: ControlStructure, index: int, answer: Answer) -> None:
        """Answer a descriptor; what is put where the guest has asked is undone with the turn."""
        if answer.spans or answer.payload:
            asked = control.descriptor(index)
            self._journal.undo(partial(control.put_descriptor, index, asked))
        control.answer(index, sender.number, answer)

    def batch(self, sender: Peer, control: ControlStructure, indices: range) -> int:
        """Process several descriptors, in order. What adjacent ones send to one peer is one run to
        the ledger; what they send to several is hidden together: before anything else is done with
        these pages, and before anybody can see them elsewhere. Returns how many were processed.
        """
        self._telling.start = time.perf_counter_ns()
        requests = read_requests(control.copy_descriptors(indices))
        requests = _one_turn(self._slices.first(sender, requests))
        answers: list[Answer] = []
        refused: set[int] = set()
        together: list[Parted] = []
        limit = self._telling.start + slices.LONG * 1e9
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
            if idle and len(run) == 1 and (alike := _apart(runs, place - 1)):
                brought = self._operations.bring(sender, alike, limit)
                if brought:
                    answers += brought
                    place += len(brought) - 1
                    continue
            joint = None if idle else together
            if len(run) == 1:
                answers.append(self._ask(sender, request, joint))
                continue
            served = self._operations.transfer_run(sender, run, joint)
            answers += served or [self._ask(sender, each, together) for each in run]
        if together:
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
        if self._telling.trace.on:
            for asked, answer in zip(requests, answers, strict=False):
                self._telling.answer(sender, None if isinstance(asked, Status) else asked, answer)
        if told:
            for index, answer in zip(indices, answers, strict=False):
                self._answer(sender, control, index, answer)
        else:
            control.stamp_all(indices.start, sender.number, stamps)
        if self.audited:
            self._ledger.audit()
        return len(answers)

    def _ask(self, peer: Peer, request: Request, together: list[Parted] | None) -> Answer:
        try:
            return self._slices.parts.done(peer) or self._operations.serve(peer, request, together)
        except Refusal as refusal:
            return Answer(refusal.status)

    def _hide(self, sender: Peer, together: list[Parted]) -> set[int]:
        """Hide what is to be hidden together; return the numbers of the messages that the host
        refuses, and that are taken back.
        """
        refused = set[int]()
        if not together:
            return refused
        for part, seen in self._operations.hide_together(sender, together):
            for message in part.messages:
                self._delivery.take_back(part.receiver, message, seen)
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
                    self._operations.note_parted(sender, message.operation, homes)


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
    end = -1  # where the last request's pages end, if others can follow
    alone, peer, what, how = False, -1, Operation.SEND, True  # of one extent; and what it is
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
        single = len(spans) == 1
        if end != spans[0][0]:
            run = [request]
            runs.append((run, False))
        elif single and alone and receiver == peer and operation is what and writable is how:
            run.append(request)
        else:
            runs[-1] = runs[-1][0], True
            run = [request]
            runs.append((run, True))
        gpa, pages = spans[-1]
        end = gpa + pages * PAGE_SIZE
        alone, peer, what, how = single, receiver, operation, writable
    return runs
