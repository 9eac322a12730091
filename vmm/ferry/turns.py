"""Turns: the monitor's state changes under one lock, as a whole or not at all, and then it is told.

A turn is one hold of the lock in which a doorbell is answered, a machine is readied, or a call of
the host's is served. What is raised in it, at whatever line, undoes it (vmm.memory.journal).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from vmm.errors import BusyError, ClosedError, PageferryError
from vmm.ferry.events import Outbox
from vmm.ferry.rules import Refusal
from vmm.memory.journal import Journal


class Turns:
    """The lock, and what is kept and told under it.

        with turns.telling, turns.lock, turns.change:
            ...

    Three, since the middle one is the interpreter's own: it releases the lock whatever a signal's
    handler raises, and wherever: at the first line of our `__exit__`, too.

    telling   tells what is to be told when the turn is over. Raises BusyError from a signal's
              handler that has interrupted one, ClosedError if there are no more turns
    lock      reentrant: a signal's handler may come between any two lines of its thread
    change    the turn. An error of ours is an answer, after which the tables are as they should be;
              what else is raised undoes it: at once, or if that is interrupted, before the next
    recover   called after a roll-back, to put right what does not depend on the tables
    gone      why there are no more turns of calls, if there are none
    """

    def __init__(self, journal: Journal) -> None:
        self.lock: Any = threading.RLock()
        self.journal = journal
        self.outbox = Outbox()
        self.telling = _Telling(self)
        self.change = _Change(self)
        self.busy = False  # whether its holder is between two turns, and wants no call in between
        self.gone: str | None = None
        self.recover: Callable[[], None] = _nothing
        journal.undone = self.outbox.drop

    @property
    def inside(self) -> bool:
        """Whether the calling thread is in a turn: it is a signal's handler that asks, then."""
        journal = self.journal
        return (self.busy or journal.active or journal.finishing) and self.lock._is_owned()

    @property
    def held(self) -> bool:
        """Whether the calling thread has the lock."""
        return bool(self.lock._is_owned())

    def let_go(self) -> None:
        """Let others have the lock, whatever has been raised where a `with` would have done so."""
        while self.lock._is_owned():
            self.busy = False
            self.lock.release()

    def check_open(self) -> None:
        """Raise ClosedError if there are no more turns."""
        if self.gone is not None:
            raise ClosedError(self.gone)

    def stop(self, why: str) -> None:
        """Let there be no more turns of calls; one that is under way is waited for.

        Memory may be unmapped afterwards: who reads or writes it does so in a turn.
        """
        with self.lock:
            self.gone = why

    def settle(self) -> None:
        """Undo what a turn that was cut off has left undone, or do what it has left to do."""
        held = self.held
        try:
            with self.lock:
                if self.journal.active:
                    self.cut_off()
                self.journal.finish()
        finally:  # a debugger may raise as a `with` ends, which leaves the lock held then
            if not held:
                self.let_go()

    def abandon(self, why: str) -> None:
        """Let there be no more turns in a process that was forked: they are its parent's, and so is
        what another thread may have been at.
        """
        self.lock._at_fork_reinit()  # as `logging` does
        self.journal.abandon()
        self.gone = why

    def cut_off(self) -> None:
        """Undo a turn."""
        self.journal.roll_back()
        self.recover()


_ANSWERS = (PageferryError, Refusal)

# Each in one function, with what it looks at: there are some for every message.


class _Telling:
    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def __enter__(self) -> None:
        turns, journal = self._turns, self._turns.journal
        if turns.gone is not None:
            turns.check_open()
        if (turns.busy or journal.active or journal.finishing) and turns.held:
            raise BusyError(
                "the monitor is at work, interrupted by this signal: set a flag in the handler, "
                "and call it from elsewhere"
            )

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        outbox = self._turns.outbox
        if kind is None and outbox.waiting:
            outbox.flush()


class _Change:
    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def __enter__(self) -> None:
        turns = self._turns
        if turns.gone is not None:  # again: whoever had the lock may have been the last
            turns.check_open()
        if turns.journal.active:  # the last one has been left without an end
            turns.cut_off()
        turns.journal.begin()

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        turns = self._turns
        if kind is None or issubclass(kind, _ANSWERS):
            turns.journal.commit()  # it has been, from now on
            turns.outbox.seal()
        else:
            turns.cut_off()


def _nothing() -> None:
    pass
