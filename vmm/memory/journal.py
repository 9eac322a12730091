"""What was, before a change that is under way: so that it is whole, or undone, whatever is raised.

Python may raise at any line: Ctrl-C, an alarm's handler, a debugger, want of memory. The monitor
changes its state in *turns*, each under its lock: before a table is changed for the first time in a
turn it is kept here as it was. A turn that ends is committed by one assignment. One that is cut off
is rolled back: the tables first, then what the kernel maps.

    with the lock:
        journal.begin()
        ...                     # tables call keep(), windows note what they touch
        journal.commit()        # or roll_back(), if anything was raised

Both `begin` and `roll_back` may be cut off in their turn, and are called again then: what is kept
is absolute, so that to restore it twice is to restore it once. Not thread-safe: used under the
monitor's lock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Kept(Protocol):
    """A table that can be put back to what it was."""

    turn: int  # in which it was last kept

    def saved(self) -> Any:
        """Return all that a change may change, as a value of its own."""

    def restore(self, saved: Any) -> None:
        """Be what was saved."""


class Journal:
    """The present turn's undo log.

    turn      the number of the present turn, or of the last one
    active    whether a turn is under way
    left      what the last turn has left to do, if it was cut off in that; or this one will have
    finishing whether what a turn has left to do is being done: no other may come in between
    touched   windows, and the pages of them, whose mapping has been, or may have been, changed
    moves     memory that has been moved, or may have been: from, to, bytes; less than none, if it
              has been copied back
    settled   what cannot be undone, and is harmless to be done again: called after a roll-back
    undone    called when a roll-back is over
    repair    makes everything derived, and the kernel's mappings, follow the restored tables
    """

    __slots__ = (
        "_kept",
        "active",
        "finishing",
        "left",
        "moves",
        "repair",
        "settled",
        "touched",
        "turn",
        "undone",
    )

    def __init__(self) -> None:
        self.turn = 0
        self.active = self.finishing = False
        self.touched: list[tuple[Any, int, int]] = []
        self.moves: list[tuple[int, int, int]] = []
        self.settled: list[Callable[[], object]] = []
        self.repair: Callable[[], None] = _nothing
        self.undone: Callable[[], None] = _nothing
        self._kept: list[tuple[Kept, Any]] = []
        self.left: list[Callable[[], object]] = []

    def begin(self) -> None:
        """Begin a turn. What the last one has left to do is done first."""
        if self.active:
            self.roll_back()
        if self.left:
            self.finish()
        self._kept.clear()
        if self.touched or self.moves or self.settled:  # as `_forget`
            self.touched.clear()
            self.moves.clear()
            self.settled.clear()
        self.turn += 1
        self.active = True

    def open(self, table: Kept, saved: Any) -> bool:
        """Begin a turn that changes what `saved` says of `table`, and no more. False, with nothing
        done, if there is anything to be done before.
        """
        if self.active or self.left:
            return False
        self._kept.clear()
        if self.touched or self.moves or self.settled:  # as `_forget`
            self.touched.clear()
            self.moves.clear()
            self.settled.clear()
        self.turn += 1
        self._kept.append((table, saved))
        self.active = True
        return True

    def keep(self, table: Kept) -> None:
        """Keep a table as it is, unless that has been done in this turn."""
        if self.active and table.turn != self.turn:
            self._kept.append((table, table.saved()))
        table.turn = self.turn  # after it: kept twice is harmless, not kept is not

    def undo(self, action: Callable[[], object]) -> None:
        """Call `action` in a roll-back of this turn. Twice must be as good as once."""
        if self.active:
            self._kept.append((_UNDO, action))

    def later(self, action: Callable[[], object]) -> None:
        """Do what cannot be undone when the turn has been committed: at once, if there is none.

        It is done once at least, before anything else: twice must be as good as once.
        """
        self.left.append(action)
        if not self.active:
            self.finish()

    def commit(self) -> None:
        """End the turn."""
        self.active = False  # from here on it has been
        if self.left:
            self.finish()

    def finish(self) -> None:
        """Do what the last turn has left to do, if it was cut off in that."""
        self.finishing = True
        try:
            while self.left:
                self.left[0]()
                del self.left[0]
        finally:
            self.finishing = False

    def roll_back(self) -> None:
        """Put everything back to what it was when the turn began."""
        for table, saved in reversed(self._kept):
            table.restore(saved)
        self.repair()
        self.left.clear()
        self.undone()
        self.active = False

    def abandon(self) -> None:
        """Forget a turn, and what the last one has left to do: they are another process's."""
        self.active = self.finishing = False
        self.left.clear()
        self._forget()

    def _forget(self) -> None:
        self._kept.clear()
        self.touched.clear()
        self.moves.clear()
        self.settled.clear()


class _Undo:
    """A table whose saved state is what restores it."""

    turn = 0

    def saved(self) -> Any:
        raise NotImplementedError

    def restore(self, saved: Any) -> None:
        saved()


_UNDO = _Undo()


def _nothing() -> None:
    pass


IDLE = Journal()
"""The journal of tables that nobody keeps: no turn of it ever begins."""
