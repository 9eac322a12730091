"""What the statuses mean that the host's operations are refused with, in a few words."""

from __future__ import annotations

from vmm.errors import GuestError, ResourceError
from vmm.ferry.checks import RUNS_MAX
from vmm.ferry.ledger import Ledger
from vmm.guest.abi import EXTENTS_MAX, PAGE_SIZE, Status
from vmm.sizes import format_size

_WORDS = {
    Status.E_PEER: "no channel leads there",
    Status.E_DEAD: "the machine has stopped",
    Status.E_QUEUE_FULL: "the queue is full: let the machine run, or spawn it with a longer one",
    Status.E_WINDOW_FULL: "the window has no room: spawn the machine with a larger one",
    Status.E_OWNERSHIP: "a buffer is not the host's, or not yet",
    Status.E_OVERLAP: "a buffer is given twice",
    Status.E_LENGTH: f"it takes at least one buffer, at most {EXTENTS_MAX}, and "
    f"{RUNS_MAX} runs of adjacent frames in all",
    Status.E_QUOTA: "the quota of pages or pieces is used up: spawn the machine with a larger one",
    Status.E_NO_MEMORY: "the pool is empty, or the host has no memory or mappings left",
    Status.E_LENT: "a buffer is lent or shared: reclaim it first",
    Status.E_BORROWED: "a buffer is borrowed: it can only be given back",
    Status.E_RECLAIMED: "the owner has taken a buffer back: release it",
    Status.E_NOT_LENT: "a buffer is not lent or shared, or not borrowed of that machine",
    Status.E_REPEATED: "the machine sees a buffer already",
}


def refused(what: str, status: Status, why: str | None = None) -> GuestError:
    """Return the error of an operation, by its name, that is refused with a status."""
    words = _WORDS.get(status) if why is None else why
    return GuestError(f"cannot {what}: {status.name}" + (f": {words}" if words else ""), status)


def none_left(ledger: Ledger, peer: int, status: Status, count: int, pages: int) -> ResourceError:
    """Return the error for so many bytes, in so many pages, that the host does not get: why, and
    what helps.
    """
    free = ledger.shares.available(peer)
    if status is Status.E_WINDOW_FULL:
        why = "the host's window has no gap of that size: release buffers"
    elif pages > free:
        why = (
            f"{format_size(free * PAGE_SIZE)} are left in the page pool: "
            "release buffers, or make the pool larger (pool=...)"
        )
    elif ledger.growth_left(peer) < 1:
        why = (
            "the windows are cut into as many pieces as this host can map: "
            "release buffers, or raise vm.max_map_count"
        )
    else:
        why = "the pool has as much, but the kernel refused to map it: see ulimit -v"
    return ResourceError(f"no {format_size(count)} for a buffer ({status.name}): {why}")
