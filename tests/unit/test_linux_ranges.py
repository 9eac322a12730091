"""Ranges of addresses, against sets of them."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
from hypothesis import given

from vmm.linux.ranges import Range, clipped, joined, united

SOME = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)).map(lambda r: (r[0], r[0] + r[1])))


def members(ranges: list[Range]) -> set[int]:
    return {at for start, end in ranges for at in range(start, end)}


@given(SOME)
def test_united_is_the_same_addresses_in_order_and_apart(ranges: list[Range]) -> None:
    found = united(ranges)
    assert members(found) == members(ranges)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(found))


@given(SOME, st.integers(0, 10), st.integers(1, 5))
def test_joined_fills_holes_and_the_smallest_first(
    ranges: list[Range], near: int, most: int
) -> None:
    apart = united(ranges)
    found = joined(apart, near, most)
    assert members(apart) <= members(found)
    assert len(found) <= most
    holes = [after[0] - before[1] for before, after in itertools.pairwise(found)]
    assert all(hole > near for hole in holes)
    filled = united([(a[1], b[0]) for a, b in itertools.pairwise(apart)])
    closed = [b - a for a, b in filled if a in members(found)]
    assert not holes or not closed or max(closed) <= min(holes)


@given(SOME, st.integers(0, 70), st.integers(0, 70))
def test_clipped_is_what_lies_inside(ranges: list[Range], start: int, end: int) -> None:
    inside = members(clipped(united(ranges), start, end))
    assert inside == members(ranges) & set(range(start, end))
