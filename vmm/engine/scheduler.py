"""The scheduler: worker threads run machines as these become runnable; who waits costs no thread.

Machines are like actors: READY when they have work, PARKED when they wait (vmm.engine.standing). A
run is a number of workers (vmm.engine.shift), and a clock that ends slices and waits. A machine can
be run by the thread that wants something of it, too (vmm.engine.drive).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

from vmm.engine import work
from vmm.engine.clock import Clock
from vmm.engine.drive import Drive
from vmm.engine.kick import kick, kickable, no_thread
from vmm.engine.machine import Machine
from vmm.engine.shift import Shift
from vmm.engine.standing import Standing
from vmm.engine.work import Driver
from vmm.errors import BusyError

_TICK = 0.001  # seconds, between two looks of the clock at least
_LOOKS = 2  # of the clock, in which somebody stands first in line, before a worker is told
_MAIN = threading.main_thread().ident  # who handles signals


class Scheduler:
    """Runs machines on `workers` threads, the caller's of `run()` being one of them.

    `run` returns when no machine is runnable and none waits with a time-out.

    Thread-safety: `run`, `drive`, `end` and `close` are called without the monitor's lock, by any
    thread.
    """

    def __init__(self, standing: Standing, workers: int) -> None:
        self._standing = standing
        self._turns = standing.turns
        self._lock = standing.lock
        self._workers = workers
        self._generation = 0  # of runs
        self._hires: Callable[[], None] | None = None  # what the other workers are to do
        self._threads: list[threading.Thread] = []  # the other workers
        self._expired = False
        self._limit: float | None = None  # when the run ends, whatever the machines do
        self._clock = Clock(self._tick)
        self._stood = 0, 0  # the first place in line when the clock looked last, and how often
        self._ticking = False

    @property
    def working(self) -> bool:
        """Whether the calling thread runs machines: it is a callback that asks, then."""
        me, standing = threading.get_ident(), self._standing
        return (
            me == standing.runner
            or me in standing.driving
            or (bool(self._threads) and any(thread.ident == me for thread in self._threads))
        )

    # ---- One machine ----

    def drive(self, driver: Driver, machine: Machine, until: float) -> bool:
        """Run one machine in the calling thread; see `Drive`. Raises as `run` does."""
        if self.working:
            raise BusyError("a machine is to be run from within run(): return from the callback")
        came_back = Drive(self._standing, driver, machine, until).run(self._need_clock)
        if self._standing.failure is not None:
            raise self._standing.failure
        if self._turns.outbox.waiting:
            self._turns.outbox.flush(wait=True)
        return came_back

    def _need_clock(self) -> None:
        if not (self._ticking and self._clock.alive):
            self._clock.begin()

    # ---- All of them ----

    def run(
        self,
        driver: Driver,
        timeout: float | None,
        begin: Callable[[], object],
        expire: Callable[[], None],
    ) -> None:
        """Run until nothing is runnable; call `expire` if `timeout` seconds end it before that.

        `begin` and `expire` are called by this thread, without the lock, when nothing runs yet, or
        any more, and nobody else can run anything. Raises what `begin` or a worker raised,
        BusyError if another thread, or this one, is in here already, ResourceError if there is no
        thread to be had. Workers started here have ended when it returns, however it does; the
        clock sleeps until the next run.
        """
        if self.working:
            raise BusyError("run() was called from within run(): return from the callback first")
        try:
            try:
                with kickable():  # also while the others, who may kick this thread, come to an end
                    try:
                        self._begin(driver, timeout, begin)
                        Shift(self._standing, driver).work()
                    finally:
                        self._gather()
                if self._expired and self._standing.failure is None:
                    expire()
            finally:
                self._finish()
        finally:  # once more, should a signal's handler raise just there
            self._finish()
        if self._standing.failure is not None:
            raise self._standing.failure
        self._turns.outbox.flush(wait=True)

    def _begin(self, driver: Driver, timeout: float | None, begin: Callable[[], object]) -> None:
        """Start the clock, if it is needed, and the other workers."""
        standing = self._standing
        with self._lock:
            standing.check_free(alone=True)  # who closes the monitor waits for us from here on
            standing.runner = threading.get_ident()
            self._generation += 1
            standing.ended, standing.failure = False, None
            self._expired = False
            self._limit = None if timeout is None else time.monotonic() + timeout
            asleep = not (self._ticking and self._clock.alive)
        begin()
        self._hires = partial(self._guarded, driver, self._generation)
        if asleep or timeout is not None or self._workers > 1:
            self._clock.begin()

    def _hire(self) -> None:
        """Start the other workers: in the clock's thread, where no signal's handler interrupts
        that. threading.Thread's `start` does not bear it.
        """
        hires, self._hires = self._hires, None
        for number in range(2, self._workers + 1):
            name = f"pageferry-worker-{number}"
            # Said here, since Thread else asks which thread this is, and for one that is none of
            # its own, as the clock's, makes an object that stays.
            thread = threading.Thread(target=hires, name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                raise no_thread(f"worker {number} of {self._workers}", error) from None
            self._threads.append(thread)

    def _guarded(self, driver: Driver, generation: int) -> None:
        """Be a worker of one run; hand what goes wrong to the thread in run()."""
        try:
            with self._lock:
                if generation != self._generation:  # it is over already
                    return
            with kickable():
                Shift(self._standing, driver).work()
        except BaseException as error:
            self._standing.fail(error)

    def _gather(self) -> None:
        """Let every worker come back, whatever it is doing, and wait for those that are others."""
        self._turns.let_go()
        if self._standing.runner != threading.get_ident():
            return
        self.end()
        while self._threads:
            self._threads[-1].join()
            self._threads.pop()

    def _finish(self) -> None:
        """End the run: the next one may begin."""
        self._gather()
        if self._standing.runner == threading.get_ident():
            with self._lock:
                self._generation += 1
                self._limit = None
                self._standing.runner = 0
                self._standing.notify_all()  # who waits in `close`

    def end(self, *, wait: bool = False) -> None:
        """End the run: its workers come back, as soon as they can.

        wait   until it has returned
        """
        standing = self._standing
        with self._lock:
            standing.end()
            while wait and (standing.runner or standing.driving):
                standing.wait(None)

    def close(self) -> None:
        """End the clock. No thread may be in `run`."""
        self._clock.close()

    # ---- The clock ----

    def _tick(self) -> float | None:
        """Wake whose wait is over, kick whose slice is over, end the run at its limit; return in
        how many seconds to look again, None if the run has ended.

        In the main thread who runs alone is kicked as well: Python, which handles signals there,
        and between two lines only, gets to handle one that came just before KVM_RUN.
        """
        try:
            return self._look()
        except BaseException as error:  # a clock that stands still would end nothing any more
            self._ticking = False  # the next one that needs it begins it
            self._standing.fail(error)
            return None

    def _look(self) -> float | None:
        now, standing = time.monotonic(), self._standing
        with self._lock:
            limit = self._limit
            if not standing.ended and limit is not None and now >= limit:
                self._expired = True
                standing.end()
            self._ticking = not standing.ended
            if standing.ended:
                return None
            if self._hires is not None:
                self._hire()
            standing.wake_expired()
            if not all(thread.is_alive() for thread in self._threads):
                standing.failure = standing.failure or RuntimeError(
                    "a worker has ended before the run"
                )
                standing.end()
            again = now + work.SLICE / 2 if limit is None else min(now + work.SLICE / 2, limit)
            first = standing.line.first()
            others = first is not None
            place = 0 if first is None else first.place
            stood, looks = self._stood
            self._stood = place, looks + 1 if place == stood else 1
            if standing.idle and place and self._stood[1] > _LOOKS:  # as no worker has been told
                standing.notify()  # (Shift.see_woken), and nobody has come back since
            for thread, until in standing.driving.items():
                if now >= until:
                    kick(thread)
                else:
                    again = min(again, until)
            for thread, (machine, slice_end) in standing.running.items():
                if now < slice_end:
                    again = min(again, slice_end)
                elif others or machine.peer.queue or machine.exit is not None or thread == _MAIN:
                    kick(thread)
        return max(again - now, _TICK)
