"""A peer's queue.

Messages that wait for it, in the monitor's own memory, where no guest can reach.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator

from vmm.ferry.message import Message


class Queue:
    """First in, first out, at most `depth` messages. Not thread-safe.

    Used under the exchange's lock.
    """

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self._messages: collections.deque[Message] = collections.deque()

    def __len__(self) -> int:
        return len(self._messages)

    def __iter__(self) -> Iterator[Message]:
        return iter(self._messages)

    @property
    def room(self) -> int:
        """How many more messages it takes."""
        return max(0, self.depth - len(self._messages))

    def put(self, message: Message) -> None:
        """Enqueue a message. The caller has seen that there is room."""
        if not self.room:
            raise OverflowError("the queue is full")
        self._messages.append(message)

    def put_back(self, message: Message) -> None:
        """Enqueue a message that has come back to its sender, whether there is room or not.

        How many can come back is bounded by the depths of the queues they were in.
        """
        self._messages.append(message)

    def get(self) -> Message:
        """Dequeue the oldest message. Raises IndexError if there is none."""
        return self._messages.popleft()
