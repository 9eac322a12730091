"""The ledger: who owns every page. Pure Python, no KVM in it, nothing that can fail half way.

A frame (a page of the pool) is at any time in exactly one of three states:

    free        in the pool, reading as zeros
    owned       by one peer, at one place in its window
    in flight   in one parcel, on its way from a sender's window to a receiver's

and moves between them only by these operations:

    operation     frame                  sender's window        receiver's window
    ---------     -----                  ---------------        -----------------
    grant         free      -> owned                            (hole)   -> OWNED
    begin         owned     -> in flight OWNED    -> OUTGOING   (hole)   -> INCOMING
    complete      in flight -> owned     OUTGOING -> (hole)     INCOMING -> OWNED
    cancel        in flight -> owned     OUTGOING -> OWNED      INCOMING -> (hole)
    release       owned     -> free      OWNED    -> (hole)

Places on both sides are kept while a parcel is in flight, so neither delivery nor the way back can
fail for want of room. Each operation checks everything first and then commits; a `Refusal` leaves
all as it was.

Not thread-safe: the exchange calls it under its lock.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from vmm.ferry.frames import LARGE, FramePool, Frames
from vmm.ferry.runs import Extent, Hold, Run, RunMap
from vmm.guest.abi import Status


class Refusal(Exception):
    """An operation that may not be; `status` is what its asker is told. Nothing was changed."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.name)
        self.status = status


class LedgerError(AssertionError):
    """The ledger contradicts itself: a mistake in pageferry, never in a guest."""


class Piece(NamedTuple):
    """Adjacent frames in flight.

    The places they leave and the places they go to are adjacent too.
    """

    frame: int
    pages: int
    source: int  # page in the sender's window
    target: int  # page in the receiver's window


@dataclasses.dataclass(frozen=True, slots=True)
class Parcel:
    """The pages of one message in flight.

    pieces    in the order of the message's extents
    targets   where each extent lands in the receiver's window
    """

    sender: int
    receiver: int
    pieces: tuple[Piece, ...]
    targets: tuple[Extent, ...]


class Ledger:
    """Ownership of the pool's frames among peers, each with a window of its own."""

    def __init__(self, frames: int) -> None:
        self.pool = FramePool(frames)
        self._windows: dict[int, RunMap] = {}
        self._in_flight: set[Parcel] = set()

    # ---- Peers ----

    def admit(self, peer: int, pages: int) -> None:
        """Add a peer with an empty window of `pages` pages."""
        if peer in self._windows:
            raise LedgerError(f"peer {peer} is already there")
        self._windows[peer] = RunMap(pages)

    def dismiss(self, peer: int) -> list[Frames]:
        """Remove a peer; return the frames that this freed.

        What it sent stays in flight; what is on its way to it must have been cancelled before.
        """
        if any(parcel.receiver == peer for parcel in self._in_flight):
            raise LedgerError(f"parcels are still in flight to peer {peer}")
        owned = [run for run in self._windows.pop(peer) if run.hold is Hold.OWNED]
        return self._free(Frames(run.frame, run.pages) for run in owned)

    def window(self, peer: int) -> tuple[Run, ...]:
        """Return what a peer's window holds, in order."""
        return tuple(self._windows[peer])

    def runs(self, peer: int, extent: Extent) -> list[Run]:
        """Return what one extent of a peer's window holds, clipped to it."""
        return self._windows[peer].within(extent)

    def owns(self, peer: int, extent: Extent) -> bool:
        """Whether every page of the extent is the peer's own."""
        return self._windows[peer].covers(extent, Hold.OWNED)

    # ---- Pool ----

    def grant(self, peer: int, count: int) -> tuple[Extent, list[Run]]:
        """Give a peer `count` free pages, adjacent in its window; return the extent and its runs.

        Refused with E_RANGE if that is none, E_WINDOW_FULL or E_NO_MEMORY.
        """
        if count < 1:
            raise Refusal(Status.E_RANGE)
        window = self._windows[peer]
        page = _place(window, count)
        if page is None:
            raise Refusal(Status.E_WINDOW_FULL)
        frames = self.pool.allocate(count)
        if not frames:
            raise Refusal(Status.E_NO_MEMORY)
        extent = Extent(page, count)
        for part in frames:
            window.insert(Run(page, part.pages, part.first, Hold.OWNED))
            page += part.pages
        return extent, window.within(extent)

    def release(self, peer: int, extents: Sequence[Extent]) -> list[Frames]:
        """Take disjoint extents back into the pool; return their frames.

        Refused with E_OWNERSHIP.
        """
        window = self._windows[peer]
        if not all(window.covers(extent, Hold.OWNED) for extent in extents):
            raise Refusal(Status.E_OWNERSHIP)
        runs = [run for extent in extents for run in window.remove(extent)]
        return self._free(Frames(run.frame, run.pages) for run in runs)

    def _free(self, frames: Iterable[Frames]) -> list[Frames]:
        freed = list(frames)
        for part in freed:
            self.pool.release(part)
        return freed

    # ---- Sending ----

    def begin(self, sender: int, receiver: int, extents: Sequence[Extent]) -> Parcel:
        """Take the extents, disjoint and within the sender's window, from their owner into flight.

        Refused with E_OWNERSHIP if a page is not the sender's, E_WINDOW_FULL if the receiver has
        no room.
        """
        source, target = self._windows[sender], self._windows[receiver]
        if not all(source.covers(extent, Hold.OWNED) for extent in extents):
            raise Refusal(Status.E_OWNERSHIP)
        targets = _reserve(target, extents)
        pieces: list[Piece] = []
        for extent, place in zip(extents, targets, strict=True):
            for run in source.remove(extent):
                source.insert(run._replace(hold=Hold.OUTGOING))
                page = place.page + run.page - extent.page
                pieces.append(Piece(run.frame, run.pages, run.page, page))
        parcel = Parcel(sender, receiver, tuple(pieces), tuple(targets))
        for piece in pieces:
            target.insert(Run(piece.target, piece.pages, piece.frame, Hold.INCOMING))
        if pieces:
            self._in_flight.add(parcel)
        return parcel

    def complete(self, parcel: Parcel) -> None:
        """Deliver: the receiver owns the pages, the sender's places are holes."""
        self._land(parcel)
        source, target = self._windows.get(parcel.sender), self._windows[parcel.receiver]
        for piece in parcel.pieces:
            target.remove(Extent(piece.target, piece.pages))
            target.insert(Run(piece.target, piece.pages, piece.frame, Hold.OWNED))
            if source is not None:
                source.remove(Extent(piece.source, piece.pages))

    def cancel(self, parcel: Parcel) -> list[Frames]:
        """Undo: the sender owns the pages again, where they were.

        If the sender is gone they are freed; the frames that this freed are returned.
        """
        self._land(parcel)
        source, target = self._windows.get(parcel.sender), self._windows[parcel.receiver]
        for piece in parcel.pieces:
            target.remove(Extent(piece.target, piece.pages))
            if source is not None:
                source.remove(Extent(piece.source, piece.pages))
                source.insert(Run(piece.source, piece.pages, piece.frame, Hold.OWNED))
        if source is not None:
            return []
        return self._free(Frames(piece.frame, piece.pages) for piece in parcel.pieces)

    def _land(self, parcel: Parcel) -> None:
        if parcel.pieces and parcel not in self._in_flight:
            raise LedgerError("the parcel is not in flight")
        self._in_flight.discard(parcel)

    # ---- Audit ----

    def audit(self) -> dict[str, int]:
        """Check that every frame is in one state only; return the pages in each.

        Raises LedgerError.
        """
        states = {
            "free": [(run.first, run.pages) for run in self.pool.runs],
            "owned": [
                (run.frame, run.pages)
                for window in self._windows.values()
                for run in window
                if run.hold is Hold.OWNED
            ],
            "in_flight": [(p.frame, p.pages) for parcel in self._in_flight for p in parcel.pieces],
        }
        self._check_partition(sorted(run for runs in states.values() for run in runs))
        self._check_reservations()
        return {state: sum(count for _, count in runs) for state, runs in states.items()}

    def _check_partition(self, runs: list[tuple[int, int]]) -> None:
        expected = 0
        for frame, count in runs:
            if frame != expected:
                raise LedgerError(f"frame {min(frame, expected)} is in no state, or in two")
            expected = frame + count
        if expected != self.pool.total:
            raise LedgerError(f"frame {expected} is in no state")

    def _check_reservations(self) -> None:
        kept = dict.fromkeys(Hold, 0)
        for window in self._windows.values():
            for run in window:
                kept[run.hold] += run.pages
        flying = [(parcel, sum(p.pages for p in parcel.pieces)) for parcel in self._in_flight]
        outgoing = sum(count for parcel, count in flying if parcel.sender in self._windows)
        if kept[Hold.INCOMING] != sum(count for _, count in flying):
            raise LedgerError("the places kept for parcels are not those in flight")
        if kept[Hold.OUTGOING] != outgoing:
            raise LedgerError("the places kept for the way back are not those in flight")
        for parcel in self._in_flight:
            for piece in parcel.pieces:
                self._check_place(parcel.receiver, piece.target, piece, Hold.INCOMING)
                if parcel.sender in self._windows:
                    self._check_place(parcel.sender, piece.source, piece, Hold.OUTGOING)

    def _check_place(self, peer: int, page: int, piece: Piece, hold: Hold) -> None:
        if self.runs(peer, Extent(page, piece.pages)) != [
            Run(page, piece.pages, piece.frame, hold)
        ]:
            raise LedgerError(f"page {page} of peer {peer} is not kept for what is in flight")


def _place(window: RunMap, count: int) -> int | None:
    """Choose a place for `count` pages: large extents aligned to 2 MiB from the top, small ones
    from below.

    Kept apart, a small extent does not cut a large one's huge pages in two.
    """
    if count >= LARGE:
        page = window.gap_from_top(count, LARGE)
        if page is not None:
            return page
    return window.gap(count)


def _reserve(window: RunMap, extents: Sequence[Extent]) -> list[Extent]:
    """Choose disjoint places for all the extents, without taking them. Refused: E_WINDOW_FULL."""
    places: list[Extent] = []
    try:
        for extent in extents:
            page = _place(window, extent.pages)
            if page is None:
                raise Refusal(Status.E_WINDOW_FULL)
            places.append(Extent(page, extent.pages))
            if len(extents) > 1:
                window.insert(Run(page, extent.pages, -1, Hold.INCOMING))
    finally:
        if len(extents) > 1:
            for place in places:
                window.remove(place)
    return places
