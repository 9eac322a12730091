"""IntervalMap: what a window holds, against a dictionary with one entry for each page."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import assume, given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vmm.ferry.books import Bond, Borrower
from vmm.guest.abi import Hold
from vmm.memory.run_map import RunMap
from vmm.memory.runs import Extent, Interval, IntervalMap, Run, Tally

PAGES = 24

holds = st.sampled_from([Hold.OWNED, Hold.OWNED, Hold.LENT])
maps = st.integers(0, 1)
extents = st.integers(0, PAGES - 1).flatmap(
    lambda page: st.builds(Extent, st.just(page), st.integers(1, PAGES - page))
)

Model = dict[int, tuple[int, Hold]]  # page: (frame, hold)


def pages_of(extent: Extent) -> range:
    return range(extent.page, extent.end)


def in_one_run(model: Model, page: int) -> bool:
    """Whether a page continues the one before it."""
    before = model.get(page - 1)
    return before is not None and model.get(page) == (before[0] + 1, before[1])


def longest_runs(model: Model) -> list[Run]:
    """The pages in order, in runs that cannot be joined any further."""
    runs: list[Run] = []
    for page, (frame, hold) in sorted(model.items()):
        if in_one_run(model, page):
            runs[-1] = runs[-1]._replace(pages=runs[-1].pages + 1)
        else:
            runs.append(Run(page, 1, frame, hold))
    return runs


def part(model: Model, extent: Extent) -> Model:
    return {page: model[page] for page in pages_of(extent) if page in model}


class MapsAgainstPages(RuleBasedStateMachine):
    """Two maps that share a tally: one of anything, and one of runs only."""

    def __init__(self) -> None:
        super().__init__()
        self.tally = Tally()
        self.maps: list[IntervalMap[Run]] = [
            IntervalMap(PAGES, self.tally),
            RunMap(PAGES, self.tally),
        ]
        self.models: list[Model] = [{}, {}]

    # Few distances between page and frame, so that neighbours often continue each other.
    @rule(which=maps, extent=extents, distance=st.sampled_from([0, 0, 100]), hold=holds)
    def insert(self, which: int, extent: Extent, distance: int, hold: Hold) -> None:
        assume(not part(self.models[which], extent))
        self.maps[which].insert(Run(extent.page, extent.pages, extent.page + distance, hold))
        self.models[which] |= {page: (page + distance, hold) for page in pages_of(extent)}

    @rule(which=maps, extent=extents)
    def remove(self, which: int, extent: Extent) -> None:
        model = self.models[which]
        before, cuts = len(self.maps[which]), self.maps[which].cuts(*extent)
        removed = self.maps[which].remove(*extent)
        assert removed == longest_runs(part(model, extent))
        assert len(self.maps[which]) == before + cuts - len(removed)
        for page in part(model, extent):
            del model[page]

    @rule(which=maps, extent=extents)
    def discard(self, which: int, extent: Extent) -> None:
        self.maps[which].discard(*extent)
        for page in part(self.models[which], extent):
            del self.models[which][page]

    @rule(which=maps, extent=extents, distance=st.sampled_from([0, 0, 100]), hold=holds)
    def replace(self, which: int, extent: Extent, distance: int, hold: Hold) -> None:
        self.maps[which].replace(Run(extent.page, extent.pages, extent.page + distance, hold))
        self.models[which] |= {page: (page + distance, hold) for page in pages_of(extent)}

    @rule(which=maps)
    def clear(self, which: int) -> None:
        self.maps[which].clear()
        self.models[which].clear()

    @rule(which=maps, extent=extents)
    def within(self, which: int, extent: Extent) -> None:
        expected = longest_runs(part(self.models[which], extent))
        assert self.maps[which].within(*extent) == expected

    @rule(which=maps, extent=extents)
    def part(self, which: int, extent: Extent) -> None:
        runs = longest_runs(part(self.models[which], extent))
        whole = len(runs) == 1 and runs[0].pages == extent.pages
        expected = (runs[0], self.maps[which].cuts(*extent)) if whole else None
        assert self.maps[which].part(*extent) == expected

    @rule(which=maps, extent=extents)
    def cuts(self, which: int, extent: Extent) -> None:
        model = self.models[which]
        expected = in_one_run(model, extent.page) + in_one_run(model, extent.end)
        assert self.maps[which].cuts(*extent) == expected

    @rule(which=maps, count=st.integers(1, PAGES + 1), align=st.sampled_from([1, 2, 8]))
    def gaps(self, which: int, count: int, align: int) -> None:
        fitting = [
            page
            for page in range(0, PAGES - count + 1, align)
            if not part(self.models[which], Extent(page, count))
        ]
        assert self.maps[which].gap(count, align) == (fitting[0] if fitting else None)
        assert self.maps[which].gap_from_top(count, align) == (fitting[-1] if fitting else None)

    @invariant()
    def runs_are_in_order_disjoint_joined_and_counted(self) -> None:
        for runs, model in zip(self.maps, self.models, strict=True):
            assert list(runs) == longest_runs(model)
            assert len(runs) == len(longest_runs(model))
        assert self.tally.intervals == sum(len(runs) for runs in self.maps)


MapsAgainstPages.TestCase.settings = settings(
    max_examples=80, stateful_step_count=30, deadline=None
)
TestMapsAgainstPages = MapsAgainstPages.TestCase


def filled(*runs: Run, pages: int = 16) -> IntervalMap[Run]:
    found: IntervalMap[Run] = IntervalMap(pages)
    for run in runs:
        found.insert(run)
    return found


def test_a_run_joins_both_neighbours_that_it_continues() -> None:
    runs = filled(Run(0, 2, 100, Hold.OWNED), Run(4, 2, 104, Hold.OWNED))
    assert len(runs) == 2
    runs.insert(Run(2, 2, 102, Hold.OWNED))
    assert list(runs) == [Run(0, 6, 100, Hold.OWNED)]


@pytest.mark.parametrize(
    "neighbour",
    [
        pytest.param(Run(2, 2, 103, Hold.OWNED), id="other frames"),
        pytest.param(Run(2, 2, 102, Hold.SENT), id="another hold"),
        pytest.param(Run(3, 2, 102, Hold.OWNED), id="a hole between them"),
    ],
)
def test_runs_stay_apart_unless_pages_frames_and_hold_continue(neighbour: Run) -> None:
    runs = filled(Run(0, 2, 100, Hold.OWNED), neighbour)
    assert list(runs) == [Run(0, 2, 100, Hold.OWNED), neighbour]


LENT = Bond(100, 10, Hold.LENT, 1, 20, (Borrower(2, 30, True),))


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"hold": Hold.SENT}, id="another hold"),
        pytest.param({"owner": 3}, id="another owner"),
        pytest.param({"page": 29}, id="another place of the owner's"),
        pytest.param({"borrowers": (Borrower(3, 40, True),)}, id="another borrower"),
        pytest.param({"borrowers": (Borrower(2, 41, True),)}, id="another place of the borrower's"),
        pytest.param({"borrowers": (Borrower(2, 40, False),)}, id="another access"),
        pytest.param({"borrowers": ()}, id="no borrower"),
    ],
)
def test_bonds_stay_apart_unless_they_bind_the_same_peers_alike(
    changed: dict[str, Any],
) -> None:
    follower = Bond(110, 5, Hold.LENT, 1, 30, (Borrower(2, 40, True),))
    assert LENT.continues(follower)
    assert not LENT.continues(follower._replace(**changed))


@pytest.mark.parametrize(
    "whole",
    [
        pytest.param(Run(20, 10, 100, Hold.OWNED), id="run"),
        pytest.param(
            LENT._replace(borrowers=(Borrower(2, 30, True), Borrower(3, 7, False))), id="bond"
        ),
    ],
)
@given(data=st.data())
def test_what_is_cut_in_two_joins_to_the_same_again(whole: Interval, data: st.DataObject) -> None:
    cut = data.draw(st.integers(whole[0] + 1, whole.end - 1))
    left, right = whole.clip(whole[0], cut), whole.clip(cut, whole.end)
    assert (left.end, right[0]) == (cut, cut)
    assert (right.end, right.pages) == (whole.end, whole.end - cut)
    assert left.continues(right)
    assert not right.continues(left)
    assert left.lengthened(right.pages) == whole


def test_cutting_a_run_in_the_middle_leaves_both_ends_with_their_frames() -> None:
    runs = filled(Run(0, 10, 100, Hold.OWNED))
    assert runs.cuts(3, 4) == 2
    assert runs.remove(3, 4) == [Run(3, 4, 103, Hold.OWNED)]
    assert list(runs) == [Run(0, 3, 100, Hold.OWNED), Run(7, 3, 107, Hold.OWNED)]


@pytest.mark.parametrize(
    ("extent", "cuts"),
    [
        pytest.param(Extent(2, 6), 0, id="whole runs"),
        pytest.param(Extent(2, 3), 0, id="the first of two neighbours"),
        pytest.param(Extent(0, 2), 0, id="a hole"),
        pytest.param(Extent(0, 4), 1, id="its end in a run"),
        pytest.param(Extent(4, 4), 1, id="its start in a run"),
        pytest.param(Extent(3, 1), 2, id="the middle of a run"),
        pytest.param(Extent(4, 3), 2, id="both ends, in two runs"),
    ],
)
def test_a_range_cuts_the_runs_that_cross_its_ends(extent: Extent, cuts: int) -> None:
    runs = filled(Run(2, 3, 100, Hold.OWNED), Run(5, 3, 200, Hold.OWNED))
    assert runs.cuts(*extent) == cuts


def test_the_run_that_holds_a_place_is_found_whole() -> None:
    runs = filled(Run(2, 3, 100, Hold.OWNED), Run(5, 3, 200, Hold.OWNED))
    found = [runs.at(place) for place in (1, 2, 4, 5, 7, 8)]
    first, second = runs
    assert found == [None, first, first, second, second, None]


def test_a_gap_is_the_lowest_one_that_fits_and_from_the_top_the_highest() -> None:
    runs = filled(Run(10, 10, 0, Hold.OWNED), Run(90, 5, 10, Hold.OWNED), pages=100)
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
    runs = filled(Run(0, 1 << 36, 0, Hold.OWNED), pages=1 << 36)
    assert runs.within(1, 1 << 30) == [Run(1, 1 << 30, 1, Hold.OWNED)]
    assert runs.remove(1 << 20, 1 << 30) == [Run(1 << 20, 1 << 30, 1 << 20, Hold.OWNED)]
    assert len(runs) == 2
