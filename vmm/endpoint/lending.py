"""What `lend` and `share` return: the message's number, and with `with` the end of the loan."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NoReturn

from vmm.endpoint.buffer import Buffer, refresh
from vmm.endpoint.window import HostWindow
from vmm.errors import ClosedError
from vmm.ferry import carry
from vmm.ferry.message import Answer, Request
from vmm.guest.abi import EXTENTS_MAX, PAGE_SIZE, Operation, Status
from vmm.memory.runs import Extent


class Lending(int):
    """The number of the message that has lent, or shared, buffers.

        with host.lend(machine, buffer):
            monitor.run()

    When the block is left, also by an exception, what the machine has not given back is taken from
    it, as `reclaim` does. A buffer that has been sent or released meanwhile, or whose monitor has
    been closed, is left alone.
    """

    _end: Callable[[], object]

    @classmethod
    def of(cls, number: int, end: Callable[[], object]) -> Lending:
        """Return a message's number; `end` is what a block of it ends with."""
        made = cls(number)
        made._end = end
        return made

    def __enter__(self) -> Lending:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Lending cannot be copied or pickled: int() of it can")


def take_back(
    window: HostWindow,
    serve: Callable[[Callable[[], Request], Callable[[Answer], bool]], bool],
    buffers: Sequence[Buffer],
) -> None:
    """Take back what of these buffers is still with others.

    serve   has done what is asked for, in turns
    """

    def parted() -> list[Extent]:
        known = [buffer._place for buffer in buffers if buffer._extent is not None]
        return [part for place in known for part in window.parted(place)][:EXTENTS_MAX]

    def read() -> Request:
        spans = carry.spans(window.peer.window, parted())
        length = sum(span.pages for span in spans) * PAGE_SIZE
        return Request(length=length, spans=spans, operation=Operation.RECLAIM)

    def follow(answer: Answer) -> bool:
        refresh(buffers)
        return answer.status is Status.OK and bool(parted())

    turns = window.turns
    with contextlib.suppress(ClosedError):  # then nobody has anything
        with turns.telling, turns.lock, turns.change:
            more = bool(parted())
        while more:  # as many as one request takes
            more = serve(read, follow)
