"""The work of a thread that runs machines: enter, act on the exit, enter again.

An exit is acted on in a turn (vmm.ferry.turns). What is raised before the turn has ended undoes it,
and the machine keeps the exit: it is acted on when the machine is taken next, in whatever run.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol

from vmm.engine.guest import Asked
from vmm.engine.kick import drain
from vmm.engine.machine import Machine, State
from vmm.engine.standing import Standing
from vmm.engine.turn import Turn
from vmm.ferry.events import Trace
from vmm.kvm import Exit, Intr

SLICE = 0.010  # seconds
_LONG = 0.001  # seconds, for a hold of the lock
_MOMENT = 20e-6  # seconds, for others to have it
_BRISK = 200e-6  # seconds from one turn to the next


class Driver(Protocol):
    """What is asked of the monitor by who runs machines.

    `execute`, `tell` and `diagnose` are called without the lock, the others in a turn.

    usual   makes the turns that are as usual
    trace   whether somebody is to be told
    """

    usual: Turn
    trace: Trace

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


class Work:
    """A thread that runs machines, one after the other. Of the thread that has made it.

    at_once   whether who has been woken may run in the slice of who has woken it
    held      whether some have been woken of whom no other thread has been told yet
    """

    __slots__ = ("_driver", "_standing", "_thread", "held")

    at_once = True

    def __init__(self, standing: Standing, driver: Driver) -> None:
        self._standing = standing
        self._driver = driver
        self._thread = threading.get_ident()
        self.held = False

    def let_others(self) -> None:
        """Tell another thread of those who stand in line, if one has nothing to do."""
        self.held = False
        if self._standing.idle and self._standing.line.first() is not None:
            self._standing.notify()

    def choose(
        self, machine: Machine | None, now: float, slice_end: float
    ) -> tuple[Machine | None, float]:
        """Return whom this thread runs now, and when its slice ends; None if it is to come back.

        machine   whom it has run, or is to run, if not somebody else's turn has come

        Under the lock, between turns.
        """
        raise NotImplementedError

    def see_woken(self, machine: Machine | None, at_once: bool, brisk: bool) -> Machine | None:
        """Let those who have been woken stand in line; but run one of them, if `at_once` and nobody
        is running. Return who is.

        brisk   whether this thread's machine has come back soon, and so is likely to again
        """
        for other in self._standing.woken:
            self._standing.line_up(other)
        self._standing.woken.clear()
        return machine

    def work(self) -> None:
        """Run machines until `choose` says that it is over, or something is raised."""
        try:
            self._serve()
        except BaseException:
            self._standing.leave(self._thread)
            self._standing.turns.let_go()
            raise

    def _serve(self) -> None:
        """Take machines and run them.

        From taking a machine to parking it, a thread has it in `running`, without a gap in which
        another worker could see nobody busy and end the run: acting on an exit and the next entry
        share one hold of the lock, unless there is something to be told in between.
        """
        standing, driver, thread = self._standing, self._driver, self._thread
        turns, inside, running = standing.turns, standing.inside, standing.running
        lock, journal, outbox, usual = standing.lock, turns.journal, turns.outbox, driver.usual
        machine: Machine | None = None
        slice_end = 0.0
        waited = False  # for others, since a machine has been entered
        over = False  # whether its slice is, with more to do for its exit
        before = 0.0  # when the last turn was
        while True:
            more = told = late = entering = False
            with lock:
                try:
                    turns.busy = True  # also between the turns
                    now = time.monotonic()
                    brisk, before = now - before < _BRISK, now
                    if self.held and not brisk:
                        self.let_others()
                    if over:
                        over = False
                    elif machine is not None and (exit_ := machine.exit) is not None:
                        turn: Machine | State | None = None
                        if now < slice_end and not (standing.ended or outbox.waiting):
                            standing.acting = True
                            turn = usual.take(machine, hand_on=self.at_once)
                            standing.acting = False
                        if turn is None:
                            if journal.active:  # left by who was cut off
                                turns.cut_off()
                            journal.begin()
                            journal.keep(machine)
                            standing.acting = True
                            more = not driver.handle(machine, exit_)
                            if not more:
                                machine.done()
                            standing.acting = False
                            journal.commit()
                            told = outbox.seal()
                            late = time.monotonic() - now > _LONG
                            if machine.state is not State.RUNNING:
                                machine = None
                            if standing.woken:
                                at_once = self.at_once and now < slice_end and not (told or late)
                                machine = self.see_woken(machine, at_once, brisk)
                            if more and now >= slice_end:
                                more, over = False, True  # the rest when it is its turn again
                        else:
                            if machine.state is State.READY:  # as `line_up` has it
                                standing.line.add(machine)
                                self.held = standing.idle > 0
                                if self.held and not brisk:
                                    self.let_others()
                            machine = turn if isinstance(turn, Machine) else None
                            if standing.woken:
                                machine = self.see_woken(machine, self.at_once, brisk)
                            if machine is turn and self.at_once:
                                machine.state, machine.thread = State.RUNNING, thread
                                running[thread] = (machine, slice_end)
                                inside.add(machine)
                                entering = True
                    if not (more or told or late or entering):
                        over = False
                        machine, slice_end = self.choose(machine, now, slice_end)
                        if machine is None:
                            turns.busy = False
                            return
                        now = max(now, slice_end - SLICE)  # it may have waited for that machine
                        if machine.exit is None and usual.ready(machine):
                            inside.add(machine)
                        elif machine.exit is None:
                            if journal.active:
                                turns.cut_off()
                            journal.begin()
                            journal.keep(machine)
                            driver.prepare(machine)
                            journal.commit()
                            told = outbox.seal()
                            # Who has had the lock for long lets others who work come first.
                            alone = waited or len(running) == 1
                            if not told and (alone or time.monotonic() - now <= _LONG):
                                inside.add(machine)
                    turns.busy = False
                except BaseException:
                    standing.leave(thread)  # before anybody else has the lock
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
                if driver.trace.on:
                    driver.tell(machine, exit_)
                continue
            if machine is not None and more:
                driver.diagnose(machine)
            if len(running) > 1:  # others may want the lock, or Python's: for as long
                time.sleep(max(_MOMENT, time.monotonic() - now))
                waited = True  # or where every hold is long, nobody would ever be entered
            elif late or (machine is not None and machine.exit is not None):
                time.sleep(_MOMENT)  # and other threads of the program's
