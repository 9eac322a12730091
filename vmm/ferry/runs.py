"""Interval maps: what a window's pages hold, what the pool's frames are bound to, run by run. Pure.

Everything is counted in pages. A window of a gigabyte that was filled by one message is one run,
so the cost of an operation follows the number of runs it touches, never the number of pages.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Iterator
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

from vmm.guest.abi import Hold


class Extent(NamedTuple):
    """A run of adjacent pages of one window, by index: the unit of every operation."""

    page: int
    pages: int

    @property
    def end(self) -> int:
        """The first page after the extent."""
        return self.page + self.pages

    def overlaps(self, other: Extent) -> bool:
        """Whether the two have a page in common."""
        return self.page < other.end and other.page < self.end


class Interval(Protocol):
    """What an interval map holds: `pages` adjacent places from `start`, and what they are."""

    @property
    def start(self) -> int:
        """The first place."""

    @property
    def pages(self) -> int:
        """How many places."""

    @property
    def end(self) -> int:
        """The first place after it."""

    def clip(self, start: int, end: int) -> Self:
        """Return the part of it that lies in start..end."""

    def continues(self, other: Self) -> bool:
        """Whether `other` directly follows and says the same."""

    def lengthened(self, pages: int) -> Self:
        """Return it with as many pages more at its end."""


class Run(NamedTuple):
    """`pages` adjacent pages of a window from `page`, and as many adjacent frames from `frame`."""

    page: int
    pages: int
    frame: int
    hold: Hold

    @property
    def start(self) -> int:
        """The first page."""
        return self.page

    @property
    def end(self) -> int:
        """The first page after the run."""
        return self.page + self.pages

    @property
    def extent(self) -> Extent:
        """The pages alone."""
        return Extent(self.page, self.pages)

    def clip(self, start: int, end: int) -> Run:
        """Return the part of the run that lies in start..end."""
        first = max(self.page, start)
        return Run(first, min(self.end, end) - first, self.frame + first - self.page, self.hold)

    def continues(self, other: Run) -> bool:
        """Whether `other` directly follows, in pages and in frames, with the same hold."""
        return (
            self.end == other.page
            and self.frame + self.pages == other.frame
            and self.hold is other.hold
        )

    def lengthened(self, pages: int) -> Run:
        """Return the run with as many pages more at its end."""
        return self._replace(pages=self.pages + pages)


@dataclasses.dataclass(slots=True)
class Tally:
    """How many intervals several maps have together."""

    intervals: int = 0


T = TypeVar("T", bound=Interval)


class IntervalMap(Generic[T]):
    """Disjoint intervals among `pages` places, in order; those that belong together are joined."""

    def __init__(self, pages: int, tally: Tally | None = None) -> None:
        self.pages = pages
        self._tally = tally or Tally()
        self._starts: list[int] = []
        self._items: list[T] = []

    def __iter__(self) -> Iterator[T]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def _slice(self, start: int, end: int) -> tuple[int, int]:
        """Return the range of indices of the intervals that overlap start..end."""
        first = bisect.bisect_right(self._starts, start) - 1
        if first < 0 or self._items[first].end <= start:
            first += 1
        return first, bisect.bisect_left(self._starts, end, first)

    def within(self, start: int, pages: int) -> list[T]:
        """Return the intervals that overlap `pages` places from `start`, clipped to them."""
        end = start + pages
        first, last = self._slice(start, end)
        return [item.clip(start, end) for item in self._items[first:last]]

    def at(self, place: int) -> T | None:
        """Return the interval that holds a place, whole."""
        index = bisect.bisect_right(self._starts, place) - 1
        return self._items[index] if index >= 0 and self._items[index].end > place else None

    def cuts(self, start: int, pages: int) -> int:
        """Return how many intervals would be cut in two at the ends of this range: 0, 1 or 2."""
        return self._inside(start) + self._inside(start + pages)

    def _inside(self, place: int) -> bool:
        """Whether an interval begins before `place` and goes on beyond it."""
        index = bisect.bisect_left(self._starts, place) - 1
        return index >= 0 and self._items[index].end > place

    def remove(self, start: int, pages: int) -> list[T]:
        """Cut a range out, splitting what crosses its ends; return what was there, clipped."""
        end = start + pages
        first, last = self._slice(start, end)
        old = self._items[first:last]
        keep: list[T] = []
        if old and old[0].start < start:
            keep.append(old[0].clip(old[0].start, start))
        if old and old[-1].end > end:
            keep.append(old[-1].clip(end, old[-1].end))
        self._replace(first, last, keep)
        return [item.clip(start, end) for item in old]

    def insert(self, item: T) -> None:
        """Add an interval where there is none, joined with the neighbours that it continues."""
        first = last = bisect.bisect_left(self._starts, item.start)
        if first and self._items[first - 1].continues(item):
            first -= 1
            item = self._items[first].lengthened(item.pages)
        if last < len(self._items) and item.continues(self._items[last]):
            item = item.lengthened(self._items[last].pages)
            last += 1
        self._replace(first, last, [item])

    def _replace(self, first: int, last: int, items: list[T]) -> None:
        self._tally.intervals += len(items) - (last - first)
        self._items[first:last] = items
        self._starts[first:last] = [item.start for item in items]

    def clear(self) -> None:
        """Remove everything."""
        self._replace(0, len(self._items), [])

    def _gaps(self) -> Iterator[Extent]:
        """Yield the holes between the intervals, lowest first."""
        place = 0
        for item in self._items:
            if item.start > place:
                yield Extent(place, item.start - place)
            place = item.end
        if place < self.pages:
            yield Extent(place, self.pages - place)

    def gap(self, count: int, align: int = 1) -> int | None:
        """Return the lowest place, a multiple of `align`, from which `count` hold nothing."""
        for hole in self._gaps():
            place = -(-hole.page // align) * align
            if place + count <= hole.end:
                return place
        return None

    def gap_from_top(self, count: int, align: int = 1) -> int | None:
        """Return the highest such place."""
        for hole in reversed(list(self._gaps())):
            place = (hole.end - count) // align * align
            if place >= hole.page:
                return place
        return None
