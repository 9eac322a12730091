"""Long work in slices, so that nobody has to wait for the whole of it.

What is shared out of anonymous memory is copied first, and what is freed is zeroed: of a gigabyte,
each takes the kernel a second. Neither changes what anybody sees, so both are done a slice at a
time, and others have the monitor's lock in between.

Not thread-safe: the monitor calls it under its lock.
"""

from __future__ import annotations

import itertools

from vmm.ferry.ledger import Ledger
from vmm.ferry.message import Request
from vmm.ferry.peer import Peer
from vmm.ferry.rules import Refusal
from vmm.ferry.sending import touching
from vmm.guest import abi
from vmm.guest.abi import Hold, Operation, Status
from vmm.memory.pool import PagePool

SHARED_AT_ONCE = 512  # pages (2 MiB): to copy them takes about as long as to zero eight times that
ZEROED_AT_ONCE = 4096  # pages

FEW = abi.RX_ENTRIES // abi.EXTENTS_MAX  # messages that are delivered together whatever they bring
_EXTENTS = abi.RX_ENTRIES  # that are shown together, and do not follow each other
_APART = 3  # pages that follow each other cost less than one that is elsewhere
_WEIGHT = _APART * abi.TX_ENTRIES  # of a slice: 64 single pages, or 48 of messages of several
_WEIGHT_OF_SLOTS = abi.TX_ENTRIES + _APART  # which take longer, but those that follow each other

# What may have to be prepared. Plain numbers: a descriptor's operation is compared with them.
PREPARED = frozenset(map(int, (Operation.SHARE, Operation.ALLOC, Operation.EXCHANGE)))
_OWN = frozenset({Hold.OWNED, Hold.SHARED})


class Slices:
    """What is done before an operation, and after it."""

    def __init__(self, ledger: Ledger, pool: PagePool) -> None:
        self._ledger = ledger
        self._pool = pool

    def chores(self) -> bool:
        """Zero a slice of what is unclean. True if more is left, and can be zeroed now."""
        frames = self._ledger.pool
        if frames.unclean:
            self._ledger.keep_unclean()
            part = frames.next_unclean(ZEROED_AT_ONCE)
            try:
                self._pool.zero([part])
            except OSError:  # the host refuses that: it stays unclean
                frames.unclean.append(part)
                return False
            except BaseException:
                frames.unclean.appendleft(part)
                raise
            self._ledger.cleaned(part)
        return bool(frames.unclean)

    def first(self, sender: Peer, requests: list[Request | Status]) -> list[Request | Status]:
        """Return the first of a doorbell's requests: as many as take a few milliseconds; none if
        the first was still to be prepared, and a slice of that has been done.
        """
        extents, quick = 0, not sender.window.blinks
        for request in requests:
            if isinstance(request, Request):
                extents += len(request.spans)
                quick = quick and int(request.operation) not in PREPARED
        if quick and _APART * extents <= _WEIGHT:  # as most are
            return requests
        weight, before = 0, requests[0]
        most = _WEIGHT_OF_SLOTS if sender.window.blinks else _WEIGHT
        for count, request in enumerate(requests):
            weight += _weight(before, request)
            if count and weight > most:
                return requests[:count]
            if isinstance(request, Request) and self.needs(sender, request):
                if count:  # those before it may change what it needs
                    return requests[:count]
                if self.prepare(sender, request):
                    return []
            before = request
        return requests

    def needs(self, peer: Peer, request: Request) -> bool:
        """Whether a request may have to be prepared. Quick: it is asked of each of many."""
        if request.operation is Operation.SHARE:
            return sum([span.pages for span in request.spans]) > SHARED_AT_ONCE
        return int(request.operation) in PREPARED and bool(self._ledger.pool.unclean)

    def prepare(self, peer: Peer, request: Request) -> bool:
        """Do a slice of what a request needs done before it is served, which harms nobody if it is
        refused then. False if there is nothing to be done: serve it.

        A machine must be stopped in the doorbell that asks for it.
        """
        if request.operation is Operation.SHARE:
            return self._make_shareable(peer, request)
        if request.operation in (Operation.ALLOC, Operation.EXCHANGE):
            wanted = sum([span.pages for span in request.spans])
            if self._ledger.pool.unclean and wanted > self._ledger.shares.available(peer.number):
                self.chores()
                return True
        return False

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
    if not isinstance(before, Status) and before is not request and touching(before, request):
        return count
    return _APART * count + (count > 1) * count


def some(peer: Peer, count: int) -> int:
    """Return how many of the first messages in a queue are delivered together."""
    extents, end, most = 0, 0, _EXTENTS // 4 if peer.window.blinks else _EXTENTS
    for index, message in enumerate(itertools.islice(peer.queue, count)):
        if not message.brought:
            for target in message.targets:
                extents += target.page != end
                end = target.end
        if extents > most and index:
            return index
    return count
