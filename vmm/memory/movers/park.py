"""The park: the memory of frames that are to have huge pages, and move with them.

Each frame has a home in one anonymous mapping, where it lies while no window shows it; and a place
in a memfd. In which of the two its memory is, is decided when it is first shown (lodgings).
"""

from __future__ import annotations

import ctypes
import errno
from collections import Counter
from collections.abc import Iterable

from vmm.guest.abi import PAGE_SIZE
from vmm.memory import mapping
from vmm.memory.frames import LARGE
from vmm.memory.mapping import HUGE, Mapping
from vmm.memory.movers.lodgings import Lodging, Lodgings
from vmm.memory.pool import PagePool

SEAMS = 4096  # for all windows; the ledger leaves the kernel as many mappings more
_COMMON = SEAMS - SEAMS // 4  # of which whoever comes first may make as many
_OWN = 16  # and each window so many, when these are used up


class Park(PagePool):
    """A page pool whose frames have a memfd, and a home in anonymous memory.

    Nobody looks at homes: what a page that has left may have left behind is not cleared away.
    """

    def __init__(self, frames: int, large: int = LARGE) -> None:
        self._memfd: Mapping | None = None  # as a whole
        self._cut: Counter[object] = Counter()  # seams made by windows since there were few
        size = frames * PAGE_SIZE
        self._homes = Mapping.park(size + PAGE_SIZE)
        # A page that never leaves: all mappings that are split off share its anon_vma, without
        # which the kernel would not join them again.
        ctypes.memset(self._homes.address + size, 1, 1)
        try:
            mapping.keep_from_children(self._homes.address, self._homes.size)
            mapping.advise_huge(self._homes.address, self._homes.size)
            super().__init__(frames)
            self.lodgings = Lodgings(frames, large, SEAMS, self.journal)
        except BaseException:
            self._homes.close()
            raise

    def may_cut(self, window: object) -> bool:
        """Whether a window may make seams, by sharing a part of a larger run: anybody may, as long
        as there are few; then each a few.
        """
        seams = self.lodgings.seams
        if seams < _COMMON:
            self._cut.clear()
            return True
        return seams < SEAMS and self._cut[window] < _OWN

    def has_cut(self, window: object) -> None:
        """A window has shared a part of a run, and made seams."""
        self._cut[window] += 1

    def home(self, frame: int) -> int:
        """Return the address of a frame's home."""
        return self._homes.address + frame * PAGE_SIZE

    def memory(self, part: Lodging) -> int:
        """Return where anonymous memory is now."""
        return self.home(part.frame) if part.window is None else part.window.address(part.page)

    def settled(self, part: Lodging) -> int:
        """Return the address of frames that are to stay where they are from now on: at home, or in
        the memfd. Raises OSError.
        """
        if not part.anonymous:
            if part.fresh:
                self.lodgings.settle(part)
            return self.memfd + part.frame * PAGE_SIZE
        if part.window is not None:  # which the host has not let hide them
            self.move(self.memory(part), self.home(part.frame), part.pages * PAGE_SIZE)
            part.window.lose(part)
        if part.fresh or part.window is not None:
            self.lodgings.settle(Lodging(part.frame, part.pages, anonymous=True))
        return self.home(part.frame)

    @property
    def memfd(self) -> int:
        """The address of the memfd's first frame. It is mapped when it is first asked for."""
        if self._memfd is None:
            self._memfd = Mapping.shared(self.frames * PAGE_SIZE, self.fd)
        return self._memfd.address

    @property
    def fillable(self) -> bool:
        return self.lodgings.seams < SEAMS

    def fill(self, frame: int, address: int, size: int) -> None:
        # The memfd's, whatever its neighbours are; and before there is anything to be zeroed.
        self.lodgings.settle(Lodging(frame, size // PAGE_SIZE, anonymous=False))
        super().fill(frame, address, size)

    def zero(self, frames: Iterable[tuple[int, int]]) -> None:
        for first, count in frames:
            for part in self.lodgings.within(first, count):
                if part.anonymous:
                    mapping.empty(self.memory(part), part.pages * PAGE_SIZE)
                else:
                    super().zero([(part.frame, part.pages)])
                if part.window is not None:
                    part.window.lose(part)
            self.lodgings.forget(first, count)

    def move(self, source: int, target: int, size: int) -> None:
        """Move memory, by halves where it is several mappings to the kernel.

        All of it or, as far as the host does not refuse to undo it, none.
        """
        try:
            self._move(source, target, size)
            return
        except OSError as error:
            if error.errno != errno.EFAULT or size == PAGE_SIZE:
                raise
        unit = HUGE if size > HUGE else PAGE_SIZE
        half = -(-size // 2 // unit) * unit
        self.move(source, target, half)
        try:
            self.move(source + half, target + half, size - half)
        except OSError:
            self.move(target, source, half)
            raise

    def _move(self, source: int, target: int, size: int) -> None:
        moves = self.journal.moves
        moves.append((source, target, size))  # before it: it may be done when we are cut off
        try:
            mapping.move(source, target, size)
        except OSError:
            moves.pop()
            raise

    def recount(self) -> None:
        self.lodgings.recount()

    def undo_moves(self) -> None:
        """Move everything back that has been moved in a turn that was cut off, the last first.

        Of the last one it is not known whether it was done: then the memory is where pages are. If
        there are none on either side, both are the same.
        """
        moves = self.journal.moves
        sure = False
        while moves:
            source, target, size = moves[-1]
            if sure or mapping.populated(target, size):
                mapping.move(target, source, size)
            moves.pop()
            sure = True

    def close(self) -> None:
        super().close()
        self._homes.close()
        if self._memfd is not None:
            self._memfd.close()
