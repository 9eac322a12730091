"""RunMap: what a window holds, against a dictionary with one entry for each page."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import assume, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vmm.ferry.runs import Extent, Hold, Run, RunMap

PAGES = 24

holds = st.sampled_from(Hold)
extents = st.integers(0, PAGES - 1).flatmap(
    lambda page: st.builds(Extent, st.just(page), st.integers(1, PAGES - page))
)

Model = dict[int, tuple[int, Hold]]  # page: (frame, hold)


def longest_runs(model: Model) -> list[Run]:
    """The pages in order, in runs that cannot be joined any further."""
    runs: list[Run] = []
    for page, (frame, hold) in sorted(model.items()):
        last = runs[-1] if runs else None
        if last and (last.end, last.frame + last.pages, last.hold) == (page, frame, hold):
            runs[-1] = last._replace(pages=last.pages + 1)
        else:
            runs.append(Run(page, 1, frame, hold))
    return runs


def part(model: Model, extent: Extent) -> Model:
    return {page: model[page] for page in range(*extent_range(extent)) if page in model}


def extent_range(extent: Extent) -> tuple[int, int]:
    return extent.page, extent.end


class RunMapAgainstPages(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.map = RunMap(PAGES)
        self.model: Model = {}

    # Few distances between page and frame, so that neighbours often continue each other.
    @rule(extent=extents, distance=st.sampled_from([0, 0, 100]), hold=holds)
    def insert(self, extent: Extent, distance: int, hold: Hold) -> None:
        assume(not part(self.model, extent))
        self.map.insert(Run(extent.page, extent.pages, extent.page + distance, hold))
        self.model |= {page: (page + distance, hold) for page in range(*extent_range(extent))}

    @rule(extent=extents)
    def remove(self, extent: Extent) -> None:
        expected = longest_runs(part(self.model, extent))
        assert self.map.remove(extent) == expected
        for page in part(self.model, extent):
            del self.model[page]

    @rule(extent=extents)
    def within(self, extent: Extent) -> None:
        assert self.map.within(extent) == longest_runs(part(self.model, extent))

    @rule(extent=extents, hold=holds)
    def covers(self, extent: Extent, hold: Hold) -> None:
        there = part(self.model, extent)
        expected = len(there) == extent.pages and {held for _, held in there.values()} == {hold}
        assert self.map.covers(extent, hold) is expected

    @rule(count=st.integers(1, PAGES + 1), align=st.sampled_from([1, 2, 8]))
    def gaps(self, count: int, align: int) -> None:
        fitting = [
            page
            for page in range(0, PAGES - count + 1, align)
            if not part(self.model, Extent(page, count))
        ]
        assert self.map.gap(count, align) == (fitting[0] if fitting else None)
        assert self.map.gap_from_top(count, align) == (fitting[-1] if fitting else None)

    @invariant()
    def runs_are_in_order_disjoint_and_joined(self) -> None:
        assert list(self.map) == longest_runs(self.model)
        assert len(self.map) == len(longest_runs(self.model))


RunMapAgainstPages.TestCase.settings = settings(
    max_examples=80, stateful_step_count=30, deadline=None
)
TestRunMapAgainstPages = RunMapAgainstPages.TestCase


def test_a_run_joins_both_neighbours_that_it_continues() -> None:
    runs = RunMap(16)
    runs.insert(Run(0, 2, 100, Hold.OWNED))
    runs.insert(Run(4, 2, 104, Hold.OWNED))
    assert len(runs) == 2
    runs.insert(Run(2, 2, 102, Hold.OWNED))
    assert list(runs) == [Run(0, 6, 100, Hold.OWNED)]


@pytest.mark.parametrize(
    "neighbour",
    [
        pytest.param(Run(2, 2, 103, Hold.OWNED), id="other frames"),
        pytest.param(Run(2, 2, 102, Hold.OUTGOING), id="another hold"),
        pytest.param(Run(3, 2, 102, Hold.OWNED), id="a hole between them"),
    ],
)
def test_runs_stay_apart_unless_pages_frames_and_hold_continue(neighbour: Run) -> None:
    runs = RunMap(16)
    runs.insert(Run(0, 2, 100, Hold.OWNED))
    runs.insert(neighbour)
    assert list(runs) == [Run(0, 2, 100, Hold.OWNED), neighbour]


def test_cutting_a_run_in_the_middle_leaves_both_ends_with_their_frames() -> None:
    runs = RunMap(16)
    runs.insert(Run(0, 10, 100, Hold.OWNED))
    assert runs.remove(Extent(3, 4)) == [Run(3, 4, 103, Hold.OWNED)]
    assert list(runs) == [Run(0, 3, 100, Hold.OWNED), Run(7, 3, 107, Hold.OWNED)]


def test_a_gap_is_the_lowest_one_that_fits_and_from_the_top_the_highest() -> None:
    runs = RunMap(100)
    runs.insert(Run(10, 10, 0, Hold.OWNED))
    runs.insert(Run(90, 5, 10, Hold.OWNED))
    assert runs.gap(5) == 0
    assert runs.gap(11) == 20
    assert runs.gap(5, align=8) == 0
    assert runs.gap(11, align=16) == 32
    assert runs.gap_from_top(5) == 95
    assert runs.gap_from_top(6) == 84
    assert runs.gap_from_top(6, align=16) == 80
    assert runs.gap(71) is None
    assert runs.gap_from_top(71) is None


def test_the_cost_of_a_message_is_in_runs_not_in_pages() -> None:
    runs = RunMap(1 << 36)
    runs.insert(Run(0, 1 << 36, 0, Hold.OWNED))
    assert runs.covers(Extent(1, (1 << 36) - 1), Hold.OWNED)
    assert runs.remove(Extent(1 << 20, 1 << 30)) == [Run(1 << 20, 1 << 30, 1 << 20, Hold.OWNED)]
    assert len(runs) == 2
