"""Messages: what a sender asks for, and what travels through the queues. Pure."""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
from typing import NamedTuple

from vmm.ferry.ledger import Parcel, Refusal
from vmm.ferry.runs import Extent
from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, Operation, Status
from vmm.memory.region import OutOfBounds, Region


class Span(NamedTuple):
    """An extent by address, as guests name it."""

    gpa: int
    pages: int


SERVED = frozenset({Operation.SEND, Operation.RELEASE})


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """What a peer asks for, checked for shape but not yet against any state.

    receiver  a peer's id; RELEASE has none
    tag       the sender's word, carried unchanged
    length    bytes of the message within its spans
    spans     page runs in the sender's window
    payload   bytes that travel inside the descriptor
    """

    receiver: int
    tag: int = 0
    length: int = 0
    spans: tuple[Span, ...] = ()
    payload: bytes = b""
    operation: Operation = Operation.SEND

    @classmethod
    def from_descriptor(cls, descriptor: abi.Descriptor) -> Request:
        """Read a request out of a private copy of a guest's descriptor.

        The sender's identity is not read: it is the monitor's to say. Raises Refusal.
        """
        if descriptor.operation not in SERVED:
            raise Refusal(Status.E_OPERATION)
        count, payload_length = descriptor.extent_count, descriptor.payload_length
        if count > abi.EXTENTS_MAX or payload_length > abi.PAYLOAD_MAX:
            raise Refusal(Status.E_LENGTH)  # nothing beyond the descriptor is read
        raw = descriptor.extents[:count]
        reserved = (descriptor.flags, descriptor.reserved0, *descriptor.reserved1)
        if any(reserved) or any(extent.attributes for extent in raw):
            raise Refusal(Status.E_RESERVED)
        return cls(
            descriptor.receiver,
            descriptor.tag,
            descriptor.length,
            tuple(Span(extent.gpa, extent.pages) for extent in raw),
            bytes(descriptor.payload[:payload_length]),
            Operation(descriptor.operation),
        )

    @classmethod
    def from_registers(cls, gpa: int, pages: int, attributes: int) -> Request:
        """Read a request out of a DIRECT hypercall's registers. Raises Refusal."""
        operation = attributes >> 8 & 0xFF
        if operation not in SERVED:
            raise Refusal(Status.E_OPERATION)
        return cls(
            receiver=attributes >> 16 & 0xFFFF,
            tag=attributes >> 32,
            length=pages * PAGE_SIZE,
            spans=(Span(gpa, pages),),
            operation=Operation(operation),
        )

    def extents(self, window: Region) -> list[Extent]:
        """Return the spans as extents of the sender's window, checked against it and each other.

        Raises Refusal: E_ALIGNMENT, E_RANGE, E_OVERLAP, E_LENGTH.
        """
        if len(self.spans) > abi.EXTENTS_MAX or len(self.payload) > abi.PAYLOAD_MAX:
            raise Refusal(Status.E_LENGTH)
        extents = [_extent(span, window) for span in self.spans]
        ordered = sorted(extents)
        if any(a.end > b.page for a, b in itertools.pairwise(ordered)):
            raise Refusal(Status.E_OVERLAP)
        most = sum(extent.pages for extent in extents) * PAGE_SIZE
        if self.length > most:
            raise Refusal(Status.E_LENGTH)
        return extents


def _extent(span: Span, window: Region) -> Extent:
    if span.gpa % PAGE_SIZE:
        raise Refusal(Status.E_ALIGNMENT)
    try:
        return Extent(window.page(span.gpa, span.pages), span.pages)
    except OutOfBounds:
        raise Refusal(Status.E_RANGE) from None


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """A message in a queue: both identities travel with it, the sender's as the monitor stamped it.

    number    the monitor's name for it, unique within the monitor
    operation SEND, or UNDELIVERED for one that came back; `status` then says why
    parcel    its pages while they are in flight, None for one that moves none
    spans     where its pages are in the receiver's window, once it is delivered
    """

    number: int
    operation: Operation
    status: Status
    sender: int
    receiver: int
    tag: int
    length: int
    payload: bytes
    parcel: Parcel | None
    spans: tuple[Span, ...]

    def descriptor(self) -> abi.Descriptor:
        """Return the message as the receiver reads it in its receive ring."""
        descriptor = abi.Descriptor(
            operation=self.operation,
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
