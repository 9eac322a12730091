"""What the ownership protocol refuses, and with which of its words."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from kvm.protocol_pages import FOREIGN, GIVEN, TRANSFERS, Books, Member, Wish, spans_of

from vmm.guest.abi import EXTENTS_MAX, PAGE_SIZE, Hold, Operation, Status

_MALFORMED = {
    *(Status.E_OPERATION, Status.E_RESERVED, Status.E_ALIGNMENT),
    *(Status.E_RANGE, Status.E_OVERLAP, Status.E_LENGTH),
}


class Refusals(Books):
    """All that speaks against a wish, in no order: any of it is a true answer."""

    def reasons(self, number: int, wish: Wish) -> set[Status]:
        """Return every status that would be a true answer; none, if it has to be done."""
        asker = self.members[number]
        found = set(_malformed(asker, wish))
        known = wish.operation in TRANSFERS and wish.receiver in asker.channels
        if wish.operation in TRANSFERS:
            found |= set(self._unreachable(number, wish.receiver)) if known else {Status.E_PEER}
        if found & _MALFORMED or wish.operation == Operation.QUERY or not wish.spans:
            return found
        if wish.operation == Operation.ALLOC:
            return found | set(self._no_room(asker, wish.counts))
        operation = Operation(wish.operation)
        for place in wish.places:
            found |= set(_against(operation, asker.hold(place)))
            if operation is Operation.RELEASE and asker.awaits(place):
                found.add(Status.E_OWNERSHIP)
        if operation in TRANSFERS and known and self.members[wish.receiver].alive:
            found |= set(self._no_transfer(asker, self.members[wish.receiver], wish))
        if operation is Operation.RETURN and not found:
            found |= set(self._no_return(asker, wish))
        return found

    def _unreachable(self, sender: int, receiver: int) -> Iterator[Status]:
        if not self.members[receiver].alive:
            yield Status.E_DEAD
        elif self.members[receiver].full(sender):
            yield Status.E_QUEUE_FULL

    def _no_room(self, member: Member, counts: list[int], fresh: bool = True) -> Iterator[Status]:
        """Why so many pages more cannot be a member's own."""
        if self.charged(member.number) + sum(counts) > member.quota:
            yield Status.E_QUOTA
        if not member.fits(counts):
            yield Status.E_WINDOW_FULL
        if fresh and len(self.pages) + sum(counts) > self.total:
            yield Status.E_NO_MEMORY

    def _no_transfer(self, sender: Member, receiver: Member, wish: Wish) -> Iterator[Status]:
        pages = [sender.places.get(place) for place in wish.places]
        if wish.operation == Operation.SHARE and any(
            p and receiver.number in p.loans for p in pages
        ):
            yield Status.E_REPEATED
        if wish.operation in GIVEN:
            yield from self._no_room(receiver, wish.counts, fresh=False)
        elif not receiver.fits(wish.counts) or not receiver.takes_loan(
            sender.number, sum(wish.counts)
        ):
            yield Status.E_WINDOW_FULL
        if wish.operation == Operation.EXCHANGE:
            yield from self._no_room(sender, wish.counts)

    def _no_return(self, borrower: Member, wish: Wish) -> Iterator[Status]:
        pages = [borrower.places[place] for place in wish.places]
        if any(page.owner != wish.receiver for page in pages):
            yield Status.E_NOT_LENT
        elif self.members[wish.receiver].alive:
            if wish.payload and wish.receiver not in borrower.channels:
                yield Status.E_PEER
            if self.members[wish.receiver].full(borrower.number):
                yield Status.E_QUEUE_FULL
            if len(spans_of(page.place for page in pages)) > EXTENTS_MAX:
                yield Status.E_LENGTH


def _malformed(asker: Member, wish: Wish) -> Iterator[Status]:
    """What is wrong with a descriptor, whoever has which page."""
    if wish.operation not in set(Operation) - {Operation.UNDELIVERED}:
        yield Status.E_OPERATION
        return
    if wish.reserved:
        yield Status.E_RESERVED
    least = wish.operation not in (Operation.SEND, Operation.QUERY)
    if not least <= len(wish.spans) <= (1 if wish.operation == Operation.QUERY else EXTENTS_MAX):
        yield Status.E_LENGTH
    for at, pages in wish.spans:
        if not pages:
            yield Status.E_RANGE
        elif wish.operation == Operation.ALLOC and at:
            yield Status.E_RESERVED
        elif at % PAGE_SIZE:
            yield Status.E_ALIGNMENT
        elif wish.operation != Operation.ALLOC and not 0 <= at <= (asker.pages - pages) * PAGE_SIZE:
            yield Status.E_RANGE
    if wish.operation != Operation.ALLOC:
        spans = sorted(wish.spans)
        if any(a + n * PAGE_SIZE > b for (a, n), (b, _) in itertools.pairwise(spans)):
            yield Status.E_OVERLAP
        if wish.length > sum(wish.counts) * PAGE_SIZE:
            yield Status.E_LENGTH


def _against(operation: Operation, hold: Hold) -> Iterator[Status]:
    """What speaks against doing this with a page that one holds so."""
    if hold in FOREIGN:
        if operation is not Operation.RETURN:
            yield Status.E_BORROWED
    elif hold is Hold.REVOKED:
        if operation is not Operation.RELEASE:
            yield Status.E_RECLAIMED
    elif operation is Operation.RETURN:
        yield Status.E_NOT_LENT
    elif operation is Operation.RECLAIM:
        if hold not in (Hold.LENT, Hold.SHARED):
            yield Status.E_NOT_LENT
    elif hold in (Hold.NONE, Hold.SENT, Hold.INCOMING):
        yield Status.E_OWNERSHIP
    elif hold is Hold.LENT or (hold is Hold.SHARED and operation is not Operation.SHARE):
        yield Status.E_LENT
