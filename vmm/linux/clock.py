"""Time and chance, as a program sees them: real, or the same in every run."""

from __future__ import annotations

import hashlib
import os
import time


class Clock:
    """The host's clocks and randomness."""

    frozen = False

    def realtime_ns(self) -> int:
        """Return the time since 1970, in ns."""
        return time.time_ns()

    def monotonic_ns(self) -> int:
        """Return the time since the host began, in ns."""
        return time.monotonic_ns()

    def random(self, size: int) -> bytes:
        """Return random bytes."""
        return os.urandom(size)

    def skip(self, ns: int) -> None:
        """Let time pass: only for clocks that do not pass by themselves."""
        raise AssertionError("real time cannot be skipped")


class FrozenClock(Clock):
    """Time that stands still but for what the program sleeps, and chance from a seed.

    It begins at `start`, ns since 1970. What is asked of it is the same in every run.
    """

    frozen = True

    def __init__(self, seed: int = 0, start: int = 1_000_000_000 * 10**9) -> None:
        self._now = start
        self._start = start
        self._seed = seed
        self._asked = 0

    def realtime_ns(self) -> int:
        return self._now

    def monotonic_ns(self) -> int:
        return self._now - self._start + 10**9

    def random(self, size: int) -> bytes:
        self._asked += 1
        key = f"{self._seed}:{self._asked}".encode()
        return hashlib.shake_256(key).digest(size)

    def skip(self, ns: int) -> None:
        self._now += ns
