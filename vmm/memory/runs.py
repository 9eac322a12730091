"""Interval maps: what a window's pages hold, what the pool's frames are bound to, run by run. Pure.

Everything is counted in pages. A window of a gigabyte that was filled by one message is one run,
so the cost of an operation follows the number of runs it touches, never the number of pages.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Generic, NamedTuple, Protocol, Self, SupportsIndex, TypeVar, overload

from vmm.guest.abi import Hold
from vmm.memory.journal import IDLE, Journal


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
    """What an interval map holds: a named tuple that begins with its first place and its number of
    places. The map reads the two by their positions, which is what costs least.
    """

    @overload
    def __getitem__(self, index: SupportsIndex, /) -> Any: ...

    @overload
    def __getitem__(self, index: slice, /) -> tuple[Any, ...]: ...

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
    def end(self) -> int:
        """The first page after the run."""
        return self.page + self.pages

    @property
    def extent(self) -> Extent:
        """The pages alone."""
        return Extent(self.page, self.pages)

    def clip(self, start: int, end: int) -> Run:
        """Return the part of the run that lies in start..end."""
        page, pages, frame, hold = self
        last = page + pages
        if start > page:
            frame += start - page
            page = start
        return Run(page, (end if end < last else last) - page, frame, hold)

    def continues(self, other: Run) -> bool:
        """Whether `other` directly follows, in pages and in frames, with the same hold."""
        page, pages, frame, hold = self
        return page + pages == other.page and frame + pages == other.frame and hold is other.hold

    def lengthened(self, pages: int) -> Run:
        """Return the run with as many pages more at its end."""
        return Run(self.page, self.pages + pages, self.frame, self.hold)


@dataclasses.dataclass(slots=True)
class Tally:
    """How many intervals several maps have together."""

    intervals: int = 0


T = TypeVar("T", bound=Interval)


class IntervalMap(Generic[T]):
    """Disjoint intervals among `pages` places, in order; those that belong together are joined.

    items, starts, ends   they, in order, and their bounds: to be read only
    journal   where it is kept before a turn's first change of it
    full      below it is no hole

    Most changes concern one interval, or a part of one: what they cost is a search and a copy of
    the tail of three lists.
    """

    def __init__(self, pages: int, tally: Tally | None = None, journal: Journal = IDLE) -> None:
        self.pages = pages
        self.turn = 0
        self.journal = journal
        self.tally = tally or Tally()
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.items: list[T] = []
        self.full = 0

    def saved(self) -> list[T]:
        return self.items.copy()

    def restore(self, saved: list[T]) -> None:
        self.items[:] = saved
        self.starts[:] = [item[0] for item in saved]
        self.ends[:] = [item[0] + item[1] for item in saved]
        self.full = 0

    def kept(self) -> Callable[[], None]:
        """Return what puts it back to what it is now."""
        return partial(self.restore, self.saved())

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def _slice(self, start: int, end: int) -> tuple[int, int]:
        """Return the range of indices of the intervals that overlap start..end."""
        first = bisect_right(self.starts, start) - 1
        if first < 0 or self.ends[first] <= start:
            first += 1
        return first, bisect_left(self.starts, end, first)

    def within(self, start: int, pages: int) -> list[T]:
        """Return the intervals that overlap `pages` places from `start`, clipped to them."""
        end = start + pages
        first = bisect_right(self.starts, start) - 1
        if first >= 0 and self.ends[first] >= end:
            item = self.items[first]
            whole = self.starts[first] == start and self.ends[first] == end
            return [item if whole else item.clip(start, end)]
        first, last = self._slice(start, end)
        return [item.clip(start, end) for item in self.items[first:last]]

    def at(self, place: int) -> T | None:
        """Return the interval that holds a place, whole."""
        index = bisect_right(self.starts, place) - 1
        return self.items[index] if index >= 0 and self.ends[index] > place else None

    def part(self, start: int, pages: int) -> tuple[T, int] | None:
        """Return the part of the one interval that holds all of these places, and in how many
        pieces more it would be without them, as `cuts` says; None if there is no such interval.
        """
        end = start + pages
        index = bisect_right(self.starts, start) - 1
        if index < 0 or self.ends[index] < end:
            return None
        cuts = (self.starts[index] != start) + (self.ends[index] != end)
        item = self.items[index]
        return (item.clip(start, end) if cuts else item), cuts

    def cuts(self, start: int, pages: int) -> int:
        """Return how many intervals would be cut in two at the ends of this range: 0, 1 or 2."""
        return self._inside(start) + self._inside(start + pages)

    def _inside(self, place: int) -> bool:
        """Whether an interval begins before `place` and goes on beyond it."""
        index = bisect_left(self.starts, place) - 1
        return index >= 0 and self.ends[index] > place

    def remove(self, start: int, pages: int) -> list[T]:
        """Cut a range out, splitting what crosses its ends; return what was there, clipped."""
        if self.turn != self.journal.turn:
            self.journal.keep(self)
        end = start + pages
        if start < self.full:
            self.full = start
        index = bisect_right(self.starts, start) - 1
        if index >= 0 and self.ends[index] >= end:
            item = self.items[index]
            self._cut(index, item, start, end)
            return [item.clip(start, end)]
        first, last = self._slice(start, end)
        old = self.items[first:last]
        self._put(first, last, self._outside(first, last, start, end))
        return [item.clip(start, end) for item in old]

    def discard(self, start: int, pages: int) -> None:
        """Cut a range out as `remove` does, whatever was there."""
        if self.turn != self.journal.turn:
            self.journal.keep(self)
        end = start + pages
        index = bisect_right(self.starts, start) - 1
        if index >= 0 and self.ends[index] >= end:
            if start < self.full:
                self.full = start
            self._cut(index, self.items[index], start, end)
        else:
            self.remove(start, pages)

    def _cut(self, index: int, item: T, start: int, end: int) -> None:
        """Cut a range out of one interval, which it lies in."""
        first, last = self.starts[index], self.ends[index]
        if first != start:
            self.items[index] = item.clip(first, start)
            self.ends[index] = start
            if last != end:
                self._add(index + 1, item.clip(end, last), end, last)
        elif last != end:
            self.items[index] = item.clip(end, last)
            self.starts[index] = end
        else:
            del self.items[index], self.starts[index], self.ends[index]
            self.tally.intervals -= 1

    def _add(self, index: int, item: T, start: int, end: int) -> None:
        self.items.insert(index, item)
        self.starts.insert(index, start)
        self.ends.insert(index, end)
        self.tally.intervals += 1

    def _outside(self, first: int, last: int, start: int, end: int) -> list[T]:
        """Return what is left of some intervals on either side of a range."""
        keep: list[T] = []
        if first < last:
            if self.starts[first] < start:
                keep.append(self.items[first].clip(self.starts[first], start))
            if self.ends[last - 1] > end:
                keep.append(self.items[last - 1].clip(end, self.ends[last - 1]))
        return keep

    def insert(self, item: T) -> None:
        """Add an interval where there is none, joined with the neighbours that it continues."""
        if self.turn != self.journal.turn:
            self.journal.keep(self)
        start = item[0]
        end, index = start + item[1], bisect_left(self.starts, start)
        ends, items = self.ends, self.items
        if index and ends[index - 1] == start and items[index - 1].continues(item):
            index -= 1
            items[index], ends[index] = items[index].lengthened(item[1]), end
            self._join_next(index)
        elif (
            index < len(items)
            and self.starts[index] == end
            and item.continues(right := items[index])
        ):
            items[index], self.starts[index] = item.lengthened(right[1]), start
        else:
            self._add(index, item, start, end)

    def _join_next(self, index: int) -> None:
        """Join an interval with the next one, if that continues it."""
        after = index + 1
        if after < len(self.items) and self.starts[after] == self.ends[index]:
            item, right = self.items[index], self.items[after]
            if item.continues(right):
                self.items[index] = item.lengthened(right[1])
                self.ends[index] = self.ends[after]
                del self.items[after], self.starts[after], self.ends[after]
                self.tally.intervals -= 1

    def replace(self, item: T) -> None:
        """Put an interval in the place of whatever is there, joined with the neighbours."""
        if self.turn != self.journal.turn:
            self.journal.keep(self)
        start = item[0]
        end, index = start + item[1], bisect_right(self.starts, start) - 1
        if index >= 0 and self.ends[index] >= end:
            if self.starts[index] == start and self.ends[index] == end:
                self.items[index] = item
                after = index + 1
                if after < len(self.items) and self.starts[after] == end:
                    self._join_next(index)
                if index and self.ends[index - 1] == start:
                    self._join_next(index - 1)
                return
            self._cut(index, self.items[index], start, end)
        else:
            full = self.full
            self.remove(start, end - start)
            self.full = full
        self.insert(item)

    def _put(self, first: int, last: int, items: list[T]) -> None:
        self.tally.intervals += len(items) - (last - first)
        self.items[first:last] = items
        self.starts[first:last] = [item[0] for item in items]
        self.ends[first:last] = [item[0] + item[1] for item in items]

    def clear(self) -> None:
        """Remove everything."""
        if self.turn != self.journal.turn:
            self.journal.keep(self)
        self._put(0, len(self.items), [])
        self.full = 0

    def gap(self, count: int, align: int = 1) -> int | None:
        """Return the lowest place, a multiple of `align`, from which `count` hold nothing."""
        starts, ends = self.starts, self.ends
        index = bisect_left(starts, self.full)
        hole = max(self.full, ends[index - 1]) if index else self.full
        while index < len(starts) and starts[index] == hole:
            hole = ends[index]
            index += 1
        self.full = hole
        for after in range(index, len(starts)):
            place = -(-hole // align) * align
            if place + count <= starts[after]:
                return place
            hole = ends[after]
        place = -(-hole // align) * align
        return place if place + count <= self.pages else None

    def gap_from_top(self, count: int, align: int = 1) -> int | None:
        """Return the highest such place."""
        hole_end = self.pages
        for index in range(len(self.starts) - 1, -1, -1):
            place = (hole_end - count) // align * align
            if place >= self.ends[index]:
                return place
            hole_end = self.starts[index]
        place = (hole_end - count) // align * align
        return place if place >= 0 else None
