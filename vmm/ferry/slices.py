"""Long work in slices, so that nobody has to wait for the whole of it.

What is shared out of anonymous memory is copied first, and what is freed is zeroed: of a gigabyte,
each takes the kernel a second. To hide a gigabyte that has been touched takes it 50 ms, for the
translations that it drops. None of this changes what anybody sees, so it is done a slice at a time,
and others have the monitor's lock in between.

A RECLAIM or RELEASE of very many runs is done in `parts`.

Not thread-safe: the monitor calls it under its lock.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

from vmm.ferry.batch import Batch
from vmm.ferry.checks import RUNS_MAX
from vmm.ferry.ledger import Ledger
from vmm.ferry.message import Request, Span, touching
from vmm.ferry.operations import Operations
from vmm.ferry.parts import PARTED, Parts
from vmm.ferry.peer import Peer
from vmm.ferry.rules import Refusal
from vmm.guest import abi
from vmm.guest.abi import Hold, Operation, Status
from vmm.memory.movers import Window
from vmm.memory.pool import PagePool
from vmm.memory.runs import Extent

SHARED_AT_ONCE = 512  # pages (2 MiB): to copy them takes about as long as to zero eight times that
ZEROED_AT_ONCE = 4096  # pages
PARTS_AT_ONCE = 64  # in which they lie
HIDDEN_AT_ONCE = 16384  # pages (64 MiB), whose translations take the kernel 3 ms
RUNS_AT_ONCE = 128  # that are shown, or hidden, before others have their turns
RUNS_OF_SLOTS = 16  # the same, by memslots
MOMENT = 20e-6  # seconds in between, in which others come to have the lock
LONG = 0.002  # seconds, after which a doorbell's next descriptor, or a queue's next message, waits

_APART = 3  # pages that follow each other cost less than one that is elsewhere
_WEIGHT = _APART * abi.TX_ENTRIES  # of a slice: 64 single pages, or 48 of messages of several
_WEIGHT_OF_SLOTS = abi.TX_ENTRIES + _APART  # which take longer, but those that follow each other

# Plain numbers: a request's operation is compared with them.
_FRESH = frozenset(map(int, (Operation.ALLOC, Operation.EXCHANGE)))
_ELSEWHERE = frozenset(map(int, (Operation.ALLOC, Operation.SHARE, Operation.RECLAIM)))
_PAGES = {  # that weigh as much as a slice; of the others, what is hidden at once
    Operation.SHARE: SHARED_AT_ONCE,
    Operation.RELEASE: ZEROED_AT_ONCE,
    Operation.RETURN: ZEROED_AT_ONCE,  # if their owner has stopped
    Operation.ALLOC: sys.maxsize,
    Operation.QUERY: sys.maxsize,
}
_OWN = frozenset({Hold.OWNED, Hold.SHARED})


class Slices:
    """What is done before an operation, and after it."""

    def __init__(
        self,
        ledger: Ledger,
        pool: PagePool,
        windows: Callable[[int], Window],
        operations: Operations,
    ) -> None:
        self._ledger = ledger
        self._windows = windows
        self._pool = pool
        self.parts = Parts(ledger, operations)
        self._loosened: dict[int, tuple[tuple[Span, ...], int]] = {}  # by peer: of what, how much

    def chores(self) -> bool:
        """Zero a slice of what is unclean. True if more is left, and can be zeroed now."""
        frames = self._ledger.pool
        pages = 0
        if frames.unclean:
            self._ledger.keep_unclean()
        for _ in range(PARTS_AT_ONCE if frames.unclean else 0):
            part = frames.next_unclean(ZEROED_AT_ONCE - pages)
            try:
                self._pool.zero([part])
            except OSError:  # the host refuses that: it stays unclean
                frames.unclean.append(part)
                return False
            except BaseException:
                frames.unclean.appendleft(part)
                raise
            self._ledger.cleaned(part)
            pages += part.pages
            if pages == ZEROED_AT_ONCE or not frames.unclean:
                break
        return bool(frames.unclean)

    def first(self, sender: Peer, batch: Batch) -> int:
        """Return how many of a doorbell's requests are done first: as many as take a few
        milliseconds; none if the first was still to be prepared, and a slice of that has been done.
        """
        if (
            _APART * batch.extents <= _WEIGHT
            and batch.pages <= min(SHARED_AT_ONCE, RUNS_MAX)
            and Operation.RECLAIM not in batch.operations
            and not (sender.window.blinks or self._ledger.pool.unclean)
        ):  # as most are
            return batch.asked
        requests = batch.requests()
        weight, before = 0, requests[0]
        most = _WEIGHT_OF_SLOTS if sender.window.blinks else _WEIGHT
        for count, request in enumerate(requests):
            weight += _weight(before, request)
            if count and weight > most:
                return count
            if isinstance(request, Request) and self.needs(request):
                if count:  # those before it may change what it needs
                    return count
                if self.prepare(sender, request):
                    return 0
            before = request
        return batch.asked

    def needs(self, request: Request) -> bool:
        """Whether a request may have to be prepared. Quick: it is asked of each."""
        spans = request.spans
        pages = 0
        for span in spans:
            pages += span.pages
        operation = request.operation
        if operation is Operation.SHARE:
            return pages > SHARED_AT_ONCE
        if pages > PARTED.get(operation, sys.maxsize):
            return True
        if pages > HIDDEN_AT_ONCE and operation is not Operation.ALLOC:
            return True
        return bool(self._ledger.pool.unclean) and int(operation) in _FRESH

    def prepare(self, peer: Peer, request: Request) -> bool:
        """Do a slice of what a request needs done before it is served, which harms nobody if it is
        refused then; or a part of it. False if there is nothing to be done: serve it, unless its
        `parts` are done.

        A machine must be stopped in the doorbell that asks for it.
        """
        operation = request.operation
        if operation is Operation.SHARE:
            return self._make_shareable(peer, request)
        wanted = sum([span.pages for span in request.spans])
        if self._ledger.pool.unclean and int(operation) in _FRESH:
            free = self._ledger.pool.free
            if wanted > self._ledger.shares.available(peer.number):
                self.chores()
                if self._ledger.pool.free > free:  # the host may refuse
                    return True
        if wanted > HIDDEN_AT_ONCE and not self.parts.begun(peer) and self._loosen(peer, request):
            return True
        return wanted > PARTED.get(operation, sys.maxsize) and self.parts.go_on(peer, request)

    def _loosen(self, peer: Peer, request: Request) -> bool:
        """Loosen a slice of what a request hides. False if all has been that can be."""
        spans, done = self._loosened.pop(peer.number, ((), 0))
        if spans != request.spans:
            done = 0
        start = done
        for window, (page, pages) in self._hidden(peer, request):
            while pages > start:
                most = min(pages - start, HIDDEN_AT_ONCE)
                done += most
                if window.loosen(page + start, most):
                    self._loosened[peer.number] = request.spans, done
                    return True
                start += most
            start -= pages
        return False

    def _hidden(self, peer: Peer, request: Request) -> Iterator[tuple[Window, Extent]]:
        """Yield what a request hides, if it is not refused, and where."""
        try:
            extents = request.extents(peer.window.region)
        except Refusal:
            return
        if int(request.operation) not in _ELSEWHERE:
            yield from ((peer.window, extent) for extent in extents)
        elif request.operation is Operation.RECLAIM:
            for extent in extents:
                for bond in self._ledger.bonds(self._ledger.runs(peer.number, extent)):
                    for borrower in bond.borrowers:
                        yield self._windows(borrower.peer), Extent(borrower.page, bond.pages)

    def forget(self, peer: Peer) -> None:
        """A peer has stopped."""
        self._loosened.pop(peer.number, None)
        self.parts.forget(peer)

    def _make_shareable(self, peer: Peer, request: Request) -> bool:
        if sum([span.pages for span in request.spans]) <= SHARED_AT_ONCE:
            return False
        receiver = peer.receiver(request.receiver)
        if receiver is None or not receiver.alive or not receiver.queue.takes(peer.number):
            return False  # refused, then
        try:
            extents = request.extents(peer.window.region)
        except Refusal:
            return False
        if not all(self._ledger.holds(peer.number, extent, _OWN) for extent in extents):
            return False
        return any(peer.window.share_slice(*extent, SHARED_AT_ONCE) for extent in extents)


def _weight(before: Request | Status, request: Request | Status) -> int:
    """Return how long a request takes, roughly: in units of a page that follows the one before."""
    if isinstance(request, Status) or not request.spans:
        return 1
    count = len(request.spans)
    pages = sum([span.pages for span in request.spans])
    large = pages * _WEIGHT // _PAGES.get(request.operation, HIDDEN_AT_ONCE)
    if not isinstance(before, Status) and before is not request and touching(before, request):
        return count + large
    return _APART * count + (count > 1) * count + large
