"""The columns of our own: machines that move pages, machines that copy, and the floor in C."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

from vmm.bench.plan import Case, Column, Unavailable

_NAMES = ("ours", "floor", "copy")


def columns(case: Case, stack: ExitStack) -> Mapping[str, Column]:
    """Return "ours", "floor" and "copy" of a row.

    What they need is made when they are first called, and is put on the stack, to be ended with
    the row.
    """

    def unavailable() -> list[float]:
        raise Unavailable("not measured yet")

    return dict.fromkeys(_NAMES, unavailable)
