"""Views: memory of the host's window that Python reaches by pointers of its own.

A memoryview or a NumPy array does not ask before each access. So two things hold for all of the
host's window. What is taken out of it leaves memory of nobody's, never a hole: a pointer that
should have gone reads zeros, and nothing of anybody's. And when a window is closed, addresses that
somebody may still point to are kept until nobody does.

Thread-safety: `sweep` may be called at any time; all else is called in a turn, or at the end.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
import weakref
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import NamedTuple, Protocol

from vmm.guest.abi import PAGE_SIZE
from vmm.kvm import forks
from vmm.kvm.given import GivenMapping
from vmm.memory import mapping
from vmm.memory.capi import capi
from vmm.memory.runs import Extent

# The C API: a memoryview of memory that is no object's.
_from_memory = capi(
    "PyMemoryView_FromMemory", ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int
)
_READ, _WRITE = 0x100, 0x200  # PyBUF_READ, PyBUF_WRITE


class Export:
    """Bytes of a window given out, and whether anybody still has them.

    view      what is given out: by the buffer protocol only, so that each that has it, or a part of
              it, refers to it
    writable  whether it may be written

    It holds `view` as long as it is itself in use: the garbage collector never takes it for part of
    a cycle. (Weak references to what is in one are cleared before `__del__` runs, which may use the
    view, or keep it.) So what tells is the count of references.
    """

    __slots__ = ("_idle", "_memory", "armed", "view", "writable")

    def __init__(self, address: int, size: int, *, writable: bool) -> None:
        self.armed = 0  # references of our own, from the buffer that gives it out
        self.writable = writable
        self.view: memoryview = _from_memory(address, size, _WRITE if writable else _READ)
        # What memoryviews of a memoryview refer to instead of it.
        (self._memory,) = gc.get_referents(self.view)
        self._idle = self._count()

    def _count(self) -> int:
        return sys.getrefcount(self.view) + sys.getrefcount(self._memory)

    @property
    def alive(self) -> bool:
        """Whether anybody has it, or a part of it."""
        return self._count() > self._idle + self.armed

    @property
    def released(self) -> bool:
        """Whether somebody has called its `release()`: it cannot be given out any more."""
        try:
            return self.view.nbytes < 0
        except ValueError:
            return True


class Viewed(Protocol):
    """What gives out views: a buffer, by its `Outlook`."""

    def _disarm(self) -> None:
        """Give out nothing more."""

    def _refresh(self) -> None:
        """Look again whether there is anything to be given out. In a turn."""


class Outlook:
    """What a buffer has given out, which may outlive it.

    place     its pages, or those that it had
    exports   of these one is not alive, at most
    buffer    refers to it, as long as there is one
    """

    __slots__ = ("buffer", "exports", "place")

    def __init__(
        self, buffer: Viewed, place: Extent, gone: Callable[[weakref.ref[Viewed]], object]
    ) -> None:
        self.place = place
        self.exports: list[Export] = []
        self.buffer = weakref.ref(buffer, gone)

    @property
    def viewed(self) -> bool:
        """Whether anybody has something of it."""
        if self.buffer() is None:  # which refers to nothing any more
            for export in self.exports:
                export.armed = 0
        return any(export.alive for export in self.exports)

    @property
    def wanted(self) -> bool:
        """Whether anybody may still point to it. NumPy's `ndarray(buffer=)` refers to the buffer
        only.
        """
        return self.buffer() is not None or self.viewed


class Piece(NamedTuple):
    """Pages of a window that is being closed which somebody may point to."""

    extent: Extent
    outlook: Outlook
    viewed: bool  # if not, nobody is to find anything there


class Views:
    """What the buffers of a window have given out.

    private   returns where memory is, of some pages, that children are not to have: address, bytes
    """

    def __init__(self, private: Callable[[Extent], list[tuple[int, int]]] = lambda _: []) -> None:
        self.private = private
        self._outlooks: dict[int, Outlook] = {}
        self._left: list[weakref.ref[Viewed]] = []  # of buffers that are no more
        self._watching: dict[int, tuple[Extent, weakref.ref[Viewed]]] = {}  # by the first page
        self._starts: list[int] = []  # those pages, in order
        _all.add(self)
        sweep()

    def note(self, buffer: Viewed, place: Extent) -> Outlook:
        """Know a buffer that gives out views, from now on."""
        if self._left:
            self._forget()
        # By C code, which nothing interrupts: what a callback raises is lost.
        outlook = Outlook(buffer, place, self._left.append)
        self._outlooks[id(outlook.buffer)] = outlook
        return outlook

    def _forget(self) -> None:
        """Forget what has been left, unless it is viewed."""
        for ref in tuple(self._left):
            outlook = self._outlooks.get(id(ref))
            if outlook is None or not outlook.viewed:
                self._outlooks.pop(id(ref), None)
                self._left.remove(ref)

    def outlooks(self) -> list[Outlook]:
        """Return those that there are."""
        self._forget()
        return [*self._outlooks.values()]

    # ---- For buffers that are not asked for each view ----

    @property
    def watched(self) -> bool:
        """Whether anybody is to be told of what changes."""
        return bool(self._starts)

    def watch(self, buffer: Viewed, place: Extent) -> None:
        """Tell a buffer of what changes at its pages, which are no other's. Twice is as once."""
        self._watching[place.page] = place, weakref.ref(buffer)
        at = bisect_left(self._starts, place.page)
        if self._starts[at : at + 1] != [place.page]:
            self._starts.insert(at, place.page)

    def unwatch(self, place: Extent) -> None:
        """Tell it no more. Twice is as once."""
        self._watching.pop(place.page, None)
        at = bisect_left(self._starts, place.page)
        if self._starts[at : at + 1] == [place.page]:
            del self._starts[at]

    def changed(self, page: int, count: int) -> None:
        """Let buffers look again what they are: something has come to these pages, or gone."""
        first = max(bisect_right(self._starts, page) - 1, 0)
        near = self._starts[first : bisect_left(self._starts, page + count)]
        for place, ref in [self._watching[start] for start in near if start in self._watching]:
            buffer = ref()
            if buffer is None:
                self.unwatch(place)
            elif place.end > page:
                buffer._refresh()

    def stop(self) -> list[Piece]:
        """Let no more be given out; return what is to be kept, in order, no page twice."""
        pieces: list[Piece] = []
        for outlook in self.outlooks():
            buffer = outlook.buffer()
            if buffer is not None:
                buffer._disarm()
            pieces.append(Piece(outlook.place, outlook, outlook.viewed))
        # Where two have been at the same place, the one that is viewed is the last one.
        pieces.sort(key=lambda piece: not piece.viewed)
        found: list[Piece] = []
        for piece in pieces:
            found += [piece._replace(extent=part) for part in _apart(piece.extent, found)]
        return sorted(found, key=lambda piece: piece.extent.page)


def _apart(extent: Extent, taken: list[Piece]) -> list[Extent]:
    """Return what is left of an extent beside those that are taken."""
    parts, page = list[Extent](), extent.page
    for other in sorted(piece.extent for piece in taken if piece.extent.overlaps(extent)):
        if other.page > page:
            parts.append(Extent(page, other.page - page))
        page = max(page, other.end)
    if page < extent.end:
        parts.append(Extent(page, extent.end - page))
    return parts


# ---- After the end ----


class Kept:
    """A piece of a window that has been closed, in `given`, for as long as it is wanted."""

    def __init__(self, piece: Piece, address: int) -> None:
        self.piece = piece
        self.given = GivenMapping(address, size=piece.extent.pages * PAGE_SIZE)
        forks.hold(self)

    def let_go(self) -> None:
        """Replace it by zeros in a process that was forked."""
        if self.given.address is not None:
            mapping.blank(self.given.address, self.given.size)


_kept: set[Kept] = set()


def keep(kept: list[Kept]) -> None:
    """Keep pieces until nobody points to them. That is looked at when a window is made, or closed;
    and with each garbage collection where there is memory behind any. Twice is as once.
    """
    sweep()
    _kept.update(kept)
    if any(each.piece.viewed for each in kept) and _collected not in gc.callbacks:
        gc.callbacks.append(_collected)


def sweep() -> None:
    """Unmap what nobody points to any more."""
    if not _kept:
        return
    for kept in tuple(_kept):
        if not kept.piece.outlook.wanted:
            with contextlib.suppress(IndexError):  # another thread has, at the same time
                kept.given.give_back()
            _kept.discard(kept)
    if _collected in gc.callbacks and not any(kept.piece.viewed for kept in tuple(_kept)):
        with contextlib.suppress(ValueError):
            gc.callbacks.remove(_collected)


def _collected(phase: str, _: dict[str, int]) -> None:
    if phase == "stop":
        sweep()


# ---- Forked processes ----

# Memory of the park's is left out of children (`mapping.keep_from_children`): where a view is there
# would be a hole, in which the child's own memory may come to be. So for the time of a fork what is
# viewed is not left out.
_all: weakref.WeakSet[Views] = weakref.WeakSet()
_inherited: list[tuple[int, int]] = []


def _before_fork() -> None:
    _inherited.clear()
    for views in tuple(_all):
        for outlook in views.outlooks():
            if outlook.viewed:
                for address, size in views.private(outlook.place):
                    with contextlib.suppress(OSError):
                        mapping.leave_to_children(address, size)
                        _inherited.append((address, size))


def _after_fork() -> None:
    for address, size in _inherited:
        with contextlib.suppress(OSError):
            mapping.keep_from_children(address, size)


def _in_child() -> None:
    for address, size in _inherited:
        with contextlib.suppress(OSError):
            mapping.blank(address, size)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_child)
