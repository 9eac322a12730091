"""The budget of mappings: one for the process, whose monitors share what the kernel lets it map.

Each may grow by as much as any other: by what is left, in equal parts. What one gives up is the
others' as soon as they ask. Pure, and thread-safe: monitors have locks of their own.
"""

from __future__ import annotations

import threading
import weakref
from typing import Protocol

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
        self._lock = threading.RLock()
        self._members: weakref.WeakSet[Member] = weakref.WeakSet()
        self._total = 0

    def join(self, member: Member, total: int) -> None:
        """Let a member have its part, until it leaves."""
        with self._lock:
            self._members.add(member)
            self._total = total
            self._balance()

    def leave(self, member: Member) -> None:
        """Let the others have its part. Further calls do nothing."""
        with self._lock:
            self._members.discard(member)
            self._balance()

    def balance(self) -> None:
        """Share out what is left now."""
        with self._lock:
            self._balance()

    def _balance(self) -> None:
        # What others use is read without their locks: they may have a few more by now, for which
        # there is room enough beyond the budget.
        used = [(member, member.pieces_used()) for member in self._members]
        left = self._total - sum([own for _, own in used])
        for member, own in used:
            member.allow(max(own + max(left, 0) // len(used), LEAST))


BUDGET = Budget()
