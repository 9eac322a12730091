"""Extents taken out of a window and brought into one: all of them, or none.

The ledger has committed already; here the windows follow it, and are as before where the host
refuses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vmm.ferry.ledger import Ledger, Parcel, Refusal
from vmm.ferry.message import Span
from vmm.ferry.peer import Peer
from vmm.ferry.runs import Extent
from vmm.guest.abi import PAGE_SIZE, Status
from vmm.memory.movers import Window


def hide(ledger: Ledger, peer: Peer, extents: Sequence[Extent]) -> None:
    """Take extents out of a peer's window: all of them, or Refusal(E_NO_MEMORY) and none."""
    hidden: list[Extent] = []
    try:
        for extent in extents:
            peer.window.hide(*extent)
            hidden.append(extent)
    except OSError:
        for extent in hidden:
            for run in ledger.runs(peer.number, extent):
                peer.window.show(run.page, run.frame, run.pages)
        raise Refusal(Status.E_NO_MEMORY) from None


def show(peer: Peer, parcel: Parcel) -> None:
    """Show a parcel's pages in the receiver's window: all of them, or OSError and none."""
    shown: list[Extent] = []
    try:
        for target, frame, count in joined(parcel):
            peer.window.show(target, frame, count)
            shown.append(Extent(target, count))
    except OSError:
        for extent in shown:
            peer.window.hide(*extent)
        raise


def spans(window: Window, extents: Sequence[Extent]) -> tuple[Span, ...]:
    """Return extents of a window by address."""
    base = window.region.base
    return tuple(Span(base + extent.page * PAGE_SIZE, extent.pages) for extent in extents)


def sources(parcel: Parcel) -> list[Extent]:
    """Return the extents as the sender named them: its places, cut as the receiver's are."""
    pieces = iter(parcel.pieces)
    found = []
    for target in parcel.targets:
        first = piece = next(pieces)
        while piece.target + piece.pages < target.end:
            piece = next(pieces)
        found.append(Extent(first.source, target.pages))
    return found


def joined(parcel: Parcel) -> Iterator[tuple[int, int, int]]:
    """Yield (target, frame, count) with neighbours joined.

    One mapping call per run, not per piece.
    """
    pieces = iter(parcel.pieces)
    first = next(pieces)
    target, frame, count = first.target, first.frame, first.pages
    for piece in pieces:
        if piece.target == target + count and piece.frame == frame + count:
            count += piece.pages
            continue
        yield target, frame, count
        target, frame, count = piece.target, piece.frame, piece.pages
    yield target, frame, count
