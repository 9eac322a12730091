"""How long the monitor's lock is held, and for what: every hold, measured.

with watched() as holds:          # monitors that are made in here have a lock that is measured
    ...
print(holds.longest())
"""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from types import FrameType
from typing import Any, NamedTuple

import pytest

from vmm.ferry import turns
from vmm.kvm import Vm
from vmm.memory import mapping

_CALLS = ("show", "hide", "move", "protect", "empty", "store", "overwrite", "punch", "copy")


class Hold(NamedTuple):
    """One hold of the lock.

    seconds   by the clock
    worked    seconds of the processor's, the kernel's for this thread included: what other programs
              take is not in it; nor is Python's collection of garbage, which is the program's
    calls     of the kernel that change mappings, memslots or the pool, by name
    where     who let go of it, innermost first
    """

    seconds: float
    worked: float
    calls: Counter[str]
    where: str

    def __str__(self) -> str:
        calls = " ".join(f"{name}={count}" for name, count in sorted(self.calls.items()))
        times = f"{self.seconds * 1e3:.1f} ms ({self.worked * 1e3:.1f} worked)"
        return f"{times} {calls} {self.where}"


class Holds:
    """All holds of some monitors' locks, since `clear`."""

    def __init__(self) -> None:
        self._all: list[Hold] = []
        self.calls: Counter[str] = Counter()  # of the present hold
        self._collecting = 0.0
        self._since = 0.0

    def add(self, hold: Hold) -> None:
        """Add one."""
        self._all.append(hold)

    def clear(self) -> None:
        """Forget them."""
        self._all.clear()

    def collecting(self) -> float:
        """Return how long garbage has been collected so far."""
        return self._collecting

    def on_collection(self, phase: str, info: dict[str, int]) -> None:
        """Follow gc.callbacks."""
        if phase == "start":
            self._since = time.thread_time()
        else:
            self._collecting += time.thread_time() - self._since

    def longest(self) -> Hold:
        """Return the one in which most was done."""
        return max(self._all, key=lambda hold: hold.worked)

    def with_most_calls(self) -> Hold:
        """Return the one with the most calls of the kernel."""
        return max(self._all, key=lambda hold: hold.calls.total())

    def most_calls(self) -> int:
        """Return how many calls of the kernel there were in one hold, at most."""
        return max(hold.calls.total() for hold in self._all)


class Lock:
    """A reentrant lock that notes how long it is held."""

    def __init__(self, holds: Holds) -> None:
        self._lock: Any = threading.RLock()
        self._holds = holds
        self._depth = 0
        self._since = 0.0
        self._worked = 0.0
        self._is_owned = self._lock._is_owned

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take it."""
        taken = bool(self._lock.acquire(blocking, timeout))
        if taken:
            self._depth += 1
            if self._depth == 1:
                self._begin()
        return taken

    def release(self) -> None:
        """Let go of it."""
        if self._depth == 1:
            self._end()
        self._depth -= 1
        self._lock.release()

    def _begin(self) -> None:
        self._holds.calls = Counter()
        self._worked, self._since = self._work(), time.perf_counter()

    def _end(self) -> None:
        seconds, worked = time.perf_counter() - self._since, self._work() - self._worked
        self._holds.add(Hold(seconds, worked, self._holds.calls, _where(sys._getframe(2))))

    def _work(self) -> float:
        return time.thread_time() - self._holds.collecting()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def _release_save(self) -> Any:
        self._end()
        depth, self._depth = self._depth, 0
        return depth, self._lock._release_save()

    def _acquire_restore(self, state: Any) -> None:
        depth, saved = state
        self._lock._acquire_restore(saved)
        self._depth = depth
        self._begin()

    def _at_fork_reinit(self) -> None:
        self._lock._at_fork_reinit()
        self._depth = 0


def _where(frame: FrameType | None) -> str:
    names: list[str] = []
    while frame is not None and len(names) < 4:
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    return " < ".join(names)


def _count(patch: pytest.MonkeyPatch, holds: Holds, owner: Any, name: str) -> None:
    call = getattr(owner, name)

    @functools.wraps(call)
    def counted(*args: Any, **options: Any) -> Any:
        holds.calls[name] += 1
        return call(*args, **options)

    patch.setattr(owner, name, counted)


@contextlib.contextmanager
def watched() -> Iterator[Holds]:
    """Measure the holds of the monitors that are made in the block."""
    holds = Holds()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turns.threading, "RLock", _Locks(holds))
        for name in _CALLS:
            _count(patch, holds, mapping, name)
        _count(patch, holds, Vm, "set_user_memory_region")
        gc.callbacks.append(holds.on_collection)
        try:
            yield holds
        finally:
            gc.callbacks.remove(holds.on_collection)


class _Locks:
    """Makes the locks of turns; all others are as ever."""

    def __init__(self, holds: Holds) -> None:
        self._holds = holds
        self._plain = threading.RLock

    def __call__(self) -> Any:
        caller = sys._getframe(1).f_globals["__name__"]
        return Lock(self._holds) if caller == turns.__name__ else self._plain()
