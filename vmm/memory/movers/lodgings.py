"""Where the memory of each frame is: in a memfd, or anonymous, at home or in a window. Pure.

Which of the two it is, is decided when the frame is first shown after it was free, and holds until
it is free again, or shared.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

from vmm.guest.abi import PAGE_SIZE
from vmm.memory.journal import IDLE, Journal
from vmm.memory.runs import IntervalMap

Restore = Callable[[], object]
_new = tuple.__new__


class Lodger(Protocol):
    """A window that anonymous memory can be in."""

    def address(self, page: int) -> int:
        """Return the host address of one of its pages."""

    def lose(self, part: Lodging) -> None:
        """Follow memory that has been taken out of it."""

    def kept(self) -> Restore:
        """Return what puts its table back to what it is now."""


class Lodging(NamedTuple):
    """Where the memory of `pages` adjacent frames from `frame` is.

    anonymous  at home, or in a window; else in the memfd
    window     the one that shows it, and from which page on: if it is anonymous, and not at home
    fresh      whether there is none yet
    """

    frame: int
    pages: int
    anonymous: bool
    window: Lodger | None = None
    page: int = 0
    fresh: bool = False

    @property
    def end(self) -> int:
        """The first frame after these."""
        return self.frame + self.pages

    def clip(self, start: int, end: int) -> Lodging:
        """Return the part of it that concerns the frames in start..end."""
        frame, pages, anonymous, window, page, fresh = self
        first, last = max(frame, start), min(frame + pages, end)
        if window is not None:
            page += first - frame
        return Lodging(first, last - first, anonymous, window, page, fresh)

    def continues(self, other: Lodging) -> bool:
        """Whether `other` directly follows, in the same memory."""
        return (
            self.end == other.frame
            and self.anonymous == other.anonymous
            and self.window is other.window
            and (self.window is None or self.page + self.pages == other.page)
        )

    def lengthened(self, pages: int) -> Lodging:
        """Return it with as many frames more at its end."""
        return self._replace(pages=self.pages + pages)


class Torn(OSError):
    """A move that the host has refused half way: some has moved, and back if that could be had.

    start, end   the bytes that have moved, and not back; before them the target is blank now
    """

    def __init__(self, start: int, end: int, error: OSError) -> None:
        super().__init__(*error.args)
        self.start, self.end = start, end

    def part_of(self, part: Lodging) -> Lodging:
        """Return what has moved of the memory that was to."""
        return part.clip(part.frame + self.start // PAGE_SIZE, part.frame + self.end // PAGE_SIZE)

    def rest(self, size: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return where what has not moved starts, and how long it is."""
        return (0, self.start), (self.end, size - self.end)


class Lodgings:
    """The lodgings of `frames` frames.

    large  so many frames or more get anonymous memory, if their number and their page's are the
           same modulo `large`: with 512, huge pages fit
    limit  of `seams`, beyond which nothing is decided that makes more of them
    seams  how often anonymous memory and the memfd meet between adjacent frames. What is one run to
           the ledger is at a seam two mappings to the kernel: wherever the anonymous frame is
           shown, which is at one place
    """

    def __init__(self, frames: int, large: int, limit: int, journal: Journal = IDLE) -> None:
        self._map: IntervalMap[Lodging] = IntervalMap(frames, journal=journal)
        self._large = large
        self.limit = limit
        self.seams = 0

    def kept(self) -> Restore:
        """Return what puts them back to what they are now; `recount` them then."""
        return self._map.kept()

    def recount(self) -> None:
        """Count the seams again, after the lodgings have been restored."""
        self.seams = _seams(self._map)

    def saved(self) -> tuple[IntervalMap[Lodging], list[Lodging]]:
        """Return its table, and what that holds."""
        return self._map, self._map.items.copy()

    def __iter__(self) -> Iterator[Lodging]:
        return iter(self._map)

    def of(self, page: int, frame: int, count: int) -> list[Lodging]:
        """Return the lodgings of frames that are to be shown from `page` on, all of them, in order;
        for those that have none, those that they are to have.
        """
        known = self._map.within(frame, count)
        found: list[Lodging] = []
        end = frame + count
        for part in (*known, None):
            start = end if part is None else part.frame
            if start > frame:
                anonymous = self._decide(page, frame, start - frame)
                found.append(Lodging(frame, start - frame, anonymous, fresh=True))
            if part is not None:
                found.append(part)
                start = part.end
            page, frame = page + start - frame, start
        return found

    def _decide(self, page: int, frame: int, count: int) -> bool:
        """Whether frames without a lodging are to have anonymous memory.

        Small ones that follow anonymous memory do too: freed and allocated again one by one, they
        would else cut it into as many pieces.
        """
        near = {part.anonymous for part in self._around(frame, count)}
        if True in near:
            return True
        large = count >= self._large and (page - frame) % self._large == 0
        return large and (not near or self.seams < self.limit)

    def in_memfd(self, frame: int, count: int) -> bool:
        """Whether the memory of all these frames is the memfd's."""
        return self._holds(frame, count, anonymous=False)

    def _holds(self, frame: int, count: int, *, anonymous: bool) -> bool:
        """Whether one lodging, of this kind, has all these frames. False where it has been moved
        by parts, too: this is to be quick.
        """
        part = self._map.at(frame)
        if part is None or part.anonymous is not anonymous:
            return False
        return part.frame + part.pages >= frame + count

    def within(self, frame: int, count: int) -> list[Lodging]:
        """Return the lodgings of those of these frames that have one."""
        return self._map.within(frame, count)

    def settle(self, lodging: Lodging) -> None:
        """Frames have this lodging now, whatever they had."""
        frame, pages = lodging.frame, lodging.pages
        if self._holds(frame, pages, anonymous=lodging.anonymous):
            self._map.replace(lodging)
            return
        seams = self._count(frame, pages)
        self._map.replace(lodging._replace(fresh=False))
        self.seams += self._count(frame, pages) - seams

    def passed_on(self, frame: int, pages: int, window: Lodger, page: int) -> None:
        """Anonymous memory is in this window now, from this page on: as `settle`."""
        table, end = self._map, frame + pages
        starts, ends, items = table.starts, table.ends, table.items
        after = bisect_right(starts, frame)
        index = after - 1
        lodging = _new(Lodging, (frame, pages, True, window, page, False))
        if (
            index >= 0
            and starts[index] == frame
            and ends[index] == end
            and items[index][2]  # anonymous
            and table.turn == table.journal.turn
            and (not index or ends[index - 1] != frame or items[index - 1][3] is not window)
            and (after == len(items) or starts[after] != end or items[after][3] is not window)
        ):  # nothing is cut, or to be joined, or to be kept
            items[index] = lodging
        else:
            self.settle(lodging)

    def forget(self, frame: int, count: int) -> None:
        """Frames have none any more."""
        seams = self._count(frame, count)
        self._map.remove(frame, count)
        self.seams += self._count(frame, count) - seams

    def _around(self, frame: int, count: int) -> list[Lodging]:
        """Return the lodgings of these frames and of their neighbours."""
        first = max(frame - 1, 0)
        return self._map.within(first, frame + count + 1 - first)

    def _count(self, frame: int, count: int) -> int:
        return _seams(self._around(frame, count))


def _seams(parts: Iterable[Lodging]) -> int:
    """Return how often anonymous memory and the memfd meet in these, which are in order."""
    return sum(
        a.end == b.frame and a.anonymous != b.anonymous for a, b in itertools.pairwise(parts)
    )
