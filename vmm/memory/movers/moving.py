"""A window to which memory is moved: how it comes, how it goes home, and how that is undone.

Anonymous memory is nowhere twice. So what the host refuses to move back is copied back, into what
the move has left, and cleared where it was: that takes no call that could be refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from functools import partial

from vmm.guest.abi import PAGE_SIZE, Hold
from vmm.kvm import Vm
from vmm.memory import mapping
from vmm.memory.movers.lodgings import Lodging, Restore, Torn
from vmm.memory.movers.mapped import MappedWindow
from vmm.memory.movers.park import Park
from vmm.memory.run_map import RunMap
from vmm.memory.runs import Extent, IntervalMap, Run


class MovingWindow(MappedWindow):
    """It knows what it shows of anonymous memory: OWNED is writable, VIEWED is not."""

    def __init__(
        self,
        park: Park,
        size: int,
        base: int | None = None,
        vm: Vm | None = None,
        *,
        viewed: bool = False,
        guarded: bool = False,
    ) -> None:
        super().__init__(park, size, base, vm, viewed=viewed, guarded=guarded)
        self._park = park
        self._shown: IntervalMap[Run] = RunMap(self.region.pages, journal=park.journal)
        self._blank: list[Extent] = []  # memory of nobody's that could not be hidden

    @property
    def shown(self) -> tuple[Run, ...]:
        """The anonymous memory in it, in order."""
        return tuple(self._shown)

    # ---- Coming ----

    def _fetch(self, part: Lodging, page: int, writable: bool) -> None:
        """Move memory here. What is only to be read is never writable here, not for a moment."""
        source, size = self._park.memory(part), part.pages * PAGE_SIZE
        self.taken(page, part.pages)
        plain = writable and part.window is None and not self._park.wary  # a home is writable
        journal = self._park.journal
        journal.touched.append((self, page, part.pages))
        if not plain:
            if part.window is None:
                journal.settled.append(partial(_open, source, size))
            else:
                journal.touched.append((part.window, part.page, part.pages))
            mapping.protect(source, size, writable=writable)
        try:
            self._park.move(source, self.address(page), size)
        finally:
            if not plain:
                self._park.let_write(source, size)

    def _fetch_back(self, run: Run, there: int, move: Callable[[], object]) -> None:
        """Undo a move: have memory moved back from `there`, or copy it."""
        size = run.pages * PAGE_SIZE
        left: Iterable[tuple[int, int]] = [(0, size)]
        try:
            move()
        except Torn as torn:
            left = torn.rest(size)
        except OSError:
            pass
        else:
            return
        self._copy_back(run, there, left)

    # ---- Going ----

    def _send_home(self, run: Run) -> None:
        here, home, size = self.address(run.page), self._park.home(run.frame), run.pages * PAGE_SIZE
        self._park.journal.touched.append((self, run.page, run.pages))
        try:
            self._park.move(here, home, size)
        except Torn as torn:
            self._copy_back(run, home, [(torn.start, torn.end - torn.start)])
            if run.hold is Hold.VIEWED:  # as what has been moved was, its place is now
                self._park.let_write(home, size)
            raise
        if run.hold is Hold.VIEWED:
            try:
                self._park.let_write(home, size, needed=True)
            except OSError:
                self._fetch_again(run)
                raise

    def _fetch_again(self, run: Run) -> None:
        """Undo `_send_home`."""
        part = Lodging(run.frame, run.pages, anonymous=True)
        fetch = partial(self._fetch, part, run.page, run.hold is Hold.OWNED)
        self._fetch_back(run, self._park.home(run.frame), fetch)

    def _copy_back(self, run: Run, there: int, parts: Iterable[tuple[int, int]]) -> None:
        """Copy parts (start, bytes) of a run back from where they have been moved."""
        here, writable = self.address(run.page), run.hold is Hold.OWNED
        for start, size in parts:
            try:
                self._park.copy_back(there + start, here + start, size, writable=writable)
            except OSError:  # it is at home, and was to be read only: what is here is blank
                page = run.page + start // PAGE_SIZE
                self._settle_home(run.clip(page, page + size // PAGE_SIZE))
                self._park.wary = True
                self.spoil()

    def _settle_home(self, run: Run) -> None:
        self._shown.remove(*run.extent)
        self._park.lodgings.settle(Lodging(run.frame, run.pages, anonymous=True))

    def lose(self, part: Lodging) -> None:
        """Follow memory that has been taken from here to where it is wanted.

        That is so if the host has refused to hide it, which is let pass only with the dead
        (`bury`).
        """
        self._shown.remove(part.page, part.pages)
        with contextlib.suppress(OSError):
            super().hide(part.page, part.pages)

    # ---- What is nobody's ----

    def blank(self, page: int, count: int) -> None:
        """Hide empty memory that a move has left. What cannot be hidden now is hidden later: it is
        nobody's.
        """
        self._blank.append(Extent(page, count))
        try:
            self.tidy()
        except OSError:
            self.spoil()

    def tidy(self) -> None:
        """Hide what is nobody's. Raises OSError."""
        while self._blank:
            MappedWindow.hide(self, *self._blank[-1])
            self._blank.pop()

    def kept(self) -> Restore:
        return self._shown.kept()


def _open(home: int, size: int) -> None:
    """Let a home be written again: it is, whenever nobody is about to see what is in it."""
    with contextlib.suppress(OSError):
        mapping.protect(home, size, writable=True)
