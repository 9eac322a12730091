"""A peer as the exchange knows it: a machine, or the host process itself."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING

from vmm.ferry.queue import Queue

if TYPE_CHECKING:
    from vmm.ferry.control import ControlStructure
    from vmm.ferry.message import Message
    from vmm.memory.movers import Window


class Peer:
    """Identity, queue and window of one who may send and receive.

    number    its id, never used twice within a monitor; 0 is the host
    control   its control structure; None for the host, which calls the monitor instead
    channels  the peers it may send to, by id: the only permission there is
    untaken   messages in its receive ring that it has not taken yet
    """

    def __init__(
        self,
        number: int,
        name: str,
        window: Window,
        depth: int,
        control: ControlStructure | None = None,
    ) -> None:
        self.number = number
        self.name = name
        self.window = window
        self.control = control
        self.queue = Queue(depth)
        self.channels: dict[int, Peer] = {}
        self.listed: list[
            tuple[Peer, bool]
        ] = []  # the peer table: who, and whether one may send there
        self.untaken: collections.deque[Message] = collections.deque()
        self.alive = True
        self.sent = 0
        self.received = 0

    def __repr__(self) -> str:
        return f"<Peer {self.number} {self.name!r}>"
