"""A doorbell's descriptors, as one batch: read, checked and planned, carried out, and answered.

One message is a batch of one. What adjacent descriptors send is one run to the ledger, whatever
their number.

Not thread-safe: the monitor calls it under its lock.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

from vmm.ferry import carry, slices
from vmm.ferry.batch import Batch, read
from vmm.ferry.checks import RUNS_MAX
from vmm.ferry.control import ControlStructure
from vmm.ferry.delivery import Delivery
from vmm.ferry.layout import DESCRIPTOR
from vmm.ferry.ledger import Ledger
from vmm.ferry.message import TOGETHER, Answer, Request, Told
from vmm.ferry.operations import Operations
from vmm.ferry.parting import Parted
from vmm.ferry.peer import Peer
from vmm.ferry.rules import Refusal
from vmm.ferry.slices import Slices
from vmm.ferry.telling import Telling
from vmm.guest.abi import Status


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

    def batch(self, sender: Peer, control: ControlStructure, indices: range) -> int:
        """Process several descriptors, in order. What adjacent ones send to one peer is one run to
        the ledger; what they send to several is hidden together: before anything else is done with
        these pages, and before anybody can see them elsewhere. Returns how many were processed.
        """
        self._telling.start = time.perf_counter_ns()
        copies = control.copy_descriptors(indices)
        batch = read(copies)
        count = min(self._slices.first(sender, batch), batch.one_turn())
        if count < len(indices):
            batch = read(copies[: count * DESCRIPTOR])
        answers: list[Told] = []
        refused: set[int] = set()
        together: list[Parted] = []
        limit = self._telling.start + slices.LONG * 1e9
        place = 0
        while place < len(batch.series):
            if answers and (time.perf_counter_ns() > limit or _many(together)):
                break
            series = batch.series[place]
            place += 1
            if isinstance(series, Status):
                answers.append(Answer(series))
                continue
            request, others, touched = series
            if together and request.operation not in TOGETHER:
                refused |= self._hide(sender, together)
            known = None if touched else sender.table.get(request[0])  # receiver
            idle = known is not None and known.may_send and known.peer.idle
            if idle and not others and (alike := batch.apart(place - 1)):
                brought = self._operations.bring(sender, alike, limit)
                if brought:
                    answers += brought
                    place += len(brought) - 1
                    continue
            joint = None if idle else together
            if not others:
                answers.append(self._ask(sender, request, joint))
                continue
            served = self._operations.transfer_run(sender, series, joint)
            answers += served or [self._ask(sender, each, together) for each in series.requests()]
        if together:
            refused |= self._hide(sender, together)
        if refused:
            refusal = Answer(Status.E_NO_MEMORY)
            answers = [refusal if answer[1] in refused else answer for answer in answers]
        self._give(sender, control, indices, batch, answers)
        if self.audited:
            self._ledger.audit()
        return len(answers)

    def _give(
        self,
        sender: Peer,
        control: ControlStructure,
        indices: range,
        batch: Batch,
        answers: Sequence[Told],
    ) -> None:
        """Answer descriptors, in order; what is put where the guest has asked is undone with the
        turn.
        """
        if not answers:
            return
        statuses, numbers, spans, payloads, _ = zip(*answers, strict=True)
        sender.refused += len(statuses) - statuses.count(Status.OK)
        if self._telling.trace.on:
            for asked, told in zip(batch.requests(), answers, strict=False):
                request = None if isinstance(asked, Status) else asked
                self._telling.answer(sender, request, Answer(*told))
        if not (any(spans) or any(payloads)):  # as most: of no more than whether it was done
            control.stamp_all(indices.start, sender.number, statuses, numbers)
            return
        for index, told in zip(indices, answers, strict=False):
            answer = Answer(*told)
            if answer.spans or answer.payload:
                before = control.descriptor(index)
                self._journal.undo(partial(control.put_descriptor, index, before))
            control.answer(index, sender.number, answer)

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


def _many(together: Sequence[Parted]) -> bool:
    """Whether there is as much to be hidden as takes a few milliseconds."""
    return sum([len(parted.runs) for parted in together]) >= RUNS_MAX
