"""The scheduler: worker threads run machines as these become runnable; who waits costs no thread.

Machines are like actors: READY when they have work, PARKED when they wait. When a machine sends
and then waits, the worker that ran it runs the receiver next, with no thread woken in between. A
machine that does not come back within its slice is kicked out of KVM_RUN, and goes to the end of
the line if others are ready.
"""

from __future__ import annotations

import collections
import heapq
import itertools
import threading
import time
from typing import Protocol

from vmm.engine.clock import Clock
from vmm.engine.kick import drain, kick, kickable
from vmm.engine.machine import Machine, State
from vmm.kvm import Exit, Intr

SLICE = 0.010  # seconds
_MOMENT = 20e-6  # seconds, for a kicked machine to come out
_FOREVER = threading.TIMEOUT_MAX


class Driver(Protocol):
    """What the scheduler asks of the monitor.

    `execute` is called without the lock, the others under it.
    """

    def prepare(self, machine: Machine) -> None:
        """Ready a machine to be entered."""

    def execute(self, machine: Machine) -> Exit:
        """Run it until it exits."""

    def handle(self, machine: Machine, exit_: Exit) -> None:
        """Act on an exit; leaves the machine RUNNING, or has parked or stopped it."""


class Scheduler:
    """Runs machines on `workers` threads, the caller's of `run()` being one of them.

    lock      the monitor's; every method but `run` is called with it held

    `run` returns when no machine is runnable and none waits with a time-out.
    """

    def __init__(self, lock: threading.Lock, workers: int) -> None:
        self._lock = lock
        self._changed = threading.Condition(lock)
        self._idle = 0  # workers that wait for it
        self._workers = workers
        self._ready: collections.deque[Machine] = collections.deque()
        self._running: dict[
            int, tuple[Machine, float]
        ] = {}  # by thread: machine, when its slice ends
        self._inside: set[Machine] = set()  # in KVM_RUN, or about to be; see `hold`
        self._deadlines: list[tuple[float, int, Machine]] = []
        self._order = itertools.count()
        self._ended = True
        self._expired = False
        self._limit: float | None = None  # when the run ends, whatever the machines do
        self._clock = Clock(self._tick)
        self._ticking = False
        self._failure: BaseException | None = None

    # ---- Machines ----

    def make_ready(self, machine: Machine) -> None:
        """Let a machine that is new or parked run."""
        machine.state = State.READY
        machine.deadline = None
        self._ready.append(machine)
        if self._idle:
            self._changed.notify()

    def park(self, machine: Machine, timeout: float | None) -> None:
        """Let a machine wait until `make_ready`, or until `timeout` seconds have passed."""
        machine.state = State.PARKED
        if timeout is not None:
            machine.deadline = time.monotonic() + timeout
            heapq.heappush(self._deadlines, (machine.deadline, next(self._order), machine))
            self._changed.notify()

    def interrupt(self, machine: Machine) -> None:
        """Make a machine exit now if it is running, or as soon as it is entered."""
        if machine.state is State.RUNNING:
            kick(machine.thread)

    def hold(self, machine: Machine) -> None:
        """Make a machine that is running exit, and wait until it has: it is entered again when the
        lock is released.
        """
        if machine in self._inside:
            kick(machine.thread)
        while machine in self._inside:
            time.sleep(_MOMENT)

    def forget(self, machine: Machine) -> None:
        """A machine has been stopped while it was not running: the run may be over."""
        machine.deadline = None
        self._changed.notify()  # who waits for its deadline

    # ---- Running ----

    def run(self, driver: Driver, timeout: float | None) -> bool:
        """Run until nothing is runnable; return False if `timeout` seconds ended it before that.

        Raises what a worker raised. Workers started here have ended when it returns, however it
        does; the clock sleeps until the next run.
        """
        threads = [
            threading.Thread(target=self._guarded, args=(driver,), name=f"pageferry-worker-{index}")
            for index in range(1, self._workers)
        ]
        with self._lock:
            self._ended, self._expired, self._failure = False, False, None
            self._limit = None if timeout is None else time.monotonic() + timeout
            asleep = not self._ticking
        started: list[threading.Thread] = []
        with kickable():  # also while the others, who may kick this thread, come to their end
            try:
                if asleep or timeout is not None:
                    self._clock.begin()
                for thread in threads:
                    thread.start()
                    started.append(thread)
                self._work(driver)
            finally:
                self._end()
                for thread in started:
                    thread.join()
        if self._failure is not None:
            raise self._failure
        return not self._expired

    def _end(self) -> None:
        """Let every worker come back, whatever it is doing."""
        with self._lock:
            self._end_now()

    def _end_now(self) -> None:
        self._ended = True
        for thread in self._running:
            kick(thread)
        self._changed.notify_all()

    def close(self) -> None:
        """End the clock. No thread may be in `run`; called without the lock."""
        self._clock.close()

    def _guarded(self, driver: Driver) -> None:
        """Be a worker; hand what goes wrong to the thread in run()."""
        try:
            with kickable():
                self._work(driver)
        except BaseException as error:
            self._failure = self._failure or error
            self._end()

    def _work(self, driver: Driver) -> None:
        """Be a worker until the run is over.

        From taking a machine to parking it, a worker has it in `_running`, without a gap in which
        another worker could see nobody busy and end the run: acting on an exit and the next entry
        share one hold of the lock.
        """
        machine: Machine | None = None
        exit_: Exit | None = None
        slice_end = 0.0
        thread = threading.get_ident()
        ready, inside = self._ready, self._inside
        try:
            while True:
                with self._lock:
                    before = machine
                    if machine is not None and exit_ is not None:
                        waiting = len(ready)
                        driver.handle(machine, exit_)
                        now = time.monotonic()
                        in_slice = now < slice_end and not self._ended
                        if machine.state is not State.RUNNING:
                            machine = None
                            if in_slice and len(ready) > waiting:  # one that was just woken
                                machine = ready.pop()
                            elif ready and not self._ended:
                                machine, slice_end = ready.popleft(), now + SLICE
                            if machine is not None and machine.state is State.STOPPED:
                                machine = None
                        elif not in_slice and (ready or self._ended):
                            machine.state = State.READY
                            ready.append(machine)
                            machine = None
                    if machine is None:
                        before = None
                        self._running.pop(thread, None)
                        machine = self._next()
                        slice_end = time.monotonic() + SLICE
                    if machine is None:
                        return
                    if machine is not before:
                        machine.thread = thread
                        self._running[thread] = (machine, slice_end)
                    machine.state = State.RUNNING
                    driver.prepare(machine)
                    inside.add(machine)
                try:
                    exit_ = driver.execute(machine)
                except BaseException:
                    self._give_back(machine)
                    raise
                inside.discard(machine)  # without the lock, which who waits for it has
                if isinstance(exit_, Intr):
                    drain()
        finally:  # whatever was raised, nobody kicks, or waits for, a thread that is no longer here
            if machine is not None:
                inside.discard(machine)
            with self._lock:
                self._running.pop(thread, None)

    def _give_back(self, machine: Machine) -> None:
        """Let another worker, or another run, have a machine whose execution raised something."""
        self._inside.discard(machine)
        with self._lock:
            del self._running[machine.thread]
            self.make_ready(machine)

    def _next(self) -> Machine | None:
        """Take the next ready machine, waiting for one; None when the run is over."""
        while not self._ended:
            timeout = self._wake_expired()
            while self._ready:
                machine = self._ready.popleft()
                if machine.state is not State.STOPPED:
                    return machine
            if timeout is None and not self._running:
                self._ended = True
                self._changed.notify_all()
                break
            self._idle += 1
            try:
                self._changed.wait(timeout)
            finally:
                self._idle -= 1
        return None

    def _live_deadline(self) -> float | None:
        """Return the earliest deadline that still counts, dropping those that do not."""
        while self._deadlines:
            deadline, _, machine = self._deadlines[0]
            if machine.state is State.PARKED and machine.deadline == deadline:
                return deadline
            heapq.heappop(self._deadlines)
        return None

    def _wake_expired(self) -> float | None:
        """Make ready whose wait has timed out; return the seconds to the next deadline."""
        while (deadline := self._live_deadline()) is not None:
            left = deadline - time.monotonic()
            if left > 0:
                return min(left, _FOREVER)
            _, _, machine = heapq.heappop(self._deadlines)
            machine.state = State.READY
            self._ready.append(machine)
        return None

    # ---- The clock ----

    def _tick(self) -> float | None:
        """Wake whose wait is over, kick whose slice is over, end the run at its limit; return in
        how many seconds to look again, None if the run has ended.
        """
        now = time.monotonic()
        with self._lock:
            limit = self._limit
            if not self._ended and limit is not None and now >= limit:
                self._expired = True
                self._end_now()
            self._ticking = not self._ended
            if self._ended:
                return None
            self._wake_expired()
            for thread, (machine, slice_end) in self._running.items():
                if now >= slice_end and (self._ready or machine.peer.queue):
                    kick(thread)
        return SLICE / 2 if limit is None else min(SLICE / 2, limit - now)
