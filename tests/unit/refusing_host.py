"""A host that refuses what a test wants refused, and every way in which it can."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator, Sequence

from vmm.guest.abi import PAGE_SIZE, WINDOW_GPA
from vmm.memory.movers import MappedWindow, RemapWindow, Window
from vmm.memory.movers.remap import Park
from vmm.memory.pool import PagePool


class RefusingHost:
    """Refuses those of its calls that `plan` says, by their order, once it is armed; no others.

    taken   what it did
    """

    def __init__(self, plan: Sequence[bool] = ()) -> None:
        self.plan = plan
        self.armed = False
        self.taken: list[bool] = []

    def call(self) -> None:
        if not self.armed:
            return
        index = len(self.taken)
        self.taken.append(index < len(self.plan) and self.plan[index])
        if self.taken[-1]:
            raise OSError(errno.ENOMEM, "refused by the test")

    @contextlib.contextmanager
    def unasked(self) -> Iterator[None]:
        """Let what is done meanwhile be no call."""
        armed, self.armed = self.armed, False
        try:
            yield
        finally:
            self.armed = armed


def every_way(attempt: Callable[[tuple[bool, ...]], Sequence[bool]]) -> int:
    """Call `attempt` with each plan of refusals that makes a difference, none at all first.

    It returns what the host did; what comes after the plan's end is tried the other way too.
    """
    plans: list[tuple[bool, ...]] = [()]
    for plan in plans:  # which grows meanwhile
        taken = attempt(plan)
        assert tuple(taken[: len(plan)]) == plan
        plans += [(*taken[:index], True) for index in range(len(plan), len(taken))]
    return len(plans)


def make_fragile(pool: PagePool, host: RefusingHost) -> None:
    """Let a pool ask the host when half of the pages are filled."""
    fill = pool.fill

    def fill_half(frame: int, address: int, size: int) -> None:
        fill(frame, address, -(-size // PAGE_SIZE // 2) * PAGE_SIZE)
        host.call()
        fill(frame, address, size)

    pool.fill = fill_half  # type: ignore[method-assign]


class Fragile(MappedWindow):
    """A window that asks the host first."""

    _host: RefusingHost

    def show(self, page: int, frame: int, count: int, *, writable: bool = True) -> None:
        self._host.call()
        super().show(page, frame, count, writable=writable)

    def hide(self, page: int, count: int) -> None:
        self._host.call()
        super().hide(page, count)

    def make_shareable(self, page: int, count: int) -> None:
        self._host.call()
        super().make_shareable(page, count)


class FragileMappedWindow(Fragile):
    """One that only maps. What it passes on it hides and shows."""

    pass_on = Window.pass_on


class FragileRemapWindow(Fragile, RemapWindow):
    """One that memory is moved to, of runs of two pages too."""

    def pass_on(
        self, page: int, frame: int, count: int, other: Window, place: int, *, writable: bool = True
    ) -> bool:
        """Ask as for a hide and a show, whatever it takes: its own calls are not these."""
        self._host.call()
        try:
            self._host.call()
        except OSError:
            with self._host.unasked():
                self.hide(page, count)
            return False
        with self._host.unasked():
            return super().pass_on(page, frame, count, other, place, writable=writable)


def fragile_window(pool: PagePool, host: RefusingHost, pages: int) -> Fragile:
    """Make a window for a pool."""
    kind = FragileRemapWindow if isinstance(pool, Park) else FragileMappedWindow
    window = kind(pool, pages * PAGE_SIZE, WINDOW_GPA)  # type: ignore[arg-type]
    window._host = host
    return window
