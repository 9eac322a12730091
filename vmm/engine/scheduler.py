"""The scheduler: worker threads run machines as these become runnable; who waits costs no thread.

Machines are like actors: READY when they have work, PARKED when they wait. When a machine waits,
the worker that ran it goes on with one that it has woken in the same slice, with no thread woken in
between: those who talk to each other share a slice, and do not wait for those who only burn theirs.
A machine that does not come back within its slice is kicked out of KVM_RUN, and goes to the end of
the line if others are ready.

An exit is acted on in a turn (vmm.ferry.turns). What is raised before the turn has ended undoes it,
and the machine keeps the exit: it is acted on when the machine is taken next, in whatever run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

from vmm.engine.clock import Clock
from vmm.engine.guest import Asked
from vmm.engine.kick import Kickable, drain, kick, kickable, no_thread
from vmm.engine.line import Deadlines, Line
from vmm.engine.machine import Machine, State
from vmm.errors import BusyError
from vmm.ferry.turns import Turns
from vmm.kvm import Exit, Intr

SLICE = 0.010  # seconds
_TICK = 0.001  # seconds, between two looks of the clock at least
_LONG = 0.001  # seconds, for a hold of the lock
_MOMENT = 20e-6  # seconds, for a kicked machine to come out
_MAIN = threading.main_thread().ident  # who handles signals
_FOREVER = threading.TIMEOUT_MAX


class Driver(Protocol):
    """What the scheduler asks of the monitor.

    `execute`, `tell` and `diagnose` are called without the lock, the others in a turn.
    """

    def prepare(self, machine: Machine) -> None:
        """Ready a machine to be entered."""

    def execute(self, machine: Machine) -> Exit | Asked:
        """Run it until it exits."""

    def tell(self, machine: Machine, exit_: Exit | Asked) -> None:
        """Tell who wants to know that it has exited."""

    def diagnose(self, machine: Machine) -> None:
        """Find out why it cannot go on, if that is what `handle` has left to do."""

    def handle(self, machine: Machine, exit_: Exit | Asked) -> bool:
        """Act on an exit; leaves the machine RUNNING, or has parked or stopped it.

        False if there is more to do for the same exit, in a turn of its own.
        """

    def wants(self, machine: Machine) -> bool:
        """Whether a parked machine has what it waits for."""


class Scheduler:
    """Runs machines on `workers` threads, the caller's of `run()` being one of them.

    turns      the monitor's; every method but `run` and `close` is called in one
    machines   returns all machines there are

    `run` returns when no machine is runnable and none waits with a time-out.
    """

    def __init__(
        self, turns: Turns, workers: int, machines: Callable[[], Iterable[Machine]]
    ) -> None:
        self._turns = turns
        self._lock = turns.lock
        self._changed = threading.Condition(turns.lock)
        self._machines = machines
        self._idle = 0  # threads that wait for it
        self._workers = workers
        self._line = Line()
        self._acting = False  # on an exit: who is woken meanwhile may run in the same slice
        self._woken: list[Machine] = []  # meanwhile
        self._running: dict[
            int, tuple[Machine, float]
        ] = {}  # by thread: machine, when its slice ends
        self._inside: set[Machine] = set()  # in KVM_RUN, or about to be; see `hold`
        self._deadlines = Deadlines()
        self._runner = 0  # the thread in run()
        self._until: dict[int, float] = {}  # by thread in drive(): when it is to come back
        self._generation = 0  # of runs
        self._hires: Callable[[], None] | None = None  # what the other workers are to do
        self._threads: list[threading.Thread] = []  # the other workers
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
        if self._acting:
            self._woken.append(machine)
        else:
            self._line_up(machine)

    def _line_up(self, machine: Machine) -> None:
        self._line.add(machine)
        if self._idle:
            self._notify()

    def park(self, machine: Machine, timeout: float | None) -> None:
        """Let a machine wait until `make_ready`, or until `timeout` seconds have passed."""
        machine.state = State.PARKED
        machine.deadline = None  # there may be one of an earlier wait, which has come
        if timeout is not None:
            machine.deadline = time.monotonic() + timeout
            self._deadlines.add(machine, machine.deadline)
            self._notify()

    def _notify(self) -> None:
        """Let a worker look again; all of those that wait for one machine each."""
        if self._until:
            self._changed.notify_all()
        else:
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
        self._notify()  # who waits for its deadline

    def recover(self) -> None:
        """After a roll-back: each machine is RUNNING on a worker, READY and in line, or PARKED."""
        running = {  # a worker that has parked one may still have it there
            machine for thread, (machine, _) in self._running.items() if machine.thread == thread
        }
        self._acting = False
        self._woken.clear()
        self._line.clear()
        self._deadlines.sort_out()
        for machine in self._machines():
            if machine.state is State.READY or (
                machine.state is State.RUNNING and machine not in running
            ):
                machine.state = State.READY
                self._line_up(machine)
            elif machine.state is State.PARKED and machine.deadline is not None:
                self._deadlines.add(machine, machine.deadline)

    # ---- Running ----

    def run(self, driver: Driver, timeout: float | None, expire: Callable[[], None]) -> None:
        """Run until nothing is runnable; call `expire` if `timeout` seconds end it before that.

        `expire` is called by this thread, without the lock, when nothing runs any more, and nothing
        else does yet. Raises what a worker raised, BusyError if another thread, or this one, is in
        here already, ResourceError if there is no thread to be had. Workers started here have ended
        when it returns, however it does; the clock sleeps until the next run.
        """
        if self.working:
            raise BusyError("run() was called from within run(): return from the callback first")
        try:
            try:
                with kickable():  # also while the others, who may kick this thread, come to an end
                    try:
                        self._begin(driver, timeout)
                        self._work(driver)
                    finally:
                        self._gather()
                if self._expired and self._failure is None:
                    expire()
            finally:
                self._finish()
        finally:  # once more, should a signal's handler raise just there
            self._finish()
        if self._failure is not None:
            raise self._failure
        self._turns.outbox.flush(wait=True)

    def _begin(self, driver: Driver, timeout: float | None) -> None:
        """Start the clock, if it is needed, and the other workers."""
        with self._lock:
            self._turns.check_open()  # who closes the monitor waits for us from here on
            if self._runner or self._until:
                raise BusyError("another thread is in run(): wait until it has returned")
            self._runner = threading.get_ident()
            self._generation += 1
            self._ended, self._expired, self._failure = False, False, None
            self._limit = None if timeout is None else time.monotonic() + timeout
            asleep = not (self._ticking and self._clock.alive)
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

    def _gather(self) -> None:
        """Let every worker come back, whatever it is doing, and wait for those that are others."""
        self._turns.let_go()
        if self._runner != threading.get_ident():
            return
        self.end()
        while self._threads:
            self._threads[-1].join()
            self._threads.pop()

    def _finish(self) -> None:
        """End the run: the next one may begin."""
        self._gather()
        if self._runner == threading.get_ident():
            with self._lock:
                self._generation += 1
                self._runner = 0
                self._changed.notify_all()  # who waits in `close`

    def drive(
        self, driver: Driver, machine: Machine, until: float, done: Callable[[], bool]
    ) -> bool:
        """Run one machine in the calling thread until `done`, it has stopped, or it waits for what
        does not come by itself. Several threads may do so, each with a machine of its own.

        until   time.monotonic() at which to come back in any case: some milliseconds later at most
        done    called under the lock, when the machine waits

        Returns whether it came back before that. Raises as `run` does.
        """
        thread = threading.get_ident()
        if self.working:
            raise BusyError("a machine is to be run from within run(): return from the callback")
        kicks = Kickable()
        try:
            try:
                kicks.begin()
                self._join(thread, until)
                while self._drive(driver, machine, until, done):
                    pass
            finally:
                kicks.end()
                self._part(thread)
        finally:  # once more, should a signal's handler raise just there
            if not kicks.over:
                kicks.end()
            if thread in self._until:
                self._part(thread)
        if self._failure is not None:
            raise self._failure
        self._turns.outbox.flush(wait=True)
        waits = machine.state is State.PARKED and machine.deadline is None
        return waits or machine.state is State.STOPPED or time.monotonic() < until

    def _join(self, thread: int, until: float) -> None:
        with self._lock:
            if self._turns.gone is not None:
                self._turns.check_open()
            if self._runner:
                raise BusyError("another thread is in run(): wait until it has returned")
            if not self._until:
                self._ended, self._expired, self._failure = False, False, None
                self._limit = None
            self._until[thread] = until
            asleep = not (self._ticking and self._clock.alive)
        if asleep:
            self._clock.begin()

    def _drive(
        self, driver: Driver, machine: Machine, until: float, done: Callable[[], bool]
    ) -> bool:
        """Run a machine until it waits. True if it is to run on."""
        self._work(driver, machine)
        with self._lock:
            if self._ended or machine.state is State.STOPPED or done():
                return False
            now = time.monotonic()
            if machine.state is State.PARKED and machine.deadline is not None and now < until:
                self._wait(max(min(machine.deadline, until) - now, 0.0))
                self._wake_expired()
                return True
            return machine.state is State.READY and now < until

    def _part(self, thread: int) -> None:
        self._turns.let_go()
        with self._lock:
            self._until.pop(thread, None)
            if not self._until and not self._runner:
                self._ended = True
            if self._idle:
                self._changed.notify_all()  # who waits in `close`

    @property
    def working(self) -> bool:
        """Whether the calling thread runs machines: it is a callback that asks, then."""
        me = threading.get_ident()
        return (
            me == self._runner
            or me in self._until
            or (bool(self._threads) and any(thread.ident == me for thread in self._threads))
        )

    def end(self, *, wait: bool = False) -> None:
        """End the run: its workers come back, as soon as they can. Called without the lock.

        wait   until it has returned
        """
        with self._lock:
            self._end_now()
            while wait and (self._runner or self._until):
                self._wait(None)

    def _end_now(self) -> None:
        self._ended = True
        for thread in self._running:
            kick(thread)
        self._changed.notify_all()

    def close(self) -> None:
        """End the clock. No thread may be in `run`; called without the lock."""
        self._clock.close()

    def _guarded(self, driver: Driver, generation: int) -> None:
        """Be a worker of one run; hand what goes wrong to the thread in run()."""
        try:
            with self._lock:
                if generation != self._generation:  # it is over already
                    return
            with kickable():
                self._work(driver)
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """End the run by what a thread other than the runner's has come to."""
        self._turns.let_go()  # a thread that ends with the lock has it for ever
        self._failure = self._failure or error
        self.end()

    def _work(self, driver: Driver, mine: Machine | None = None) -> None:
        """Be a worker until the run is over, or something is raised."""
        try:
            self._serve(driver, mine)
        except BaseException:
            self._leave(threading.get_ident())
            self._turns.let_go()
            raise

    def _leave(self, thread: int) -> None:
        """Let another worker, or another run, have what this one had. Nobody kicks, or waits for,
        a thread that is no longer here.
        """
        machine, _ = self._running.get(thread, (None, 0.0))
        if machine is not None and machine.thread == thread:
            self._inside.discard(machine)  # before the lock: who has it may be waiting for that
        with self._lock:
            self._turns.busy = False
            if self._turns.journal.active:
                self._turns.cut_off()
            if machine is not None and machine.thread == thread:
                machine.see_exit()
            self._running.pop(thread, None)
            self.recover()

    def _serve(self, driver: Driver, mine: Machine | None) -> None:
        """Take machines and run them; only `mine`, and until it waits, if that is given.

        From taking a machine to parking it, a worker has it in `_running`, without a gap in which
        another worker could see nobody busy and end the run: acting on an exit and the next entry
        share one hold of the lock, unless there is something to be told in between.
        """
        machine: Machine | None = None
        slice_end = 0.0
        thread = threading.get_ident()
        lock, journal, outbox = self._lock, self._turns.journal, self._turns.outbox
        inside = self._inside
        woken: list[Machine] = []  # in this slice, in which they may run
        waited = False  # for others, since a machine has been entered
        over = False  # whether its slice is, with more to do for its exit
        while True:
            more = told = late = False
            with lock:
                try:
                    self._turns.busy = True  # also between the turns
                    now = time.monotonic()
                    if over:
                        over = False
                    elif machine is not None and (exit_ := machine.exit) is not None:
                        if journal.active:  # left by who was cut off
                            self._turns.cut_off()
                        journal.begin()
                        journal.keep(machine)
                        self._acting = True
                        more = not driver.handle(machine, exit_)
                        if not more:
                            machine.done()
                        self._acting = False
                        journal.commit()
                        told = outbox.seal()
                        late = time.monotonic() - now > _LONG
                        if machine.state is not State.RUNNING:
                            machine = None
                        if self._woken:
                            at_once = now < slice_end and not (told or late or mine)
                            machine = self._take_woken(machine, at_once, woken)
                        if more and now >= slice_end:
                            more, over = False, True  # the rest when it is its turn again
                    if not (more or told or late):
                        over = False
                        if mine is None:
                            machine, slice_end = self._choose(
                                thread, machine, now, slice_end, woken
                            )
                        else:
                            machine, slice_end = self._choose_mine(thread, mine, now, slice_end)
                        if machine is None:
                            self._turns.busy = False
                            return
                        now = max(now, slice_end - SLICE)  # it may have waited for that machine
                        if machine.exit is None:
                            if journal.active:
                                self._turns.cut_off()
                            journal.begin()
                            journal.keep(machine)
                            driver.prepare(machine)
                            journal.commit()
                            told = outbox.seal()
                            # Who has had the lock for long lets others who work come first.
                            alone = waited or len(self._running) == 1
                            if not told and (alone or time.monotonic() - now <= _LONG):
                                inside.add(machine)
                    self._turns.busy = False
                except BaseException:
                    self._leave(thread)  # before anybody else has the lock
                    raise
            if told:
                outbox.flush(wait=outbox.crowded)
            if machine is None and not late:
                continue
            if machine in inside:
                waited = False
                moved = machine.ran_on != thread
                began = time.thread_time() if moved else 0.0
                machine.exit = exit_ = driver.execute(machine)
                inside.discard(machine)  # without the lock, which who waits for it has
                machine.ran_on = thread
                if isinstance(exit_, Intr):
                    drain()
                    if moved and time.thread_time() - began < SLICE / 2:
                        # The kernel waited in KVM_RUN and did not run it: Linux before 6.12, where
                        # a vCPU that changes threads waits for RCU, often longer than a slice. So
                        # it has its slice here, now, or it would change threads for ever.
                        slice_end = time.monotonic() + SLICE
                driver.tell(machine, exit_)
                continue
            if machine is not None and more:
                driver.diagnose(machine)
            if len(self._running) > 1:  # others may want the lock, or Python's: for as long
                time.sleep(max(_MOMENT, time.monotonic() - now))
                waited = True  # or where every hold is long, nobody would ever be entered
            elif late or (machine is not None and machine.exit is not None):
                time.sleep(_MOMENT)  # and other threads of the program's

    def _take_woken(
        self, machine: Machine | None, at_once: bool, woken: list[Machine]
    ) -> Machine | None:
        """Let those who have been woken stand in line, and remember that they may run in this
        slice; but run the first of them if `at_once`, and nobody is running. Return who is.
        """
        if machine is None and at_once and not self._ended:
            machine = self._woken.pop(0)
        for other in self._woken:
            self._line_up(other)
        woken += self._woken
        self._woken.clear()
        return machine

    def _choose(
        self,
        thread: int,
        machine: Machine | None,
        now: float,
        slice_end: float,
        woken: list[Machine],
    ) -> tuple[Machine | None, float]:
        """Return whom this thread runs now, and when its slice ends; None when the run is over.

        machine   whom it has run, or is to run, if not somebody else's turn has come
        """
        if now < slice_end and not self._ended:
            if machine is None and woken:
                machine = self._pick(woken)
        elif machine is not None:
            if self._ended or self._line.first() is not None:
                machine.state = State.READY
                self._line_up(machine)
                machine = None
            else:
                slice_end = now + SLICE
        if machine is None:
            woken.clear()
            self._running.pop(thread, None)
            machine = self._next()
            if machine is None:
                return None, 0.0
            slice_end = time.monotonic() + SLICE
        machine.thread = thread
        self._running[thread] = (machine, slice_end)
        machine.state = State.RUNNING
        return machine, slice_end

    def _choose_mine(
        self, thread: int, mine: Machine, now: float, slice_end: float
    ) -> tuple[Machine | None, float]:
        """Return the one machine that this thread runs; None when it is to come back."""
        running = mine.state is State.RUNNING
        elsewhere = running and mine.thread != thread
        over = self._ended or now >= self._until[thread]
        if elsewhere or over or not (running or mine.state is State.READY):
            if running and not elsewhere:
                mine.state = State.READY
                self._line_up(mine)
            self._running.pop(thread, None)
            return None, 0.0
        mine.state = State.RUNNING
        if now >= slice_end:
            slice_end = now + SLICE
        mine.thread = thread
        self._running[thread] = (mine, slice_end)
        return mine, slice_end

    @staticmethod
    def _pick(woken: list[Machine]) -> Machine | None:
        """Return the first of these machines that is still ready to run."""
        while woken:
            machine = woken.pop(0)
            if machine.state is State.READY:
                return machine
        return None

    def _next(self) -> Machine | None:
        """Take the next ready machine, waiting for one; None when the run is over."""
        while not self._ended:
            timeout = self._wake_expired()
            if (first := self._line.take()) is not None:
                return first
            if timeout is None and not self._running:
                self._ended = True
                self._changed.notify_all()
                break
            self._wait(timeout)
            self._turns.busy = True  # again: others have had the lock
        return None

    def _wait(self, timeout: float | None) -> None:
        """Let others have the lock until something has changed."""
        self._idle += 1
        try:
            self._changed.wait(None if timeout is None else min(timeout, _FOREVER))
        except BaseException:  # a signal's handler may come as the lock is being taken again
            if not self._lock._is_owned():
                self._lock.acquire()
            raise
        finally:
            self._idle -= 1

    def _wake_expired(self) -> float | None:
        """Make ready whose wait has timed out; return the seconds to the next deadline."""
        while (entry := self._deadlines.next()) is not None:
            deadline, machine = entry
            left = deadline - time.monotonic()
            if left > 0:
                return min(left, _FOREVER)
            machine.state = State.READY  # and its entry is over
            self._line_up(machine)
        return None

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
            self._fail(error)
            return None

    def _look(self) -> float | None:
        now = time.monotonic()
        with self._lock:
            limit = self._limit
            if not self._ended and limit is not None and now >= limit:
                self._expired = True
                self._end_now()
            self._ticking = not self._ended
            if self._ended:
                return None
            if self._hires is not None:
                self._hire()
            self._wake_expired()
            if not all(thread.is_alive() for thread in self._threads):
                self._failure = self._failure or RuntimeError("a worker has ended before the run")
                self._end_now()
            again = now + SLICE / 2 if limit is None else min(now + SLICE / 2, limit)
            others = self._line.first() is not None
            for thread, until in self._until.items():
                if now >= until:
                    kick(thread)
                else:
                    again = min(again, until)
            for thread, (machine, slice_end) in self._running.items():
                if now < slice_end:
                    again = min(again, slice_end)
                elif others or machine.peer.queue or machine.exit is not None or thread == _MAIN:
                    kick(thread)
        return max(again - now, _TICK)
