"""The workers of a sandbox: who is free, who waits for one, and who works for whom.

What is raised at any line, as Ctrl-C does, costs no worker: who has one is said by one assignment,
all else follows from that, and whoever is told to look again may be told twice.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from vmm.errors import BusyError, CallCancelled, CallTimeout, ClosedError
from vmm.host import limits
from vmm.sandbox.worker import Worker

T = TypeVar("T")

_FOREVER = threading.TIMEOUT_MAX


class Place:
    """A call's place in the line.

    cancelled  whether it has been
    worker     whom it has, or is about to have
    over       whether it has none any more
    wakes      tells it to look again; None as long as it has not had to wait
    """

    __slots__ = ("cancelled", "over", "thread", "wakes", "worker")

    def __init__(self) -> None:
        self.cancelled = self.over = False
        self.worker: Worker | None = None
        self.thread = 0
        self.wakes: queue.SimpleQueue[None] | None = None  # reentrant, unlike a Condition

    def begin(self, worker: Worker, function: str) -> None:
        """The call has a worker. Raises CallCancelled."""

    def end(self) -> None:
        """The call is over."""


class Ticket(Place):
    """One that any thread may cancel at any time."""

    __slots__ = ("_at", "_lock")

    def __init__(self) -> None:
        super().__init__()
        self.wakes = queue.SimpleQueue()
        self._at: Worker | None = None  # whom `cancel` stops
        self._lock: Any = threading.RLock()

    def cancel(self) -> None:
        """End the call: it raises CallCancelled. Does nothing if it is over."""
        with self._lock:
            self.cancelled = True
            if self._at is not None:
                self._at.cancel()
        _wake(self)

    def begin(self, worker: Worker, function: str) -> None:
        """Let `cancel` reach a worker, until `end`. Raises CallCancelled."""
        with self._lock:
            if self.cancelled:
                raise CallCancelled(function, "the call was cancelled before it began")
            self._at = worker

    def end(self) -> None:
        """The call is over: whoever cancels it from now on does not stop the next one."""
        with self._lock:
            self._at = None


def in_thread(threads: ThreadPoolExecutor, call: Callable[[], T]) -> Future[T]:
    """Have something called in another thread. Raises LimitError if there can be none: unlike the
    executor's own `submit` it is not called then, later, by a thread that another one brings.
    """
    begun = [call]
    try:
        with limits.reported("a call in another thread"):
            future = threads.submit(_called, begun)
        # What is cancelled first is let go of then, not when a thread comes by it.
        future.add_done_callback(lambda _: begun.clear())
        return future
    except BaseException:
        begun.clear()
        raise


def _called(begun: list[Callable[[], T]]) -> T:
    if not begun:
        raise CancelledError  # which nobody has asked for
    return begun.pop()()


def _give_back(crew: weakref.ref[Crew]) -> bool:
    present = crew()
    return present is not None and present.give_back()


def _wake(place: Place) -> None:
    if place.wakes is not None:
        place.wakes.put(None)


class Crew:
    """Workers, each for one call at a time. Thread-safe; who comes first is served first, and by
    the worker that was busy last.
    """

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.workers = tuple(workers)
        self._idle = dict.fromkeys(reversed(workers))  # the next one is the last; may be busy
        self._owners: dict[Worker, Place] = {}  # who is busy, and for whom
        self._line: deque[Place] = deque()
        self._lock: Any = threading.RLock()
        self._local = threading.local()
        self._gone: Exception | None = None
        others = partial(_give_back, weakref.ref(self))  # or it would be in a circle with them
        for worker in self.workers:
            worker.copies.others = others

    def take(self, ticket: Place, function: str, until: float) -> Worker:
        """Return a free worker, having waited for one; or the one that is bound to this thread.

        Whatever is raised, here or later, `leave` is to be called. Raises CallTimeout,
        CallCancelled, ClosedError; BusyError if only this very thread could free one.
        """
        worker: Worker | None = getattr(self._local, "worker", None)
        if worker is None:
            worker = self._wait(ticket, function, until)
            worker.cancelled = False
        else:  # a part of another call, which may have been cancelled
            self.check()
        ticket.begin(worker, function)
        return worker

    def leave(self, ticket: Place) -> None:
        """A call is over, or has never begun: let others have its worker. Again is fine."""
        ticket.end()
        try:
            with self._lock:
                worker = ticket.worker
                if worker is not None and self._owners.get(worker) is ticket:
                    self._idle[worker] = None
                    del self._owners[worker]
                if self._line:
                    if ticket in self._line:
                        self._line.remove(ticket)
                    self._call_next()
                if ticket.cancelled:
                    bound: Worker | None = getattr(self._local, "worker", None)
                    if bound is not None:  # only a part of another call was
                        owner = self._owners.get(bound)
                        bound.cancelled = owner is not None and owner.cancelled
            ticket.over = True
        finally:  # a debugger may raise as the block ends, which leaves the lock held then
            while self._lock._is_owned():
                self._lock.release()

    def give_back(self) -> bool:
        """Have workers that are free give back the memory that they keep for large copies. Return
        whether any did.
        """
        some = False
        for worker in self.workers:
            ticket = Place()
            try:
                try:
                    with self._lock:
                        if worker not in self._owners:
                            ticket.worker = worker  # as in `_claim`
                            self._owners[worker] = ticket
                    if ticket.worker is not None and worker.copies.drop():
                        some = True
                finally:
                    self.leave(ticket)
            finally:  # once more, should a signal's handler raise just there
                if not ticket.over:
                    self.leave(ticket)
        return some

    def _wait(self, ticket: Place, function: str, until: float) -> Worker:
        ticket.thread = threading.get_ident()
        while True:
            with self._lock:
                if self._gone is not None:
                    self.check()
                if ticket.cancelled:
                    raise CallCancelled(function, "the call was cancelled before it began")
                worker = self._claim(ticket)
                if worker is not None:
                    return worker
                if any(owner.thread == ticket.thread for owner in self._owners.values()):
                    raise BusyError(
                        f"{function} was called from within another call, by a signal's handler "
                        "or a console, and no other machine is free"
                    )
                wakes = ticket.wakes = ticket.wakes or queue.SimpleQueue()
                if ticket not in self._line:
                    self._line.append(ticket)
            left = until - time.monotonic()
            if left <= 0:
                raise CallTimeout(function, "no machine was free in time")
            with contextlib.suppress(queue.Empty):
                wakes.get(timeout=min(left, _FOREVER))

    def _claim(self, ticket: Place) -> Worker | None:
        """Have a free worker, if it is the ticket's turn."""
        line = self._line
        if line and line[0] is not ticket:
            return None
        for worker in reversed(self._idle):
            if worker not in self._owners:
                break
        else:
            return None
        ticket.worker = worker  # known before: a signal may come in between
        self._owners[worker] = ticket
        del self._idle[worker]
        if line:
            line.popleft()
            self._call_next()
        return worker

    def _call_next(self) -> None:
        if self._line:
            _wake(self._line[0])

    @property
    def binds(self) -> bool:
        """Whether all calls of the calling thread are one worker's."""
        return getattr(self._local, "worker", None) is not None

    @contextlib.contextmanager
    def bound(self, worker: Worker) -> Iterator[None]:
        """Let all calls of this thread be the worker's, for the time of a block."""
        before = getattr(self._local, "worker", None)
        self._local.worker = worker
        try:
            yield
        finally:
            self._local.worker = before

    def enlist(self) -> None:
        """Remember that the calling thread is one that makes calls for others."""
        self._local.enlisted = True

    @property
    def enlisted(self) -> bool:
        """Whether the calling thread is."""
        return getattr(self._local, "enlisted", False)

    # ---- The end ----

    def check(self) -> None:
        """Raise what `stop` was given."""
        gone = self._gone
        if gone is not None:
            raise type(gone)(*gone.args) from gone.__cause__

    def stop(self, why: Exception) -> None:
        """Let nobody have a worker any more; who waits for one gets such an error."""
        with self._lock:
            self._gone = self._gone or why
            for ticket in tuple(self._line):
                _wake(ticket)

    def disown(self, why: str) -> None:
        """Let go of all in a process that was forked: another thread may have had the lock."""
        self._lock._at_fork_reinit()
        self._gone = ClosedError(why)
        self._owners.clear()
        self._line.clear()
