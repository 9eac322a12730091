"""The ways in which pages move: every mover, and `remap` as it is among many machines."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from tests_support import IN_LANE

from vmm.memory.movers import MOVERS, RemapMover

AMONG_MANY = "remap-among-many"
"""`remap` as if there were many machines: from the second on, each has memslots. What these do
differently in the lanes, the mover `slots` does there too.
"""
WAYS = sorted([*MOVERS, *([] if IN_LANE else [AMONG_MANY])])


@contextlib.contextmanager
def named(way: str) -> Iterator[str]:
    """Give the mover's name."""
    if way != AMONG_MANY:
        yield way
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RemapMover, "many", 1)
        yield "remap"
