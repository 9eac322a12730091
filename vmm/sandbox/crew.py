"""The workers of a sandbox: who is free, and who works for whom."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Sequence

from vmm.errors import CallCancelled, CallTimeout, ClosedError
from vmm.sandbox.worker import Worker

_FOREVER = threading.TIMEOUT_MAX


class Ticket:
    """A call that may be cancelled, by any thread and at any time."""

    def __init__(self) -> None:
        self.cancelled = False
        self._worker: Worker | None = None
        self._lock = threading.Lock()

    def cancel(self) -> None:
        """End the call: it raises CallCancelled. Does nothing if it is over."""
        with self._lock:
            self.cancelled = True
            if self._worker is not None:
                self._worker.cancel()

    def begin(self, worker: Worker, function: str) -> None:
        """Let `cancel` reach a worker, until `end`. Raises CallCancelled."""
        with self._lock:
            if self.cancelled:
                raise CallCancelled(function, "the call was cancelled before it began")
            self._worker = worker

    def end(self) -> None:
        """The call is over."""
        with self._lock:
            self._worker = None


class Crew:
    """Workers, each for one call at a time: the one that was busy last comes first. Thread-safe."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.workers = tuple(workers)
        self._free = dict.fromkeys(reversed(workers))
        self._changed = threading.Condition()
        self._bound = threading.local()
        self._closed = False

    def take(self, function: str, until: float, taken: list[Worker]) -> None:
        """Put a free worker into `taken`, having waited for one, or the one that is bound to this
        thread. It is to be given back, whatever is raised from here on. Raises CallTimeout,
        ClosedError.
        """
        worker: Worker | None = getattr(self._bound, "worker", None)
        if worker is not None:
            taken.append(worker)
            return
        with self._changed:
            while not self._free:
                if self._closed:
                    break
                left = until - time.monotonic()
                if left <= 0:
                    raise CallTimeout(function, "no machine was free in time")
                self._changed.wait(min(left, _FOREVER))
            if self._closed:
                raise ClosedError("the sandbox has been closed")
            taken.append(next(reversed(self._free)))  # known before: a signal may come in between
            del self._free[taken[0]]

    def give_back(self, taken: Iterable[Worker]) -> None:
        """Let others have workers; what is bound stays so."""
        if getattr(self._bound, "worker", None) is not None:
            return
        with self._changed:
            for worker in taken:
                self._free[worker] = None
            self._changed.notify()

    @contextlib.contextmanager
    def bound(self, worker: Worker) -> Iterator[None]:
        """Let all calls of this thread be the worker's, for the time of a block."""
        self._bound.worker = worker
        try:
            yield
        finally:
            del self._bound.worker

    def close(self) -> None:
        """Let nobody have a worker any more; who waits for one gets ClosedError."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
