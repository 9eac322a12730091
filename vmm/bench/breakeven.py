"""From which size on one way of sending is cheaper than another. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

Curve = Mapping[int, float]  # what a message costs, by its bytes


def break_even(ours: Curve, other: Curve) -> float | None:
    """Return the size from which on `ours` is the cheaper one, at every larger size measured.

    It lies on the straight line, of logarithms, between two sizes. 0 if ours is cheaper at every
    size, None if it is not at the largest, or if there is nothing to compare.
    """
    sizes = sorted(size for size in ours.keys() & other.keys() if ours[size] > 0 < other[size])
    gains = [math.log(other[size] / ours[size]) for size in sizes]
    if not gains or gains[-1] <= 0:
        return None
    last_loss = max((i for i, gain in enumerate(gains) if gain <= 0), default=None)
    if last_loss is None:
        return 0.0
    low, high = math.log(sizes[last_loss]), math.log(sizes[last_loss + 1])
    loss, gain = -gains[last_loss], gains[last_loss + 1]
    return math.exp(low + (high - low) * loss / (loss + gain))
