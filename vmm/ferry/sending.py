"""Messages put into queues: SEND, LEND, SHARE and EXCHANGE, one by one or several together.

Not thread-safe: the monitor calls it under its lock.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from operator import itemgetter

from vmm.ferry.batch import Series
from vmm.ferry.carry import spans
from vmm.ferry.message import Answer, Message, Request, Span, Told
from vmm.ferry.parting import PARTING, Parted, Parting
from vmm.ferry.peer import Peer
from vmm.ferry.plans import Transfer
from vmm.ferry.rules import Refusal
from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, Operation, Status
from vmm.memory.runs import Extent

_OK = Status.OK
_PAGES = itemgetter(2)  # of what goes with others
_new = tuple.__new__


class Sending(Parting):
    """The operations that are messages."""

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
            next(self.numbers),
            Operation.SEND if operation is Operation.EXCHANGE else operation,
            _OK,
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
        return Answer(_OK, message.number, brought=brought)

    def post(self, sender: Peer, to: int, tag: int, payload: bytes) -> int | None:
        """SEND a payload and nothing else, of a length that its caller has checked; return its
        number. None, with nothing done, if `transfer` is to look at it: it refuses, as a rule.
        """
        receiver = sender.receiver(to)
        if receiver is None or not receiver.alive or not receiver.queue.room:
            return None
        number = next(self.numbers)
        sender.sent += 1
        message = Message.letter(number, sender.number, receiver.number, tag, payload)
        self._roster.put(sender, receiver, message)
        return number

    def transfer_run(
        self, sender: Peer, series: Series, together: list[Parted] | None = None
    ) -> list[Told] | None:
        """SEND or LEND the pages of a series as the one run that they are: the ledger is asked
        once, whatever their number. `together` is as for `serve`.

        Returns None, with nothing done, if they cannot go together: one by one, each will get the
        status that it should.
        """
        first, others, _ = series
        number, tag, length, ((start, count),), payload, operation, writable = first
        receiver = sender.receiver(number)
        total = len(others) + 1
        if receiver is None or not receiver.alive or receiver.queue.room < total:
            return None
        if not count or length > count * PAGE_SIZE:
            return None
        spread = (_new(Span, (start, count + sum(map(_PAGES, others)))),)
        whole = _new(Request, (number, tag, 0, spread, b"", operation, writable))
        try:
            extents = whole.extents(sender.window.region)
            plan, brought = self._part(
                sender, receiver, whole, extents, hide=together is None, messages=total
            )
        except Refusal:
            return None
        (target, _), (home, _) = plan.targets[0], plan.sources[0]
        gpa = receiver.window.region.base + target * PAGE_SIZE
        own, to, messages, answers = sender.number, receiver.number, list[Message](), list[Told]()
        each = zip(((tag, length, count, payload), *others), self.numbers, strict=False)
        for (tag, length, pages, payload), number in each:
            spans_ = (_new(Span, (gpa, pages)),)
            targets, homes = (_new(Extent, (target, pages)),), (_new(Extent, (home, pages)),)
            message = (
                number,
                operation,
                _OK,
                own,
                to,
                tag,
                length,
                payload,
                spans_,
                targets,
                homes,
                writable,
                brought,
            )
            messages.append(_new(Message, message))
            answers.append((_OK, number, (), b"", brought))
            target, home, gpa = target + pages, home + pages, gpa + pages * PAGE_SIZE
        sender.sent += total
        self._roster.put(sender, receiver, *messages)
        if together is None:
            self.note_parted(sender, operation, spread)
        else:
            together.append(Parted(receiver, messages, plan.runs))
        return answers

    def bring(self, sender: Peer, requests: Sequence[Request], until: float) -> list[Told]:
        """SEND or LEND runs to one that waits for a message, each by itself: as `transfer` does, in
        fewer calls.

        until   nanoseconds on time.perf_counter_ns()'s clock, when it is enough

        Returns the answers of the first of them, until one that is not as usual; maybe of none.
        """
        receiver = sender.receiver(requests[0].receiver)
        if receiver is None or not receiver.alive or not receiver.idle:
            return []
        region, base = sender.window.region, receiver.window.region.base
        room = min(receiver.queue.room, abi.RX_ENTRIES - len(receiver.queue))
        own, to, numbers, ledger = sender.number, receiver.number, self.numbers, self._ledger
        messages, answers, parted = list[Message](), list[Told](), list[Span]()
        for _, tag, length, (span,), payload, operation, writable in requests[:room]:
            gpa, pages = span
            offset, size = gpa - region.base, pages * PAGE_SIZE
            if (
                offset < 0
                or offset % PAGE_SIZE
                or pages < 1
                or offset + size > region.size
                or length > size
                or (answers and time.perf_counter_ns() > until)
            ):
                break
            page = offset // PAGE_SIZE
            try:
                plan = ledger.transfer_one(operation, own, to, page, pages, writable)
                if plan is None:
                    break
                brought = self._pass_on(sender, receiver, plan)
            except Refusal:
                break
            if operation in PARTING:
                parted.append(span)
            targets = plan.targets
            places = (_new(Span, (base + targets[0][0] * PAGE_SIZE, pages)),)
            number = next(numbers)
            head = (number, operation, _OK, own, to, tag, length, payload, places)
            messages.append(_new(Message, (*head, targets, plan.sources, writable, brought)))
            answers.append((_OK, number, (), b"", brought))
        if messages:
            sender.sent += len(messages)
            self._roster.put(sender, receiver, *messages)
            if parted:
                self.note_parted(sender, Operation.SEND, parted)
        return answers
