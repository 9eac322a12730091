"""Ranges of addresses, each a start and an end, in order. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

Range = tuple[int, int]


def pairs(bounds: Sequence[int]) -> Iterable[Range]:
    """Return start, end, start, end … as ranges."""
    return zip(bounds[::2], bounds[1::2], strict=True)


def united(ranges: Iterable[Range]) -> list[Range]:
    """Return ranges in order, those that touch or overlap as one."""
    found: list[Range] = []
    for start, end in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return found


def joined(ranges: Sequence[Range], near: int, most: int) -> list[Range]:
    """Return ranges, which are in order, with the holes filled that are no larger than `near`; and
    then as many of the smallest as it takes for there to be no more than `most`.
    """
    holes = sorted(after[0] - before[1] for before, after in pairwise(ranges))
    if len(ranges) > most:
        near = max(near, holes[len(ranges) - most - 1])
    found: list[Range] = []
    for start, end in ranges:
        if found and start - found[-1][1] <= near:
            found[-1] = found[-1][0], end
        else:
            found.append((start, end))
    return found


def clipped(ranges: Iterable[Range], start: int, end: int) -> list[Range]:
    """Return the parts of ranges that lie in start..end."""
    return [(max(a, start), min(b, end)) for a, b in ranges if a < end and start < b]
