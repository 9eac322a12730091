"""The ledger against a model that knows every page by itself, in any order of events.

PAGEFERRY_STEPS says how many events there are at least, in all worlds together.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, event, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from unit.ledger_model import (
    FOREIGN,
    FRAMES,
    GIVEN,
    PAGES,
    PEERS,
    TRANSFERS,
    Frame,
    Member,
    Model,
    Place,
    Share,
    Window,
    pages_of,
    runs,
)

from vmm.ferry.accounts import UNLIMITED
from vmm.ferry.ledger import Ledger
from vmm.ferry.plans import Transfer
from vmm.ferry.rules import Refusal
from vmm.guest.abi import Hold, Operation, Status
from vmm.memory.frames import Frames
from vmm.memory.runs import Extent, Run

STEPS = int(os.environ.get("PAGEFERRY_STEPS", "1200"))
STEPS_IN_A_WORLD = 50  # at most: hypothesis ends many of them after about 30

T = TypeVar("T")


# ---- The ledger's answers, page by page ----


def places(runs: Iterable[tuple[int, Run]]) -> set[Place]:
    return {(peer, run.page + i, run.frame + i) for peer, run in runs for i in range(run.pages)}


def numbers(frames: Iterable[Frames]) -> list[int]:
    return [part.first + i for part in frames for i in range(part.pages)]


def pages_in(runs: Iterable[Run]) -> Window:
    return {run.page + i: (run.frame + i, run.hold) for run in runs for i in range(run.pages)}


@dataclasses.dataclass
class Message:
    receiver: int
    targets: tuple[Extent, ...]


class LedgerAgainstModel(RuleBasedStateMachine):
    steps = 0  # of all worlds

    @initialize(data=st.data(), pieces=st.sampled_from([UNLIMITED, 16, 20]))
    def begin(self, data: st.DataObject, pieces: int) -> None:
        """Peers that have something, of their own and of each other's."""
        type(self).steps -= 1  # this is none, but its invariants are checked, too
        self.ledger, self.model = Ledger(FRAMES, pieces), Model(pieces)
        self.messages: list[Message] = []
        self.peers = 0  # so far; no number is used again
        for limits in ((UNLIMITED, UNLIMITED), (UNLIMITED, 8), (12, UNLIMITED), (16, 6)):
            self._admit(*limits)
            self.grant(data, [3, 2])
        for operation in TRANSFERS * 2:
            self.transfer(data, operation, True)
        for _ in self.messages[::2]:
            self.deliver(data)

    def _admit(self, quota: int, pieces: int) -> None:
        self.ledger.admit(self.peers, PAGES, quota, pieces)
        self.model.members[self.peers] = Member(quota, pieces)
        self.peers += 1

    def snapshot(self) -> object:
        accounts = {
            peer: (tuple(account.window), account.charged)
            for peer in self.model.members
            for account in (self.ledger.account(peer),)
        }
        bonds, tally = tuple(self.ledger.bonds_by_frame), self.ledger._tally.intervals
        return self.ledger.pool.runs, accounts, bonds, tally, self.ledger.audit()

    def attempt(self, name: str, refusals: Iterator[Status], ask: Callable[[], T]) -> T | None:
        """Ask the ledger: for the answer the model expects, and nothing else may have changed."""
        expected, before = next(refusals, Status.OK), self.snapshot()
        event(f"{name}: {expected.name}")
        try:
            answer = ask()
        except Refusal as refusal:
            assert refusal.status is expected
            assert self.snapshot() == before
            return None
        assert expected is Status.OK
        return answer

    def plan(self, name: str, refusals: Iterator[Status], ask: Callable[[], T]) -> T | None:
        """Ask for a plan that takes nothing yet."""
        before = self.snapshot()
        answer = self.attempt(name, refusals, ask)
        assert self.snapshot() == before
        return answer

    # ---- Choices ----

    def pages_with(self, peer: int, holds: set[Hold]) -> list[int]:
        return [page for page, (_, hold) in self.model.window(peer).items() if hold in holds]

    def somebody_has(self, *holds: Hold) -> list[int]:
        return [peer for peer in self.model.members if self.pages_with(peer, set(holds))]

    def seldom(self, data: st.DataObject) -> bool:
        return data.draw(st.integers(0, 11)) == 5  # not an end: those are drawn more often

    def mostly(self, data: st.DataObject, likely: Iterable[int], others: Iterable[int]) -> int:
        """One of these, if there are any; seldom one of the others."""
        choice = sorted(likely)
        if not choice or self.seldom(data):
            choice = sorted(others)
        return data.draw(st.sampled_from(choice))

    def a_peer(self, data: st.DataObject, *likely: Hold) -> int:
        return self.mostly(data, self.somebody_has(*likely), self.model.members)

    def some_extents(self, data: st.DataObject, fitting: list[int]) -> list[Extent]:
        """One to three disjoint extents, mostly within such pages."""
        extents: list[Extent] = []
        for _ in range(data.draw(st.sampled_from([1, 1, 2, 3]))):
            page = self.mostly(data, fitting, range(PAGES))
            end = page + 1
            while end in fitting and end - page < 5:
                end += 1
            length = self.mostly(data, range(1, end - page + 1), [end - page + 1])
            extent = Extent(page, min(length, PAGES - page))
            if not set(pages_of([extent])) & set(pages_of(extents)):
                extents.append(extent)
        return extents

    def a_message(self, data: st.DataObject) -> Message:
        return self.messages.pop(data.draw(st.integers(0, len(self.messages) - 1)))

    # ---- Peers ----

    @precondition(lambda self: len(self.model.members) < PEERS)
    @rule(quota=st.sampled_from([UNLIMITED, 8, 16]), pieces=st.sampled_from([UNLIMITED, 4, 8]))
    def admit(self, quota: int, pieces: int) -> None:
        self._admit(quota, pieces)

    @precondition(lambda self: len(self.model.members) > 2)
    @rule(data=st.data())
    def death(self, data: st.DataObject) -> None:
        """What it borrows, or was to get, comes back; what it has sent or lent stays there."""
        peer = self.a_peer(data)
        self.come_back(data, peer, [Extent(0, PAGES)], FOREIGN)
        self.messages = [m for m in self.messages if m.receiver != peer]
        freed = self.ledger.dismiss(peer)
        assert set(numbers(freed)) == self.model.dismiss(peer)

    # ---- From and to the pool ----

    @rule(data=st.data(), counts=st.lists(st.integers(1, 5), min_size=1, max_size=3))
    def grant(self, data: st.DataObject, counts: list[int]) -> None:
        peer = self.a_peer(data)
        window, free = self.model.window(peer), self.model.free()
        refused = self.model.grant_refused(peer, counts)
        answer = self.attempt("grant", refused, lambda: self.ledger.grant(peer, counts))
        if answer is None:
            return
        extents, granted = answer
        assert [extent.pages for extent in extents] == counts
        pages = pages_of(extents)
        assert len(set(pages)) == len(pages)
        assert not window.keys() & set(pages)
        self.fill(peer, pages, granted, free)

    def fill(self, peer: int, pages: list[int], granted: Iterable[Run], free: set[int]) -> None:
        """Fresh frames, free until now, have come to these pages."""
        found = [(run.page + i, run.frame + i) for run in granted for i in range(run.pages)]
        assert [page for page, _ in found] == pages
        assert len({frame for _, frame in found}) == len(pages)
        assert {frame for _, frame in found} <= free
        self.model.frames |= {frame: Frame(peer, page) for page, frame in found}

    @precondition(lambda self: self.somebody_has(Hold.OWNED, Hold.REVOKED))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        peer = self.a_peer(data, Hold.OWNED, Hold.REVOKED)
        fitting = self.pages_with(peer, {Hold.OWNED, Hold.REVOKED})
        extents = self.some_extents(data, fitting)
        refused = self.model.release_refused(peer, extents)
        found = self.plan("release", refused, lambda: self.ledger.releasing(peer, extents))
        if found is None:
            return
        window = self.model.window(peer)
        frames = {window[page][0] for page in pages_of(extents) if window[page][1] is Hold.OWNED}
        assert set(numbers(self.ledger.release(peer, found))) == frames
        self.model.members[peer].revoked -= set(pages_of(extents))
        for frame in frames:
            del self.model.frames[frame]

    # ---- Messages with pages ----

    @precondition(lambda self: len(self.model.members) > 1 and self.somebody_has(Hold.OWNED))
    @rule(
        data=st.data(),
        operation=st.sampled_from(TRANSFERS),
        writable=st.booleans(),
        copied=st.booleans(),
    )
    def transfer(
        self, data: st.DataObject, operation: Operation, writable: bool, copied: bool = False
    ) -> None:
        sender = self.a_peer(data, Hold.OWNED)
        receiver = data.draw(st.sampled_from(sorted(self.model.members.keys() - {sender})))
        fitting = self.pages_with(sender, {Hold.OWNED})
        if operation is Operation.SHARE and data.draw(st.booleans()):  # with one more
            fitting = self.pages_with(sender, {Hold.SHARED}) or fitting
        extents = self.some_extents(data, fitting)
        before, free = self.snapshot(), self.model.free()
        plan = self.attempt(
            operation.name,
            self.model.transfer_refused(operation, sender, receiver, extents),
            lambda: self.ledger.transfer(
                operation, sender, receiver, extents, writable=writable, copied=copied
            ),
        )
        if plan is None:
            return
        if self.seldom(data):  # the host has refused
            self.ledger.abandon(plan)
            assert self.snapshot() == before
            hidden = () if plan.copied else plan.runs
            self.withhold(data, ((sender, run) for run in hidden if run.hold is Hold.OWNED))
            return
        if plan.copied:
            assert (operation, copied) == (Operation.EXCHANGE, True)
            self.check_copies(plan, extents)
            self.ledger.commit_transfer(plan)
            self.fill(sender, pages_of(plan.sources), plan.runs, free)
            self.part(plan)
            self.messages.append(Message(receiver, plan.targets))
            return
        if copied and operation is Operation.EXCHANGE:
            assert len(plan.fresh) > len(plan.runs)
        self.check_places(plan, extents)
        if operation is not Operation.EXCHANGE and self.at_once(data, plan):
            return
        self.ledger.commit_transfer(plan)
        self.part(plan)
        if operation is Operation.EXCHANGE:
            self.fill(sender, pages_of(extents), plan.fresh, free)
        self.messages.append(Message(receiver, plan.targets))

    def at_once(self, data: st.DataObject, plan: Transfer) -> bool:
        """Now and then the pages reach their receiver at once: no message brings them any more."""
        if not data.draw(st.booleans()):
            return False
        event(f"hand over: {plan.operation.name}")
        self.ledger.hand_over(plan)
        self.part(plan)
        self.has_arrived(plan.receiver, pages_of(plan.targets))
        return True

    def check_places(self, plan: Transfer, extents: list[Extent]) -> None:
        """The places are free, and the plan says the same of each page and of each extent."""
        source, target = self.model.window(plan.sender), self.model.window(plan.receiver)
        pages, targets = pages_of(extents), pages_of(plan.targets)
        assert [target.pages for target in plan.targets] == [extent.pages for extent in extents]
        assert len(set(targets)) == len(targets)
        assert not target.keys() & set(targets)
        by_page = list(self.moves(plan))
        assert [(page, frame) for page, frame, _, _ in by_page] == [
            (page, source[page][0]) for page in pages
        ]
        assert [place for _, _, _, place in by_page] == targets
        homes = [home for _, _, home, _ in by_page]
        assert pages_of(plan.sources) == homes
        if plan.operation is not Operation.EXCHANGE:
            assert homes == pages
            return
        assert len(set(homes)) == len(homes)
        assert not source.keys() & set(homes)

    def check_copies(self, plan: Transfer, extents: list[Extent]) -> None:
        """The same of the pages that are copied: they stay, and free frames go."""
        source, target = self.model.window(plan.sender), self.model.window(plan.receiver)
        pages, homes, targets = map(pages_of, (extents, plan.sources, plan.targets))
        assert len(set(targets)) == len(set(homes)) == len(pages)
        assert not target.keys() & set(targets)
        assert not source.keys() & set(homes)
        assert pages_in(plan.copied) == {page: source[page] for page in pages}
        by_page = list(self.moves(plan))
        assert [(page, home) for page, _, home, _ in by_page] == list(
            zip(homes, homes, strict=True)
        )
        assert [place for _, _, _, place in by_page] == targets
        pieces = list(plan.copies())
        assert [run.pages for run, _ in pieces] == [run.pages for _, run in pieces]
        assert [n for run, _ in pieces for n in numbers([Frames(run.frame, run.pages)])] == [
            source[page][0] for page in pages
        ]
        assert [n for _, run in pieces for n in numbers([Frames(run.frame, run.pages)])] == [
            frame for _, frame, _, _ in by_page
        ]

    @staticmethod
    def moves(plan: Transfer) -> Iterator[tuple[int, int, int, int]]:
        """Yield for each page: itself, its frame, its way back, its place."""
        for run, home, place in zip(plan.runs, plan.homes, plan.places, strict=True):
            for i in range(run.pages):
                yield run.page + i, run.frame + i, home + i, place + i

    def part(self, plan: Transfer) -> None:
        for _, number, home, place in self.moves(plan):
            frame = self.model.frames[number]
            frame.page = home
            if plan.operation in GIVEN:
                frame.hold = Hold.SENT
            else:
                frame.hold = Hold.LENT if plan.operation is Operation.LEND else Hold.SHARED
            frame.borrowers[plan.receiver] = Share(place, plan.writable)

    @precondition(lambda self: self.messages)
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        """What is still to come, comes; what has been reclaimed does not."""
        message = self.a_message(data)
        arriving = self.ledger.arriving(message.receiver, message.targets)
        assert pages_in(arriving) == self.expected(message)
        if self.seldom(data):  # the host fails half way, and does not hide again what it shows
            self.arrive(message.receiver, arriving[:1])
            self.come_back(data, message.receiver, message.targets, {Hold.INCOMING})
            return
        self.arrive(message.receiver, arriving)
        event(f"deliver: {'something' if arriving else 'nothing'}")

    def expected(self, message: Message) -> Window:
        """What is to come to the message's places, as what it will be there."""
        found: Window = {}
        window = self.model.window(message.receiver)
        for page in pages_of(message.targets):
            number, hold = window.get(page, (0, Hold.NONE))
            if hold is Hold.INCOMING:
                found[page] = (number, self.model.frames[number].arrived(message.receiver))
        return found

    def arrive(self, peer: int, runs: Sequence[Run]) -> None:
        self.ledger.arrive(peer, runs)
        self.has_arrived(peer, pages_in(runs))

    def has_arrived(self, peer: int, pages: Iterable[int]) -> None:
        window = self.model.window(peer)
        for page in pages:
            number = window[page][0]
            if self.model.frames[number].hold is Hold.SENT:
                self.model.frames[number] = Frame(peer, page)
            else:
                self.model.frames[number].borrowers[peer].arrived = True

    @precondition(lambda self: self.messages)
    @rule(data=st.data())
    def bounce(self, data: st.DataObject) -> None:
        """A message cannot be delivered: what it was to bring goes back."""
        message = self.a_message(data)
        self.come_back(data, message.receiver, message.targets, {Hold.INCOMING})

    def come_back(
        self, data: st.DataObject, peer: int, extents: Iterable[Extent], holds: set[Hold]
    ) -> None:
        """A peer lets go of what is such in these extents; most owners see it again."""
        runs = [run for extent in extents for run in self.ledger.runs(peer, extent)]
        going = [run for run in runs if run.hold in holds]
        home = self.ledger.let_go(peer, going)
        back, freed = self.model.let_go(peer, pages_in(going))
        assert places(home.back) == back
        assert sorted(numbers(home.freed)) == sorted(freed)
        for owner, run in home.back:
            if self.seldom(data):  # the host does not show it: LENT to nobody
                continue
            self.ledger.restore(owner, [run])
            for number in numbers([Frames(run.frame, run.pages)]):
                self.model.frames[number].hold = Hold.OWNED

    # ---- The way back ----

    @precondition(lambda self: self.somebody_has(Hold.BORROWED, Hold.VIEWED))
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        peer, frames = self.a_peer(data, Hold.BORROWED, Hold.VIEWED), self.model.frames
        window = self.model.window(peer)
        owners = {
            page: frames[window[page][0]].owner
            for page in self.pages_with(peer, {Hold.BORROWED, Hold.VIEWED})
        }
        owner = self.mostly(data, owners.values(), range(self.peers))
        fitting = [page for page in owners if owners[page] == owner]
        extents = self.some_extents(data, fitting or list(owners))
        pages = pages_of(extents)
        plan = self.plan(
            "return",
            self.model.return_refused(peer, owner, extents),
            lambda: self.ledger.returning(peer, owner, extents),
        )
        if plan is None:
            return
        if self.seldom(data):
            self.withhold(data, ((peer, run) for run in plan.runs))
            return
        event(f"return: owner {'alive' if owner in self.model.members else 'dead'}")
        homes = [frames[window[page][0]].page for page in pages]
        back, freed = self.model.let_go(peer, pages)
        assert places((owner, run) for run in plan.shown) == back
        if owner in self.model.members:
            assert pages_of(plan.spans) == homes
        else:
            assert plan.spans == ()
            assert plan.shown == ()
        assert sorted(numbers(self.ledger.commit_return(plan))) == sorted(freed)
        for _, _, number in back:  # unlike what bounces, it is seen again already
            frames[number].hold = Hold.OWNED

    @precondition(lambda self: self.somebody_has(Hold.LENT, Hold.SHARED))
    @rule(data=st.data())
    def reclaim(self, data: st.DataObject) -> None:
        owner = self.a_peer(data, Hold.LENT, Hold.SHARED)
        window = self.model.window(owner)
        fitting = self.pages_with(owner, {Hold.LENT, Hold.SHARED})
        if data.draw(st.booleans()):  # before it is delivered
            fitting = [p for p in fitting if self.model.frames[window[p][0]].awaited()] or fitting
        extents = self.some_extents(data, fitting)
        plan = self.plan(
            "reclaim",
            self.model.reclaim_refused(owner, extents),
            lambda: self.ledger.reclaiming(owner, extents),
        )
        if plan is None:
            return
        if self.seldom(data):
            self.withhold(data, plan.hidden)
            return
        hidden, shown, robbed = set(), set(), set()
        for page in pages_of(extents):
            number = window[page][0]
            frame = self.model.frames[number]
            if frame.hold is Hold.LENT:
                shown.add((owner, page, number))
            for peer, share in frame.borrowers.items():
                robbed.add(peer)
                self.model.members[peer].revoked.add(share.page)
                if share.arrived:
                    hidden.add((peer, share.page, number))
            self.model.frames[number] = Frame(owner, page)
        assert places(plan.hidden) == hidden
        assert places((owner, run) for run in plan.shown) == shown
        assert self.ledger.commit_reclaim(plan) == robbed

    def withhold(self, data: st.DataObject, hidden: Iterable[tuple[int, Run]]) -> None:
        """The host has hidden these for an operation that failed, and may refuse to show them."""
        for peer, run in hidden:
            if data.draw(st.booleans()):
                continue
            event(f"withhold: {run.hold.name}")
            freed = self.ledger.withhold(peer, run)
            if run.hold is Hold.OWNED:
                assert freed == []
                for _, _, number in places([(peer, run)]):
                    self.model.frames[number].hold = Hold.LENT
            else:
                _, expected = self.model.let_go(peer, pages_in([run]), revoked=True)
                assert sorted(numbers(freed)) == sorted(expected)

    # ---- After every step ----

    @invariant()
    def every_frame_is_in_one_state_and_none_is_lost(self) -> None:
        type(self).steps += 1
        states = self.ledger.audit()
        assert sum(states.values()) == FRAMES
        assert +Counter(states) == +Counter(self.model.states())
        assert set(numbers(self.ledger.pool.runs)) == self.model.free()

    @invariant()
    def every_page_is_what_the_model_says(self) -> None:
        for peer in self.model.members:
            window, account = self.model.window(peer), self.ledger.account(peer)
            assert pages_in(account.window) == window
            assert len(account.window) == len(runs(window))
            assert account.charged == self.model.charged(peer)
            page = 0
            while page < PAGES:
                found = self.ledger.describe(peer, Extent(page, PAGES - page))
                end = page + found.pages
                assert page < end <= PAGES
                for described in range(page, end):
                    expected = self.model.description(window, peer, described)
                    assert (found.hold, found.owner, found.borrowers) == expected
                page = end


@pytest.mark.timeout(400 + STEPS // 20)  # to find the shortest way to a failure takes long
def test_the_ledger_agrees_with_a_model_of_every_page() -> None:
    worlds = settings(
        max_examples=STEPS // 20 + 1,
        stateful_step_count=STEPS_IN_A_WORLD,
        deadline=None,
        report_multiple_bugs=False,
        phases=set(Phase) - {Phase.explain},
        suppress_health_check=[HealthCheck.too_slow],
    )
    LedgerAgainstModel.steps = 0
    run_state_machine_as_test(LedgerAgainstModel, settings=worlds)
    assert LedgerAgainstModel.steps >= STEPS
