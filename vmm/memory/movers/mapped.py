"""A window of mappings: frames are mapped into a range of addresses, and hidden by a hole there."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from itertools import groupby

from vmm.guest.abi import PAGE_SIZE
from vmm.kvm import Vm
from vmm.memory import mapping, maps, pagemap
from vmm.memory.frames import LARGE
from vmm.memory.guards import Guards
from vmm.memory.mapping import Mapping
from vmm.memory.memslots import WindowSlots
from vmm.memory.movers.windows import WINDOW_SLOT, Sight, Window
from vmm.memory.pool import PagePool
from vmm.memory.region import Region
from vmm.memory.runs import Extent
from vmm.memory.views import Kept, Piece, Views, keep


class MappedWindow(Window):
    """A window whose host mapping changes.

    base, vm   its guest-physical address, and the machine that sees it; the host's has neither
    viewed     whether Python may have views of it, as of the host's
    guarded    whether its pages are hidden where they are mapped, if they are to come back there
    views      what Python may see of the host's (vmm.memory.views); None for a machine's
    """

    views: Views | None = None

    def __init__(
        self,
        pool: PagePool,
        size: int,
        base: int | None = None,
        vm: Vm | None = None,
        *,
        viewed: bool = False,
        guarded: bool = False,
    ) -> None:
        self._pool = pool
        self._pieces: list[Piece] | None = None  # that are kept, when it is being closed
        self._kept: list[Kept] | None = None  # the same, in memory
        if viewed:
            self.mapping = Mapping.viewable(size)
            self.views = Views(self.left_out)
        else:
            self.mapping = Mapping.reserve(size)
        address = self.mapping.address
        self.region = Region(address if base is None else base, size)
        self._slots: WindowSlots | None = None
        self._guards = Guards(pool.guarded) if guarded else None
        if vm is not None:
            self._slots = WindowSlots(vm, WINDOW_SLOT, self.region.base, self.region.pages, address)

    def cover(self, page: int, count: int) -> None:
        """Let the machine see whatever the host maps at these pages. Raises OSError."""
        if self._slots is not None:
            self._slots.cover(page, count)

    def show(self, page: int, frame: int, count: int, *, writable: bool = True) -> None:
        if self._slots is not None:
            self._slots.cover(page, count)
        self._pool.journal.touched.append((self, page, count))
        address, size = self.mapping.address + page * PAGE_SIZE, count * PAGE_SIZE
        at_once = self.populate and self._populates(count)
        guards = self._guards
        if guards is not None:
            if at_once:
                guards.forget(address, size)
            elif guards.show(address, size, frame, writable=writable):
                return
        mapping.show(
            address, size, self._pool.fd, frame * PAGE_SIZE, writable=writable, populate=at_once
        )
        if self._pool.advised:  # always: differently advised neighbours would not be one mapping
            mapping.advise_huge(address, size)
        if guards is not None and not at_once:
            guards.shown(address, size, frame, writable=writable)
        if self.views is not None:
            self.changed(page, count)

    def _populates(self, count: int) -> bool:
        """Whether so many pages are mapped as they are shown; not before they may be huge."""
        large = self._pool.advised and count >= LARGE
        return not large and self._pool.populating.wants(count, self._pool.journal.turn)

    def hide(self, page: int, count: int) -> None:
        self._pool.journal.touched.append((self, page, count))
        address, size = self.mapping.address + page * PAGE_SIZE, count * PAGE_SIZE
        if self.views is None:
            if self._guards is None or not self._guards.hide(address, size):
                mapping.hide(address, size)
            return
        # No hole: who still points to it finds nothing, and ends no process.
        if self.mapping.ground:
            mapping.renew(address, size)
        else:
            mapping.blank(address, size)
        self.changed(page, count)

    def pass_on(
        self, page: int, frame: int, count: int, other: Window, place: int, *, writable: bool = True
    ) -> bool:
        if not isinstance(other, MappedWindow):
            return super().pass_on(page, frame, count, other, place, writable=writable)
        return self._pass_on(page, frame, count, other, place, writable)

    def _pass_on(
        self, page: int, frame: int, count: int, other: MappedWindow, place: int, writable: bool
    ) -> bool:
        """Pass on what is the memfd's, here and there: `hide` and `show`, with no calls between."""
        viewed = self.views is not None or other.views is not None
        guarded = self._guards is not None or other._guards is not None
        if viewed or guarded or other.populate or self._pool.advised:
            MappedWindow.hide(self, page, count)
            try:
                MappedWindow.show(other, place, frame, count, writable=writable)
            except OSError:
                return False
            return True
        slots, size = other._slots, count * PAGE_SIZE
        self._pool.journal.touched.append((self, page, count))
        mapping.hide(self.mapping.address + page * PAGE_SIZE, size)
        try:
            if slots is not None and (
                place // slots.chunk not in slots.made
                or (place + count - 1) // slots.chunk not in slots.made
                or count > slots.chunk
            ):
                slots.cover(place, count)
            self._pool.journal.touched.append((other, place, count))
            address = other.mapping.address + place * PAGE_SIZE
            mapping.show(address, size, self._pool.fd, frame * PAGE_SIZE, writable=writable)
        except OSError:
            return False
        return True

    def taken(self, page: int, count: int) -> None:
        """Something else than a frame of the memfd's is about to be mapped at these pages."""
        if self._guards is not None:
            self._guards.forget(self.mapping.address + page * PAGE_SIZE, count * PAGE_SIZE)

    def changed(self, page: int, count: int) -> None:
        """Tell the buffers of the host's window, when the turn has been."""
        if self.views is not None and self.views.watched:
            self._pool.journal.later(partial(self.views.changed, page, count))

    def left_out(self, extent: Extent) -> list[tuple[int, int]]:
        """Return where memory is here that children do not inherit: address, bytes."""
        return []

    def loosen(self, page: int, count: int) -> bool:
        mapping.loosen(self.address(page), count * PAGE_SIZE)
        return True

    def address(self, page: int) -> int:
        return self.mapping.address + page * PAGE_SIZE

    def seen(self) -> Sequence[Sight]:
        start, found, page = self.mapping.address, list[Sight](), 0
        for area in maps.areas(start, start + self.mapping.size):
            first, pages = (area.start - start) // PAGE_SIZE, (area.end - area.start) // PAGE_SIZE
            if first > page:  # a hole, where anything may come to be mapped
                found.append(Sight(page, first - page, None, True))
            if area.access:
                found += self._sights(area, first, pages)
            page = first + pages
        if page < self.region.pages:
            found.append(Sight(page, self.region.pages - page, None, True))
        return found

    def _sights(self, area: maps.Area, page: int, pages: int) -> Sequence[Sight]:
        """Return what a mapping shows that something can be seen through."""
        if self.views is not None and area.file is None and not area.shared:
            return ()  # memory of nobody's
        ours = area.file == maps.identity(self._pool.fd) and area.shared and "x" not in area.access
        frame = area.offset // PAGE_SIZE if ours else None
        whole = Sight(page, pages, frame, "w" in area.access)
        if not ours or self._guards is None:
            return (whole,)
        return _unguarded(whole, pagemap.guarded(area.start, pages))

    def close(self) -> None:
        self.taken(0, self.region.pages)  # by whoever is given these addresses
        pieces = self.kept_pieces()
        if pieces and self.mapping.size:
            self._close_around(pieces)
        self.mapping.close()

    def kept_pieces(self) -> list[Piece]:
        """Return what is to be kept when this is closed; no more is given out from now on."""
        if self._pieces is None:
            self._pieces = [] if self.views is None else self.views.stop()
        return self._pieces

    def _close_around(self, pieces: list[Piece]) -> None:
        """Close all but some pieces: nobody else has what is in them, and nobody gets it. May be
        called again, if it was interrupted.
        """
        if self._kept is None:
            self._kept = [Kept(piece, self.address(piece.extent.page)) for piece in pieces]
        for piece in pieces:
            if not piece.viewed:
                mapping.blank(self.address(piece.extent.page), piece.extent.pages * PAGE_SIZE)
        with contextlib.suppress(OSError):  # it may have been closed, if this is done again
            self._punch_but(pieces)
        keep(self._kept)
        self.mapping.close_around([(k.given.address or 0, k.given.size) for k in self._kept])

    def _punch_but(self, pieces: Sequence[Piece]) -> None:
        """Free what the memfd has, but for what is to be seen in these pieces: it lives as long as
        any part of it is mapped.
        """
        seen = [
            Extent(sight.frame + first - sight.page, last - first)
            for sight in self.seen()
            for piece in pieces
            if sight.frame is not None
            and (first := max(sight.page, piece.extent.page))
            < (last := min(sight.page + sight.pages, piece.extent.end))
        ]
        frame = 0
        for extent in (*sorted(seen), Extent(self._pool.frames, 0)):
            if extent.page > frame:
                self._pool.discard(frame, (extent.page - frame) * PAGE_SIZE)
            frame = max(frame, extent.end)


def _unguarded(whole: Sight, guarded: Sequence[bool]) -> list[Sight]:
    """Return what can be seen of pages of which some are guarded."""
    assert whole.frame is not None
    found, start = list[Sight](), 0
    for hidden, run in groupby(guarded):
        pages = len(list(run))
        if not hidden:
            page, frame = whole.page + start, whole.frame + start
            found.append(Sight(page, pages, frame, whole.writable))
        start += pages
    return found
