"""Percentiles, and when they are said to be unstable."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.bench.samples import Samples, merge, unstable

NUMBERS = st.lists(st.floats(0, 1e9), min_size=1, max_size=300)


def test_the_percentiles_are_the_nearest_ranks() -> None:
    assert Samples.of(range(100, 0, -1)) == Samples(50, 99, 100)
    assert Samples.of([3.0, 1.0, 2.0]) == Samples(2.0, 3.0, 3)
    assert Samples.of([4.0, 1.0]) == Samples(1.0, 4.0, 2)
    assert Samples.of([7.0]) == Samples(7.0, 7.0, 1)


@given(NUMBERS)
def test_each_percentile_was_measured_and_has_its_share_below_it(numbers: list[float]) -> None:
    samples = Samples.of(numbers)
    for value, percent in ((samples.p50, 50), (samples.p99, 99)):
        assert value in numbers
        assert sum(number <= value for number in numbers) * 100 >= percent * len(numbers)
        assert sum(number < value for number in numbers) * 100 < percent * len(numbers)
    assert samples.n == len(numbers)


@given(st.lists(NUMBERS, min_size=1, max_size=5))
def test_rounds_are_merged_as_if_they_were_one(rounds: list[list[float]]) -> None:
    assert merge(rounds) == Samples.of(sum(rounds, []))  # noqa: RUF017


def test_of_nothing_there_is_no_percentile() -> None:
    with pytest.raises(ValueError, match="no numbers"):
        Samples.of([])
    with pytest.raises(ValueError, match="no numbers"):
        merge([[], []])


def test_rounds_are_unstable_when_their_medians_differ_by_more_than_ten_percent() -> None:
    assert not unstable([[100], [105], [110]])  # 10 of 105
    assert unstable([[100], [104], [111]])  # 11 of 104
    assert not unstable([[100, 100, 900], [100, 100, 1], [101, 101, 101]])  # medians only
    assert not unstable([[1], [1000]])  # two cannot be judged


@given(st.lists(NUMBERS, min_size=3, max_size=5), st.integers(-8, 8))
def test_the_unit_does_not_matter_to_stability(rounds: list[list[float]], power: int) -> None:
    scaled = [[number * 2.0**power for number in numbers] for numbers in rounds]
    # Numbers so small that scaling rounds them are none that a clock has measured.
    if all(number == 0 or number > 1e-6 for numbers in rounds for number in numbers):
        assert unstable(scaled) == unstable(rounds)
