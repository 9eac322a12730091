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
from vmm.kvm.given import GivenMapping
from vmm.memory import mapping
from vmm.memory.frames import LARGE
from vmm.memory.mapping import HUGE, Mapping
from vmm.memory.movers.lodgings import Lodging, Lodgings, Restore, Torn
from vmm.memory.pagemap import populated
from vmm.memory.pool import PagePool

SEAMS = 4096  # for all windows; the ledger leaves the kernel as many mappings more
_COMMON = SEAMS - SEAMS // 4  # of which whoever comes first may make as many
_OWN = 16  # and each window so many, when these are used up


class Park(PagePool):
    """A page pool whose frames have a memfd, and a home in anonymous memory.

    wary   whether the host has refused something that tidies up: a home may be read-only then, and
           hold what has left it; the memfd may hold what is not its own. Nothing of that is taken
           for granted any more
    """

    def __init__(self, frames: int, large: int = LARGE) -> None:
        self.wary = False
        self._torn: list[Restore] | None = None  # what puts right a `zero` that was cut off
        self._memfd: Mapping | None = None  # as a whole
        self._memfd_given = GivenMapping()  # by the kernel: the same
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
        """Return where memory is now."""
        if not part.anonymous:
            return self.memfd + part.frame * PAGE_SIZE
        return self.home(part.frame) if part.window is None else part.window.address(part.page)

    def settled(self, part: Lodging) -> int:
        """Return the address of frames that are to stay where they are from now on: at home, or in
        the memfd. Raises OSError.
        """
        if not part.anonymous:
            if part.fresh:
                self.lodgings.settle(part)
            return self.memory(part)
        home, size = self.home(part.frame), part.pages * PAGE_SIZE
        if part.window is not None:  # which the host has not let hide them
            try:
                self.move(self.memory(part), home, size)
            except Torn as torn:
                if (moved := torn.part_of(part)).pages:
                    self._come_home(moved)
                raise
        if part.fresh or part.window is not None:
            self._come_home(part)
        if part.window is not None or self.wary:
            self.let_write(home, size, needed=True)
        return home

    def let_write(self, address: int, size: int, *, needed: bool = False) -> None:
        """Make homes, or what has been moved out of a window, writable again.

        Raises OSError, if that is needed now.
        """
        try:
            mapping.protect(address, size, writable=True)
        except OSError:
            self.wary = True
            if needed:
                raise

    def _come_home(self, part: Lodging) -> None:
        if part.window is not None:
            part.window.lose(part)
        self.lodgings.settle(Lodging(part.frame, part.pages, anonymous=True))

    def copy_back(self, source: int, target: int, size: int, *, writable: bool) -> None:
        """Undo a move that the host does not undo, by copying into what it has left at `target`:
        empty memory, writable or not as the memory itself. What is writable is never refused.

        Raises OSError.
        """
        if not size:
            return
        self.journal.moves.append((target, source, -size))
        if writable:
            ctypes.memmove(target, source, size)
        else:
            mapping.overwrite(target, source, size)
        try:
            mapping.empty(source, size)
        except OSError:
            if writable:
                mapping.clear(source, size)
            else:
                self.wary = True

    def disown(self, frame: int, count: int) -> None:
        """Forget what the memfd has of frames that are not its own."""
        try:
            mapping.punch(self.fd, frame * PAGE_SIZE, count * PAGE_SIZE)
        except OSError:
            self.wary = True

    def vacate(self, frame: int, count: int) -> None:
        """Forget what is at the homes of frames that are the memfd's."""
        try:
            mapping.empty(self.home(frame), count * PAGE_SIZE)
        except OSError:
            self.wary = True

    @property
    def memfd(self) -> int:
        """The address of the memfd's first frame. It is mapped when it is first asked for."""
        if self._memfd is None:
            size = self.frames * PAGE_SIZE
            self._memfd = Mapping.shared(size, self.fd, self._memfd_given)
        return self._memfd.address

    @property
    def fillable(self) -> bool:
        return self.lodgings.seams < SEAMS

    def fill(self, frame: int, address: int, size: int) -> None:
        # The memfd's, whatever its neighbours are; and before there is anything to be zeroed.
        self.lodgings.settle(Lodging(frame, size // PAGE_SIZE, anonymous=False))
        super().fill(frame, address, size)

    def zero(self, frames: Iterable[tuple[int, int]]) -> None:
        self._mend()
        for first, count in frames:
            for part in self.lodgings.within(first, count):
                self._zero(part)
                if not self.journal.active:  # which would keep them
                    tables = (self.lodgings, part.window)
                    self._torn = [table.kept() for table in tables if table is not None]
                if part.window is not None:
                    part.window.lose(part)
                self.lodgings.forget(part.frame, part.pages)  # at once: the next may be refused
                self._torn = None

    def _mend(self) -> None:
        """Have the tables that a `zero` between two turns has left, if it was cut off, as they were
        before: it is done again.
        """
        if self._torn is not None:
            for restore in self._torn:
                restore()
            self.recount()
            self._torn = None

    def _zero(self, part: Lodging) -> None:
        """Zero frames wherever they are; whatever they may have left behind, too."""
        if part.anonymous:
            mapping.empty(self.memory(part), part.pages * PAGE_SIZE)
        if self.wary:
            mapping.empty(self.home(part.frame), part.pages * PAGE_SIZE)
        if self.wary or not part.anonymous:
            super().zero([(part.frame, part.pages)])

    def move(self, source: int, target: int, size: int) -> None:
        """Move memory, by halves where it is several mappings to the kernel.

        Raises OSError, with nothing moved, or Torn.
        """
        moves = self.journal.moves
        moves.append((source, target, size))  # as `_move`, without its call: most are done here
        try:
            mapping.move(source, target, size)
            return
        except OSError as error:
            moves.pop()
            if error.errno != errno.EFAULT or size == PAGE_SIZE:
                raise
        moved, refused = self._by_halves(source, target, size)
        if refused is None:
            return
        if not moved:
            raise refused
        back, _ = self._advance(target, source, moved)
        raise Torn(back, moved, refused) from None

    def _advance(self, source: int, target: int, size: int) -> tuple[int, OSError | None]:
        """Move memory from its first byte on; return how much has moved, and why no more."""
        try:
            self._move(source, target, size)
        except OSError as error:
            if error.errno != errno.EFAULT or size == PAGE_SIZE:
                return 0, error
            return self._by_halves(source, target, size)
        return size, None

    def _by_halves(self, source: int, target: int, size: int) -> tuple[int, OSError | None]:
        unit = HUGE if size > HUGE else PAGE_SIZE
        half = -(-size // 2 // unit) * unit
        moved, refused = self._advance(source, target, half)
        if refused is None:
            more, refused = self._advance(source + half, target + half, size - half)
            moved += more
        return moved, refused

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
        """Move everything back that has been moved in a turn that was cut off, the last first; copy
        it there again, if it was copied back.

        Of the last one it is not known whether it was done: then the memory is where pages are. If
        there are none on either side, both are the same. If there are on both, those at home are
        the kernel's: where it makes one huge page of a few (khugepaged), it fills up with zeros
        what is empty between them.
        """
        moves = self.journal.moves
        sure = False
        while moves:
            source, target, size = moves[-1]
            if size < 0:
                if sure or not populated(target, -size):
                    mapping.overwrite(target, source, -size)
            elif sure or self._moved(source, target, size):
                mapping.move(target, source, size)
            moves.pop()
            sure = True

    def _moved(self, source: int, target: int, size: int) -> bool:
        at_home = 0 <= target - self._homes.address < self._homes.size
        return populated(target, size) and not (at_home and populated(source, size))

    def close(self) -> None:
        super().close()
        self._homes.close()
        self._memfd_given.give_back()
