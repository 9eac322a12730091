"""Percentiles of what was measured, and whether it can be relied on. Pure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

ROUNDS_TO_JUDGE = 3  # of fewer, nobody can say which one is the odd one out
TOLERANCE = 0.10


@dataclasses.dataclass(frozen=True, slots=True)
class Samples:
    """What is kept of `n` numbers: the median and the 99th percentile.

    Both are the nearest rank: the smallest number that at least 50 % (99 %) of all are not above,
    so each of them is a number that was measured. `p99` of fewer than 100 numbers is the largest.
    """

    p50: float
    p99: float
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Samples:
        """Sum numbers up. Raises ValueError if there are none."""
        ordered = sorted(values)
        return cls(_nearest_rank(ordered, 50), _nearest_rank(ordered, 99), len(ordered))


def merge(rounds: Iterable[Sequence[float]]) -> Samples:
    """Sum the numbers of several rounds up, as if they were of one. Raises ValueError for none."""
    return Samples.of(value for numbers in rounds for value in numbers)


def unstable(rounds: Sequence[Sequence[float]]) -> bool:
    """Return whether the rounds' medians differ by more than 10 % of the median of them.

    Fewer than three rounds are never said to differ.
    """
    if len(rounds) < ROUNDS_TO_JUDGE:
        return False
    medians = [Samples.of(numbers).p50 for numbers in rounds]
    return max(medians) - min(medians) > TOLERANCE * Samples.of(medians).p50


def _nearest_rank(ordered: Sequence[float], percent: int) -> float:
    if not ordered:
        raise ValueError("no numbers, no percentile")
    return ordered[math.ceil(len(ordered) * percent / 100) - 1]
