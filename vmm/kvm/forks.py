"""What a process that is forked lets go of: descriptors, and memory that is its parent's.

A child would else keep the VMs, and see whatever its parent's pages become. It lets go before any
other Python code runs in it. That is so for os.fork, multiprocessing's "fork", and subprocess with
a preexec_fn; a program that calls the C library's fork(2) itself is on its own.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from typing import Protocol


class Held(Protocol):
    """What a child is not to keep."""

    def let_go(self) -> None:
        """Close, or unmap, it in a child. The parent's stays as it is."""


_held: weakref.WeakSet[Held] = weakref.WeakSet()


def hold(thing: Held) -> None:
    """Let a child that is forked from now on let go of this."""
    _held.add(thing)


def _let_go() -> None:
    for thing in tuple(_held):
        with contextlib.suppress(Exception):  # of the others all the same
            thing.let_go()


os.register_at_fork(after_in_child=_let_go)
