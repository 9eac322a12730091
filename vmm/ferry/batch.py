"""A doorbell's descriptors: read out of a private copy in one pass, and cut into series. Pure.

What adjacent descriptors send to one peer is one run to the ledger, whatever their number.
"""

from __future__ import annotations

from functools import partial
from operator import itemgetter
from typing import NamedTuple

from vmm.ferry.layout import ASKED, DESCRIPTOR, EXTENTS, MASK, PAYLOAD, SPANS
from vmm.ferry.message import FLAGS, REQUESTS, TOGETHER, Request, Span, overlap
from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, Operation, Status

_EXTENTS_MAX, _PAYLOAD_MAX = abi.EXTENTS_MAX, abi.PAYLOAD_MAX
_FREES = frozenset({Operation.RELEASE, Operation.RETURN})
_TAKES = frozenset({Operation.ALLOC, Operation.EXCHANGE})
# By a descriptor's first word: the operation, and whether a borrower may write.
_KINDS = {
    operation | flags << 16: (operation, not flags)
    for operation in REQUESTS.values()
    for flags in {0, FLAGS.get(operation, 0)}
}
_SINGLE = frozenset(1 | size << 16 for size in range(_PAYLOAD_MAX + 1))  # counts of one extent
_PAGES = itemgetter(1)  # of a span
_new = tuple.__new__
_span = partial(_new, Span)


class Series(NamedTuple):
    """A request, and those that go with it: the pages of each follow those of the one before.

    others    what is their own: tag, length, number of pages and payload
    touched   whether its pages touch those of a neighbour, which does not go with it
    """

    first: Request
    others: list[tuple[int, int, int, bytes]]
    touched: bool

    def requests(self) -> list[Request]:
        """Return each by itself."""
        requests = [self.first]
        for tag, length, pages, payload in self.others:
            spans = (Span(requests[-1].spans[-1].end, pages),)
            same = self.first._replace(tag=tag, length=length, spans=spans, payload=payload)
            requests.append(same)
        return requests


class Batch(NamedTuple):
    """What a doorbell's descriptors ask for, in order: a status is why one asks for nothing.

    asked       how many descriptors
    operations  that are among them
    extents, pages   how many they have together
    """

    series: list[Series | Status]
    asked: int
    operations: set[Operation]
    extents: int
    pages: int

    def requests(self) -> list[Request | Status]:
        """Return what each descriptor asks for."""
        requests: list[Request | Status] = []
        for each in self.series:
            requests += [each] if isinstance(each, Status) else each.requests()
        return requests

    def one_turn(self) -> int:
        """Return how many of them can be processed in one turn.

        What is freed in a turn is zeroed when nothing can undo that any more, and not given out
        before; so is what a copied exchange leaves, with which nothing else is done before.
        """
        if self.operations.isdisjoint(_TAKES):  # as most are
            return self.asked
        freed, exchanged = False, list[Span]()
        for index, request in enumerate(self.requests()):
            if isinstance(request, Status):
                continue
            if freed and request.operation in _TAKES:
                return index
            if exchanged and overlap(exchanged, request.spans):
                return index
            if request.operation is Operation.EXCHANGE:
                exchanged += request.spans
            freed = freed or request.operation in _FREES
        return self.asked

    def apart(self, start: int) -> list[Request]:
        """Return the requests from one of the series on that are to one peer, each of one extent
        that touches no other's.
        """
        found: list[Request] = []
        for number in range(start, len(self.series)):
            each = self.series[number]
            if isinstance(each, Status) or each[1] or each[2]:  # others, touched
                break
            first = each[0]
            if first[5] not in TOGETHER or len(first[3]) != 1:  # operation, spans
                break
            if found and first[0] != found[0][0]:  # receiver
                break
            found.append(first)
        return found


def read(descriptors: bytes) -> Batch:
    """Read a private copy of descriptors.

    The sender's identity is not read: it is the monitor's to say.
    """
    series, others = list[Series | Status](), list[tuple[int, int, int, bytes]]()
    operations = set[Operation]()
    spans: tuple[Span, ...]
    request: Request | Status
    extents = total = here = 0
    end = like = peer = -1  # where the last one's pages end, if others can follow, and which
    for kind, to, tag, length, counts, r1, r2, gpa, pages in ASKED.iter_unpack(descriptors):
        entry, here = here, here + DESCRIPTOR
        known = _KINDS.get(kind)
        if known is not None and counts in _SINGLE and not (r1 or r2) and pages <= MASK:
            size, payload = counts >> 16, b""
            if size:
                payload = descriptors[entry + PAYLOAD : entry + PAYLOAD + size]
            follows = gpa == end and kind == like and to == peer
            if follows and pages > 0 and length <= pages * PAGE_SIZE:  # it goes with the last one
                others.append((tag, length, pages, payload))
                extents, total, end = extents + 1, total + pages, end + pages * PAGE_SIZE
                continue
            spans = (_new(Span, (gpa, pages)),)
            request = _new(Request, (to, tag, length, spans, payload, *known))
        else:
            request = _request(descriptors[entry:here], kind, to, tag, length, counts, r1 or r2)
        if isinstance(request, Status):
            series.append(request)
            end = -1
            continue
        _, _, _, spans, _, operation, _ = request
        operations.add(operation)
        follows = False
        if spans:
            extents += len(spans)
            total += pages if len(spans) == 1 else sum(map(_PAGES, spans))
            follows = gpa == end and operation in TOGETHER
            if follows and not isinstance(last := series[-1], Status):
                series[-1] = last._replace(touched=True)
            gpa, pages = spans[-1]
        others = []
        series.append(_new(Series, (request, others, follows)))
        end = gpa + pages * PAGE_SIZE if spans and operation in TOGETHER else -1
        like, peer = kind if len(spans) == 1 else -1, to
    return _new(Batch, (series, here // DESCRIPTOR, operations, extents, total))


def _request(
    descriptor: bytes, kind: int, to: int, tag: int, length: int, counts: int, reserved: int
) -> Request | Status:
    """Return what a descriptor asks for, or why that is nothing."""
    count, size, reserved = counts & 0xFFFF, counts >> 16 & 0xFFFF, counts >> 32 | reserved
    known = _KINDS.get(kind)
    if known is None and kind & 0xFFFF not in REQUESTS:
        return Status.E_OPERATION
    if count > _EXTENTS_MAX or size > _PAYLOAD_MAX:
        return Status.E_LENGTH  # nothing beyond the descriptor is read
    raw = SPANS[count].unpack_from(descriptor, EXTENTS)
    if known is None or reserved or any(raw[2::3]):
        return Status.E_RESERVED
    spans = tuple(map(_span, zip(raw[::3], raw[1::3], strict=True)))
    operation, writable = known
    payload = descriptor[PAYLOAD : PAYLOAD + size]
    return _new(Request, (to, tag, length, spans, payload, operation, writable))
