"""How calls of functions are run: by a worker that is free, in this thread or another; counted."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from vmm.errors import CallError
from vmm.memory.region import Region
from vmm.sandbox.arguments import Placed, copied_bytes
from vmm.sandbox.crew import Crew, Place, in_thread
from vmm.sandbox.worker import Worker


@dataclass
class Stats:
    """What the calls of a sandbox have cost so far.

    calls           that have returned
    copied_bytes    of arguments outside the window, there and back
    shared_bytes    of arguments in the window, which were not copied
    failures        calls that have raised CallError
    """

    calls: int = 0
    copied_bytes: int = 0
    shared_bytes: int = 0
    failures: int = 0


class Caller:
    """What all functions of a sandbox have in common.

    timeout   of a call, in seconds, if it says nothing else
    threads   run calls for those who do not wait for them: as many as there are workers
    """

    def __init__(
        self,
        crew: Crew,
        window: Region,
        timeout: float | None,
        threads: ThreadPoolExecutor,
    ) -> None:
        self.crew = crew
        self.window = window
        self.timeout = timeout
        self.threads = threads
        self.stats = Stats()
        self._counting: Any = threading.RLock()

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        """Make a call in another thread. Raises ClosedError, ResourceError."""
        self.crew.check()
        return in_thread(self.threads, call)

    def run(
        self,
        name: str,
        limit: float | None,
        ticket: Place,
        call: Callable[[Worker, float], Any],
        placed: Placed | None,
    ) -> Any:
        """Have a call made by a worker that is free, and count it."""
        crew = self.crew
        until = math.inf if limit is None else time.monotonic() + limit
        try:
            try:
                value = call(crew.take(ticket, name, until), until)
            finally:
                crew.leave(ticket)
        except CallError:
            self.count_failure()
            raise
        finally:  # once more, should a signal's handler raise just there
            if not ticket.over:
                crew.leave(ticket)
            if placed is not None:
                placed.let_go()
        self.count(placed)
        return value

    def count(self, placed: Placed | None) -> None:
        """Count a call that has returned; None, if it had no pointers."""
        if placed is None:
            self._count(1, 0, 0, 0)
            return
        copied = copied_bytes(placed.copied) if placed.copied else 0
        self._count(1, copied, sum([one.size for one in placed.seen]), 0)

    def count_failure(self) -> None:
        """Count one that has raised CallError."""
        self._count(0, 0, 0, 1)

    def _count(self, calls: int, copied: int, shared: int, failures: int) -> None:
        stats = self.stats
        try:
            with self._counting:
                stats.calls += calls
                stats.copied_bytes += copied
                stats.shared_bytes += shared
                stats.failures += failures
        finally:  # a debugger may raise as the block ends, which leaves the lock held then
            while self._counting._is_owned():
                self._counting.release()


def tell(loop: asyncio.AbstractEventLoop, over: asyncio.Future[None], future: Future[Any]) -> None:
    """Tell an event loop that a call is over; not, if the loop has been closed."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(_set, over)


def _set(over: asyncio.Future[None]) -> None:
    if not over.done():
        over.set_result(None)
