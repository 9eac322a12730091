"""A peer's queue.

Messages that wait for it, in the monitor's own memory, where no guest can reach.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmm.ferry.message import Message


class Queue(collections.deque["Message"]):
    """First in, first out, at most `depth` messages: a deque, changed by `put` and `get` only.

    room    how many more messages it takes from anybody
    own     places of each sender's own, which no flood of others' can take: when there is no room,
            it still takes a message of a sender that has fewer in it

    Not thread-safe: used under the exchange's lock.
    """

    __slots__ = ("depth", "own", "room")

    def __init__(self, depth: int, own: int = 1) -> None:
        super().__init__()
        self.depth = depth
        self.own = own
        self.room = depth

    def restore(self, messages: Iterable[Message]) -> None:
        """Hold these messages, whatever there was."""
        self.clear()
        self.extend(messages)
        self.room = max(0, self.depth - len(self))

    def takes(self, sender: int) -> bool:
        """Whether there is room for a message of this sender's."""
        return self.room > 0 or (self.depth > 0 and not self._filled(sender))

    def _filled(self, sender: int) -> bool:
        """Whether a sender's own places are taken, by its messages wherever in it they are."""
        found = 0
        for message in self:
            found += message.sender == sender
            if found == self.own:
                return True
        return False

    def put(self, message: Message) -> None:
        """Enqueue a message. The caller has seen that there is room."""
        if self.room:
            self.room -= 1
        elif not self.takes(message.sender):
            raise OverflowError("the queue is full")
        self.append(message)

    def put_all(self, messages: Sequence[Message]) -> None:
        """Enqueue as many messages as there is room for."""
        room = self.room - len(messages)
        if room < 0:
            raise OverflowError("the queue is full")
        self.room = room
        self.extend(messages)

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

    def get_all(self, count: int) -> list[Message]:
        """Dequeue so many of the oldest messages, of which there are as many."""
        popleft = self.popleft
        messages = [popleft() for _ in range(count)]
        self.room = max(0, self.depth - len(self))
        return messages

    def withdraw(self, message: Message) -> None:
        """Take a message out, wherever in the queue it is. Raises ValueError if it is not."""
        self.remove(message)
        self.room = max(0, self.depth - len(self))
