"""Where each machine of a monitor stands: ready and in line, running on a thread, or parked.

Who runs machines says so here, and is told here whether it is to come back.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from vmm.engine.kick import kick
from vmm.engine.line import Deadlines, Line
from vmm.engine.machine import Machine, State
from vmm.errors import BusyError
from vmm.ferry.turns import Turns

FOREVER = threading.TIMEOUT_MAX
_MOMENT = 20e-6  # seconds, for a kicked machine to come out


class Standing:
    """Where machines stand, and who runs them.

    turns      the monitor's; all here is called in one, or under its lock
    machines   returns all machines there are

    line       who is ready
    deadlines  of those that wait
    running    by thread: whom it runs, and when that slice ends
    inside     who is in KVM_RUN, or about to be; see `hold`
    acting     whether an exit is being acted on: who is woken meanwhile may run in the same slice
    woken      meanwhile
    runner     the thread in `Scheduler.run`, or 0
    driving    by thread in `Scheduler.drive`: when it is to come back
    ended      whether who runs machines is to come back
    failure    what it has come to in another thread than theirs
    idle       how many threads wait for something to change
    """

    def __init__(self, turns: Turns, machines: Callable[[], Iterable[Machine]]) -> None:
        self.turns = turns
        self.lock = turns.lock
        self._machines = machines
        self._changed = threading.Condition(turns.lock)
        self.line = Line()
        self.deadlines = Deadlines()
        self.running: dict[int, tuple[Machine, float]] = {}
        self.inside: set[Machine] = set()
        self.acting = False
        self.woken: list[Machine] = []
        self.runner = 0
        self.driving: dict[int, float] = {}
        self.ended = True
        self.failure: BaseException | None = None
        self.idle = 0

    # ---- Machines ----

    def make_ready(self, machine: Machine) -> None:
        """Let a machine that is new or parked run."""
        machine.state = State.READY
        machine.deadline = None
        if self.acting:
            self.woken.append(machine)
        else:
            self.line_up(machine)

    def line_up(self, machine: Machine) -> None:
        """Let a machine that is READY stand in line."""
        self.line.add(machine)
        if self.idle:
            self.notify()

    def park(self, machine: Machine, timeout: float | None) -> None:
        """Let a machine wait until `make_ready`, or until `timeout` seconds have passed."""
        machine.state = State.PARKED
        machine.deadline = None  # there may be one of an earlier wait, which has come
        if timeout is not None:
            machine.deadline = time.monotonic() + timeout
            self.deadlines.add(machine, machine.deadline)
            self.notify()

    def interrupt(self, machine: Machine) -> None:
        """Make a machine exit now if it is running, or as soon as it is entered."""
        if machine.state is State.RUNNING:
            kick(machine.thread)

    def hold(self, machine: Machine) -> None:
        """Make a machine that is running exit, and wait until it has: it is entered again when the
        lock is released.
        """
        if machine in self.inside:
            kick(machine.thread)
        while machine in self.inside:
            time.sleep(_MOMENT)

    def forget(self, machine: Machine) -> None:
        """A machine has been stopped while it was not running: the run may be over."""
        machine.deadline = None
        self.notify()  # who waits for its deadline

    def recover(self) -> None:
        """After a roll-back: each machine is RUNNING on a worker, READY and in line, or PARKED."""
        running = {  # a worker that has parked one may still have it there
            machine for thread, (machine, _) in self.running.items() if machine.thread == thread
        }
        self.acting = False
        self.woken.clear()
        self.line.clear()
        self.deadlines.sort_out()
        for machine in self._machines():
            if machine.state is State.READY or (
                machine.state is State.RUNNING and machine not in running
            ):
                machine.state = State.READY
                self.line_up(machine)
            elif machine.state is State.PARKED and machine.deadline is not None:
                self.deadlines.add(machine, machine.deadline)

    def wake_expired(self) -> float | None:
        """Make ready whose wait has timed out; return the seconds to the next deadline."""
        while (entry := self.deadlines.next()) is not None:
            deadline, machine = entry
            left = deadline - time.monotonic()
            if left > 0:
                return min(left, FOREVER)
            machine.state = State.READY  # and its entry is over
            self.line_up(machine)
        return None

    # ---- Threads ----

    def check_free(self, *, alone: bool = False) -> None:
        """Raise BusyError if a thread is in `Scheduler.run`, or in `drive` and this one wants to be
        `alone`; ClosedError.
        """
        if self.turns.gone is not None:
            self.turns.check_open()
        if self.runner or (alone and self.driving):
            raise BusyError("another thread is in run(), or in a call: wait until it has returned")

    def leave(self, thread: int) -> None:
        """Let another worker, or another run, have what this one had: it has been cut off. Nobody
        kicks, or waits for, a thread that is no longer here. Called without the lock, or with it.
        """
        machine, _ = self.running.get(thread, (None, 0.0))
        if machine is not None and machine.thread == thread:
            self.inside.discard(machine)  # before the lock: who has it may be waiting for that
        with self.lock:
            self.turns.busy = False
            if self.turns.journal.active:
                self.turns.cut_off()
            if machine is not None and machine.thread == thread:
                machine.see_exit()
            self.running.pop(thread, None)
            self.recover()

    def notify(self) -> None:
        """Let a worker look again; all of those that wait for one machine each."""
        if self.driving:
            self._changed.notify_all()
        else:
            self._changed.notify()

    def notify_all(self) -> None:
        """Let all who wait look again."""
        self._changed.notify_all()

    def wait(self, timeout: float | None) -> None:
        """Let others have the lock until something has changed."""
        self.idle += 1
        try:
            self._changed.wait(None if timeout is None else min(timeout, FOREVER))
        except BaseException:  # a signal's handler may come as the lock is being taken again
            if not self.lock._is_owned():
                self.lock.acquire()
            raise
        finally:
            self.idle -= 1

    def end(self) -> None:
        """Let all who run machines come back."""
        self.ended = True
        for thread in self.running:
            kick(thread)
        self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """End everything by what a thread other than the runner's has come to. Called without the
        lock.
        """
        self.turns.let_go()  # a thread that ends with the lock has it for ever
        self.failure = self.failure or error
        with self.lock:
            self.end()
