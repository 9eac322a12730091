"""Long work in slices, so that nobody has to wait for the whole of it.

What is shared out of anonymous memory is copied first, and what is freed is zeroed: of a gigabyte,
each takes the kernel a second. Neither changes what anybody sees, so both are done a slice at a
time, and others have the monitor's lock in between.

Not thread-safe: the monitor calls it under its lock.
"""

from __future__ import annotations

from vmm.ferry.ledger import Ledger
from vmm.ferry.message import Request
from vmm.ferry.peer import Peer
from vmm.ferry.rules import Refusal
from vmm.guest.abi import Hold, Operation
from vmm.memory.pool import PagePool

SHARED_AT_ONCE = 512  # pages (2 MiB): to copy them takes about as long as to zero eight times that
ZEROED_AT_ONCE = 4096  # pages

# What may have to be prepared. Plain numbers: a descriptor's operation is compared with them.
PREPARED = frozenset(map(int, (Operation.SHARE, Operation.ALLOC, Operation.EXCHANGE)))
_OWN = frozenset({Hold.OWNED, Hold.SHARED})


class Slices:
    """What is done before an operation, and after it."""

    def __init__(self, ledger: Ledger, pool: PagePool) -> None:
        self._ledger = ledger
        self._pool = pool

    def chores(self) -> bool:
        """Zero a slice of what is unclean. True if more is left."""
        frames = self._ledger.pool
        if frames.unclean:
            self._ledger.keep_unclean()
            part = frames.next_unclean(ZEROED_AT_ONCE)
            try:
                self._pool.zero([part])
            except BaseException:
                frames.unclean.appendleft(part)
                raise
            self._ledger.cleaned(part)
        return bool(frames.unclean)

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
