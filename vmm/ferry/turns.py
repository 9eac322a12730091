"""Turns: the monitor's state changes under one lock, as a whole or not at all, and then it is told.

A turn is one hold of the lock in which a doorbell is answered, a machine is readied, or a call of
the host's is served. What is raised in it, at whatever line, undoes it (vmm.memory.journal).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from vmm.errors import BusyError, ClosedError, PageferryError
from vmm.ferry.events import Outbox
from vmm.ferry.rules import Refusal
from vmm.memory.journal import Journal


class Turns:
    """The lock, and what is kept and told under it.

        with turns.turn():
            ...

    lock      reentrant: a signal's handler may come between any two lines of its thread
    recover   called after a roll-back, to put right what does not depend on the tables
    gone      why there are no more turns, once there are none
    """

    def __init__(self, journal: Journal) -> None:
        self.lock: Any = threading.RLock()
        self.journal = journal
        self.outbox = Outbox()
        self.busy = False  # whether its holder is between two turns, and wants no call in between
        self.gone: str | None = None
        self.recover: Callable[[], None] = _nothing
        journal.undone = self.outbox.drop

    @property
    def inside(self) -> bool:
        """Whether the calling thread is in a turn: it is a signal's handler that asks, then."""
        journal = self.journal
        return (self.busy or journal.active or journal.finishing) and self.lock._is_owned()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the lock for a turn, and tell what is to be told after it.

        An error of ours is an answer, after which the tables are as they should be; what else is
        raised undoes the turn. Raises BusyError from a signal's handler that has interrupted one,
        ClosedError if there are no more.
        """
        self.check_open()
        if self.inside:
            raise BusyError(
                "the monitor is at work, interrupted by this signal: set a flag in the handler, "
                "and call it from elsewhere"
            )
        held = self.lock._is_owned()  # by what this signal's handler has interrupted
        try:
            with self.lock, self._changes():
                yield
        finally:
            if not held:
                self.let_go()
        self.outbox.flush()

    @contextlib.contextmanager
    def _changes(self) -> Iterator[None]:
        # A function of its own: what a tracer raises at a `try` is not caught by those around it.
        self.check_open()  # again: whoever had the lock may have been the last
        self.journal.begin()
        try:
            yield
        except (PageferryError, Refusal):
            self.end()
            raise
        except BaseException:
            self.cut_off()
            raise
        self.end()

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

    def abandon(self, why: str) -> None:
        """Let there be no more turns in a process that was forked: they are its parent's, and so is
        what another thread may have been at.
        """
        self.lock._at_fork_reinit()  # as `logging` does
        self.journal.abandon()
        self.gone = why

    def end(self) -> None:
        """End a turn: it has been, from now on."""
        self.journal.commit()
        self.outbox.seal()

    def cut_off(self) -> None:
        """Undo a turn."""
        self.journal.roll_back()
        self.recover()


def _nothing() -> None:
    pass
