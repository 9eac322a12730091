"""Messages: what a sender asks for, and what travels through the queues. Pure."""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
from typing import NamedTuple

from vmm.ferry.rules import Refusal
from vmm.ferry.runs import Extent
from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, Operation, Status
from vmm.memory.region import OutOfBounds, Region


class Span(NamedTuple):
    """An extent by address, as guests name it."""

    gpa: int
    pages: int

    @property
    def end(self) -> int:
        """The first address after it."""
        return self.gpa + self.pages * PAGE_SIZE


# Plain numbers: what ~ of an IntFlag leaves out depends on Python's version.
_FLAGS = dict.fromkeys((Operation.LEND, Operation.SHARE), int(abi.Flags.READONLY))
_TO_A_PEER = frozenset(
    {Operation.SEND, Operation.LEND, Operation.SHARE, Operation.EXCHANGE, Operation.RETURN}
)
_NEED_DESCRIPTOR = frozenset({Operation.ALLOC, Operation.QUERY})  # to be answered in


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """What a peer asks for, checked for shape but not yet against any state.

    receiver  a peer's id; for RETURN the owner's; RECLAIM, ALLOC, RELEASE and QUERY have none
    tag       the sender's word, carried unchanged
    length    bytes of the message within its spans
    spans     page runs in the sender's window; for ALLOC only their numbers of pages count
    payload   bytes that travel inside the descriptor
    writable  whether a borrower may write, for LEND and SHARE
    """

    receiver: int = 0
    tag: int = 0
    length: int = 0
    spans: tuple[Span, ...] = ()
    payload: bytes = b""
    operation: Operation = Operation.SEND
    writable: bool = True

    @classmethod
    def from_descriptor(cls, descriptor: abi.Descriptor) -> Request:
        """Read a request out of a private copy of a guest's descriptor.

        The sender's identity is not read: it is the monitor's to say. Raises Refusal.
        """
        operation = _operation(descriptor.operation)
        count, payload_length = descriptor.extent_count, descriptor.payload_length
        if count > abi.EXTENTS_MAX or payload_length > abi.PAYLOAD_MAX:
            raise Refusal(Status.E_LENGTH)  # nothing beyond the descriptor is read
        raw = descriptor.extents[:count]
        reserved = (descriptor.reserved0, *descriptor.reserved1)
        flags = descriptor.flags & ~_FLAGS.get(operation, 0)
        if flags or any(reserved) or any(extent.attributes for extent in raw):
            raise Refusal(Status.E_RESERVED)
        return cls(
            descriptor.receiver,
            descriptor.tag,
            descriptor.length,
            tuple(Span(extent.gpa, extent.pages) for extent in raw),
            bytes(descriptor.payload[:payload_length]),
            operation,
            not descriptor.flags & abi.Flags.READONLY,
        )

    @classmethod
    def from_registers(cls, gpa: int, pages: int, attributes: int) -> Request:
        """Read a request out of a DIRECT hypercall's registers. Raises Refusal."""
        operation = _operation(attributes >> 8 & 0x3F)
        readonly = bool(attributes & abi.DIRECT_READONLY)
        if operation in _NEED_DESCRIPTOR:
            raise Refusal(Status.E_OPERATION)
        if attributes >> 15 & 1 or (readonly and operation not in _FLAGS):
            raise Refusal(Status.E_RESERVED)
        return cls(
            receiver=attributes >> 16 & 0xFFFF,
            tag=attributes >> 32,
            length=pages * PAGE_SIZE,
            spans=(Span(gpa, pages),),
            operation=operation,
            writable=not readonly,
        )

    @property
    def has_receiver(self) -> bool:
        """Whether `receiver` means somebody."""
        return self.operation in _TO_A_PEER

    def extents(self, window: Region) -> list[Extent]:
        """Return the spans as extents of the sender's window, checked against it and each other.

        Raises Refusal: E_LENGTH, E_ALIGNMENT, E_RANGE, E_OVERLAP.
        """
        self._check_counts()
        extents = [_extent(span, window) for span in self.spans]
        ordered = sorted(extents)
        if any(a.end > b.page for a, b in itertools.pairwise(ordered)):
            raise Refusal(Status.E_OVERLAP)
        most = sum(extent.pages for extent in extents) * PAGE_SIZE
        if self.length > most:
            raise Refusal(Status.E_LENGTH)
        return extents

    def counts(self) -> list[int]:
        """Return the numbers of pages that an ALLOC asks for.

        Raises Refusal: E_LENGTH, E_RESERVED if an address is given, E_RANGE if a number is zero.
        """
        self._check_counts()
        if any(span.gpa for span in self.spans):
            raise Refusal(Status.E_RESERVED)
        if not all(span.pages for span in self.spans):
            raise Refusal(Status.E_RANGE)
        return [span.pages for span in self.spans]

    def _check_counts(self) -> None:
        least = 0 if self.operation in (Operation.SEND, Operation.QUERY) else 1
        most = 1 if self.operation is Operation.QUERY else abi.EXTENTS_MAX
        if not least <= len(self.spans) <= most or len(self.payload) > abi.PAYLOAD_MAX:
            raise Refusal(Status.E_LENGTH)


def _operation(number: int) -> Operation:
    """Return an operation that may be asked for. Raises Refusal."""
    try:
        operation = Operation(number)
    except ValueError:
        raise Refusal(Status.E_OPERATION) from None
    if operation is Operation.UNDELIVERED:
        raise Refusal(Status.E_OPERATION)
    return operation


def _extent(span: Span, window: Region) -> Extent:
    if span.gpa % PAGE_SIZE:
        raise Refusal(Status.E_ALIGNMENT)
    try:
        return Extent(window.page(span.gpa, span.pages), span.pages)
    except OutOfBounds:
        raise Refusal(Status.E_RANGE) from None


class Answer(NamedTuple):
    """What a peer is told of its request: QUERY's is in the payload, ALLOC's in the spans."""

    status: Status
    number: int = 0
    spans: tuple[Span, ...] = ()
    payload: bytes = b""


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """A message in a queue: both identities travel with it, the sender's as the monitor stamped it.

    number    the monitor's name for it, unique within the monitor
    operation SEND, LEND, SHARE or RETURN; or UNDELIVERED for one that came back: `status` says why
    spans     where its pages are in the receiver's window, once it is delivered
    targets   the same as extents, of a message that brings its pages with it
    homes     where the pages were, or will be again, in the sender's window
    """

    number: int
    operation: Operation
    status: Status
    sender: int
    receiver: int
    tag: int = 0
    length: int = 0
    payload: bytes = b""
    spans: tuple[Span, ...] = ()
    targets: tuple[Extent, ...] = ()
    homes: tuple[Extent, ...] = ()
    writable: bool = True

    def descriptor(self) -> abi.Descriptor:
        """Return the message as the receiver reads it in its receive ring."""
        descriptor = abi.Descriptor(
            operation=self.operation,
            flags=0 if self.writable else abi.Flags.READONLY,
            status=self.status,
            sender=self.sender,
            receiver=self.receiver,
            tag=self.tag,
            length=self.length,
            message=self.number,
            extent_count=len(self.spans),
            payload_length=len(self.payload),
        )
        for extent, span in zip(descriptor.extents, self.spans, strict=False):
            extent.gpa, extent.pages = span
        ctypes.memmove(descriptor.payload, self.payload, len(self.payload))
        return descriptor
