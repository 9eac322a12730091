"""The verdicts on ratios."""

from __future__ import annotations

from unit.bench_scene import results, row

from vmm.bench.check import LIMITS, Limit, check
from vmm.bench.results import COLUMNS, ROW_NAMES

FLOOR = Limit("page", "ours", "floor", at_most=3)
COPY = Limit("extent_untouched", "copy", "ours", at_least=2, smallest=16 << 20)


def test_a_ratio_within_its_limit_is_compared_and_nothing_is_said() -> None:
    verdict = check(results(row(ours=30, floor=10)), [FLOOR])
    assert (verdict.ok, verdict.compared, verdict.violations, verdict.skipped) == (True, 1, (), ())


def test_a_ratio_beyond_its_limit_is_named_with_its_row() -> None:
    verdict = check(results(row(ours=40, floor=10)), [FLOOR])
    assert not verdict.ok
    assert verdict.violations == ("page: ours is 4.00 times floor, more than 3",)
    assert verdict.beyond == ("page",)
    slow = row("extent_untouched", 16 << 20, copy=15, ours=10)
    verdict = check(results(slow), [COPY])
    assert verdict.violations == ("extent_untouched 16 MiB: copy is 1.50 times ours, less than 2",)


def test_a_limit_holds_for_the_sizes_that_it_names() -> None:
    small = row("extent_untouched", 4096, copy=1, ours=10)
    large = row("extent_untouched", 64 << 20, copy=50, ours=10)
    assert check(results(small, large), [COPY]).compared == 1
    assert check(results(small, large), [COPY]).ok


def test_what_is_missing_is_skipped_and_said_to_be() -> None:
    verdict = check(results(row(ours=40), row("share")), [FLOOR, COPY])
    assert verdict.skipped == (
        "page: ours/floor: no floor",
        "extent_untouched: copy/ours: there is no such row",
    )
    assert verdict.violations == ()
    assert check(results(row()), [FLOOR]).skipped == ("page: ours/floor: no ours and no floor",)


def test_where_nothing_could_be_compared_the_verdict_is_not_good() -> None:
    assert not check(results(row()), [FLOOR]).ok
    assert not check(results(), []).ok


def test_the_limits_are_of_rows_and_columns_that_there_are() -> None:
    for limit in LIMITS:
        assert limit.row in ROW_NAMES
        assert {limit.over, limit.under} <= set(COLUMNS)
        assert limit.at_most is not None or limit.at_least is not None
