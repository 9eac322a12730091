"""Buffers: memory of the host's window, as Python sees it."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, SupportsIndex

from vmm.endpoint.arguments import contiguous, wrong_type
from vmm.endpoint.arrays import layout, numpy
from vmm.endpoint.exporter import ARMED, Exporter
from vmm.endpoint.window import HostWindow
from vmm.errors import ClosedError, ConfigError, LiveViewError, PageferryError
from vmm.ferry.rules import READABLE, WRITABLE
from vmm.guest.abi import PAGE_SIZE, Hold
from vmm.memory.capi import capi
from vmm.memory.journal import Journal
from vmm.memory.pagemap import frame_number
from vmm.memory.region import OutOfBounds
from vmm.memory.runs import Extent
from vmm.memory.views import Export, Outlook
from vmm.sizes import integer, parse_limit, parse_size, shown

if TYPE_CHECKING:
    from typing_extensions import Buffer as Bytes  # whatever has the buffer protocol

CHUNK = 1 << 20  # bytes copied while the monitor's lock is held

# A bytes object that nobody has yet may be filled (the C API, PyBytes_FromStringAndSize).
_new_bytes = capi("PyBytes_FromStringAndSize", ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t)


class Source(Protocol):
    """What a buffer can be filled from: a binary file, for one."""

    def readinto(self, into: memoryview, /) -> int | None:
        """Read at most as many bytes as there is room for; return how many, 0 at the end."""


class Buffer(Exporter):  # type: ignore[misc]
    """Pages that belong to the host: `size` bytes, zeroed when allocated.

    Made by a HostEndpoint only. It has the buffer protocol: `memoryview(buffer)`, a NumPy array
    (`array`), a file's `readinto`, a hash are of its memory, and copy nothing. They may be written
    where the host may write. While any of them is alive, what would take pages from the host (send,
    exchange, lend, return, release) raises BufferError before anything moves; share does not. It
    gives out nothing while it is lent, or was reclaimed, and so on.

    A view stays what it is, whatever happens: if the owner of what has been borrowed takes it back,
    it is memory of nobody's, zeros at first; after `Monitor.close` it is what it was. In a process
    that was forked it is zeros.

    Every method raises ClosedError once it has been sent or released, or the monitor been closed,
    and those that read or write AccessError while it is lent, may only be read, or has been
    reclaimed. What is large is copied in pieces: guests, and other threads, can come in between.

    Thread-safety: the methods may be called from any thread.
    """

    def __init__(self, window: HostWindow, extent: Extent, size: int) -> None:
        if size > extent.pages * PAGE_SIZE:
            raise ConfigError(f"size {size} is more than {extent.pages} pages hold")
        self._window = window
        self._extent: Extent | None = extent
        self._size = size
        self._place = extent
        self._outlook: Outlook | None = None  # what has been given out, if anything ever was
        if ARMED:
            self._come_back(extent)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Buffer cannot be copied or pickled: read() copies what is in it")

    def __repr__(self) -> str:
        extent = self._extent
        where = "no longer the host's" if extent is None else f"pages {extent.page}+{extent.pages}"
        return f"<Buffer of {self._size} bytes, {where}>"

    def __len__(self) -> int:
        return self._size

    @property
    def size(self) -> int:
        """Its bytes. May be asked for at any time."""
        return self._size

    @property
    def extent(self) -> Extent:
        """The pages of the host's window. Raises ClosedError once they are no longer the host's."""
        self._window.turns.check_open()
        if self._extent is None:
            raise ClosedError("the buffer is no longer the host's: it has been sent or released")
        return self._extent

    @property
    def address(self) -> int:
        """The host address of the first byte: where it would be read, if it could be just now.

        Raises ClosedError.
        """
        return self._window.peer.window.address(self.extent.page)

    @property
    def hold(self) -> Hold:
        """What it is to the host: OWNED, SHARED, LENT, BORROWED, VIEWED or REVOKED.

        Raises ClosedError.
        """
        turns = self._window.turns
        with turns.telling, turns.lock, turns.change:
            return self._window.describe(self.extent).hold

    def _part(self, offset: SupportsIndex, length: SupportsIndex | str | None) -> tuple[int, int]:
        """Return where a part begins, and its bytes. Raises OutOfBounds if it is none of these."""
        start = integer(offset, "offset")
        if length is None:
            count = self._size - start
        else:
            count = (
                parse_limit(length, "length")
                if isinstance(length, str)
                else integer(length, "length")
            )
        if start < 0 or count < 0 or start + count > self._size:
            raise OutOfBounds(
                f"offset {shown(start)} and length {shown(count)} are not within "
                f"the buffer's {self._size} bytes"
            )
        return start, count

    # ---- Views ----

    def view(self) -> memoryview:
        """Return its bytes, to be read, and written if the host may: no copy.

        The same as `memoryview(buffer)`. Raises ClosedError, AccessError.
        """
        return memoryview(self._give_out().view)

    def array(
        self,
        dtype: Any = "uint8",
        shape: SupportsIndex | Sequence[SupportsIndex] | None = None,
        offset: SupportsIndex = 0,
    ) -> Any:
        """Return a NumPy array of its bytes from `offset` on: no copy.

        shape   an int or several; by default one row, as long as there is room

        Raises ImportError without NumPy (the extra `numpy`), ConfigError for a type that no bytes
        can be, IndexError if it has too few bytes, ClosedError, AccessError.
        """
        start, left = self._part(offset, None)
        kind, lengths = layout(dtype, shape, left)
        count = kind.itemsize * math.prod(lengths)
        if count > left:
            raise OutOfBounds(
                f"a shape of {shown(count)} bytes from {start} on is not within "
                f"the buffer's {self._size} bytes"
            )
        flat = numpy().frombuffer(self.view(), "uint8", count, start)
        return flat.view(kind).reshape(lengths)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """For NumPy, which asks for this where `memoryview(buffer)` raises: it says why."""
        array = self.array()
        if dtype is not None and copy is not False:
            array = array.astype(dtype, copy=False)
        return array.copy() if copy else array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array().__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        device: tuple[int, int] = self.array().__dlpack_device__()
        return device

    def _give_out(self, *, writable: bool = False) -> Export:
        """Return what gives out views. Raises ClosedError, AccessError."""
        turns = self._window.turns
        with turns.telling, turns.lock, turns.change:
            export = self._export(writable)
            self._arm(export)
            return export

    def _export(self, writable: bool) -> Export:
        window, extent = self._window, self.extent
        window.check(extent, WRITABLE if writable else READABLE)
        may_write = writable or window.holds(extent, WRITABLE)
        if self._outlook is None:
            self._outlook = window.views.note(self, self._place)
        exports = self._outlook.exports
        for export in exports:
            if export.writable is may_write and not export.released:
                return export
        export = window.export(extent, self._size, writable=may_write)
        exports[:] = [*(old for old in exports if old.alive), export]
        return export

    def _refresh(self) -> None:
        """Look again whether there is anything to be given out, where that is not asked for each
        view. In a turn.
        """
        if ARMED:
            try:
                self._arm(self._export(False))
            except PageferryError:
                self._disarm()

    def _check_unviewed(self) -> None:
        """Give out no more for now, and raise LiveViewError if a view is alive. In a turn."""
        self._disarm()
        if self._outlook is not None and self._outlook.viewed:
            self._refresh()
            raise LiveViewError(
                "a view of the buffer is alive (a memoryview, an array, a slice of one): "
                "delete it first, or share the buffer instead"
            )

    # ---- Copies ----

    def read(self, offset: SupportsIndex = 0, length: SupportsIndex | str | None = None) -> bytes:
        """Return a copy of `length` bytes, by default up to the end.

        Raises IndexError, ClosedError, AccessError.
        """
        start, count = self._part(offset, length)
        if count <= CHUNK:
            return self._copy_out(start, count)
        # Joined of pieces, it would be in memory twice, and what that costs is its page faults.
        copy: bytes = _new_bytes(None, count)
        target = ctypes.cast(ctypes.c_char_p(copy), ctypes.c_void_p).value or 0
        for at in range(0, count, CHUNK):
            self._copy_to(target + at, start + at, min(CHUNK, count - at))
        return copy

    def _copy_out(self, start: int, count: int) -> bytes:
        turns = self._window.turns
        with turns.telling, turns.lock, turns.change:
            return bytes(self._window.view(self.extent, READABLE, start, count))

    def _copy_to(self, target: int, start: int, count: int) -> None:
        turns = self._window.turns
        with turns.telling, turns.lock, turns.change:
            ctypes.memmove(target, self._window.address(self.extent, READABLE) + start, count)

    def write(self, data: Bytes, offset: SupportsIndex = 0) -> None:
        """Copy `data` in: bytes, or the contents of anything else that has the buffer protocol and
        is contiguous, such as a bytearray, an array or a NumPy array.

        Raises TypeError, BufferError, IndexError, ClosedError, AccessError.
        """
        source = contiguous(data, "data")
        start, count = self._part(offset, len(source))
        for at in range(0, max(count, 1), CHUNK):
            self._copy_in(start + at, source[at : at + CHUNK])

    def _copy_in(self, start: int, piece: memoryview) -> None:
        turns = self._window.turns
        with turns.telling, turns.lock, turns.change:
            self._window.view(self.extent, WRITABLE, start, len(piece))[:] = piece

    def chunks(self, size: SupportsIndex | str = CHUNK) -> Iterator[bytes]:
        """Return an iterator over the contents, `size` bytes at a time.

        Raises ConfigError, ClosedError; the iterator raises as `read` does.
        """
        step = parse_size(size, "size")
        _ = self.extent
        return (self._piece(start, step) for start in range(0, self._size, step))

    def _piece(self, start: int, step: int) -> bytes:
        return self.read(start, min(step, self._size - start))

    def fill(self, file: Source, offset: SupportsIndex) -> int:
        """Read at most 1 MiB from a binary file to `offset`; return how many bytes.

        0 at the end of the file, or of the buffer. Raises BlockingIOError if the file has nothing
        to read now, and what the file raises; IndexError, ClosedError, AccessError.
        """
        read = getattr(file, "readinto", None)
        if not callable(read):
            raise wrong_type("file", "a binary file, which has readinto()", file)
        start, left = self._part(offset, None)
        turns = self._window.turns
        with turns.telling, turns.lock, turns.change:
            self._window.check(self.extent, WRITABLE)  # before the file has given anything away
        # The file gets memory of its own, and no lock: it may be anybody's code, keep what it got,
        # take its time, or call the monitor.
        bounce = bytearray(min(CHUNK, left))
        count = read(memoryview(bounce))
        if count is None:
            raise BlockingIOError("file has nothing to read now, and does not wait for it")
        count = integer(count, "what file.readinto() returned", 0, len(bounce))
        self.write(memoryview(bounce)[:count], start)
        return count

    def frame_number(self) -> int | None:
        """Return the physical frame of the first page; None without the privilege.

        Raises ClosedError, AccessError.
        """
        turns = self._window.turns
        with turns.telling, turns.lock, turns.change:
            return frame_number(self._window.address(self.extent, READABLE))

    def _come_back(self, extent: Extent) -> None:
        """Name these pages, again if what took them has been undone."""
        self._extent = extent
        if ARMED:
            self._window.views.watch(self, extent)
            self._refresh()

    def _give_up(self) -> Extent:
        extent, self._extent = self.extent, None
        if ARMED:
            self._window.views.unwatch(extent)
        return extent


def check_unviewed(buffers: Sequence[Buffer], journal: Journal) -> None:
    """Raise LiveViewError if any of them has a view that is alive. In a turn, in which they are to
    be taken; they give out none until they are looked at again (`refresh`).
    """
    if ARMED:
        journal.undo(partial(refresh, buffers))
    for index, buffer in enumerate(buffers):
        try:
            buffer._check_unviewed()
        except LiveViewError:
            refresh(buffers[:index])
            raise


def refresh(buffers: Sequence[Buffer]) -> None:
    """Look again at what buffers have to give out. In a turn."""
    if ARMED:
        for buffer in buffers:
            buffer._refresh()
