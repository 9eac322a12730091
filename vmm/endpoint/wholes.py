"""What the host asks for in several messages that are to be in queues together: all, or none."""

from __future__ import annotations

import time
from collections.abc import Callable

from vmm.endpoint.host import HostEndpoint
from vmm.errors import PageferryError
from vmm.ferry.message import Answer, Request
from vmm.ferry.slices import MOMENT


class Undone(Exception):
    """Raised in a turn that is to be undone as a whole. None of ours, which would end it as it is.

    why   what the caller is told
    """

    def __init__(self, why: PageferryError) -> None:
        super().__init__(why)
        self.why = why


def prepare(host: HostEndpoint, request: Request) -> None:
    """Do what takes long of a request, in slices that nobody sees, each in a turn of its own."""
    turns, slices = host._turns, host._exchange.slices
    more = True
    while more:
        with turns.telling, turns.lock, turns.change:
            more = slices.needs(request) and slices.prepare(host.peer, request)
        if more:
            time.sleep(MOMENT)


def served(host: HostEndpoint, read: Callable[[], Request]) -> Answer:
    """Have done what is asked for, in the present turn: it has been prepared."""
    answer = None
    while answer is None:  # in slices that are short
        answer = host._exchange.serve(host.peer, read)
    return answer
