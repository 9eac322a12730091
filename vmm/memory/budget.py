"""The budget of mappings: one for the process, whose monitors share what the kernel lets it map.

Each may grow by as much as any other: by what is left, in equal parts. What one gives up is the
others' as soon as they ask. Pure, and thread-safe: monitors have locks of their own.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from vmm.kvm import forks

LEAST = 256  # pieces that each may have, whatever the others have


class Member(Protocol):
    """Who has pieces, each of which takes mappings: a ledger."""

    def pieces_used(self) -> int:
        """Return how many it has."""

    def allow(self, pieces: int) -> None:
        """May have as many from now on, what it has included."""


class Budget:
    """Pieces for all members together, as many as the last one that came knew of."""

    def __init__(self) -> None:
        self.let_go()
        forks.hold(self)

    def let_go(self) -> None:
        """Begin anew: in a child the members, and whoever holds the lock, are the parent's."""
        self._lock: Any = threading.RLock()
        self._members: weakref.WeakSet[Member] = weakref.WeakSet()
        self._total = 0

    def join(self, member: Member, total: int) -> None:
        """Let a member have its part, until it leaves."""
        self._alone(self._join, member, total)

    def _join(self, member: Member, total: int) -> None:
        self._members.add(member)
        self._total = total

    def leave(self, member: Member) -> None:
        """Let the others have its part. Further calls do nothing."""
        self._alone(self._members.discard, member)

    def balance(self) -> None:
        """Share out what is left now."""
        self._alone()

    def _alone(self, change: Callable[..., object] | None = None, *what: object) -> None:
        """Change something, with no other thread in between, and share out what is left."""
        held = self._lock._is_owned()
        try:
            with self._lock:
                if change is not None:
                    change(*what)
                self._balance()
        finally:  # a debugger may raise as a `with` ends: other monitors would wait for ever
            while not held and self._lock._is_owned():
                self._lock.release()

    def _balance(self) -> None:
        # What others use is read without their locks: they may have a few more by now, for which
        # there is room enough beyond the budget.
        used = [(member, member.pieces_used()) for member in self._members]
        left = self._total - sum([own for _, own in used])
        for member, own in used:
            member.allow(max(own + max(left, 0) // len(used), LEAST))


BUDGET = Budget()
