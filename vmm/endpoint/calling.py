"""The host's side of calls: their messages, and the answers."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

from vmm.endpoint.host import HostEndpoint
from vmm.endpoint.refusals import refused
from vmm.endpoint.showing import Showing
from vmm.endpoint.wholes import served
from vmm.engine.machine import Machine
from vmm.ferry.message import Message, Request
from vmm.ferry.rules import READABLE
from vmm.guest.abi import PAGE_SIZE, Operation, Status
from vmm.memory.runs import Extent

_KEPT = 8  # messages of a machine's, the last ones: its answer, if that is all that it sends
_AT_ONCE = 16  # messages that are taken in one turn


class Desk:
    """Calls of one monitor's machines. Thread-safe; one call at a time to a machine.

    showing   what these see of the host's memory
    """

    def __init__(self, host: HostEndpoint) -> None:
        self._host = host
        self._turns = host._turns
        self.showing = Showing(host)
        self._answers: dict[int, tuple[Message, ...]] = {}  # by machine
        self.turn = 0  # Journal's

    def saved(self) -> dict[int, tuple[Message, ...]]:
        return dict(self._answers)

    def restore(self, saved: dict[int, tuple[Message, ...]]) -> None:
        self._answers = dict(saved)

    def ask(
        self, to: Machine, tag: int, payload: bytes, fill: Callable[[], object] | None = None
    ) -> None:
        """Put a call into a machine's queue. Raises GuestError.

        fill    called in the same turn: it puts what the machine is to find where that looks
        """
        turns, peer = self._turns, self._host.peer
        with turns.telling, turns.lock, turns.change:
            if not self._host._exchange.post(peer, to.number, tag, payload):
                status = self._serve(Request(to.number, tag, payload=payload))
                if status is not Status.OK:
                    raise refused(f"call {to.name}", status)
            if fill is not None:  # not before: what is refused is not to be seen by anybody
                fill()

    def _serve(self, request: Request) -> Status:
        return served(self._host, lambda: request).status

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
        """Drop what a machine has sent, and been shown: it is no more."""
        self._collect(machine)
        self.showing.forget(machine)

    def pages(self, machine: Machine) -> int:
        """Return how many pages of its window a machine has that are its own; none, if it has
        stopped.
        """
        turns, ledger = self._turns, self._host._exchange.ledger
        with turns.lock:
            if not machine.peer.alive:
                return 0
            return ledger.account(machine.peer.number).charged

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
