"""A worker of a run: it takes whoever is ready, for a slice each.

When a machine waits, its worker goes on with one that it has woken in the same slice, with no
thread woken in between: those who talk to each other share a slice, and do not wait for those who
only burn theirs. Who does not come back within its slice goes to the end of the line if others are
ready, and what it has had beyond the slice is taken off its next ones: what a doorbell asks for is
cut in pieces, but a piece may take as long as a slice where the kernel is slow.
"""

from __future__ import annotations

import time

from vmm.engine import work
from vmm.engine.machine import Machine, State
from vmm.engine.standing import Standing
from vmm.engine.work import Driver, Work

_DEBT = 8  # slices at most: nobody is to wait for long for what happened once


class Shift(Work):
    """A worker, of one run, until that is over."""

    __slots__ = ("_woken",)

    def __init__(self, standing: Standing, driver: Driver) -> None:
        super().__init__(standing, driver)
        self._woken: list[Machine] = []  # in this slice, in which they may run

    def see_woken(self, machine: Machine | None, at_once: bool, brisk: bool) -> Machine | None:
        """As `Work.see_woken`, and remember that they may run in this slice.

        Who comes back soon has more to send, as a rule, until it waits: then they run here. Another
        worker would run each for one message, and take the lock and Python's from this one for it.
        So it is told when somebody does not come back soon.
        """
        standing = self._standing
        if machine is None and at_once and not standing.ended:
            machine = standing.woken.pop(0)
        self._woken += standing.woken
        if not brisk or machine is None or standing.ended:
            return super().see_woken(machine, at_once, brisk)
        self.held = True
        for other in standing.woken:
            standing.line.add(other)
        standing.woken.clear()
        return machine

    def choose(
        self, machine: Machine | None, now: float, slice_end: float
    ) -> tuple[Machine | None, float]:
        """As `Work.choose` says: None when the run is over."""
        standing, thread, before = self._standing, self._thread, machine
        if now < slice_end and not standing.ended:
            if machine is None and self._woken:
                machine = self._pick()
        elif machine is not None:
            if standing.ended or standing.line.first() is not None:
                machine.state = State.READY
                machine.debt = min(now - slice_end, _DEBT * work.SLICE)
                standing.line_up(machine)
                machine = None
            else:
                slice_end = now + work.SLICE
        if machine is None:
            self._woken.clear()
            standing.running.pop(thread, None)
            entries = standing.line.entries
            while entries and not (standing.ended or standing.deadlines.entries):
                place, first = entries[0]  # as `_next` does, in no call
                here = first.state is State.READY and first.place == place
                if here and first.debt:
                    break
                entries.popleft()
                if here:
                    machine = first
                    break
            if machine is None:
                machine, now = self._next(), time.monotonic()
            if machine is None:
                return None, 0.0
            slice_end = now + max(work.SLICE - machine.debt, 0.0)
            machine.debt = 0.0
        if self.held and machine is not before:
            self.let_others()
        machine.thread = thread
        standing.running[thread] = (machine, slice_end)
        machine.state = State.RUNNING
        return machine, slice_end

    def _pick(self) -> Machine | None:
        """Return the first of those who have been woken that is still ready to run."""
        while self._woken:
            machine = self._woken.pop(0)
            if machine.state is State.READY:
                return machine
        return None

    def _next(self) -> Machine | None:
        """Take the next ready machine, waiting for one; None when the run is over."""
        standing = self._standing
        while not standing.ended:
            timeout = standing.wake_expired()
            if (first := standing.line.take(work.SLICE)) is not None:
                return first
            if timeout is None and not standing.running:
                standing.ended = True
                standing.notify_all()
                break
            standing.turns.busy = False
            standing.wait(timeout)
            standing.turns.busy = True  # again: others have had the lock
        return None
