"""One machine run by the thread that wants something of it: a call's, for the time of that."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from vmm.engine import work
from vmm.engine.kick import Kickable
from vmm.engine.machine import Machine, State
from vmm.engine.standing import Standing
from vmm.engine.work import Driver, Work


class Drive(Work):
    """Several threads may do so at once, each with a machine of its own.

    until   time.monotonic() at which to come back in any case: some milliseconds later at most
    """

    __slots__ = ("_kicks", "_machine", "_until")

    at_once = False  # nobody else runs in this thread

    def __init__(self, standing: Standing, driver: Driver, machine: Machine, until: float) -> None:
        self._standing, self._driver, self._thread = standing, driver, threading.get_ident()
        self._machine = machine
        self.held = False
        self._until = until
        self._kicks = Kickable()

    def run(self, start_clock: Callable[[], None]) -> bool:
        """Run the machine until it has stopped, or waits for what does not come by itself.

        start_clock   called when this thread is known as one that drives

        Returns whether it came back before its time was over. Raises BusyError if a thread is in
        `run`, ClosedError; what has gone wrong in the clock's thread is for the caller to see.
        """
        kicks, standing, machine = self._kicks, self._standing, self._machine
        try:
            try:
                kicks.begin()
                self._join()
                start_clock()
                self.work()
            finally:
                kicks.end()
                self._part()
        finally:  # once more, should a signal's handler raise just there
            if not kicks.over:
                kicks.end()
            if self._thread in standing.driving:
                self._part()
        waits = machine.state is State.PARKED and machine.deadline is None
        return waits or machine.state is State.STOPPED or time.monotonic() < self._until

    def _join(self) -> None:
        standing = self._standing
        with standing.lock:
            standing.check_free()
            if not standing.driving:
                standing.ended, standing.failure = False, None
            standing.driving[self._thread] = self._until

    def _part(self) -> None:
        standing = self._standing
        standing.turns.let_go()
        with standing.lock:
            standing.driving.pop(self._thread, None)
            if not standing.driving and not standing.runner:
                standing.ended = True
            if standing.idle:
                standing.notify_all()  # who waits in `close`

    def choose(
        self, machine: Machine | None, now: float, slice_end: float
    ) -> tuple[Machine | None, float]:
        """As `Work.choose` says: the one machine, or None when this thread is to come back."""
        standing, thread, mine = self._standing, self._thread, self._machine
        while True:
            running = mine.state is State.RUNNING and mine.thread == thread
            if standing.ended or now >= self._until:
                if running:
                    mine.state = State.READY
                    standing.line_up(mine)
                break
            if running or mine.state is State.READY:
                mine.state = State.RUNNING
                if now >= slice_end:
                    slice_end = now + work.SLICE
                mine.thread = thread
                standing.running[thread] = (mine, slice_end)
                return mine, slice_end
            if mine.state is not State.PARKED or mine.deadline is None:
                break
            standing.running.pop(thread, None)
            standing.turns.busy = False
            standing.wait(max(min(mine.deadline, self._until) - now, 0.0))
            standing.turns.busy = True  # again: others have had the lock
            standing.wake_expired()
            now = time.monotonic()
        standing.running.pop(thread, None)
        return None, 0.0
