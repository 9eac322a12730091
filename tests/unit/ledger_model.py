"""What the ledger promises, page by page: a model that decides by itself what is refused."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from vmm.guest.abi import Hold, Operation, Status
from vmm.memory.runs import Extent

FRAMES = 40
PAGES = 16
PEERS = 4

FOREIGN = {Hold.INCOMING, Hold.BORROWED, Hold.VIEWED}
GIVEN = {Operation.SEND, Operation.EXCHANGE}
TRANSFERS = [Operation.SEND, Operation.LEND, Operation.SHARE, Operation.EXCHANGE]

Window = dict[int, tuple[int, Hold]]  # page: (frame, hold)
Place = tuple[int, int, int]  # peer, page of its window, frame

T = TypeVar("T")


@dataclasses.dataclass
class Share:
    """What a peer has, or is to have, of another's frame."""

    page: int
    writable: bool
    arrived: bool = False


@dataclasses.dataclass
class Frame:
    """One frame that is not free: its owner, who may have died, and who else has it."""

    owner: int
    page: int
    hold: Hold = Hold.OWNED
    borrowers: dict[int, Share] = dataclasses.field(default_factory=dict)

    def awaited(self) -> bool:
        return any(not share.arrived for share in self.borrowers.values())

    def hold_of(self, borrower: int) -> Hold:
        return self.arrived(borrower) if self.borrowers[borrower].arrived else Hold.INCOMING

    def arrived(self, borrower: int) -> Hold:
        """What it is, or will be, to one who gets it."""
        if self.hold is Hold.SENT:
            return Hold.OWNED
        return Hold.BORROWED if self.borrowers[borrower].writable else Hold.VIEWED


@dataclasses.dataclass
class Member:
    """One living peer. `revoked`: the pages that were borrowed until they were reclaimed."""

    quota: int
    pieces: int
    revoked: set[int] = dataclasses.field(default_factory=set)


def pages_of(extents: Iterable[Extent]) -> list[int]:
    return [page for extent in extents for page in range(extent.page, extent.end)]


def in_one_run(window: Window, page: int) -> bool:
    """Whether a page continues the one before it."""
    before = window.get(page - 1)
    return before is not None and window.get(page) == (before[0] + 1, before[1])


def cuts(window: Window, extents: Iterable[Extent]) -> int:
    return sum(in_one_run(window, e.page) + in_one_run(window, e.end) for e in extents)


def runs_in(window: Window, extents: Iterable[Extent]) -> int:
    return sum(
        page in window and (page == extent.page or not in_one_run(window, page))
        for extent in extents
        for page in pages_of([extent])
    )


def has_room(window: Window, extents: Iterable[Extent]) -> bool:
    """Whether as many extents fit, each at the lowest place."""
    taken = set(window)
    for _, count in extents:
        places = (range(page, page + count) for page in range(PAGES - count + 1))
        place = next((place for place in places if taken.isdisjoint(place)), None)
        if place is None:
            return False
        taken |= set(place)
    return True


class Model:
    """The protocol, page by page."""

    def __init__(self, pieces: int) -> None:
        self.pieces = pieces
        self.frames: dict[int, Frame] = {}
        self.members: dict[int, Member] = {}

    def free(self) -> set[int]:
        return set(range(FRAMES)) - self.frames.keys()

    def window(self, peer: int) -> Window:
        found = {page: (page, Hold.REVOKED) for page in self.members[peer].revoked}
        for number, frame in self.frames.items():
            if frame.owner == peer:
                found[frame.page] = (number, frame.hold)
            if peer in frame.borrowers:
                found[frame.borrowers[peer].page] = (number, frame.hold_of(peer))
        return found

    def charged(self, peer: int) -> int:
        return sum(
            frame.owner == peer or (frame.hold is Hold.SENT and peer in frame.borrowers)
            for frame in self.frames.values()
        )

    def states(self) -> dict[str, int]:
        found = Counter(free=len(self.free()))
        for frame in self.frames.values():
            if frame.hold is Hold.SENT:
                found["in_flight"] += 1
            elif frame.owner not in self.members:
                found["orphaned"] += 1
            else:
                found[frame.hold.name.lower()] += 1
        return found

    def description(
        self, window: Window, peer: int, page: int
    ) -> tuple[Hold, int | None, tuple[int, ...]]:
        number, hold = window.get(page, (0, Hold.NONE))
        if hold in (Hold.NONE, Hold.INCOMING, Hold.REVOKED):
            return hold, None, ()
        frame = self.frames[number]
        return hold, frame.owner, tuple(frame.borrowers) if frame.owner == peer else (peer,)

    # ---- What is refused: the first of these ----

    def by_the_rules(
        self, operation: Operation, peer: int, extents: Sequence[Extent]
    ) -> Iterator[Status]:
        window = self.window(peer)
        for page in pages_of(extents):
            yield from self.by_a_rule(operation, window.get(page, (0, Hold.NONE))[1])

    @staticmethod
    def by_a_rule(operation: Operation, hold: Hold) -> Iterator[Status]:
        if hold is Hold.REVOKED:
            if operation is not Operation.RELEASE:
                yield Status.E_RECLAIMED
        elif hold in (Hold.BORROWED, Hold.VIEWED):
            if operation is not Operation.RETURN:
                yield Status.E_BORROWED
        elif operation is Operation.RETURN:
            yield Status.E_NOT_LENT
        elif operation is Operation.RECLAIM:
            if hold not in (Hold.LENT, Hold.SHARED):
                yield Status.E_NOT_LENT
        elif hold is Hold.LENT or (hold is Hold.SHARED and operation is not Operation.SHARE):
            yield Status.E_LENT
        elif hold not in (Hold.OWNED, Hold.SHARED):
            yield Status.E_OWNERSHIP

    def by_own_pieces(self, peer: int, growth: int) -> Iterator[Status]:
        window = self.window(peer)
        if growth and len(runs(window)) + growth > self.members[peer].pieces:
            yield Status.E_QUOTA

    def by_the_host(self, growth: int) -> Iterator[Status]:
        total = sum(len(runs(self.window(peer))) for peer in self.members)
        if growth and total + growth > self.pieces:
            yield Status.E_NO_MEMORY

    def by_the_pool(
        self, peer: int, counts: Sequence[int], own: int, others: int
    ) -> Iterator[Status]:
        """Fresh pages for a window that grows by so many runs besides, as others do."""
        if sum(counts) > len(self.free()):
            yield Status.E_NO_MEMORY
        parts = self.parts_of_the_pool(counts)
        yield from self.by_own_pieces(peer, own + parts)
        yield from self.by_the_host(own + parts + others)

    def parts_of_the_pool(self, counts: Sequence[int]) -> int:
        """In how many runs of frames so many pages come: in one each, if there is one."""
        free, parts = sorted(self.free()), 0
        for count in counts:
            whole = (free[i : i + count] for i in range(len(free) - count + 1))
            taken = next((run for run in whole if run[-1] - run[0] == count - 1), free[:count])
            parts += sum(frame - 1 not in taken for frame in taken)
            free = [frame for frame in free if frame not in taken]
        return parts

    def grant_refused(self, peer: int, counts: Sequence[int]) -> Iterator[Status]:
        if self.charged(peer) + sum(counts) > self.members[peer].quota:
            yield Status.E_QUOTA
        if not has_room(self.window(peer), [Extent(0, count) for count in counts]):
            yield Status.E_WINDOW_FULL
        yield from self.by_the_pool(peer, counts, 0, 0)

    def release_refused(self, peer: int, extents: Sequence[Extent]) -> Iterator[Status]:
        yield from self.by_the_rules(Operation.RELEASE, peer, extents)
        growth = cuts(self.window(peer), extents)
        yield from self.by_own_pieces(peer, growth)
        yield from self.by_the_host(growth)

    def transfer_refused(
        self, operation: Operation, sender: int, receiver: int, extents: Sequence[Extent]
    ) -> Iterator[Status]:
        yield from self.by_the_rules(operation, sender, extents)
        window, target = self.window(sender), self.window(receiver)
        if any(receiver in self.frames[window[page][0]].borrowers for page in pages_of(extents)):
            yield Status.E_REPEATED
        growth, arriving = cuts(window, extents), runs_in(window, extents)
        yield from self.by_own_pieces(sender, growth)
        counts = [extent.pages for extent in extents]
        limits = self.members[receiver]
        if not has_room(target, extents):
            yield Status.E_WINDOW_FULL
        if operation in GIVEN and self.charged(receiver) + sum(counts) > limits.quota:
            yield Status.E_QUOTA
        if len(runs(target)) + arriving > limits.pieces:
            yield Status.E_WINDOW_FULL
        yield from self.by_the_host(growth + arriving)
        if operation is Operation.EXCHANGE:
            if self.charged(sender) + sum(counts) > self.members[sender].quota:
                yield Status.E_QUOTA
            if not has_room(window, extents):
                yield Status.E_WINDOW_FULL
            yield from self.by_the_pool(sender, counts, growth, arriving)

    def return_refused(self, peer: int, owner: int, extents: Sequence[Extent]) -> Iterator[Status]:
        yield from self.by_the_rules(Operation.RETURN, peer, extents)
        window = self.window(peer)
        if any(self.frames[window[page][0]].owner != owner for page in pages_of(extents)):
            yield Status.E_NOT_LENT
        growth = cuts(window, extents)
        yield from self.by_own_pieces(peer, growth)
        alive = owner in self.members
        yield from self.by_the_host(2 * growth if alive else growth)
        if growth and alive:
            places = [
                Extent(self.frames[piece[0]].page, len(piece))
                for extent in extents
                for piece in self.bound_alike([window[page][0] for page in pages_of([extent])])
            ]
            yield from self.by_own_pieces(owner, cuts(self.window(owner), places))

    def reclaim_refused(self, owner: int, extents: Sequence[Extent]) -> Iterator[Status]:
        yield from self.by_the_rules(Operation.RECLAIM, owner, extents)
        window = self.window(owner)
        growth = cuts(window, extents)
        yield from self.by_own_pieces(owner, growth)
        others: Counter[int] = Counter()
        for extent in extents:
            for piece in self.bound_alike([window[page][0] for page in pages_of([extent])]):
                for borrower, share in self.frames[piece[0]].borrowers.items():
                    there = [Extent(share.page, len(piece))]
                    others[borrower] += cuts(self.window(borrower), there)
        for borrower, more in others.items():
            if growth:
                yield from self.by_own_pieces(borrower, more)
        yield from self.by_the_host(growth + others.total())

    def bound_alike(self, numbers: Sequence[int]) -> list[list[int]]:
        """Frames in order, cut where one is not bound as the one before it."""
        pieces: list[list[int]] = []
        for number in numbers:
            if (
                pieces
                and pieces[-1][-1] == number - 1
                and self.binding(number - 1, 1) == self.binding(number, 0)
            ):
                pieces[-1].append(number)
            else:
                pieces.append([number])
        return pieces

    def binding(self, number: int, by: int) -> object:
        frame = self.frames[number]
        shares = [(peer, s.page + by, s.writable) for peer, s in frame.borrowers.items()]
        return frame.owner, frame.page + by, frame.hold, shares

    # ---- What an event does ----

    def let_go(
        self, peer: int, pages: Iterable[int], revoked: bool = False
    ) -> tuple[set[Place], set[int]]:
        """Return what comes back to its owner, who does not see it yet, and what is free."""
        window, back, freed = self.window(peer), set(), set()
        for page in pages:
            number = window[page][0]
            frame = self.frames[number]
            del frame.borrowers[peer]
            if revoked:
                self.members[peer].revoked.add(page)
            if frame.borrowers:
                continue
            if frame.owner not in self.members:
                freed.add(number)
                del self.frames[number]
            elif frame.hold is Hold.SHARED:
                frame.hold = Hold.OWNED
            else:
                frame.hold = Hold.LENT
                back.add((frame.owner, frame.page, number))
        return back, freed

    def dismiss(self, peer: int) -> set[int]:
        """Return what is free."""
        del self.members[peer]
        freed = {
            number
            for number, frame in self.frames.items()
            if frame.owner == peer and not frame.borrowers
        }
        for number in freed:
            del self.frames[number]
        return freed


def runs(window: Window) -> list[int]:
    """The pages at which the window's runs begin."""
    return [page for page in window if not in_one_run(window, page)]
