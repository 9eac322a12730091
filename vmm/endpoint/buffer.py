"""Buffers: memory of the host's window, as Python sees it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn, Protocol, SupportsIndex

from vmm.endpoint.arguments import contiguous, wrong_type
from vmm.endpoint.window import HostWindow
from vmm.errors import ClosedError, ConfigError
from vmm.ferry.rules import READABLE, WRITABLE
from vmm.guest.abi import PAGE_SIZE, Hold
from vmm.memory.pagemap import frame_number
from vmm.memory.region import OutOfBounds
from vmm.memory.runs import Extent
from vmm.sizes import integer, parse_limit, parse_size, shown

if TYPE_CHECKING:
    from typing_extensions import Buffer as Bytes  # whatever has the buffer protocol

CHUNK = 1 << 20  # bytes copied while the monitor's lock is held

# A bytes object that nobody has yet may be filled (the C API, PyBytes_FromStringAndSize).
_new_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
_new_bytes.restype = ctypes.py_object
_new_bytes.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t)


class Source(Protocol):
    """What a buffer can be filled from: a binary file, for one."""

    def readinto(self, into: memoryview, /) -> int | None:
        """Read at most as many bytes as there is room for; return how many, 0 at the end."""


class Buffer:
    """Pages that belong to the host: `size` bytes, zeroed when allocated.

    Made by a HostEndpoint only. It gives out copies, and no view of its memory: what it is asked
    is checked each time, so that no use of it reaches what is not the host's.

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

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Buffer cannot be copied or pickled: read() copies what is in it")

    def __repr__(self) -> str:
        extent = self._extent
        where = "no longer the host's" if extent is None else f"pages {extent.page}+{extent.pages}"
        return f"<Buffer of {self._size} bytes, {where}>"

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
        """Name these pages again: what took them has been undone."""
        self._extent = extent

    def _give_up(self) -> Extent:
        extent, self._extent = self.extent, None
        return extent
