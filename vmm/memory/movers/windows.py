"""What the windows of every mover do.

A window maps frames of the pool at its pages and hides them again. The exchange always hides an
extent on the old side before it shows it on the new one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from vmm.memory.region import Region
from vmm.memory.runs import Extent, IntervalMap

PRIVATE_SLOT = 0  # the memslot of a machine's private memory
PROGRAM_SLOTS = (PRIVATE_SLOT, 1, 2, 3)  # of a Linux program's, if it is one
WINDOW_SLOT = 4  # the first memslot of its window


Tables = tuple[tuple[IntervalMap[Any], list[Any]], ...]


class Stuck(OSError):
    """A `show` that the host has refused, and then to undo it. `shown` can be seen now."""

    def __init__(self, shown: Sequence[Extent], error: OSError) -> None:
        super().__init__(*error.args)
        self.shown = tuple(shown)


class Sight(NamedTuple):
    """Adjacent pages of a window, and the frames that the kernel shows there.

    frame   None if it is something else
    """

    page: int
    pages: int
    frame: int | None
    writable: bool


class Window(ABC):
    """The address range in which a peer's transferable pages appear.

    region      where it lies: guest-physical addresses for a machine, host addresses for the host
                process
    populate    whether pages are to be mapped as they are shown, rather than as each is touched:
                for who reads what it gets. Nothing more is to be seen for it
    on_spoiled  called when it is `spoiled`, in the middle of whatever it is

    Pages are indices into the region. Which pages hold what is the ledger's business: `show` is
    only called on hidden pages. What changes them raises OSError, having changed nothing; or
    `Stuck`, having shown more than nothing. What can be told in neither way spoils the window: the
    host has refused a change and to undo it, and some of its pages have vanished, or are blank
    memory of nobody's where there should be none. Its machine cannot go on.

    Not thread-safe; a machine may be running on the window meanwhile, unless `blinks`.
    """

    region: Region
    populate = False
    blinks = False  # whether hiding some pages takes others with them for a moment
    spoiled = False
    on_spoiled: Callable[[], object] | None = None

    def spoil(self) -> None:
        """Note that the window is no longer what it should be."""
        self.spoiled = True
        if self.on_spoiled is not None:
            self.on_spoiled()

    @abstractmethod
    def show(self, page: int, frame: int, count: int, *, writable: bool = True) -> None:
        """Make `count` adjacent frames accessible from `page` on, or only readable."""

    @abstractmethod
    def hide(self, page: int, count: int) -> None:
        """Make `count` pages inaccessible; they may span several shown runs, and holes."""

    def pass_on(
        self, page: int, frame: int, count: int, other: Window, place: int, *, writable: bool = True
    ) -> bool:
        """Hide the one run of frames that is shown from `page` on, and show it in another window
        from `place` on.

        False if it is hidden here, and the host refuses to show it there; Stuck if it is hidden
        here, and shown there in part. Any other OSError has changed nothing.
        """
        self.hide(page, count)
        return other.try_to_show(place, frame, count, writable=writable)

    def tables(self, other: Window) -> Tables:
        """Return those that `pass_on` to another window changes, and what they hold."""
        return ()

    def try_to_show(self, page: int, frame: int, count: int, *, writable: bool = True) -> bool:
        """Show frames. False if the host refuses that. Raises Stuck."""
        try:
            self.show(page, frame, count, writable=writable)
        except Stuck:
            raise
        except OSError:
            return False
        return True

    def make_shareable(self, page: int, count: int) -> None:  # noqa: B027 - most need nothing
        """Get pages that are shown here, and nowhere else, ready to be shown elsewhere as well.

        Whoever sees them must not be running; what it sees stays the same, also on an OSError.
        """

    def share_slice(self, page: int, count: int, most: int) -> bool:
        """Do a part of `make_shareable`, of at most so many pages; whoever sees them must not be
        running either. False if nothing is left to be done, or can be.
        """
        return False

    def loosen(self, page: int, count: int) -> bool:
        """Take a part of the kernel's work out of a `hide` that follows: to drop the translations
        of so many pages, if they are in use. Nobody sees anything of it. False if that cannot be.
        """
        return False

    def moves(self, page: int, count: int) -> bool:
        """Whether these pages are moved as they are when they are hidden, with whatever leads to
        them: to loosen them first is no use.
        """
        return False

    @abstractmethod
    def address(self, page: int) -> int:
        """Return the host address behind a page that is shown."""

    def pieces(self, page: int, count: int) -> Sequence[tuple[int, int]]:
        """Return where in this process pages are that are shown, in as many pieces as it takes:
        address, and number of pages.
        """
        return ((self.address(page), count),)

    def forget(self) -> None:  # noqa: B027 - most know
        """Hide everything, if it cannot be known what a change that was cut off has left."""

    def show_again(self, page: int, frame: int, count: int, *, writable: bool) -> None:
        """Show frames where they are shown, or are to be by this window's own tables, whatever a
        change that was cut off has left there.
        """
        self.show(page, frame, count, writable=writable)

    def seen(self) -> Sequence[Sight] | None:
        """Return what the kernel shows here, in order; None if that cannot be looked at.

        Raises OSError.
        """
        return None

    @abstractmethod
    def close(self) -> None:
        """Unmap it all. Its machine's descriptors have been closed before."""
