"""Messages: what a sender asks for, and what travels through the queues. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from vmm.ferry.layout import DESCRIPTOR, EXTENTS, LAID, SPANS
from vmm.ferry.rules import Refusal
from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, Operation, Status
from vmm.memory.region import Region
from vmm.memory.runs import Extent


class Span(NamedTuple):
    """An extent by address, as guests name it."""

    gpa: int
    pages: int

    @property
    def end(self) -> int:
        """The first address after it."""
        return self.gpa + self.pages * PAGE_SIZE


# Plain numbers: what ~ of an IntFlag leaves out depends on Python's version.
FLAGS = dict.fromkeys((Operation.LEND, Operation.SHARE), int(abi.Flags.READONLY))
_TO_A_PEER = frozenset(
    {Operation.SEND, Operation.LEND, Operation.SHARE, Operation.EXCHANGE, Operation.RETURN}
)
TOGETHER = frozenset({Operation.SEND, Operation.LEND})
"""What may be taken out of a window together: nothing else is done with its pages meanwhile."""
_NEED_NO_SPAN = frozenset({Operation.SEND, Operation.QUERY})
_NEED_DESCRIPTOR = frozenset({Operation.ALLOC, Operation.QUERY})  # to be answered in
REQUESTS = {int(op): op for op in Operation if op is not Operation.UNDELIVERED}
_READONLY = int(abi.Flags.READONLY)

_EXTENTS_MAX, _PAYLOAD_MAX = abi.EXTENTS_MAX, abi.PAYLOAD_MAX
_NOWHERE = 0, 0
_new = tuple.__new__


class Request(NamedTuple):
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
    def from_registers(cls, gpa: int, pages: int, attributes: int) -> Request:
        """Read a request out of a DIRECT hypercall's registers. Raises Refusal."""
        operation = _operation(attributes >> 8 & 0x3F)
        readonly = bool(attributes & abi.DIRECT_READONLY)
        if operation in _NEED_DESCRIPTOR:
            raise Refusal(Status.E_OPERATION)
        if attributes >> 15 & 1 or (readonly and operation not in FLAGS):
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
        if len(self.spans) == 1:  # as most have
            extent = _extent(*self.spans[0], window)
            if self.length > extent.pages * PAGE_SIZE:
                raise Refusal(Status.E_LENGTH)
            return [extent]
        extents = [_extent(gpa, pages, window) for gpa, pages in self.spans]
        ordered = sorted(extents)
        if any(a.end > b.page for a, b in itertools.pairwise(ordered)):
            raise Refusal(Status.E_OVERLAP)
        if self.length > sum([pages for _, pages in extents]) * PAGE_SIZE:
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
        least = 0 if self.operation in _NEED_NO_SPAN else 1
        most = 1 if self.operation is Operation.QUERY else _EXTENTS_MAX
        if not least <= len(self.spans) <= most or len(self.payload) > _PAYLOAD_MAX:
            raise Refusal(Status.E_LENGTH)


def lay_out(messages: Sequence[Message]) -> bytearray:
    """Return messages as their receiver reads them, each a whole struct pf_descriptor."""
    laid, at, lay = bytearray(len(messages) * DESCRIPTOR), 0, LAID.pack_into
    for message in messages:
        number, what, status, sender, to, tag, length, payload, spans, _, _, writable, _ = message
        kind = what if writable else what | _READONLY << 16
        count, (gpa, pages) = len(spans), spans[0] if spans else _NOWHERE
        counts = count | len(payload) << 16
        lay(laid, at, kind, status, sender, to, tag, length, number, counts, gpa, pages, payload)
        if count > 1:
            words = [word for span in spans for word in (*span, 0)]
            SPANS[count].pack_into(laid, at + EXTENTS, *words)
        at += DESCRIPTOR
    return laid


def _operation(number: int) -> Operation:
    """Return an operation that may be asked for. Raises Refusal."""
    operation = REQUESTS.get(number)
    if operation is None:
        raise Refusal(Status.E_OPERATION)
    return operation


def _extent(gpa: int, pages: int, window: Region) -> Extent:
    if gpa % PAGE_SIZE:
        raise Refusal(Status.E_ALIGNMENT)
    offset = gpa - window.base
    if offset < 0 or pages < 1 or offset + pages * PAGE_SIZE > window.size:  # nothing wraps
        raise Refusal(Status.E_RANGE)
    return _new(Extent, (offset // PAGE_SIZE, pages))


def touching(one: Request, other: Request) -> bool:
    """Whether the pages of two requests can be hidden with one call: the last of the one and the
    first of the other are adjacent.
    """
    return (
        bool(one.spans and other.spans)
        and one.spans[-1].end == other.spans[0].gpa
        and one.operation in TOGETHER
        and other.operation in TOGETHER
    )


def overlap(some: Sequence[Span], others: Sequence[Span]) -> bool:
    """Whether any of some extents has a page in common with any of others."""
    for gpa, pages in some:
        for other, count in others:
            if gpa < other + count * PAGE_SIZE and other < gpa + pages * PAGE_SIZE:
                return True
    return False


class Answer(NamedTuple):
    """What a peer is told of its request: QUERY's is in the payload, ALLOC's in the spans.

    brought   whether its pages are where they belong already, which is for the trace
    """

    status: Status
    number: int = 0
    spans: tuple[Span, ...] = ()
    payload: bytes = b""
    brought: bool = False


# The same without its name, as most are made and nobody asks for its parts by theirs.
Told = tuple[Status, int, tuple[Span, ...], bytes, bool]


class Message(NamedTuple):
    """A message in a queue: both identities travel with it, the sender's as the monitor stamped it.

    number    the monitor's name for it, unique within the monitor
    operation SEND, LEND, SHARE or RETURN; or UNDELIVERED for one that came back: `status` says why
    spans     where its pages are in the receiver's window, once it is delivered
    targets   the same as extents, of a message that brings its pages with it
    homes     where the pages were, or will be again, in the sender's window
    brought   whether its pages are at their targets already: see Peer.idle
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
    brought: bool = False

    @classmethod
    def letter(cls, number: int, sender: int, receiver: int, tag: int, payload: bytes) -> Message:
        """Return one that has been sent, and is a payload and nothing else: most are."""
        return tuple.__new__(cls, (number, _SEND, _OK, sender, receiver, tag, 0, payload, *_REST))


_SEND, _OK = Operation.SEND, Status.OK
_REST = tuple(Message._field_defaults[name] for name in Message._fields[8:])
