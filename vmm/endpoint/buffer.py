"""Buffers: memory of the host's window, as Python sees it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any, BinaryIO, Protocol

from vmm.errors import ClosedError
from vmm.ferry.books import Description
from vmm.ferry.peer import Peer
from vmm.ferry.rules import READABLE, WRITABLE
from vmm.guest.abi import Hold
from vmm.memory.pagemap import frame_number
from vmm.memory.region import Region
from vmm.memory.runs import Extent

CHUNK = 1 << 20  # bytes copied while the monitor's lock is held


class Holder(Protocol):
    """What a buffer asks of the endpoint whose pages it names."""

    peer: Peer
    lock: Any

    def describe(self, extent: Extent) -> Description:
        """Return what an extent is to the host."""

    def check(self, extent: Extent, holds: frozenset[Hold]) -> None:
        """Raise AccessError unless every page of an extent is one of these to the host."""


class Buffer:
    """Pages that belong to the host: `size` bytes, zeroed when allocated.

    Thread-safety: the methods may be called from any thread.
    """

    def __init__(self, endpoint: Holder, extent: Extent, size: int) -> None:
        self._endpoint = endpoint
        self._extent: Extent | None = extent
        self.size = size

    @property
    def extent(self) -> Extent:
        """The pages. Raises ClosedError once they have been sent or released."""
        if self._extent is None:
            raise ClosedError("the buffer is no longer the host's: it has been sent or released")
        return self._extent

    @property
    def address(self) -> int:
        """The host address of the first byte."""
        return self._endpoint.peer.window.address(self.extent.page)

    @property
    def hold(self) -> Hold:
        """What it is to the host: OWNED, SHARED, LENT, BORROWED, VIEWED or REVOKED."""
        with self._endpoint.lock:
            return self._endpoint.describe(self.extent).hold

    def _range(self, offset: int, length: int, holds: frozenset[Hold]) -> int:
        """Return the address of a part that is one of these to the host."""
        self._endpoint.check(self.extent, holds)
        return self.address + Region(0, self.size).offset(offset, length)

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """Return a copy of `length` bytes, by default up to the end.

        Raises IndexError, ClosedError, AccessError.
        """
        length = self.size - offset if length is None else length
        with self._endpoint.lock:
            return ctypes.string_at(self._range(offset, length, READABLE), length)

    def write(self, data: bytes, offset: int = 0) -> None:
        """Copy `data` in. Raises IndexError, ClosedError, AccessError."""
        with self._endpoint.lock:
            ctypes.memmove(self._range(offset, len(data), WRITABLE), data, len(data))

    def chunks(self, size: int = CHUNK) -> Iterator[bytes]:
        """Yield the contents piece by piece."""
        for offset in range(0, self.size, size):
            yield self.read(offset, min(size, self.size - offset))

    def fill(self, file: BinaryIO, offset: int) -> int:
        """Read at most CHUNK bytes from a file straight into the buffer.

        Return how many; 0 is the file's end.
        """
        length = min(CHUNK, self.size - offset)
        with self._endpoint.lock:
            array = (ctypes.c_ubyte * length).from_address(self._range(offset, length, WRITABLE))
            return file.readinto(array)  # type: ignore[attr-defined,no-any-return]

    def frame_number(self) -> int | None:
        """Return the physical frame of the first page; None without the privilege."""
        with self._endpoint.lock:
            return frame_number(self._range(0, 1, READABLE))

    def come_back(self, extent: Extent) -> None:
        """Name these pages again: what took them has been undone."""
        self._extent = extent

    def _give_up(self) -> Extent:
        extent, self._extent = self.extent, None
        return extent
