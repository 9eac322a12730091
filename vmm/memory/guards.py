"""Pages that are hidden where they are mapped, to be shown there again.

What is lent comes back to the same place, and mostly so does what goes to and fro. There the kernel
can hide pages of a mapping without changing it (MADV_GUARD_INSTALL, Linux 6.15 for memfds): whoever
touches them gets what he gets in a hole, and to show them again it tells no VM. It takes a half to
a third of what two changes of the mapping take.

What is known here is known for certain: an entry goes before anything is changed, and comes when it
has been. Whoever finds none does as ever, with a mapping over whatever is there.
"""

from __future__ import annotations

import functools
import os
from typing import NamedTuple

from vmm.guest.abi import PAGE_SIZE
from vmm.kvm.given import opened
from vmm.memory import mapping, pagemap
from vmm.memory.mapping import Mapping

LARGEST = 8  # pages of an extent that is guarded: each is marked by itself
MOST = 1024  # pages that are guarded, of all windows of one mover; each may be a mapping of its own
_KNOWN = 4096  # pages that a window knows to be shown
_CREDIT, _FULL, _GAIN, _PATIENCE = 16, 64, 4, 32


class _Piece(NamedTuple):
    """A mapping of the memfd's, as it was made."""

    address: int
    size: int
    frame: int
    writable: bool


_Pieces = dict[int, _Piece]  # by the address of each of its pages


class Guarded:
    """What is guarded in all windows of one mover. Not thread-safe."""

    def __init__(self) -> None:
        self.works = guards_work()
        self.pieces: _Pieces = {}

    def make_room(self, pages: int) -> bool:
        """Let no more than MOST be guarded with so many. False if the host refuses that."""
        while len(self.pieces) + pages > MOST:
            oldest = next(iter(self.pieces.values()))
            _drop(self.pieces, oldest)
            try:
                mapping.hide(oldest.address, oldest.size)
            except OSError:
                return False
        return True


class Guards:
    """What one window has hidden so, and what of what it shows could be. Not thread-safe.

    Not all that can be is: who sends pages on, and never has them back, would pay for nothing. So
    each costs credit, and whoever is shown again gives some.
    """

    def __init__(self, guarded: Guarded) -> None:
        self._guarded = guarded
        self._hidden = guarded.pieces
        self._shown: _Pieces = {}
        self._credit = _CREDIT
        self._passed = 0  # when there was none

    def show(self, address: int, size: int, frame: int, *, writable: bool) -> bool:
        """Show what is hidden here, if it is that. Else forget what is known of the place."""
        piece = self._hidden.get(address) if self._hidden else None
        if piece is None or piece != (address, size, frame, writable):
            self.forget(address, size)
            return False
        _drop(self._hidden, piece)
        if not mapping.unguard(address, size):
            return False
        _note(self._shown, piece)
        if self._credit < _FULL:
            self._credit += _GAIN
        return True

    def shown(self, address: int, size: int, frame: int, *, writable: bool) -> None:
        """Note that memory of the memfd's has been mapped here, if it is worth it."""
        if size > LARGEST * PAGE_SIZE:
            return
        if self._credit <= 0:
            self._passed += 1
            if self._passed < _PATIENCE:
                return
            self._passed = 0  # it may be otherwise by now
        if len(self._shown) >= _KNOWN:
            self._shown.clear()
        _note(self._shown, _Piece(address, size, frame, writable))

    def hide(self, address: int, size: int) -> bool:
        """Hide what is shown here, if that is known to be one mapping. Else forget what is known of
        the place.
        """
        piece = self._shown.get(address) if self._shown else None
        if piece is None or piece.address != address or piece.size != size:
            self.forget(address, size)
            return False
        _drop(self._shown, piece)
        if not self._guarded.make_room(size // PAGE_SIZE) or not mapping.guard(address, size):
            return False
        _note(self._hidden, piece)
        self._credit -= 1
        return True

    def forget(self, address: int, size: int) -> None:
        """Forget what is known of a place: something else is about to be there."""
        for pieces in (self._shown, self._hidden):
            if size == PAGE_SIZE:
                if (piece := pieces.get(address)) is not None:
                    _drop(pieces, piece)
            elif pieces:
                places = range(address, address + size, PAGE_SIZE)
                known = pieces if len(pieces) < len(places) else places
                for at in [at for at in known if at in places and at in pieces]:
                    if (piece := pieces.get(at)) is not None:
                        _drop(pieces, piece)


def _note(pieces: _Pieces, piece: _Piece) -> None:
    """Note a piece, all of it or nothing."""
    if piece.size == PAGE_SIZE:
        pieces[piece.address] = piece
    else:
        end = piece.address + piece.size
        pieces.update(dict.fromkeys(range(piece.address, end, PAGE_SIZE), piece))


def _drop(pieces: _Pieces, piece: _Piece) -> None:
    """Forget a piece. By its first page it is found: if this is cut off, it is not any more."""
    pieces.pop(piece.address, None)
    if piece.size == PAGE_SIZE:
        return
    for at in range(piece.address + PAGE_SIZE, piece.address + piece.size, PAGE_SIZE):
        if pieces.get(at) == piece:
            del pieces[at]


@functools.cache
def guards_work() -> bool:
    """Whether this kernel guards pages of a memfd, and tells of it: tried on two of them."""
    try:
        with (
            opened(os.memfd_create, "pageferry-guards", os.MFD_CLOEXEC) as file,
            Mapping.shared(2 * PAGE_SIZE, file.fileno()) as two,
        ):
            os.ftruncate(file.fileno(), two.size)
            return _guards(two)
    except (OSError, MemoryError):
        return False


def _guards(two: Mapping) -> bool:
    """Whether a page that has been written, and one that nobody has touched, can be guarded."""
    first, second = two.address, two.address + PAGE_SIZE
    with two.view() as view:
        view[0] = 1
        if not mapping.guard(first, two.size):
            return False
        hidden = not _readable(first) and not _readable(second)
        told = pagemap.guarded(first, 2) == [True, True]
        if not mapping.unguard(first, PAGE_SIZE):
            return False
        back = view[0] == 1 and not _readable(second)
        return hidden and told and back and pagemap.guarded(first, 2) == [False, True]


def _readable(address: int) -> bool:
    try:
        mapping.touch(address)
    except OSError:
        return False
    return True
