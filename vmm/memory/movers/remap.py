"""`remap` does as `memfd` does, and moves large extents with their huge pages.

Stock hosts give huge pages to anonymous memory that asks for them, and none to a memfd; and mremap
moves page-table entries as they are. So frames that are shown first in a large run get anonymous
memory: each frame has a home in one mapping, the park, where it lies while no window shows it.
Small runs are the memfd's, where showing takes one call less.

Anonymous memory is at one address only. Before it is shared it is copied into the memfd, once, and
is the memfd's until it is freed.

All anonymous pages come from one mapping and keep its offsets (`vm_pgoff`), so that the kernel
joins what is adjacent again when it comes home: the park stays one mapping, and a run in a window
is one.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Sequence
from functools import partial

from vmm.guest.abi import PAGE_SIZE, Hold
from vmm.kvm import Vm
from vmm.memory import mapping
from vmm.memory.frames import LARGE
from vmm.memory.maps import Area
from vmm.memory.movers.lodgings import Lodging, Torn
from vmm.memory.movers.mapped import MappedWindow
from vmm.memory.movers.mover import Mover
from vmm.memory.movers.moving import MovingWindow
from vmm.memory.movers.park import SEAMS, Park
from vmm.memory.movers.park_slots import ParkSlotsWindow
from vmm.memory.movers.windows import Sight, Stuck, Tables, Window
from vmm.memory.pool import PagePool
from vmm.memory.run_map import RunMap
from vmm.memory.runs import Extent, Run

PIECES = 1024  # anonymous runs that a window may have and still cut one for a SHARE
_new = tuple.__new__


class RemapWindow(MovingWindow):
    """A window to which memory is moved, or where the memfd is mapped."""

    # ---- Showing ----

    def show(self, page: int, frame: int, count: int, *, writable: bool = True) -> None:
        if self._park.lodgings.in_memfd(frame, count):  # as most small ones are, that have moved
            super().show(page, frame, count, writable=writable)
            return
        self.cover(page, count)
        if self._blank:
            self.tidy()
        done = 0
        try:
            for part in self._park.lodgings.of(page, frame, count):
                self._show(part, page + done, writable)
                done += part.pages
        except OSError as error:
            left = list(error.shown) if isinstance(error, Stuck) else []
            if done and not self._hides(page, done):
                left.append(Extent(page, done))
            if left:
                raise Stuck(left, error) from None
            raise

    def _hides(self, page: int, count: int) -> bool:
        try:
            self.hide(page, count)
        except OSError:
            return False
        return True

    def _show(self, part: Lodging, page: int, writable: bool) -> None:
        if not part.anonymous:
            super().show(page, part.frame, part.pages, writable=writable)
            if part.fresh:
                self._park.lodgings.settle(part)
            return
        stuck: Stuck | None = None
        try:
            self._fetch(part, page, writable)
        except Torn as torn:
            if torn.start:
                self.blank(page, torn.start // PAGE_SIZE)
            if torn.start == torn.end:
                raise
            part, page = torn.part_of(part), page + torn.start // PAGE_SIZE
            stuck = Stuck([Extent(page, part.pages)], torn)
        if part.window is not None:
            part.window.lose(part)
        self._park.lodgings.settle(part._replace(window=self, page=page))
        hold = Hold.OWNED if writable else Hold.VIEWED
        self._shown.insert(Run(page, part.pages, part.frame, hold))
        self.changed(page, part.pages)
        if stuck is not None:
            raise stuck

    # ---- Hiding ----

    def hide(self, page: int, count: int) -> None:
        if not self._shown.items:
            super().hide(page, count)
            return
        runs = self._shown.within(page, count)
        gone: list[Run] = []
        try:
            for run in runs:
                self._send_home(run)
                gone.append(run)
            super().hide(page, count)
        except OSError:
            for run in gone:
                self._fetch_again(run)
            raise
        for run in runs:
            self._settle_home(run)

    def loosen(self, page: int, count: int) -> bool:
        # Not what is anonymous, which exists here only: it is moved with its translations.
        end, loosened = page + count, False
        for run in (*self._shown.within(page, count), None):
            start = end if run is None else run.page
            if start > page:
                loosened = super().loosen(page, start - page)
            page = end if run is None else run.end
        return loosened

    def moves(self, page: int, count: int) -> bool:
        return self._shown.part(page, count) is not None

    # ---- From window to window ----

    def pass_on(
        self, page: int, frame: int, count: int, other: Window, place: int, *, writable: bool = True
    ) -> bool:
        if not isinstance(other, RemapWindow):
            return Window.pass_on(self, page, frame, count, other, place, writable=writable)
        if not self._shown.items and not other._blank:
            return self._pass_on(page, frame, count, other, place, writable)
        part = self._shown.part(page, count)
        if part is None or part[0].hold is not Hold.OWNED or not writable:
            return Window.pass_on(self, page, frame, count, other, place, writable=writable)
        # What is owned, as it is, and writable; not by way of its home, which would be moved twice.
        here, size = self.mapping.address + page * PAGE_SIZE, count * PAGE_SIZE
        there = other.mapping.address + place * PAGE_SIZE
        if other._slots is not None:
            other._slots.cover(place, count)
        if other._blank:
            other.tidy()
        if other._guards is not None:
            other.taken(place, count)
        self._park.journal.touched.append((other, place, count))
        try:
            self._park.move(here, there, size)
        except Torn as torn:
            self._copy_back(part[0], there, [(torn.start, torn.end - torn.start)])
            other.blank(place, count)
            raise
        try:
            MappedWindow.hide(self, page, count)
        except OSError:
            self._fetch_back(part[0], there, partial(self._park.move, there, here, size))
            other.blank(place, count)
            raise
        self._shown.discard(page, count)
        other._shown.insert(_new(Run, (place, count, frame, Hold.OWNED)))
        if other.views is not None:
            other.changed(place, count)
        self._park.lodgings.passed_on(frame, count, other, place)
        return True

    def tables(self, other: Window) -> Tables:
        shown = self._shown
        if not isinstance(other, RemapWindow) or not shown.items:
            return ()
        its = other._shown
        here, there = (shown, shown.items.copy()), (its, its.items.copy())
        return here, there, self._park.lodgings.saved()

    # ---- Sharing ----

    def make_shareable(self, page: int, count: int) -> None:
        cuts = self._shown.cuts(page, count)
        if cuts and not self._may_cut():
            raise OSError(errno.ENOMEM, "a window has too many pieces to cut one for a SHARE")
        if cuts:
            self._park.has_cut(self)
        for run in self._shown.within(page, count):
            self._store(run)

    def _may_cut(self) -> bool:
        return len(self._shown) < PIECES and self._park.may_cut(self)

    def share_slice(self, page: int, count: int, most: int) -> bool:
        runs = self._shown.within(page, count)
        if not runs or (self._shown.cuts(page, count) and not self._may_cut()):
            return False
        try:
            self._store(runs[0].clip(runs[0].page, runs[0].page + most))
        except OSError:
            return False
        return True

    def _store(self, run: Run) -> None:
        """Copy anonymous memory into the memfd, and show that in its place."""
        size, offset = run.pages * PAGE_SIZE, run.frame * PAGE_SIZE
        settled, settle = self._park.journal.settled, partial(self._settle_stored, run)
        try:
            mapping.store(self.address(run.page), size, self._park.fd, offset)
            # The same bytes are in both from here on. When the memfd is shown the others are gone.
            settled.append(settle)
            super().show(run.page, run.frame, run.pages, writable=run.hold is Hold.OWNED)
        except OSError:
            if settle in settled:
                settled.remove(settle)
            self._park.disown(run.frame, run.pages)
            raise
        self._settle_stored(run)

    def _settle_stored(self, run: Run) -> None:
        self._shown.remove(*run.extent)
        self._park.lodgings.settle(Lodging(run.frame, run.pages, anonymous=False))

    def show_again(self, page: int, frame: int, count: int, *, writable: bool) -> None:
        for part in self._park.lodgings.of(page, frame, count):
            place = page + part.frame - frame
            if part.window is self and part.page == place:
                size = part.pages * PAGE_SIZE
                mapping.protect(self.address(place), size, writable=writable)
            else:
                self.show(place, part.frame, part.pages, writable=writable)

    def seen(self) -> Sequence[Sight]:
        with contextlib.suppress(OSError):
            self.tidy()
        return super().seen()

    def _sights(self, area: Area, page: int, pages: int) -> Sequence[Sight]:
        """Return what a mapping shows: of anonymous memory the kernel does not say whose it is."""
        if area.file is not None or area.shared:
            return super()._sights(area, page, pages)
        found, end, writable = list[Sight](), page + pages, "w" in area.access
        ground = self.views is not None  # where there is memory of nobody's between them
        for run in self._shown.within(page, pages):
            if run.page > page and not ground:
                found.append(Sight(page, run.page - page, None, writable))
            home = self._park.lodgings.within(run.frame, run.pages)
            here = all(p.window is self and p.page - p.frame == run.page - run.frame for p in home)
            found.append(Sight(run.page, run.pages, run.frame if here else None, writable))
            page = run.end
        if page < end and not ground:
            found.append(Sight(page, end - page, None, writable))
        return found

    def left_out(self, extent: Extent) -> list[tuple[int, int]]:
        runs = self._shown.within(*extent)
        return [(self.address(run.page), run.pages * PAGE_SIZE) for run in runs]

    def close(self) -> None:
        """Send home what is here, and unmap it all, but for what is kept."""
        for piece in self.kept_pieces():
            for address, size in self.left_out(piece.extent):
                mapping.leave_to_children(address, size)
        if self._shown.items and not self.kept_pieces():
            with contextlib.suppress(OSError):
                self.hide(0, self.region.pages)
        for run in self._shown:  # lost with the mapping
            self._park.lodgings.forget(run.frame, run.pages)
        # Not cleared: this may be cut off, and is done again then.
        self._shown = RunMap(self.region.pages)
        super().close()


class RemapMover(Mover):
    """Mappings change behind memslots that do not; large runs move with their huge pages."""

    name = "remap"
    seams = Mover.seams + SEAMS
    large = LARGE  # frames of a run that gets anonymous memory, and what it is aligned to
    # Machines, beyond which each gets memslots: to tell them all of a change in a mapping costs the
    # kernel 0.2 to 0.4 µs for each, and memslots 60 to 230 µs more, whatever their number.
    many = 256

    def __init__(self, frames: int) -> None:
        self._park = Park(frames, self.large)
        super().__init__(frames)

    def _make_pool(self, frames: int) -> PagePool:
        return self._park

    def machine_window(self, vm: Vm, base: int, size: int, others: int = 0) -> Window:
        if others >= self.many:
            return ParkSlotsWindow(self._park, vm, base, size)
        return RemapWindow(self._park, size, base, vm, guarded=self.guards(others))

    def host_window(self, size: int) -> Window:
        return RemapWindow(self._park, size, viewed=True)
