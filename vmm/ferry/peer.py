"""A peer as the exchange knows it: a machine, or the host process itself."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vmm.ferry.queue import Queue

if TYPE_CHECKING:
    from vmm.ferry.control import ControlStructure
    from vmm.ferry.message import Message
    from vmm.memory.movers import Window


def _nothing() -> None:
    pass


@dataclasses.dataclass(slots=True)
class Entry:
    """One place in a peer table: who is there, and whether one may send to it."""

    index: int
    peer: Peer
    may_send: bool


class Peer:
    """Identity, queue and window of one who may send and receive.

    number    its id, never used twice within a monitor; 0 is the host
    own       messages of each sender that its queue takes when it is full of others'
    control   its control structure; None for the host, which calls the monitor instead
    table     the peers it knows, by id; who is in its table has it in his
    untaken   messages in its receive ring that it has not taken yet
    parted    numbers of those of them of whose pages it has parted with some: what is in their
              places now is not theirs
    waiters   peers that wait for room in its queue, by id, in the order in which they came
    sent, received, refused
              messages so far, and requests
    entered   whether it has run yet: what is so from the beginning is no news to it
    idle      whether it waits for a message, with its receive ring empty: it does not look before
              its queue has been dequeued, so pages that are sent to it may be brought at once
    full      whether its queue was full when the tables were last written
    covered   pages of its window, from the first, that have been hidden since it died
    hold_still
              called before pages of it are hidden, if others may vanish with them for a moment (the
              rest of a memslot): it must not be running then
    """

    def __init__(
        self,
        number: int,
        name: str,
        window: Window,
        depth: int,
        control: ControlStructure | None = None,
        own: int = 1,
    ) -> None:
        self.turn = 0
        self.number = number
        self.name = name
        self.window = window
        self.control = control
        self.queue = Queue(depth, own)
        self.table: dict[int, Entry] = {}
        self.untaken: collections.deque[Message] = collections.deque()
        self.parted: set[int] = set()
        self.waiters: dict[int, Peer] = {}
        self.full = False
        self.hold_still: Callable[[], object] = _nothing
        self.alive = True
        self.covered = 0
        self.entered = False
        self.idle = False
        self.sent = 0
        self.received = 0
        self.refused = 0

    def saved(self) -> tuple[object, ...]:
        return (  # of what is empty, as most of it is, no copy: there are six of these in a call
            tuple(self.queue) if self.queue else (),
            tuple(self.untaken) if self.untaken else (),
            self.parted.copy() if self.parted else None,
            self.waiters.copy() if self.waiters else None,
            None if self.control is None else self.control.places,
            (self.full, self.alive, self.entered, self.idle, self.covered),
            (self.sent, self.received, self.refused),
        )

    def restore(self, saved: Any) -> None:
        queue, untaken, parted, waiters, places, flags, counts = saved
        self.parted, self.waiters = parted or set(), waiters or {}
        self.queue.restore(queue)
        self.untaken.clear()
        self.untaken.extend(untaken)
        if self.control is not None:
            self.control.places = places
        self.full, self.alive, self.entered, self.idle, self.covered = flags
        self.sent, self.received, self.refused = counts

    def receiver(self, number: int) -> Peer | None:
        """Return the peer of this id, if a channel leads there: the only permission there is."""
        entry = self.table.get(number)
        return entry.peer if entry is not None and entry.may_send else None

    def __repr__(self) -> str:
        return f"<Peer {self.number} {self.name!r}>"
