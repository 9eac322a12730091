"""Calls for whose arguments the pool has no room: made again, each by itself."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from vmm.errors import ResourceError
from vmm.kvm import forks
from vmm.sandbox.crew import Ticket

_LOOK = 0.1  # seconds, after which who waits looks whether it has been cancelled

Result = TypeVar("Result")


class Room:
    """The calls of one pool. Thread-safe.

    They are made side by side. One that finds no room waits until no other is under way, and is
    made again, alone: what it finds no room for then does not fit.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._calls = 0  # under way
        self._alone = 0  # that are to be made alone
        forks.hold(self)

    def let_go(self) -> None:
        """Begin anew in a child: calls that other threads make are its parent's."""
        self._changed = threading.Condition()
        self._calls = self._alone = 0

    def call(self, make: Callable[[], Result], ticket: Ticket) -> Result:
        """Return what `make` does, which may be called twice; raise what it raises.

        ticket   its own: once that is cancelled it waits no longer
        """
        try:
            return self._once(make, ticket, alone=False)
        except ResourceError:
            pass
        with self._changed:
            self._alone += 1
        try:
            return self._once(make, ticket, alone=True)
        finally:
            with self._changed:
                self._alone -= 1
                self._changed.notify_all()

    def _once(self, make: Callable[[], Result], ticket: Ticket, *, alone: bool) -> Result:
        with self._changed:
            while (self._calls if alone else self._alone) and not ticket.cancelled:
                self._changed.wait(_LOOK)
            self._calls += 1
        try:
            return make()
        finally:
            with self._changed:
                self._calls -= 1
                if self._alone:
                    self._changed.notify_all()
