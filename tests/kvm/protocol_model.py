"""What the ownership protocol promises: what becomes of every page, whatever happens.

The model is told what a peer asks for and predicts the answer, then what every peer has and sees.
Where the ledger may choose (a place, a frame), it is told the choice, and checks that it may.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from kvm.protocol_pages import (
    FOREIGN,
    LOANS,
    Chosen,
    Loan,
    Member,
    Message,
    Page,
    Spans,
    Wish,
    places_in,
    spans_of,
)
from kvm.protocol_refusals import Refusals

from vmm.guest.abi import EXTENTS_MAX, PAGE_SIZE, RX_ENTRIES, Hold, Operation, Status

_PARTED = {
    Operation.SEND: Hold.SENT,
    Operation.EXCHANGE: Hold.SENT,
    Operation.LEND: Hold.LENT,
    Operation.SHARE: Hold.SHARED,
}


_PARTING = {Operation.SEND, Operation.EXCHANGE, Operation.RETURN, Operation.RELEASE}


class Model(Refusals):
    """All peers and all pages."""

    # ---- What becomes of it ----

    def do(self, number: int, wish: Wish, chosen: Chosen) -> set[int]:
        """Let a wish be done; return who is woken by a notice."""
        asker = self.members[number]
        if wish.operation in _PARTING:
            for message in asker.ring:
                message.parted |= not {*places_in(message.spans)}.isdisjoint(wish.places)
        match wish.operation:
            case Operation.ALLOC:
                for place in _claim(asker, chosen.spans, wish.counts):
                    self._fresh(asker, place, chosen.frames[place])
            case Operation.RELEASE:
                for place in wish.places:
                    page = asker.places.pop(place)
                    if page is not None:
                        del self.pages[page.frame]
            case Operation.RECLAIM:
                return {robbed for place in wish.places for robbed in self._reclaim(asker, place)}
            case Operation.RETURN:
                self._give_back(asker, wish, chosen)
            case Operation.SEND | Operation.LEND | Operation.SHARE | Operation.EXCHANGE:
                self._transfer(asker, self.members[wish.receiver], wish, chosen)
        return set()

    def _fresh(self, member: Member, place: int, frame: int) -> None:
        assert frame not in self.pages
        self.pages[frame] = member.places[place] = Page(frame, member.number, place)

    def _copy(self, page: Page, frame: int, home: int) -> Page:
        """Return a fresh page with what is in another one, which is cleared."""
        assert frame not in self.pages
        copy = self.pages[frame] = Page(frame, page.owner, home, page.word)
        page.word = 0
        return copy

    def _transfer(self, sender: Member, receiver: Member, wish: Wish, chosen: Chosen) -> None:
        operation, exchanged = Operation(wish.operation), wish.operation == Operation.EXCHANGE
        message = _message(sender, receiver, wish, chosen.number, chosen.spans, chosen.homes)
        targets = _claim(receiver, chosen.spans, wish.counts)
        homes = _claim(sender, chosen.homes, wish.counts) if exchanged else wish.places
        assert places_in(chosen.homes) == homes
        for i, (place, target, home) in enumerate(zip(wish.places, targets, homes, strict=True)):
            page = sender.places[place]
            copied = exchanged and chosen.frames[place] == page.frame
            if copied:
                page = self._copy(page, chosen.gone[i], home)
            page.loans[receiver.number] = Loan(target, wish.writable, message)
            page.hold = _PARTED[operation]
            receiver.places[target] = page
            if exchanged:
                page.place, sender.places[home] = home, page
                assert page.frame == chosen.gone[i]
            if exchanged and not copied:
                self._fresh(sender, place, chosen.frames[place])
        receiver.queue.append(message)

    def _reclaim(self, owner: Member, place: int) -> Iterator[int]:
        page = owner.places[place]
        for peer, loan in page.loans.items():
            self.members[peer].places[loan.place] = None
            self.members[peer].robbers[loan.place] = owner.number
            yield peer
        page.loans, page.hold = {}, Hold.OWNED

    def _give_back(self, borrower: Member, wish: Wish, chosen: Chosen) -> None:
        owner = self.members[wish.receiver]
        homes = spans_of(borrower.places[place].place for place in wish.places)
        for place in wish.places:
            self._let_go(borrower, place)
        if owner.alive:
            owner.queue.append(_message(borrower, owner, wish, chosen.number, homes, []))

    def _let_go(self, peer: Member, place: int) -> None:
        """A peer no longer has, or waits for, what another owns."""
        page = peer.places.pop(place)
        del page.loans[peer.number]
        if not page.loans and self.members[page.owner].alive:
            page.hold = Hold.OWNED
        elif not page.loans:
            del self.pages[page.frame]

    # ---- Deliveries, and deaths ----

    def enter(self, number: int) -> None:
        """A machine is entered: its receive ring is filled from its queue."""
        member = self.members[number]
        while member.queue and len(member.ring) < RX_ENTRIES:
            member.ring.append(self.deliver(number))

    def deliver(self, number: int) -> Message:
        """The oldest message is delivered, with what is still to come of its pages."""
        member = self.members[number]
        message = member.queue.pop(0)
        for place in places_in(message.spans):
            if not _awaited(member, place, message):
                continue
            page = member.places[place]
            page.loans[number].message = None
            if page.hold is Hold.SENT:
                self.members[page.owner].places.pop(page.place, None)
                page.owner, page.place, page.hold, page.loans = number, place, Hold.OWNED, {}
        return message

    def bury(self, number: int, back: Callable[[Message], Spans]) -> set[int]:
        """A machine has died; `back` tells where what it had received, but not taken, is again.

        Return who is woken by a notice.
        """
        dead = self.members[number]
        dead.alive = False
        for message in dead.ring:
            if message.parted:
                self._undelivered(message, [])
            elif message.operation in LOANS:
                for place in places_in(message.spans):
                    if dead.hold(place) in FOREIGN:
                        self._let_go(dead, place)
                self._undelivered(message, message.homes)
            elif message.operation is Operation.SEND and self.members[message.sender].alive:
                self._undelivered(message, self._send_back(dead, message, back))
        for message in dead.queue:
            for place in places_in(message.spans):
                if _awaited(dead, place, message):
                    self._let_go(dead, place)
            self._undelivered(message, message.homes)
        self._return_all(dead)
        for place in dead.with_hold({Hold.OWNED}):
            del self.pages[dead.places[place].frame]
        dead.places, dead.queue, dead.ring = {}, [], []
        return {peer for peer in dead.knows if self.members[peer].alive}

    def _send_back(self, dead: Member, message: Message, back: Callable[[Message], Spans]) -> Spans:
        sender, counts = self.members[message.sender], [pages for _, pages in message.spans]
        places = places_in(message.spans)
        owned = all(dead.hold(place) is Hold.OWNED for place in places)
        homes = back(message)
        if not places or not owned or set(self._no_room(sender, counts, fresh=False)):
            assert homes == []
            return []
        for place, home in zip(places, _claim(sender, homes, counts), strict=True):
            page = dead.places.pop(place)
            page.owner, page.place, sender.places[home] = sender.number, home, page
        return homes

    def _undelivered(self, message: Message, homes: Spans) -> None:
        sender = self.members[message.sender]
        if sender.alive and message.operation not in (Operation.UNDELIVERED, Operation.RETURN):
            undelivered = dataclasses.replace(
                message,
                operation=Operation.UNDELIVERED,
                status=Status.E_DEAD,
                spans=homes,
                parted=False,
            )
            sender.queue.append(undelivered)

    def _return_all(self, dead: Member) -> None:
        homes: dict[int, list[int]] = {}
        for place in dead.with_hold(FOREIGN):
            page = dead.places[place]
            homes.setdefault(page.owner, []).append(page.place)
            self._let_go(dead, place)
        for number, places in homes.items():
            spans = spans_of(sorted(places))
            if not self.members[number].alive:
                continue
            for first in range(0, len(spans), EXTENTS_MAX):
                part = spans[first : first + EXTENTS_MAX]
                wish = Wish(Operation.RETURN, length=len(places_in(part)) * PAGE_SIZE)
                message = _message(dead, self.members[number], wish, 0, part, [])
                message.status = Status.E_DEAD
                self.members[number].queue.append(message)


def _awaited(member: Member, place: int, message: Message) -> bool:
    """Whether a page is still to come to a place, with this message."""
    page = member.places.get(place)
    loan = page and page.loans.get(member.number)
    return loan is not None and loan.message is message


def _claim(member: Member, spans: Spans, counts: Sequence[int]) -> list[int]:
    """Return the places that the ledger chose, which must have been free."""
    assert [pages for _, pages in spans] == list(counts)
    places = places_in(spans)
    assert len(set(places)) == len(places)
    assert all(0 <= place < member.pages for place in places)
    assert not member.places.keys() & set(places)
    return places


def _message(
    sender: Member, receiver: Member, wish: Wish, number: int, spans: Spans, homes: Spans
) -> Message:
    operation = Operation(wish.operation)
    return Message(
        number,
        Operation.SEND if operation is Operation.EXCHANGE else operation,
        sender.number,
        receiver.number,
        wish.tag,
        wish.length,
        wish.payload,
        spans,
        homes,
        wish.writable,
    )
