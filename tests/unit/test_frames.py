"""FramePool: which frames are free, against a set of numbers."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vmm.memory.frames import GIANT, LARGE, MANY, FramePool, Frames

TOTAL = 2 * LARGE + 100


def joined(frames: set[int]) -> list[Frames]:
    """The numbers in order, in runs that cannot be joined any further."""
    runs: list[Frames] = []
    for frame in sorted(frames):
        if runs and runs[-1].end == frame:
            runs[-1] = runs[-1]._replace(pages=runs[-1].pages + 1)
        else:
            runs.append(Frames(frame, 1))
    return runs


def numbers(frames: Frames) -> set[int]:
    return set(range(frames.first, frames.end))


class FramePoolAgainstSet(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.pool = FramePool(TOTAL)
        self.free = set(range(TOTAL))
        self.taken: list[Frames] = []

    @rule(count=st.integers(1, 200) | st.sampled_from([LARGE - 1, LARGE, LARGE + 1, TOTAL]))
    def allocate(self, count: int) -> None:
        runs = joined(self.free)
        parts = self.pool.allocate(count)
        if count > len(self.free):
            assert parts == []
            return
        pages = [frame for part in parts for frame in range(part.first, part.end)]
        assert len(pages) == len(set(pages)) == count
        assert set(pages) <= self.free
        if any(run.pages >= count for run in runs):
            assert len(parts) == 1
        else:
            assert pages == sorted(self.free)[:count]
        if count >= LARGE and any(-run.first % LARGE + count <= run.pages for run in runs):
            assert parts[0].first % LARGE == 0
        self.free -= set(pages)
        self.taken += parts

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        whole = self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1)))
        start = data.draw(st.integers(whole.first, whole.end - 1))
        end = data.draw(st.integers(start + 1, whole.end))
        rest = Frames(whole.first, start - whole.first), Frames(end, whole.end - end)
        self.taken += [part for part in rest if part.pages]
        self.pool.release(Frames(start, end - start))
        self.free |= set(range(start, end))

    @invariant()
    def free_runs_are_those_of_the_model_and_joined(self) -> None:
        assert list(self.pool.runs) == joined(self.free)
        assert self.pool.free == len(self.free)


FramePoolAgainstSet.TestCase.settings = settings(
    max_examples=60, stateful_step_count=20, deadline=None
)
TestFramePoolAgainstSet = FramePoolAgainstSet.TestCase


def fragmented() -> FramePool:
    """A pool of 2000 frames of which 0..99, 300..1399 and 1500..1999 are free."""
    pool = FramePool(2000)
    assert pool.allocate(2000) == [Frames(0, 2000)]
    for first, end in ((0, 100), (300, 1400), (1500, 2000)):
        pool.release(Frames(first, end - first))
    return pool


@pytest.mark.parametrize("frames", [(99, 1), (50, 300), (90, 220), (1399, 2), (299, 2), (0, 2000)])
def test_no_frame_is_given_back_twice(frames: tuple[int, int]) -> None:
    pool = fragmented()
    with pytest.raises(ValueError, match="free already"):
        pool.release(Frames(*frames))
    assert pool.runs == fragmented().runs


@pytest.mark.parametrize("frames", [(100, 1), (50, 51), (250, 100), (1450, 10), (1399, 2)])
def test_only_what_is_free_is_taken(frames: tuple[int, int]) -> None:
    pool = fragmented()
    with pytest.raises(ValueError, match="not free"):
        pool.withdraw(Frames(*frames))
    assert pool.runs == fragmented().runs


def test_frames_come_as_the_lowest_run_that_is_long_enough() -> None:
    assert fragmented().allocate(100) == [Frames(0, 100)]
    assert fragmented().allocate(101) == [Frames(300, 101)]


def test_a_large_run_begins_at_the_highest_multiple_of_2_mib_that_will_do() -> None:
    assert fragmented().allocate(LARGE) == [Frames(LARGE, LARGE)]
    assert FramePool(2000).allocate(LARGE + 1) == [Frames(2 * LARGE, LARGE + 1)]
    pool = FramePool(4 * LARGE)
    assert pool.allocate(LARGE) == [Frames(3 * LARGE, LARGE)]
    assert pool.allocate(1) == [Frames(0, 1)]
    assert pool.allocate(LARGE) == [Frames(2 * LARGE, LARGE)]


def test_a_gib_lies_at_a_multiple_of_it_where_there_is_room_and_else_as_any_large_run() -> None:
    pool = FramePool(3 * GIANT + LARGE)
    assert pool.allocate(GIANT + 1) == [Frames(2 * GIANT, GIANT + 1)]
    assert pool.allocate(GIANT) == [Frames(GIANT, GIANT)]
    assert pool.allocate(GIANT) == [Frames(0, GIANT)]
    pool = FramePool(GIANT + 2 * LARGE)
    assert pool.allocate(LARGE) == [Frames(GIANT + LARGE, LARGE)]
    pool.allocate(1)
    assert pool.allocate(GIANT) == [Frames(LARGE, GIANT)]


def test_a_large_run_that_cannot_be_aligned_is_still_one_run() -> None:
    assert fragmented().allocate(1100) == [Frames(300, 1100)]


def test_without_a_run_long_enough_several_are_gathered_from_below() -> None:
    assert fragmented().allocate(1250) == [Frames(0, 100), Frames(300, 1100), Frames(1500, 50)]


def test_where_very_many_are_free_the_longest_are_gathered() -> None:
    pool = FramePool(2000)
    taken = pool.allocate(2000)
    assert taken == [Frames(0, 2000)]
    for first in range(0, 600, 2):
        pool.release(Frames(first, 1))
    pool.release(Frames(1000, 20))
    pool.release(Frames(700, 30))
    before = pool.runs
    assert pool.allocate(50 + MANY - 1) == []
    assert pool.runs == before
    assert pool.allocate(51) == [Frames(0, 1), Frames(700, 30), Frames(1000, 20)]


def test_too_many_frames_are_refused_and_none_taken() -> None:
    pool = fragmented()
    before = pool.runs
    assert pool.allocate(1701) == []
    assert (pool.runs, pool.free) == (before, 1700)
    assert sum(part.pages for part in pool.allocate(1700)) == 1700
    assert (pool.runs, pool.free) == ((), 0)
    assert pool.allocate(1) == []


def test_an_empty_pool_has_nothing_to_give() -> None:
    assert FramePool(0).allocate(1) == []


def test_released_frames_join_both_neighbours() -> None:
    pool = FramePool(30)
    pool.allocate(30)
    pool.release(Frames(0, 10))
    pool.release(Frames(20, 10))
    assert pool.runs == (Frames(0, 10), Frames(20, 10))
    pool.release(Frames(10, 10))
    assert pool.runs == (Frames(0, 30),)
