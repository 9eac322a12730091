"""What the ownership protocol is about, page by page: no runs, no plans, no bonds."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from vmm.guest.abi import NO_PEER, PAGE_SIZE, Hold, Operation, Status

GIVEN = {Operation.SEND, Operation.EXCHANGE}
LOANS = {Operation.LEND, Operation.SHARE}
TRANSFERS = GIVEN | LOANS
SEEN = {Hold.OWNED, Hold.SHARED, Hold.BORROWED, Hold.VIEWED}
FOREIGN = {Hold.BORROWED, Hold.VIEWED}

Spans = list[tuple[int, int]]  # of one window: place, pages


class Wish(NamedTuple):
    """What a peer asks for, maybe nonsense; `spans` are byte offsets in its window, and pages."""

    operation: int
    receiver: int = 0
    spans: tuple[tuple[int, int], ...] = ()
    writable: bool = True
    tag: int = 0
    length: int = 0
    payload: bytes = b""
    reserved: int = 0  # flags that have to be zero

    @property
    def extents(self) -> Spans:
        return [(at // PAGE_SIZE, pages) for at, pages in self.spans]

    @property
    def places(self) -> list[int]:
        return places_in(self.extents)

    @property
    def counts(self) -> list[int]:
        return [pages for _, pages in self.spans]


class Chosen(NamedTuple):
    """What the ledger chose: a message's number, places, places to come back to, the frames that
    are in the sender's places then, and those that went.
    """

    number: int
    spans: Spans
    homes: Spans
    frames: dict[int, int]
    gone: list[int]


@dataclasses.dataclass(eq=False)
class Message:
    number: int
    operation: Operation
    sender: int
    receiver: int
    tag: int
    length: int
    payload: bytes
    spans: Spans
    homes: Spans
    writable: bool = True
    status: Status = Status.OK
    parted: bool = False  # its receiver has not taken it, but parted with some of its pages


@dataclasses.dataclass(eq=False)
class Loan:
    """What a peer has of another's page, or will have when the message has been delivered."""

    place: int
    writable: bool
    message: Message | None


@dataclasses.dataclass(eq=False)
class Page:
    """A physical page that is not free. Its owner may be dead."""

    frame: int
    owner: int
    place: int
    word: int = 0
    hold: Hold = Hold.OWNED
    loans: dict[int, Loan] = dataclasses.field(default_factory=dict)
    physical: int | None = None  # its number, once it is known
    anonymous: bool | None = None  # whether its memory is, once it is known

    def hold_of(self, peer: int) -> Hold:
        if peer == self.owner:
            return self.hold
        loan = self.loans[peer]
        if loan.message is not None:
            return Hold.INCOMING
        return Hold.BORROWED if loan.writable else Hold.VIEWED


@dataclasses.dataclass(eq=False)
class Member:
    """A peer. `places`: what is where in its window, None for what was reclaimed, by `robbers`."""

    number: int
    pages: int
    quota: int
    depth: int
    alive: bool = True
    asleep: bool = False  # it is given no orders
    places: dict[int, Page | None] = dataclasses.field(default_factory=dict)
    robbers: dict[int, int] = dataclasses.field(default_factory=dict)
    queue: list[Message] = dataclasses.field(default_factory=list)
    ring: list[Message] = dataclasses.field(default_factory=list)
    channels: set[int] = dataclasses.field(default_factory=set)
    knows: set[int] = dataclasses.field(default_factory=set)

    def full(self, sender: int) -> bool:
        """Whether its queue takes nothing of a sender's: who has nothing in it has a place."""
        return len(self.queue) >= self.depth and any(m.sender == sender for m in self.queue)

    def hold(self, place: int) -> Hold:
        if place not in self.places:
            return Hold.NONE
        page = self.places[place]
        return Hold.REVOKED if page is None else page.hold_of(self.number)

    def lenders(self) -> Counter[int]:
        """Return how many places are taken up by whose loans, those that were reclaimed too."""
        found: Counter[int] = Counter()
        for place, page in self.places.items():
            if page is None:
                found[self.robbers[place]] += 1
            elif page.owner != self.number and page.hold is not Hold.SENT:
                found[page.owner] += 1
        return found

    def takes_loan(self, lender: int, pages: int) -> bool:
        """Whether it has room for a loan: of seven eighths for all lenders, half for each."""
        lenders = self.lenders()
        limit = self.pages - self.pages // 8
        return lenders.total() + pages <= limit and lenders[lender] + pages <= limit * 4 // 7

    def awaits(self, place: int) -> bool:
        """Whether a message in its queue says that it comes to this place, reclaimed or not."""
        return any(
            message.operation in TRANSFERS and place in places_in(message.spans)
            for message in self.queue
        )

    def with_hold(self, holds: set[Hold]) -> list[int]:
        return sorted(place for place in self.places if self.hold(place) in holds)

    def fits(self, counts: Sequence[int]) -> bool:
        """Whether there is room for so many extents, each in the first gap that will do."""
        taken = set(self.places)
        for count in counts:
            free = 0
            for place in range(self.pages):
                free = 0 if place in taken else free + 1
                if free == count:
                    taken.update(range(place + 1 - count, place + 1))
                    break
            else:
                return False
        return True


def places_in(spans: Iterable[tuple[int, int]]) -> list[int]:
    return [place for first, pages in spans for place in range(first, first + pages)]


def spans_of(places: Iterable[int]) -> Spans:
    """Return places as spans, each that directly follows another joined to it."""
    spans: Spans = []
    for place in places:
        if spans and sum(spans[-1]) == place:
            spans[-1] = spans[-1][0], spans[-1][1] + 1
        else:
            spans.append((place, 1))
    return spans


class Books:
    """All peers and all pages."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.pages: dict[int, Page] = {}  # by frame
        self.members: dict[int, Member] = {}

    def living(self) -> list[Member]:
        return [member for member in self.members.values() if member.alive]

    def connect(self, a: int, b: int) -> None:
        self.members[a].channels.add(b)
        self.members[a].knows.add(b)
        self.members[b].knows.add(a)

    def charged(self, number: int) -> int:
        return sum(
            page.owner == number or (page.hold is Hold.SENT and number in page.loans)
            for page in self.pages.values()
        )

    def states(self) -> Counter[str]:
        found = Counter(free=self.total - len(self.pages))
        for page in self.pages.values():
            if page.hold is Hold.SENT:
                found["in_flight"] += 1
            else:
                alive = self.members[page.owner].alive
                found[page.hold.name.lower() if alive else "orphaned"] += 1
        return found

    def description(self, number: int, place: int) -> tuple[Hold, int, tuple[int, ...]]:
        """Return what a peer may know of a page: its hold, its owner, who borrows it."""
        hold = self.members[number].hold(place)
        if hold in (Hold.NONE, Hold.INCOMING, Hold.REVOKED):
            return hold, NO_PEER, ()
        page = self.members[number].places[place]
        return hold, page.owner, tuple(page.loans) if page.owner == number else (number,)
