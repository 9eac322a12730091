"""The host's side of calls: pages shared with a machine for the time of one, and its answer."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from vmm.endpoint.host import HostEndpoint
from vmm.endpoint.refusals import refused
from vmm.engine.machine import Machine
from vmm.errors import GuestError
from vmm.ferry import carry
from vmm.ferry.message import Message, Request
from vmm.ferry.slices import MOMENT
from vmm.guest.abi import PAGE_SIZE, Operation, Status
from vmm.memory.runs import Extent

_TAKEN = 64  # messages of a machine's that are kept until one is looked for


class Part(NamedTuple):
    """One message of those that ask for a call.

    extents    what the host shares, of its own window; none: only the payload
    writable   by the machine
    """

    payload: bytes
    extents: Sequence[Extent] = ()
    writable: bool = True


class _Undone(Exception):
    """Raised in a turn that is to be undone as a whole."""

    def __init__(self, error: GuestError) -> None:
        super().__init__(error)
        self.error = error


class Desk:
    """Calls of one monitor's machines. Thread-safe; one call at a time to a machine."""

    def __init__(self, host: HostEndpoint) -> None:
        self._host = host
        self._turns = host._turns
        self._answers: dict[int, deque[Message]] = {}  # by machine

    def ask(self, to: Machine, tag: int, parts: Sequence[Part]) -> None:
        """Put the messages of a call into a machine's queue: all, or none. Raises GuestError."""
        turns = self._turns
        requests = [self._request(to, tag, part) for part in parts]
        for request in requests:
            while request.spans and self._prepared(request):
                time.sleep(MOMENT)
        try:
            with turns.telling, turns.lock, turns.change:
                for request in requests:
                    status = self._serve(request)
                    if status is not Status.OK:
                        raise _Undone(refused(f"call {to.name}", status))
        except _Undone as undone:
            raise undone.error from None

    def _request(self, to: Machine, tag: int, part: Part) -> Request:
        if not part.extents:
            return Request(to.peer.number, tag, payload=part.payload)
        spans = carry.spans(self._host.peer.window, part.extents)
        length = sum(span.pages for span in spans) * PAGE_SIZE
        share = Operation.SHARE
        return Request(to.number, tag, length, spans, part.payload, share, part.writable)

    def _prepared(self, request: Request) -> bool:
        """Do a slice of what takes long, which nobody sees. False if nothing is to be done."""
        turns, exchange = self._turns, self._host._exchange
        with turns.telling, turns.lock, turns.change:
            return exchange.slices.needs(request) and exchange.slices.prepare(
                self._host.peer, request
            )

    def _serve(self, request: Request) -> Status:
        exchange, answer = self._host._exchange, None
        while answer is None:  # in slices that are short, since it has been prepared
            answer = exchange.serve(self._host.peer, lambda: request)
        return answer.status

    def answered(self, by: Machine) -> bool:
        """Whether a machine has sent anything. Called in a turn, or under the lock."""
        number, queue = by.peer.number, self._host.peer.queue
        if queue and queue[0].sender == number:  # as a rule
            return True
        return bool(self._answers.get(number)) or any(one.sender == number for one in queue)

    def answer(self, by: Machine, tag: int, least: int) -> bytes | None:
        """Return the payload, of `least` bytes or more, of a machine's answer to a call; None if it
        has sent none. What else it has sent is dropped.
        """
        self._collect()
        for message in self._answers.pop(by.number, ()):
            if message.tag == tag and len(message.payload) >= least:
                return message.payload
        return None

    def forget(self, machine: Machine) -> None:
        """Drop what a machine has sent: it is no more."""
        self._collect()
        self._answers.pop(machine.number, None)

    def pages(self, machine: Machine, *, borrowed: bool = False) -> int:
        """Return how many pages of its window a machine has that are its own; or that are not."""
        turns, ledger = self._turns, self._host._exchange.ledger
        with turns.lock:
            account = ledger.account(machine.number)
            return account.loaned if borrowed else account.charged

    def _collect(self) -> None:
        """Sort what has come for the host by who has sent it. Pages that come are let go of."""
        host, turns = self._host, self._turns
        while host.peer.queue:
            with turns.telling, turns.lock, turns.change:
                message = host._exchange.take(host.peer) if host.peer.queue else None
                if message is None:
                    continue
                if message.operation in (Operation.SEND, Operation.RETURN):
                    kept = self._answers.setdefault(message.sender, deque(maxlen=_TAKEN))
                    kept.append(message)
            self._let_go(message)

    def _let_go(self, message: Message) -> None:
        """Give back, or free, pages that nobody has asked for."""
        if message.operation is Operation.SEND:
            operation, receiver = Operation.RELEASE, 0
        elif message.operation in (Operation.LEND, Operation.SHARE):
            operation, receiver = Operation.RETURN, message.sender
        else:
            return
        if message.spans:
            length = sum(span.pages for span in message.spans) * PAGE_SIZE
            request = Request(receiver, 0, length, message.spans, b"", operation)
            self._host._serve(lambda: request, partial(_nothing))
            self._host._clean()


def _nothing(answer: object) -> None:
    pass
