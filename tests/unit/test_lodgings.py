"""Where frames' memory is: against a dictionary with an entry for each frame."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vmm.memory.movers.lodgings import Lodging, Lodgings

TOTAL = 60
LARGE = 4

Frames = st.tuples(st.integers(0, TOTAL - 1), st.integers(1, 12))
Windows = st.sampled_from([None, "a", "b"])
Where = tuple[bool, str | None, int]  # anonymous, the window, and the page there


def lodgings(limit: int = TOTAL) -> Lodgings[str]:
    return Lodgings(TOTAL, LARGE, limit)


class LodgingsAgainstDictionary(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.lodgings = lodgings()
        self.where: dict[int, Where] = {}

    @rule(frames=Frames, anonymous=st.booleans(), window=Windows, page=st.integers(0, 40))
    def settle(
        self, frames: tuple[int, int], anonymous: bool, window: str | None, page: int
    ) -> None:
        frame, count = frames[0], min(frames[1], TOTAL - frames[0])
        window = window if anonymous else None
        page = page if window else 0
        self.lodgings.settle(Lodging(frame, count, anonymous, window, page))
        for i in range(count):
            self.where[frame + i] = (anonymous, window, page + i if window else 0)

    @rule(frames=Frames)
    def forget(self, frames: tuple[int, int]) -> None:
        frame, count = frames[0], min(frames[1], TOTAL - frames[0])
        self.lodgings.forget(frame, count)
        for i in range(count):
            self.where.pop(frame + i, None)

    @rule(frames=Frames, page=st.integers(0, 40))
    def ask(self, frames: tuple[int, int], page: int) -> None:
        frame, count = frames[0], min(frames[1], TOTAL - frames[0])
        found = self.lodgings.of(page, frame, count)
        assert [part.frame for part in found] == [frame, *(part.end for part in found[:-1])]
        assert found[-1].end == frame + count
        for part in found:
            where = [self.where.get(part.frame + i) for i in range(part.pages)]
            if not part.fresh:
                shift = range(part.pages) if part.window else [0] * part.pages
                assert where == [(part.anonymous, part.window, part.page + i) for i in shift]
                continue
            assert where == [None] * part.pages
            sides = (self.where.get(part.frame - 1), self.where.get(part.end))
            large = part.pages >= LARGE and (page - frame) % LARGE == 0
            assert part.anonymous == (large or any(side and side[0] for side in sides))

    @invariant()
    def everything_is_known_and_the_seams_are_counted(self) -> None:
        known = {
            part.frame + i: (part.anonymous, part.window, part.page + i if part.window else 0)
            for part in self.lodgings
            for i in range(part.pages)
        }
        assert known == self.where
        kinds = [self.where.get(frame, (None,))[0] for frame in range(TOTAL)]
        pairs = itertools.pairwise(kinds)
        assert self.lodgings.seams == sum({*pair} == {True, False} for pair in pairs)


LodgingsAgainstDictionary.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None
)
TestLodgingsAgainstDictionary = LodgingsAgainstDictionary.TestCase


def kinds(found: list[Lodging[str]]) -> list[bool]:
    return [part.anonymous for part in found]


def test_a_large_run_is_anonymous_where_huge_pages_fit_and_a_small_one_the_memfds() -> None:
    fresh = lodgings()
    assert kinds(fresh.of(8, 4, LARGE)) == [True]
    assert kinds(fresh.of(8, 4, LARGE - 1)) == [False]
    assert kinds(fresh.of(9, 4, LARGE)) == [False]


def test_a_hole_in_anonymous_memory_is_filled_with_it() -> None:
    some = lodgings()
    some.settle(Lodging(8, 8, anonymous=True))
    some.forget(11, 1)
    assert kinds(some.of(0, 11, 1)) == [True]
    assert kinds(some.of(0, 10, 3)) == [True] * 3
    assert kinds(some.of(0, 20, 1)) == [False]


def test_at_the_limit_a_large_run_makes_no_seam() -> None:
    some = lodgings(limit=0)
    some.settle(Lodging(0, 4, anonymous=False))
    assert kinds(some.of(4, 4, LARGE)) == [False]
    assert kinds(some.of(8, 8, LARGE)) == [True]
