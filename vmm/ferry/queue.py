"""A peer's queue.

Messages that wait for it, in the monitor's own memory, where no guest can reach.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmm.ferry.message import Message


class Queue(collections.deque["Message"]):
    """First in, first out, at most `depth` messages: a deque, changed by `put` and `get` only.

    room    how many more messages it takes

    Not thread-safe: used under the exchange's lock.
    """

    __slots__ = ("depth", "room")

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.depth = depth
        self.room = depth

    def restore(self, messages: Iterable[Message]) -> None:
        """Hold these messages, whatever there was."""
        self.clear()
        self.extend(messages)
        self.room = max(0, self.depth - len(self))

    def put(self, message: Message) -> None:
        """Enqueue a message. The caller has seen that there is room."""
        if not self.room:
            raise OverflowError("the queue is full")
        self.append(message)
        self.room -= 1

    def put_back(self, message: Message) -> None:
        """Enqueue a message that has come back to its sender, whether there is room or not.

        How many can come back is bounded by the depths of the queues they were in.
        """
        self.append(message)
        self.room = max(0, self.depth - len(self))

    def get(self) -> Message:
        """Dequeue the oldest message. Raises IndexError if there is none."""
        message = self.popleft()
        room = self.depth - len(self)
        self.room = room if room > 0 else 0
        return message

    def withdraw(self, message: Message) -> None:
        """Take a message out, wherever in the queue it is. Raises ValueError if it is not."""
        self.remove(message)
        self.room = max(0, self.depth - len(self))
