"""The host endpoint: the Python process as a peer, with pages of its own to send and receive.

A `Buffer` is memory in the host's window. Sending it gives it away: from then on every use of it
is an error, as a guest's would be a fault. Nothing here hands out a view that could outlive the
memory behind it.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from vmm.errors import ClosedError, ConfigError, GuestError, ResourceError
from vmm.ferry.exchange import Exchange
from vmm.ferry.ledger import Refusal
from vmm.ferry.message import Request, Span
from vmm.ferry.peer import Peer
from vmm.ferry.runs import Extent
from vmm.guest.abi import PAGE_SIZE, Operation, Status
from vmm.machine import Machine
from vmm.memory.pagemap import frame_number
from vmm.memory.region import Region
from vmm.sizes import format_size, pages_for, parse_size

CHUNK = 1 << 20  # bytes copied while the monitor's lock is held


class Buffer:
    """Pages that belong to the host: `size` bytes, zeroed when allocated.

    Thread-safety: the methods may be called from any thread.
    """

    def __init__(self, endpoint: HostEndpoint, extent: Extent, size: int) -> None:
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

    def _range(self, offset: int, length: int) -> int:
        return self.address + Region(0, self.size).offset(offset, length)

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """Return a copy of `length` bytes, by default up to the end.

        Raises IndexError, ClosedError.
        """
        length = self.size - offset if length is None else length
        with self._endpoint.lock:
            return ctypes.string_at(self._range(offset, length), length)

    def write(self, data: bytes, offset: int = 0) -> None:
        """Copy `data` in. Raises IndexError, ClosedError."""
        with self._endpoint.lock:
            ctypes.memmove(self._range(offset, len(data)), data, len(data))

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
            array = (ctypes.c_ubyte * length).from_address(self._range(offset, length))
            return file.readinto(array)  # type: ignore[attr-defined,no-any-return]

    def frame_number(self) -> int | None:
        """Return the physical frame of the first page; None without the privilege."""
        with self._endpoint.lock:
            return frame_number(self.address)

    def _give_up(self) -> Extent:
        extent, self._extent = self.extent, None
        return extent


class Received(NamedTuple):
    """A message that the host has taken from its queue.

    sender    the id of the machine, as the monitor stamped it
    status    OK; otherwise the host's own message came back, and why
    buffers   its pages, one buffer per extent; the last one's size is what is left of `length`
    """

    sender: int
    tag: int
    status: Status
    length: int
    payload: bytes
    buffers: tuple[Buffer, ...]


class HostEndpoint:
    """Allocates, sends and receives on behalf of the host process. Made by the monitor.

    Thread-safety: every method takes the monitor's lock.
    """

    def __init__(self, peer: Peer, exchange: Exchange, lock: threading.Lock) -> None:
        self.peer = peer
        self.lock = lock
        self._exchange = exchange

    def alloc(self, size: int) -> Buffer:
        """Return zeroed pages for `size` bytes.

        Raises ResourceError if the pool has none left, ConfigError if that is no size.
        """
        pages = pages_for(parse_size(size, "buffer size"))
        with self.lock:
            try:
                return Buffer(self, self._exchange.grant(self.peer, pages), size)
            except Refusal as refusal:
                raise ResourceError(
                    f"no {format_size(size)} left in the page pool ({refusal.status.name}): "
                    "give the monitor more (Monitor(pool=...))"
                ) from None

    def release(self, buffer: Buffer) -> None:
        """Give a buffer's pages back to the pool. Raises ClosedError if it is not the host's."""
        with self.lock:
            self._exchange.release(self.peer, [buffer._give_up()])

    def send(
        self, to: Machine, buffer: Buffer | None = None, *, payload: bytes = b"", tag: int = 0
    ) -> int:
        """Send a buffer, or a payload of at most 192 bytes, or both; return the message's number.

        The buffer is no longer the host's afterwards. Raises GuestError with the refusal's status,
        and then it still is.
        """
        if not 0 <= tag < 1 << 64:
            raise ConfigError(f"tag {tag} does not fit 64 bits")
        with self.lock:
            spans = () if buffer is None else (self._span(buffer.extent),)
            length = 0 if buffer is None else buffer.size
            try:
                message = self._exchange.send(
                    self.peer, Request(to.number, tag, length, spans, payload)
                )
            except Refusal as refusal:
                raise GuestError(f"cannot send to {to.name}: {refusal.status.name}") from None
            if buffer is not None:
                buffer._give_up()
            return message.number

    def _span(self, extent: Extent) -> Span:
        return Span(self.peer.window.region.base + extent.page * PAGE_SIZE, extent.pages)

    def receive(self) -> Received | None:
        """Return the oldest message for the host, its pages mapped, or None if there is none."""
        with self.lock:
            while self.peer.queue:
                message = self._exchange.take(self.peer)
                if message is None:
                    continue
                status = message.status if message.operation is Operation.UNDELIVERED else Status.OK
                buffers = tuple(self._buffers(message.spans, message.length))
                return Received(
                    message.sender, message.tag, status, message.length, message.payload, buffers
                )
        return None

    def _buffers(self, spans: tuple[Span, ...], length: int) -> Iterator[Buffer]:
        base = self.peer.window.region.base
        for span in spans:
            size = min(length, span.pages * PAGE_SIZE)
            length -= size
            yield Buffer(self, Extent((span.gpa - base) // PAGE_SIZE, span.pages), size)
