"""Delivery: messages out of queues, their pages into windows.

Not thread-safe: the monitor calls it under its lock.
"""

from __future__ import annotations

import itertools

from vmm.ferry import carry
from vmm.ferry.message import Message
from vmm.ferry.peer import Peer
from vmm.ferry.rules import Refusal
from vmm.ferry.slices import RUNS_AT_ONCE, RUNS_OF_SLOTS
from vmm.ferry.undelivered import Undelivered
from vmm.guest.abi import Status
from vmm.memory.runs import Run


class Delivery(Undelivered):
    """Brings messages to their receivers."""

    def take(self, peer: Peer) -> Message | None:
        """Dequeue one message and bring its pages into the peer's window.

        None if the host refuses to map them: the message has then gone back to its sender.
        """
        message = self._roster.get_message(peer)
        if message.targets and not message.brought:
            return message if self._bring(peer, message) else None
        peer.received += 1  # as `_taken`, without its call: most messages come here
        if self._trace.on:
            self._tell("deliver", message)
        return message

    def _bring(self, peer: Peer, message: Message) -> bool:
        """Bring a message's pages into a peer's window. False if it has gone back instead."""
        if message.brought or not message.targets:
            self._taken(peer, message)
            return True
        number = peer.number
        runs = self._ledger.arriving(number, message.targets)
        try:
            if len(runs) == 1:
                carry.show(peer.window, runs[0])
            else:
                with self._carrier.all_or_nothing() as moves:
                    moves.show(number, runs, lambda run: self._ledger.arrive(number, [run]))
        except (OSError, Refusal) as error:
            if isinstance(error, OSError):
                self._ledger.arrive(number, carry.parts(runs[0], error))
            self.send_back(peer, message, Status.E_NO_MEMORY)
            return False
        self._ledger.arrive(number, runs)
        self._taken(peer, message)
        return True

    def _taken(self, peer: Peer, message: Message) -> None:
        peer.received += 1
        if self._trace.on:
            self._tell("deliver", message)

    def take_many(self, peer: Peer, count: int) -> list[Message]:
        """Dequeue `count` messages, with one call for pages that are adjacent, to each other and in
        the pool, whichever of them brings which; fewer, if that are very many calls.

        Those that the host refuses to map are not among them, and have gone back.
        """
        count, runs = self._few(peer, count)
        messages, number = self._roster.get_messages(peer, count), peer.number
        if runs:
            try:
                with self._carrier.all_or_nothing() as moves:
                    moves.show(number, runs, lambda run: self._ledger.arrive(number, [run]))
            except Refusal:
                return [message for message in messages if self._bring(peer, message)]
            self._ledger.arrive(number, runs)
        peer.received += count
        if self._trace.on:
            for message in messages:
                self._tell("deliver", message)
        return messages

    def _few(self, peer: Peer, count: int) -> tuple[int, list[Run]]:
        """Return how many of so many messages are taken together, and what comes with them."""
        runs: list[Run] = []
        most = RUNS_OF_SLOTS if peer.window.blinks else RUNS_AT_ONCE
        for index, message in enumerate(itertools.islice(peer.queue, count)):
            if message.brought or not message.targets:
                continue
            more = self._ledger.arriving(peer.number, message.targets)
            follows = bool(runs and more) and runs[-1].continues(more[0])
            if index and len(runs) + len(more) - follows > most:
                return index, runs
            if follows:
                runs[-1] = runs[-1].lengthened(more.pop(0).pages)
            runs += more
        return count, runs
