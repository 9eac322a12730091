"""Places in windows: where extents land, and where parts of them are then. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vmm.ferry.rules import Refusal
from vmm.guest.abi import Hold, Status
from vmm.memory.frames import alignments
from vmm.memory.runs import Extent, IntervalMap, Run


def moved(runs: Iterable[Run], extents: Sequence[Extent], targets: Sequence[Extent]) -> list[int]:
    """Return for each run of the extents its place in the targets."""
    if len(extents) == 1:
        shift = targets[0].page - extents[0].page
        return [run.page + shift for run in runs]
    places = []
    pairs = iter(zip(extents, targets, strict=True))
    extent = target = Extent(0, 0)
    for run in runs:
        if not extent.page <= run.page < extent.end:
            extent, target = next(pairs)
        places.append(target.page + run.page - extent.page)
    return places


def joined(extents: Iterable[Extent]) -> list[Extent]:
    """Return extents with each that directly follows another joined to it."""
    found: list[Extent] = []
    for extent in extents:
        if found and found[-1].end == extent.page:
            extent = Extent(found[-1].page, found.pop().pages + extent.pages)
        found.append(extent)
    return found


def without(run: Run, parts: Iterable[Extent | Run]) -> list[Run]:
    """Return what is left of a run without the pages of others."""
    left = [run]
    for other in parts:
        page, end = other.page, other.end
        left = [
            part
            for whole in left
            for part in (whole.clip(0, page), whole.clip(end, whole.end))
            if part.pages > 0
        ]
    return left


def place_for(window: IntervalMap[Run], count: int) -> int:
    """Choose a place for `count` pages: large extents aligned (frames.alignments) from the top,
    small ones from below. Refused: E_WINDOW_FULL.

    Kept apart, a small extent does not cut a large one's huge pages in two.
    """
    for align in alignments(count):
        page = window.gap_from_top(count, align)
        if page is not None:
            return page
    page = window.gap(count)
    if page is None:
        raise Refusal(Status.E_WINDOW_FULL)
    return page


def reserve(window: IntervalMap[Run], counts: Sequence[int]) -> list[Extent]:
    """Choose disjoint places for as many extents, without taking them. Refused: E_WINDOW_FULL."""
    if len(counts) == 1:
        return [Extent(place_for(window, counts[0]), counts[0])]
    places: list[Extent] = []
    try:
        for count in counts:
            page = place_for(window, count)
            places.append(Extent(page, count))
            window.insert(Run(page, count, page, Hold.REVOKED))
    finally:
        for extent in places:
            window.discard(*extent)
    return places
