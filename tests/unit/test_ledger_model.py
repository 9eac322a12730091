"""The ledger against a model that knows every page by itself, in any order of events."""

from __future__ import annotations

import dataclasses

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vmm.ferry.ledger import Ledger, Parcel, Refusal
from vmm.ferry.runs import Extent, Hold
from vmm.guest.abi import Status

FRAMES = 40
PAGES = 16
PEERS = 4

Window = dict[int, tuple[int, Hold]]  # page: (frame, hold)


@dataclasses.dataclass
class Flight:
    """One parcel in flight, as its pages.

    (frame, page in the sender's window, in the receiver's).
    """

    parcel: Parcel
    pages: list[tuple[int, int, int]]


def pages_of(extent: Extent) -> range:
    return range(extent.page, extent.end)


def lowest_gap(window: Window, count: int) -> int | None:
    for page in range(PAGES - count + 1):
        if not any(place in window for place in range(page, page + count)):
            return page
    return None


class LedgerAgainstPages(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(FRAMES)
        self.free = set(range(FRAMES))
        self.windows: dict[int, Window] = {}
        self.flights: list[Flight] = []
        self.next_peer = 0
        for _ in range(PEERS):
            self.admit()

    # ---- What the model says will happen ----

    def grant_status(self, peer: int, count: int) -> Status:
        if lowest_gap(self.windows[peer], count) is None:
            return Status.E_WINDOW_FULL
        return Status.E_NO_MEMORY if count > len(self.free) else Status.OK

    def owns(self, peer: int, extent: Extent) -> bool:
        holds = [self.windows[peer].get(page, (0, None))[1] for page in pages_of(extent)]
        return all(hold is Hold.OWNED for hold in holds)

    def begin_status(self, sender: int, receiver: int, extents: list[Extent]) -> Status:
        if not all(self.owns(sender, extent) for extent in extents):
            return Status.E_OWNERSHIP
        window = dict(self.windows[receiver])
        for extent in extents:
            page = lowest_gap(window, extent.pages)
            if page is None:
                return Status.E_WINDOW_FULL
            window |= {page + i: (-1, Hold.INCOMING) for i in range(extent.pages)}
        return Status.OK

    def snapshot(self) -> object:
        windows = {peer: self.ledger.window(peer) for peer in self.windows}
        return self.ledger.pool.runs, self.ledger.pool.free, windows, self.ledger.audit()

    # ---- Choices ----

    def a_peer(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.windows)))

    def an_extent(self, data: st.DataObject, peer: int) -> Extent:
        """Any pages of the window, but mostly such as the peer has."""
        held = sorted(self.windows[peer])
        page = data.draw(st.sampled_from(held) if held else st.integers(0, PAGES - 1))
        return Extent(page, data.draw(st.integers(1, min(5, PAGES - page))))

    def some_extents(self, data: st.DataObject, peer: int, count: int) -> list[Extent]:
        extents: list[Extent] = []
        for _ in range(count):
            extent = self.an_extent(data, peer)
            if not any(extent.page < other.end and other.page < extent.end for other in extents):
                extents.append(extent)
        return extents

    def a_flight(self, data: st.DataObject) -> Flight:
        return self.flights.pop(data.draw(st.integers(0, len(self.flights) - 1)))

    # ---- Operations ----

    @precondition(lambda self: len(self.windows) < PEERS)
    @rule()
    def admit(self) -> None:
        self.ledger.admit(self.next_peer, PAGES)
        self.windows[self.next_peer] = {}
        self.next_peer += 1

    @rule(data=st.data(), count=st.integers(1, PAGES + 1))
    def grant(self, data: st.DataObject, count: int) -> None:
        peer, before = self.a_peer(data), self.snapshot()
        expected = self.grant_status(peer, count)
        try:
            extent, runs = self.ledger.grant(peer, count)
        except Refusal as refusal:
            assert refusal.status is expected
            assert self.snapshot() == before
            return
        assert expected is Status.OK
        frames = [run.frame + i for run in runs for i in range(run.pages)]
        assert len(set(frames)) == count
        assert set(frames) <= self.free
        assert not self.windows[peer].keys() & set(pages_of(extent))
        self.free -= set(frames)
        self.windows[peer] |= {
            page: (frame, Hold.OWNED) for page, frame in zip(pages_of(extent), frames, strict=True)
        }

    @rule(data=st.data(), count=st.integers(1, 3))
    def begin(self, data: st.DataObject, count: int) -> None:
        sender, receiver = self.a_peer(data), self.a_peer(data)
        extents = self.some_extents(data, sender, count)
        before, expected = self.snapshot(), self.begin_status(sender, receiver, extents)
        try:
            parcel = self.ledger.begin(sender, receiver, extents)
        except Refusal as refusal:
            assert refusal.status is expected
            assert self.snapshot() == before
            return
        assert expected is Status.OK
        self.take_off(parcel, extents)

    def take_off(self, parcel: Parcel, extents: list[Extent]) -> None:
        source, target = self.windows[parcel.sender], self.windows[parcel.receiver]
        assert [place.pages for place in parcel.targets] == [extent.pages for extent in extents]
        moves = [
            (source[old][0], old, new)
            for extent, place in zip(extents, parcel.targets, strict=True)
            for old, new in zip(pages_of(extent), pages_of(place), strict=True)
        ]
        pieces = [
            (piece.frame + i, piece.source + i, piece.target + i)
            for piece in parcel.pieces
            for i in range(piece.pages)
        ]
        assert pieces == moves
        assert not target.keys() & {new for _, _, new in moves}
        source |= {old: (frame, Hold.OUTGOING) for frame, old, _ in moves}
        target |= {new: (frame, Hold.INCOMING) for frame, _, new in moves}
        self.flights.append(Flight(parcel, moves))

    @precondition(lambda self: self.flights)
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        flight = self.a_flight(data)
        self.ledger.complete(flight.parcel)
        for frame, old, new in flight.pages:
            self.windows.get(flight.parcel.sender, {}).pop(old, None)
            self.windows[flight.parcel.receiver][new] = (frame, Hold.OWNED)

    @precondition(lambda self: self.flights)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.turn_back(self.a_flight(data))

    def turn_back(self, flight: Flight) -> None:
        freed = self.ledger.cancel(flight.parcel)
        source = self.windows.get(flight.parcel.sender)
        frames = {frame for frame, _, _ in flight.pages} if source is None else set()
        assert {part.first + i for part in freed for i in range(part.pages)} == frames
        self.free |= frames
        for frame, old, new in flight.pages:
            del self.windows[flight.parcel.receiver][new]
            if source is not None:
                source[old] = (frame, Hold.OWNED)

    @rule(data=st.data(), count=st.integers(1, 2))
    def release(self, data: st.DataObject, count: int) -> None:
        peer, before = self.a_peer(data), self.snapshot()
        extents = self.some_extents(data, peer, count)
        try:
            freed = self.ledger.release(peer, extents)
        except Refusal as refusal:
            assert refusal.status is Status.E_OWNERSHIP
            assert not all(self.owns(peer, extent) for extent in extents)
            assert self.snapshot() == before
            return
        assert all(self.owns(peer, extent) for extent in extents)
        pages = [page for extent in extents for page in pages_of(extent)]
        frames = {self.windows[peer].pop(page)[0] for page in pages}
        assert {part.first + i for part in freed for i in range(part.pages)} == frames
        self.free |= frames

    @precondition(lambda self: len(self.windows) > 1)
    @rule(data=st.data())
    def dismiss(self, data: st.DataObject) -> None:
        """A death: what is on its way to the peer is cancelled first, what it sent flies on."""
        peer = self.a_peer(data)
        for flight in [f for f in self.flights if f.parcel.receiver == peer]:
            self.flights.remove(flight)
            self.turn_back(flight)
        freed = self.ledger.dismiss(peer)
        gone = self.windows.pop(peer)
        frames = {frame for frame, hold in gone.values() if hold is Hold.OWNED}
        assert {part.first + i for part in freed for i in range(part.pages)} == frames
        self.free |= frames

    # ---- After every step ----

    @invariant()
    def every_frame_is_in_one_state_and_none_is_lost(self) -> None:
        counts = self.ledger.audit()
        assert sum(counts.values()) == FRAMES
        assert counts["free"] == len(self.free)
        assert counts["in_flight"] == sum(len(flight.pages) for flight in self.flights)

    @invariant()
    def every_page_is_what_the_model_says(self) -> None:
        free = {run.first + i for run in self.ledger.pool.runs for i in range(run.pages)}
        assert free == self.free
        for peer, window in self.windows.items():
            runs = self.ledger.window(peer)
            there = {
                run.page + i: (run.frame + i, run.hold) for run in runs for i in range(run.pages)
            }
            assert there == window


LedgerAgainstPages.TestCase.settings = settings(
    max_examples=80, stateful_step_count=40, deadline=None
)
TestLedgerAgainstPages = LedgerAgainstPages.TestCase
