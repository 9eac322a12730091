"""From which size on one way is cheaper than another."""

from __future__ import annotations

import pytest

from vmm.bench.breakeven import break_even

FLAT = {1 << 10: 10.0, 1 << 20: 10.0, 1 << 30: 10.0}


def test_it_is_where_the_lines_cross_on_logarithmic_paper() -> None:
    assert break_even(FLAT, {1 << 10: 1.0, 1 << 20: 100.0}) == pytest.approx(1 << 15)
    assert break_even(FLAT, {1 << 10: 1.0, 1 << 20: 10.0, 1 << 30: 20.0}) == pytest.approx(1 << 20)


def test_a_way_that_is_cheaper_at_every_size_is_so_from_nothing_on() -> None:
    assert break_even(FLAT, {1 << 10: 11.0, 1 << 20: 12.0}) == 0


def test_a_way_that_is_not_cheaper_at_the_largest_size_has_none() -> None:
    assert break_even(FLAT, {1 << 10: 11.0, 1 << 20: 9.0}) is None
    assert break_even(FLAT, {1 << 10: 10.0}) is None


def test_of_several_crossings_the_last_one_counts() -> None:
    other = {1 << 10: 20.0, 1 << 20: 5.0, 1 << 30: 20.0}
    assert break_even(FLAT, other) == pytest.approx(1 << 25)


def test_only_sizes_that_both_have_are_compared() -> None:
    assert break_even(FLAT, {7: 1.0}) is None
    assert break_even({}, {}) is None
    assert break_even({1: 0.0, 2: 1.0}, {1: 1.0, 2: 2.0}) == 0
