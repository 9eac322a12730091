"""A machine's RECLAIM or RELEASE of very many runs, in parts.

Each run takes calls of the kernel's, and the books their time. No message tells of these two, so
each part is an operation of its own, in a turn of its own. Others may come in between; the machine
is in its doorbell, and sees the whole.

Not thread-safe: the monitor calls it under its lock.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from vmm.ferry.checks import RUNS_MAX
from vmm.ferry.ledger import Ledger
from vmm.ferry.message import Answer, Request, Span
from vmm.ferry.operations import Operations
from vmm.ferry.peer import Peer
from vmm.ferry.places import joined
from vmm.ferry.rules import Refusal
from vmm.guest.abi import Hold, Operation, Status
from vmm.memory.runs import Extent

PARTED = {  # pages, beyond which there may be too much for one part
    Operation.RECLAIM: 1,  # which some two hundred may borrow
    Operation.RELEASE: RUNS_MAX,
}
_CONCERNED = {
    Operation.RECLAIM: frozenset({Hold.LENT, Hold.SHARED}),
    Operation.RELEASE: frozenset({Hold.OWNED, Hold.REVOKED}),
}


class _Rest(NamedTuple):
    """What is left of a request. `status` is its answer if that is nothing, or was refused."""

    operation: Operation
    spans: tuple[Span, ...]
    extents: tuple[Extent, ...]
    status: Status | None


class Parts:
    """Which requests are under way, one of a machine's at most."""

    def __init__(self, ledger: Ledger, operations: Operations) -> None:
        self._ledger = ledger
        self._operations = operations
        self._rests: dict[int, _Rest] = {}  # by machine

    def begun(self, peer: Peer) -> bool:
        """Whether a request of a machine's is under way."""
        return peer.number in self._rests

    def go_on(self, peer: Peer, request: Request) -> bool:
        """Check a request, or do a part of it. False if nothing is left of it, and it is `done`; or
        if nothing has been done, and it is to be served as a whole: there is not much of it, it is
        refused, or it is the host's, whose other threads do not wait for its end.

        A part ends where a run, or a loan, does. What others have given back since the first part
        is left out. If the host refuses one, that is the answer; what has been done stays so.
        """
        operation, spans = request.operation, request.spans
        rest = self._rests.get(peer.number)
        if peer.control is None:
            return False
        if rest is None or (rest.operation, rest.spans) != (operation, spans):
            return self._begin(peer, request)
        part, left = self._divided(peer, operation, rest.extents)
        try:
            self._do(peer, operation, part, left)
            status = None if left else Status.OK
        except Refusal as refusal:
            status = refusal.status
        self._keep(peer, _Rest(operation, spans, tuple(left), status))
        return status is None

    def _begin(self, peer: Peer, request: Request) -> bool:
        try:
            extents = request.extents(peer.window.region)
            if not self._divided(peer, request.operation, extents)[1]:
                return False
            self._operations.check(peer, request.operation, extents)
        except Refusal:
            return False
        self._keep(peer, _Rest(request.operation, request.spans, tuple(extents), None))
        return True

    def done(self, peer: Peer) -> Answer | None:
        """Return the answer of the request that a machine has asked for, if it has been done in
        parts, all of them; None if it is to be served. Raises Refusal if it was refused in the end.
        """
        rest = self._rests.get(peer.number) if self._rests else None
        if rest is None:
            return None
        self._keep(peer, None)
        if rest.status is None:
            return None
        if rest.status is not Status.OK:
            raise Refusal(rest.status)
        return Answer(Status.OK)

    def forget(self, peer: Peer) -> None:
        """A peer has stopped."""
        self._keep(peer, None)

    def _divided(
        self, peer: Peer, operation: Operation, extents: Sequence[Extent], most: float | None = None
    ) -> tuple[list[Extent], list[Extent]]:
        """Return what of some extents is done next, and what is left of them then."""
        most = RUNS_MAX if most is None else most
        part: list[Extent] = []
        count = 0
        for index, extent in enumerate(extents):
            page = extent.page
            while page < extent.end:
                hold, end, changes = self._ledger.piece(peer.number, page)
                end = min(end, extent.end)
                if count and count + changes > most:
                    return joined(part), [Extent(page, extent.end - page), *extents[index + 1 :]]
                if hold in _CONCERNED[operation]:
                    part.append(Extent(page, end - page))
                count += changes
                page = end
        return joined(part), []

    def _do(self, peer: Peer, operation: Operation, part: list[Extent], left: list[Extent]) -> None:
        """Do a part; all that is left where windows have no room for what a part cuts in two."""
        try:
            if part:
                self._operations.do(peer, operation, part)
        except Refusal:
            if not left:
                raise
            whole, _ = self._divided(peer, operation, [*part, *left], math.inf)
            left.clear()
            self._operations.do(peer, operation, whole)

    def _keep(self, peer: Peer, rest: _Rest | None) -> None:
        """Keep what is left of a machine's request. It is undone with the turn."""
        before = self._rests.get(peer.number)
        if before is not rest:
            self._ledger.journal.undo(partial(self._set, peer.number, before))
            self._set(peer.number, rest)

    def _set(self, number: int, rest: _Rest | None) -> None:
        if rest is None:
            self._rests.pop(number, None)
        else:
            self._rests[number] = rest
