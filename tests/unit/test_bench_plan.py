"""Which rows are measured, and the rounds of one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

import pytest

from vmm.bench.plan import (
    FULL,
    QUICK,
    QUICK_IN_LANE,
    Case,
    Column,
    Composed,
    Unavailable,
    cases,
    measure,
)
from vmm.bench.results import COMPUTING, MEDIUM, ROW_NAMES
from vmm.bench.samples import Samples

PAGE = Case("page", 4096, 10, 0.0)


class Made:
    """A row whose columns are given, and which knows whether it has been closed."""

    def __init__(self, case: Case = PAGE, **columns: Column) -> None:
        self.case, self.closed, self._columns = case, 0, columns

    def columns(self) -> Mapping[str, Column]:
        return self._columns

    def close(self) -> None:
        self.closed += 1


def sequence(calls: list[str], name: str, *rounds: Sequence[float]) -> Column:
    left = iter(rounds)

    def column() -> Sequence[float]:
        calls.append(name)
        return next(left)

    return column


def test_the_columns_take_turns() -> None:
    calls: list[str] = []
    made = Made(
        ours=sequence(calls, "ours", [1], [2], [3]), pipe=sequence(calls, "pipe", [5], [5], [5])
    )
    told: list[None] = []
    row = measure(made, 3, lambda: told.append(None))
    assert calls == ["ours", "pipe"] * 3
    assert len(told) == 6
    assert (row.ours, row.pipe, row.copy) == (Samples(2, 3, 3), Samples(5, 5, 3), None)
    assert (row.unstable, row.note, made.closed) == (("ours",), "", 1)


def test_a_column_that_cannot_be_measured_is_missing_and_the_note_says_why() -> None:
    calls: list[str] = []

    def unavailable(why: str, after: int = 0) -> Column:
        def column() -> Sequence[float]:
            calls.append(why)
            if len([call for call in calls if call == why]) <= after:
                return [1.0]
            raise Unavailable(why)

        return column

    made = Made(
        ours=unavailable("no device"),
        floor=unavailable("no compiler"),
        copy=unavailable("no device too", after=1),
        pipe=lambda: [4.0],
    )
    row = measure(made, 3)
    assert (row.ours, row.floor, row.copy) == (None, None, None)
    assert row.pipe == Samples(4, 4, 3)
    assert row.note == "ours: no device; floor: no compiler; copy: no device too"
    assert calls.count("no device") == 1  # and is not asked again


def test_columns_that_are_missing_for_one_reason_share_a_note() -> None:
    def gone() -> Sequence[float]:
        raise Unavailable("gone")

    assert measure(Made(ours=gone, copy=gone), 3).note == "ours, copy: gone"


def test_what_does_not_fit_into_memory_is_left_out_with_a_note() -> None:
    def never() -> Sequence[float]:
        raise AssertionError("measured all the same")

    made = Made(Case("extent_touched", 1 << 30, 3, 0.0), ours=never)
    row = measure(made, 3, available=lambda: 1 << 30)
    assert row.note == "left out: 5.25 GiB of memory needed, 1 GiB available"
    assert (row.ours, row.bytes, made.closed) == (None, 1 << 30, 1)
    assert measure(Made(), 3, available=lambda: 0).note == ""


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_row_is_closed_however_measuring_it_ends(error: type[BaseException]) -> None:
    def fails() -> Sequence[float]:
        raise error

    made = Made(ours=fails)
    with pytest.raises(error):
        measure(made, 3)
    assert made.closed == 1


def test_a_row_is_composed_of_several_sources_in_the_order_of_the_columns() -> None:
    ended: list[str] = []

    def source(*names: str) -> Callable[[Case, ExitStack], Mapping[str, Column]]:
        def columns(case: Case, stack: ExitStack) -> Mapping[str, Column]:
            stack.callback(ended.append, names[0])
            return {name: lambda: [1.0] for name in names}

        return columns

    composed = Composed(PAGE, (source("pipe", "socket"), source("copy", "ours")))
    assert list(composed.columns()) == ["ours", "copy", "pipe", "socket"]
    composed.close()
    assert ended == ["copy", "pipe"]


def test_the_full_bench_has_every_row_and_the_large_sizes() -> None:
    plan = list(cases(FULL))
    assert list(dict.fromkeys(case.name for case in plan)) == list(ROW_NAMES)
    sizes = [case.bytes for case in plan if case.name == "extent_touched"]
    assert (sizes[0], sizes[-1]) == (4 << 10, 1 << 30)
    assert {64 << 20, 128 << 20} < set(sizes)
    assert all(b // a <= 4 for a, b in itertools.pairwise(sizes))


def test_the_quick_bench_has_fewer_sizes_and_messages_but_all_rows() -> None:
    quick, full = list(cases(QUICK)), list(cases(FULL))
    assert {case.name for case in quick} == {case.name for case in full}
    sizes = [case.bytes for case in quick if case.name == "extent_untouched"]
    assert sizes == [4 << 10, 256 << 10, 2 << 20, 16 << 20, 128 << 20]
    most = {(case.name, case.bytes): case.samples for case in full}
    counted = [case for case in quick if case.name not in COMPUTING]
    assert all(case.samples <= most[case.name, case.bytes] for case in counted)
    assert all(case.samples >= 2 for case in quick)


def test_a_quick_bench_in_a_lane_has_all_rows_and_no_large_extents() -> None:
    quick, lane = list(cases(QUICK)), list(cases(QUICK_IN_LANE))
    assert {case.name for case in lane} == {case.name for case in quick}
    assert max(case.bytes for case in lane) == 16 << 20
    most = {(case.name, case.bytes): case.samples for case in quick}
    fewer = [case for case in lane if case.samples > 3 and case.name not in COMPUTING]
    assert all(case.samples <= most[case.name, case.bytes] / 5 for case in fewer)


def test_messages_that_are_touched_between_a_page_and_a_huge_page_have_rows_of_their_own() -> None:
    for effort, wanted in ((FULL, [64, 256, 1024]), (QUICK, [256]), (QUICK_IN_LANE, [256])):
        for name in MEDIUM:
            found = list(cases(effort, [name]))
            assert [case.bytes >> 10 for case in found] == wanted
            assert {case.label.split()[0] for case in found} == {name}
            assert all(str(case.bytes >> 10)[0] in case.label.split()[1] for case in found)


def test_rows_are_chosen_by_their_names_and_keep_their_order() -> None:
    chosen = [case.name for case in cases(QUICK, ["rate_1_worker", "page"])]
    assert chosen == ["page", "rate_1_worker"]


def test_a_program_computes_less_where_it_is_to_be_quick() -> None:
    (whole,), (quick,), (lane,) = (
        list(cases(effort, ["linux_sha256"])) for effort in (FULL, QUICK, QUICK_IN_LANE)
    )
    assert (whole.bytes, quick.bytes, lane.bytes) == (256 << 20, 32 << 20, 4 << 20)
    assert whole.memory > whole.bytes
