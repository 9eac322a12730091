"""Areas in order, as values: adjacent addresses with the same rights. Pure.

A change makes a new value and leaves the old one as it was, so that to change an address space is
to assign one name. It costs what it touches: areas are kept in chunks, which know their largest
gap, so that neither a change nor the search for a free place walks through all of them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_MOST = 128  # areas in a chunk
_FEW = 32  # a chunk with fewer is joined with the next one, when it is made anew
_LAST = 1 << 64


class Area(NamedTuple):
    """Addresses start..end with the same rights.

    prot    PROT_READ, PROT_WRITE, PROT_EXEC; 0 for none
    file    whether it shows a file: such areas are never joined
    delta   what lies behind it is so much further on: pages of the window, which nobody copies; 0
            for memory of its own
    write   of these, whether they may be written, if the mapping is shared; None if it is private:
            then it gets memory of its own before it is written
    live    the number of the mapping, if the bytes of its file are those that are here, else 0
    """

    start: int
    end: int
    prot: int
    file: bool = False
    delta: int = 0
    write: bool | None = None
    live: int = 0

    def clip(self, start: int, end: int) -> Area:
        """Return the part of it that lies in start..end."""
        return self._replace(start=max(self.start, start), end=min(self.end, end))


class _Chunk(NamedTuple):
    """A few areas in order.

    gap       the largest hole between two of them, in bytes
    charged   bytes of those with any right, or of a file, that are memory of their own
    """

    areas: tuple[Area, ...]
    gap: int
    charged: int


def _chunk(areas: list[Area]) -> _Chunk:
    gap = charged = 0
    end = areas[0].start
    for area in areas:
        gap = max(gap, area.start - end)
        end = area.end
        if (area.prot or area.file) and not area.delta:
            charged += end - area.start
    return _Chunk(tuple(areas), gap, charged)


class Spans:
    """Disjoint areas in order. Never changed.

    count     how many there are
    charged   bytes of those with any right, or of a file, that are memory of their own
    """

    __slots__ = ("_chunks", "_starts", "charged", "count")

    def __init__(self, chunks: tuple[_Chunk, ...] = ()) -> None:
        self._chunks = chunks
        self._starts = [chunk.areas[0].start for chunk in chunks]
        self.count = sum([len(chunk.areas) for chunk in chunks])
        self.charged = sum([chunk.charged for chunk in chunks])

    def __iter__(self) -> Iterator[Area]:
        for chunk in self._chunks:
            yield from chunk.areas

    def within(self, start: int, end: int) -> Iterator[Area]:
        """Yield the areas that have an address in start..end, whole."""
        first = max(bisect_right(self._starts, start) - 1, 0)
        for chunk in self._chunks[first:]:
            areas = chunk.areas
            if areas[0].start >= end:
                return
            for index in range(max(bisect_right(areas, (start, _LAST)) - 1, 0), len(areas)):
                area = areas[index]
                if area.start >= end:
                    return
                if area.end > start:
                    yield area

    def at(self, address: int) -> Area | None:
        """Return the area of an address."""
        return next(self.within(address, address + 1), None)

    def next(self, address: int) -> Area | None:
        """Return the area of an address, or the first one above it."""
        return next(self.within(address, _LAST), None)

    def replaced(self, start: int, end: int, areas: Iterable[Area]) -> Spans:
        """Return them with `areas`, in order, for all that is in start..end. It is not empty."""
        # Those that only touch it, too: they may be joined with what comes.
        first = max(bisect_left(self._starts, start) - 1, 0)
        last = bisect_right(self._starts, end)
        old = [area for chunk in self._chunks[first:last] for area in chunk.areas]
        made = [a if a.end <= start else a._replace(end=start) for a in old if a.start < start]
        after = [a if a.start >= end else a._replace(start=end) for a in old if a.end > end]
        for area in (*areas, *after):
            if made and _continues(made[-1], area):
                made[-1] = made[-1]._replace(end=area.end)
            else:
                made.append(area)
        if len(made) < _FEW and last < len(self._chunks):
            made.extend(self._chunks[last].areas)
            last += 1
        size = len(made) if len(made) <= _MOST else _MOST // 2
        new = [_chunk(made[at : at + size]) for at in range(0, len(made), size)] if made else []
        return Spans((*self._chunks[:first], *new, *self._chunks[last:]))

    def highest_gap(self, low: int, top: int, size: int) -> int | None:
        """Return the highest address from which on `size` bytes are free, all in low..top."""
        ceiling = top
        for chunk in reversed(self._chunks):
            areas = chunk.areas
            if areas[0].start >= top:
                continue
            if ceiling - low < size:
                return None
            if chunk.gap < size and areas[-1].end <= ceiling:
                if ceiling - max(areas[-1].end, low) >= size:
                    return ceiling - size
                ceiling = areas[0].start
                continue
            for area in reversed(areas):
                if area.start >= top:
                    continue
                if ceiling - max(area.end, low) >= size:
                    return ceiling - size
                ceiling = min(ceiling, area.start)
        return ceiling - size if ceiling - low >= size else None


def _continues(area: Area, other: Area) -> bool:
    return area.end == other.start and area.prot == other.prot and not area.file and not other.file
