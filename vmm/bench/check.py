"""Whether the results are as good as they were: ratios, which hold where times do not. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from vmm.bench.results import Results, Row, row_label

_ANY = 1 << 62


@dataclasses.dataclass(frozen=True, slots=True)
class Limit:
    """What the ratio of two columns' medians has to be, in the rows of a name.

    at_most, at_least     one of them, or both
    smallest, largest     the bytes of the rows that it holds for
    """

    row: str
    over: str
    under: str
    at_most: float | None = None
    at_least: float | None = None
    smallest: int = 0
    largest: int = _ANY

    def violated(self, ratio: float) -> str:
        """Return what is wrong with a ratio; "" if nothing is."""
        if self.at_most is not None and ratio > self.at_most:
            return f"{self.over} is {ratio:.2f} times {self.under}, more than {self.at_most:g}"
        if self.at_least is not None and ratio < self.at_least:
            return f"{self.over} is {ratio:.2f} times {self.under}, less than {self.at_least:g}"
        return ""


_MIB = 1 << 20

# Twice what was seen, or more, on a host whose exits are quick (where Python weighs most): what is
# beyond these has gone wrong, and is not noise.
LIMITS = (
    Limit("inline_64B", "ours", "floor", at_most=3),
    Limit("page", "ours", "floor", at_most=4),
    Limit("pingpong_page", "ours", "floor", at_most=5),
    Limit("batch64_scattered", "ours", "floor", at_most=5),
    Limit("batch64_adjacent", "ours", "floor", at_most=6),
    Limit("lend_return", "ours", "floor", at_most=6),
    Limit("share", "ours", "floor", at_most=6),
    Limit("extent_untouched", "ours", "floor", at_most=7),
    Limit("extent_touched", "ours", "floor", at_most=5),
    Limit("extent_populated", "ours", "floor", at_most=6),
    Limit("extent_in_huge", "ours", "floor", at_most=7),
    Limit("spawn_cold", "ours", "floor", at_most=3),
    Limit("close", "ours", "floor", at_most=4),
    Limit("alive_1000", "ours", "floor", at_most=4),
    Limit("spawn_1000", "ours", "floor", at_most=3),
    Limit("close_1000", "ours", "floor", at_most=4),
    Limit("linux_getppid", "ours", "floor", at_most=2.5),
    Limit("linux_read", "ours", "floor", at_most=3),
    Limit("linux_start", "ours", "bare", at_most=8),
    Limit("linux_sha256", "ours", "host", at_most=2),
    Limit("linux_sort", "ours", "host", at_most=2),
    Limit("linux_tree", "ours", "host", at_most=3),
    Limit("call_empty", "ours", "bare", at_most=4),
    Limit("call_1k_copied", "ours", "plain", at_most=2.6),
    Limit("call_64m", "ours", "floor", at_most=2.6),
    Limit("call_64m", "executor", "ours", at_least=5),
    Limit("call_64m_copied", "ours", "floor", at_most=10),
    Limit("restore", "cold", "ours", at_least=3),
    Limit("call_fresh", "ours", "plain", at_most=4),
    Limit("decoder", "ours", "host", at_most=3),
    Limit("extent_untouched", "copy", "ours", at_least=5, smallest=128 * _MIB),
    Limit("extent_untouched", "pipe", "ours", at_least=8, smallest=16 * _MIB),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What a check has found: lines to print, and how many ratios were compared.

    beyond   the names of the rows that violations are of
    """

    compared: int
    violations: tuple[str, ...]
    skipped: tuple[str, ...]
    beyond: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether something was compared, and all of it is within its limits."""
        return bool(self.compared) and not self.violations


def check(results: Results, limits: Sequence[Limit] = LIMITS) -> Verdict:
    """Compare the results with limits. What is missing in them is skipped, and said to be."""
    compared, violations, skipped, beyond = 0, [], [], dict[str, None]()
    for limit in limits:
        rows = list(_rows(results, limit))
        if not rows:
            skipped.append(f"{limit.row}: {limit.over}/{limit.under}: there is no such row")
        for row in rows:
            ratio = row.ratio(limit.over, limit.under)
            where = row_label(row.name, row.bytes)
            if ratio is None:
                skipped.append(f"{where}: {limit.over}/{limit.under}: {_missing(row, limit)}")
                continue
            compared += 1
            if what := limit.violated(ratio):
                violations.append(f"{where}: {what}")
                beyond[row.name] = None
    return Verdict(compared, tuple(violations), tuple(skipped), tuple(beyond))


def _rows(results: Results, limit: Limit) -> Iterator[Row]:
    return (row for row in results.named(limit.row) if limit.smallest <= row.bytes <= limit.largest)


def _missing(row: Row, limit: Limit) -> str:
    names = [name for name in (limit.over, limit.under) if row.column(name) is None]
    return f"no {' and no '.join(names)}" if names else f"{limit.under} took no time"
