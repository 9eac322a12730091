"""Interval maps of pages: what a window holds, run by run. Pure; no KVM, no memory.

Everything is counted in pages. A window of a gigabyte that was filled by one message is one run,
so the cost of an operation follows the number of runs it touches, never the number of pages.
"""

from __future__ import annotations

import bisect
import enum
from collections.abc import Iterator
from typing import NamedTuple


class Extent(NamedTuple):
    """A run of adjacent pages of one window, by index: the unit of every operation."""

    page: int
    pages: int

    @property
    def end(self) -> int:
        """The first page after the extent."""
        return self.page + self.pages


class Hold(enum.Enum):
    """What a window's pages are to its peer."""

    OWNED = "owned"  # its memory: mapped, or about to be
    OUTGOING = (
        "outgoing"  # sent and not yet delivered: no access, the place kept in case it comes back
    )
    INCOMING = "incoming"  # announced and not yet delivered: no access, the place kept for it


class Run(NamedTuple):
    """`pages` adjacent pages from `page`, backed by as many adjacent frames from `frame`."""

    page: int
    pages: int
    frame: int
    hold: Hold

    @property
    def end(self) -> int:
        """The first page after the run."""
        return self.page + self.pages

    def clip(self, page: int, end: int) -> Run:
        """Return the part of the run that lies in page..end."""
        start = max(self.page, page)
        return Run(start, min(self.end, end) - start, self.frame + start - self.page, self.hold)

    def continues(self, other: Run) -> bool:
        """Whether `other` directly follows, in pages and in frames, with the same hold."""
        return (
            self.end == other.page
            and self.frame + self.pages == other.frame
            and self.hold is other.hold
        )


class RunMap:
    """Disjoint runs in a window of `pages` pages, in order; those that belong together joined."""

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self._starts: list[int] = []
        self._runs: list[Run] = []

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs)

    def __len__(self) -> int:
        return len(self._runs)

    def _slice(self, page: int, end: int) -> tuple[int, int]:
        """Return the range of indices of the runs that overlap page..end."""
        first = bisect.bisect_right(self._starts, page) - 1
        if first < 0 or self._runs[first].end <= page:
            first += 1
        return first, bisect.bisect_left(self._starts, end, first)

    def within(self, extent: Extent) -> list[Run]:
        """Return the runs that overlap the extent, clipped to it."""
        first, last = self._slice(extent.page, extent.end)
        return [run.clip(extent.page, extent.end) for run in self._runs[first:last]]

    def covers(self, extent: Extent, hold: Hold) -> bool:
        """Whether every page of the extent is there with this hold."""
        runs = self.within(extent)
        return sum(run.pages for run in runs) == extent.pages and all(
            run.hold is hold for run in runs
        )

    def remove(self, extent: Extent) -> list[Run]:
        """Cut the extent out, splitting runs at its ends; return what was there, clipped to it."""
        first, last = self._slice(extent.page, extent.end)
        old = self._runs[first:last]
        keep: list[Run] = []
        if old and old[0].page < extent.page:
            keep.append(old[0].clip(old[0].page, extent.page))
        if old and old[-1].end > extent.end:
            keep.append(old[-1].clip(extent.end, old[-1].end))
        self._replace(first, last, keep)
        return [run.clip(extent.page, extent.end) for run in old]

    def insert(self, run: Run) -> None:
        """Add a run on pages that hold nothing, joined with the neighbours that it continues."""
        index = bisect.bisect_left(self._starts, run.page)
        first = last = index
        if index and self._runs[index - 1].continues(run):
            first -= 1
            before = self._runs[first]
            run = Run(before.page, before.pages + run.pages, before.frame, run.hold)
        if index < len(self._runs) and run.continues(self._runs[index]):
            last += 1
            run = run._replace(pages=run.pages + self._runs[index].pages)
        self._replace(first, last, [run])

    def _replace(self, first: int, last: int, runs: list[Run]) -> None:
        self._runs[first:last] = runs
        self._starts[first:last] = [run.page for run in runs]

    def _gaps(self) -> Iterator[Extent]:
        """Yield the holes between the runs, lowest first."""
        page = 0
        for run in self._runs:
            if run.page > page:
                yield Extent(page, run.page - page)
            page = run.end
        if page < self.pages:
            yield Extent(page, self.pages - page)

    def gap(self, count: int, align: int = 1) -> int | None:
        """Return the lowest page, a multiple of `align`, from which `count` pages hold nothing."""
        for hole in self._gaps():
            page = -(-hole.page // align) * align
            if page + count <= hole.end:
                return page
        return None

    def gap_from_top(self, count: int, align: int = 1) -> int | None:
        """Return the highest such page."""
        for hole in reversed(list(self._gaps())):
            page = (hole.end - count) // align * align
            if page >= hole.page:
                return page
        return None
