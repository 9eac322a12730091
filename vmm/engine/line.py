"""Who is to run: machines in line, and those whose wait may be over. Used under the monitor's lock.

Both keep entries that are over, and drop them when they come to them, or when there are too many:
to look for one in the middle costs more than all else that is done for a message. So neither grows
with what machines do, only with how many there are.
"""

from __future__ import annotations

import collections
import heapq
import itertools

from vmm.engine.machine import Machine, State

STALE = 64  # entries that are over, and are kept all the same


class Line:
    """Machines that are READY, in the order in which they became so.

    entries   they, each with its place, and some that are over

    One may be run without being taken out, in another's slice: its entry is over then.
    """

    def __init__(self) -> None:
        self.entries: collections.deque[tuple[int, Machine]] = collections.deque()
        self._numbers = itertools.count(1)
        self._crowd = STALE

    def __len__(self) -> int:
        return len(self.entries)

    def add(self, machine: Machine) -> None:
        """Let a machine that is READY stand at the end."""
        if len(self.entries) > self._crowd:
            self.entries = collections.deque(filter(_in_line, self.entries))
            self._crowd = 2 * len(self.entries) + STALE
        machine.place = next(self._numbers)
        self.entries.append((machine.place, machine))

    def first(self) -> Machine | None:
        """Return who is first, and stays there."""
        entries = self.entries
        while entries and not _in_line(entries[0]):
            entries.popleft()
        return entries[0][1] if entries else None

    def take(self, slice_: float) -> Machine | None:
        """Return who is first, and is no longer there. Whose debt is a slice of so many seconds has
        had it already, and stands at the end again.
        """
        while (machine := self.first()) is not None:
            self.entries.popleft()
            if not 0 < slice_ <= machine.debt or self.first() is None:
                return machine
            machine.debt -= slice_
            self.add(machine)
        return None

    def clear(self) -> None:
        """Forget them all."""
        self.entries.clear()


class Deadlines:
    """Machines that are PARKED, and until when at most, on time.monotonic()'s clock.

    entries   they, and some that are over, the earliest first: to be read only
    """

    def __init__(self) -> None:
        self.entries: list[tuple[float, int, Machine]] = []
        self._numbers = itertools.count()
        self._crowd = STALE

    def __len__(self) -> int:
        return len(self.entries)

    def add(self, machine: Machine, deadline: float) -> None:
        """A machine waits until then; `machine.deadline` says so, too, as long as it does."""
        if len(self.entries) > self._crowd:
            self.sort_out()
        heapq.heappush(self.entries, (deadline, next(self._numbers), machine))

    def sort_out(self) -> None:
        """Drop those that are over."""
        self.entries = list(filter(_counts, self.entries))
        heapq.heapify(self.entries)
        self._crowd = 2 * len(self.entries) + STALE

    def next(self) -> tuple[float, Machine] | None:
        """Return the earliest, which stays."""
        entries = self.entries
        while entries and not _counts(entries[0]):
            heapq.heappop(entries)
        return (entries[0][0], entries[0][2]) if entries else None


def _in_line(entry: tuple[int, Machine]) -> bool:
    """Whether an entry still is one: its machine has not run since, or stopped."""
    place, machine = entry
    return machine.state is State.READY and machine.place == place


def _counts(entry: tuple[float, int, Machine]) -> bool:
    """Whether a time-out may still come: its machine waits, and for that."""
    deadline, _, machine = entry
    return machine.state is State.PARKED and machine.deadline == deadline
