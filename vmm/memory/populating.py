"""How much is mapped at once for those who read what they get. Pure.

A receiver that touches each of many small pages has a fault for each, of the host's and of KVM's.
Mapped at once, the host's are spared, and KVM takes several pages with one of its own. It is the
monitor that does the work, under its lock: so there is a limit to it in each turn.
"""

from __future__ import annotations

AT_ONCE = 2048  # pages in a turn: a millisecond's work, or two where they have to be zeroed


class Populating:
    """What all windows have had mapped at once in the present turn. Not thread-safe."""

    def __init__(self) -> None:
        self._turn = -1
        self._left = AT_ONCE

    def wants(self, count: int, turn: int) -> bool:
        """Whether so many pages are to be mapped at once, in this turn; if so, they are counted."""
        if turn != self._turn:
            self._turn, self._left = turn, AT_ONCE
        if count > self._left:
            return False
        self._left -= count
        return True
