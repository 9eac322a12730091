"""The ways in which pages move: every mover, and `remap` as it is among many machines; and the one
that sandboxes have.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from tests_support import IN_LANE

from vmm.memory.movers import MOVERS, MemfdMover, RemapMover
from vmm.memory.movers.in_place import InPlaceMover

AMONG_MANY = "remap-among-many"
"""`remap` as if there were many machines: from the second on, each has memslots. What these do
differently in the lanes, the mover `slots` does there too.
"""
WAYS = sorted([*MOVERS, *([] if IN_LANE else [AMONG_MANY])])
IN_PLACE = InPlaceMover.name  # see test_in_place.py


@contextlib.contextmanager
def named(way: str) -> Iterator[str]:
    """Give the mover's name."""
    with pytest.MonkeyPatch.context() as patch:
        if way == AMONG_MANY:
            patch.setattr(RemapMover, "many", 1)
        if way == MemfdMover.name:  # as if there were some: its pages are hidden in place
            patch.setattr(MemfdMover, "guards_beside", 0)
        if way == IN_PLACE:
            patch.setitem(MOVERS, way, InPlaceMover)
        yield "remap" if way == AMONG_MANY else way
