"""The page pool's free frames.

Pure: a frame is a number here, its memory is `vmm.memory.pool`'s business.
"""

from __future__ import annotations

import bisect
import collections
from collections.abc import Iterable
from typing import NamedTuple

LARGE = 512  # pages of 4 KiB in a huge page of 2 MiB
MANY = 128  # runs that are taken at once, at most
GIANT = 512 * LARGE  # pages in a GiB, which the kernel moves in one step from multiple to multiple


class Frames(NamedTuple):
    """`pages` adjacent frames from `first`."""

    first: int
    pages: int

    @property
    def end(self) -> int:
        """The first frame after these."""
        return self.first + self.pages


def alignments(count: int) -> tuple[int, ...]:
    """Return what so many pages are to be aligned to, the best first, as far as there is room."""
    if count < LARGE:
        return ()
    return (GIANT, LARGE) if count >= GIANT else (LARGE,)


class FramePool:
    """Which of `total` frames are free, as sorted runs.

    unclean  frames that are nobody's and are still to be zeroed: not free before that
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.free = total
        self.unclean: collections.deque[Frames] = collections.deque()
        self._runs = [Frames(0, total)] if total else []

    @property
    def runs(self) -> tuple[Frames, ...]:
        """The free runs in order."""
        return tuple(self._runs)

    def allocate(self, count: int) -> list[Frames]:
        """Take `count` frames, one run where there is one: the lowest that is long enough, or for
        2 MiB and more the highest place that is aligned to 2 MiB, if there is one; to 1 GiB for as
        much and more.

        Otherwise several runs, lowest first; if very many are free, the longest. Returns [] if
        there are not enough, or only in more than MANY runs, and takes none.
        Kept apart, small runs do not cut large ones' huge pages in two.
        """
        if count > self.free:
            return []
        for align in alignments(count):
            for index in reversed(range(len(self._runs))):
                first = (self._runs[index].end - count) // align * align
                if first >= self._runs[index].first:
                    return [self._take(index, Frames(first, count))]
        for index, run in enumerate(self._runs):
            if count <= run.pages:
                return [self._take(index, Frames(run.first, count))]
        return self._gather(count)

    def _take(self, index: int, part: Frames) -> Frames:
        run = self._runs[index]
        rest = [Frames(run.first, part.first - run.first), Frames(part.end, run.end - part.end)]
        self._runs[index : index + 1] = [piece for piece in rest if piece.pages]
        self.free -= part.pages
        return part

    def _gather(self, count: int) -> list[Frames]:
        taken: list[Frames] = []
        runs = self._runs.copy()
        if len(runs) > MANY:
            runs.sort(key=lambda run: -run.pages)
            if sum(run.pages for run in runs[:MANY]) < count:
                return []
        for run in runs:
            part = run._replace(pages=min(count, run.pages))
            taken.append(self._take(bisect.bisect_left(self._runs, run), part))
            count -= part.pages
            if not count:
                break
        return sorted(taken)

    def keep_but(self, taken: Iterable[tuple[int, int]]) -> None:
        """Have all frames but these, given as (first, count) in order."""
        runs, start = list[Frames](), 0
        for first, count in taken:
            if first > start:
                runs.append(Frames(start, first - start))
            start = max(start, first + count)
        if start < self.total:
            runs.append(Frames(start, self.total - start))
        self._runs, self.free = runs, sum(run.pages for run in runs)

    def withdraw(self, frames: Frames) -> None:
        """Take frames that are free, and just these. Raises ValueError if they are not free."""
        index = bisect.bisect_right(self._runs, (frames.first, self.total)) - 1
        if index < 0 or frames.end > self._runs[index].end:
            raise ValueError(f"{frames} are not free")
        self._take(index, frames)

    def have_unclean(self, frames: Iterable[Frames]) -> None:
        """Have these to be zeroed, and no others."""
        self.unclean.clear()
        self.unclean.extend(frames)

    def next_unclean(self, most: int) -> Frames:
        """Take at most so many frames out of those that are to be zeroed. There are some."""
        first, pages = self.unclean.popleft()
        if pages > most:
            self.unclean.appendleft(Frames(first + most, pages - most))
        return Frames(first, min(pages, most))

    def release(self, frames: Frames) -> None:
        """Give frames back, joining them with their free neighbours.

        Raises ValueError if one is free: two would come to own it.
        """
        index = bisect.bisect_left(self._runs, frames)
        first = last = index
        start, end = frames.first, frames.end
        if (index and self._runs[index - 1].end > start) or (
            index < len(self._runs) and self._runs[index].first < end
        ):
            raise ValueError(f"{frames} are free already")
        if index and self._runs[index - 1].end == start:
            first -= 1
            start = self._runs[first].first
        if index < len(self._runs) and self._runs[index].first == end:
            last += 1
            end = self._runs[index].end
        self._runs[first:last] = [Frames(start, end - start)]
        self.free += frames.pages
