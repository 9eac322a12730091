#!/usr/bin/env python3
"""Write the tables of docs/performance.md, and README.md's, from docs/performance.json.

    scripts/performance_tables.py            write them
    scripts/performance_tables.py --check    exit 1 if they are not what the JSON says
    scripts/performance_tables.py --take FILE    put the rows of another JSON into it before

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`; the JSON is what
`pageferry bench --json` has written.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from vmm.bench.breakeven import break_even
from vmm.bench.results import (
    CALLS,
    COMPUTING,
    EXTENTS,
    LINUX,
    RATE,
    ROW_NAMES,
    Results,
    Row,
    load,
)
from vmm.bench.table import number
from vmm.sizes import format_size

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs/performance.json"
PAGES = (ROOT / "docs/performance.md", ROOT / "README.md")
MIB, GIB = 1 << 20, 1 << 30


class Target(NamedTuple):
    """What a row is to reach: `reached` in words, and whether it does."""

    what: str
    target: str
    row: Row
    reached: str
    met: bool


def cell(row: Row, column: str) -> str:
    """Return a median, marked if it is unstable, or a dash."""
    samples = row.column(column)
    return "–" if samples is None else number(samples.p50) + "~" * (column in row.unstable)


def ratio(above: Row, under: Row, over: str = "ours", below: str = "ours") -> float:
    """Return one row's column divided by another's."""
    one, other = above.column(over), under.column(below)
    assert one is not None
    assert other is not None
    return one.p50 / other.p50


# What messages are to take at most, by the row: times the column named.
MESSAGES = (
    ("64 bytes inline, one way", "inline_64B", 64, 1.35, "floor"),
    ("a page, one way, a word read", "page", 4096, 1.5, "floor"),
    ("a page to and fro", "pingpong_page", 4096, 1.5, "floor"),
    ("64 scattered pages in one doorbell, each", "batch64_scattered", 4096, 2.0, "floor"),
    ("64 adjacent pages in one doorbell, each", "batch64_adjacent", 4096, 2.5, "floor"),
    ("a page lent and returned", "lend_return", 4096, 2.0, "floor"),
    ("a page shared and returned", "share", 4096, 2.0, "floor"),
    ("128 MiB untouched", "extent_untouched", 128 * MIB, 1.3, "floor"),
    ("128 MiB, each page touched", "extent_touched", 128 * MIB, 1.1, "floor"),
    ("256 KiB touched, with `populate`", "extent_populated", 256 << 10, 1.5, "copy"),
    ("256 KiB touched, in a huge page", "extent_in_huge", 256 << 10, 1.5, "copy"),
    ("a page, with 1,000 machines", "alive_1000", 4096, 1.6, "floor"),
    ("spawn to first exit, 16 MiB", "spawn_cold", 0, 1.3, "floor"),
)
# How many times as fast as another way messages are to be, at least.
GAINS = (
    ("128 MiB untouched", "extent_untouched", 128 * MIB, 50, "copy"),
    ("128 MiB, each page touched", "extent_touched", 128 * MIB, 8, "copy"),
    ("64 MiB untouched", "extent_untouched", 64 * MIB, 100, "pipe"),
)


def targets(results: Results) -> Iterator[Target]:
    """Give what the project has set itself, and what came of it."""
    found = {(row.name, row.bytes): row for row in results.rows}
    for what, name, size, most, below in MESSAGES:
        row = found[name, size]
        times = ratio(row, row, below=below)
        yield Target(what, f"≤ {most:g} × {below}", row, f"{times:.2f} ×", times <= most)
    for what, name, size, least, over in GAINS:
        row = found[name, size]
        gain = ratio(row, row, over)
        wanted = f"≥ {least} × faster than a {over}"
        yield Target(what, wanted, row, f"{gain:.0f} ×", gain >= least)
    large, huge = found["extent_untouched", 128 * MIB], found["extent_untouched", GIB]
    times = ratio(huge, large)
    yield Target("1 GiB untouched", "within 3 × of 128 MiB", huge, f"{times:.2f} ×", times <= 3)
    few, many = found["alive_2", 64], found["alive_1000", 64]
    more = 100 * (ratio(many, few) - 1)
    name = "a payload, with 1,000 machines"
    yield Target(name, "within 10 % of 2", many, f"{more:+.0f} %", abs(more) <= 10)
    one, two = found["rate_1_worker", 64], found["rate_2_workers", 64]
    times = ratio(one, one, below="floor")
    name = "payloads a second, one worker"
    yield Target(name, "≥ 0.75 × floor", one, f"{times:.2f} ×", times >= 0.75)
    times = ratio(two, one)
    name = "payloads a second, two workers"
    yield Target(name, "no fewer than one", two, f"{times:.2f} ×", times >= 1)


def targets_table(results: Results) -> Iterator[str]:
    """Give the lines of the table of targets."""
    yield "| what | target | reached | met | ours | floor | copy | pipe |"
    yield "|---|---|---|---|---|---|---|---|"
    for what, target, row, reached, met in targets(results):
        cells = [cell(row, column) for column in ("ours", "floor", "copy", "pipe")]
        yield f"| {' | '.join([what, target, reached, 'yes' if met else '**no**', *cells])} |"


def rows_table(results: Results) -> Iterator[str]:
    """Give the lines of the table of all rows."""
    heads = "row bytes ours p99 floor ours/floor copy pipe socket shared_memory n"
    yield f"| {heads.replace(' ', ' | ').replace('_', ' ')} |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for row in results.rows:
        if row.name in LINUX + CALLS:
            continue
        times = row.ratio("ours", "floor")
        ours = row.ours
        cells = [
            f"`{row.name}`",
            format_size(row.bytes) if row.bytes else "",
            cell(row, "ours"),
            "" if ours is None or row.unit == RATE else number(ours.p99),
            cell(row, "floor"),
            "" if times is None else f"{times:.2f}",
            *(cell(row, column) for column in ("copy", "pipe", "socket", "shared_memory")),
            "" if ours is None else str(ours.n),
        ]
        yield f"| {' | '.join(cells)} |"


def linux_table(results: Results) -> Iterator[str]:
    """Give the lines of the table of programs for Linux: rows, and what they are to reach."""
    yield "| row | of | ours | p99 | floor | bare | host | target | reached | met | n |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    limits = {"linux_getppid": ("floor", 1.5), "linux_read": ("floor", 1.3)}
    limits |= {"linux_start": ("bare", 1.5)}
    limits |= {name: ("host", 1.05) for name in COMPUTING if "touch" not in name}
    for row in results.named(*LINUX):
        under, most = limits.get(row.name, ("host", 0.0))
        times = row.ratio("ours", under)
        met = "yes" if times is not None and times <= most else "**no**"
        assert row.ours is not None
        cells = [
            f"`{row.name}`",
            format_size(row.bytes) if row.bytes else "",
            cell(row, "ours"),
            number(row.ours.p99),
            *(cell(row, column) for column in ("floor", "bare", "host")),
            f"≤ {most:g} × {under}" if most else "",
            "" if times is None else f"{times:.2f} ×",
            met if most else "",
            str(row.ours.n),
        ]
        yield f"| {' | '.join(cells)} |"


# What calls are to reach: a column by another, at most or at least so much.
CALL_TARGETS = {
    "call_empty": (("ours", "bare", "≤", 1.5),),
    "call_1k_copied": (("ours", "plain", "≤", 1.5),),
    "call_64m": (
        ("ours", "floor", "≤", 1.3),
        ("ours", "host", "≤", 1.1),
        ("executor", "ours", "≥", 20.0),
    ),
    "restore": (("ours", "", "≤", 150.0),),
    "call_fresh": (("ours", "plain", "≤", 1.5),),
    "pool_2": (("plain", "ours", "≥", 1.8),),
    "decoder": (("ours", "host", "≤", 1.1),),
}


def calls_table(results: Results) -> Iterator[str]:
    """Give the lines of the table of calls of functions in a sandbox."""
    columns = "floor bare host shared_memory executor wasm plain cold"
    heads = f"row ours p99 {columns} targets n"
    yield f"| {heads.replace(' ', ' | ').replace('_', ' ')} |"
    yield "|---" * len(heads.split()) + "|"
    for row in results.named(*CALLS):
        cells = [
            f"`{row.name}`",
            cell(row, "ours"),
            "–" if row.ours is None else number(row.ours.p99),
            *(cell(row, column) for column in columns.split()),
            "; ".join(call_target(row, *each) for each in CALL_TARGETS.get(row.name, ())),
            "" if row.ours is None else str(row.ours.n),
        ]
        yield f"| {' | '.join(cells)} |"


def call_target(row: Row, over: str, under: str, how: str, bound: float) -> str:
    """Return a target in words, with what was reached: bold, if that is not met."""
    if not under:
        reached, unit, wanted = row.ours.p50 if row.ours else None, "µs", f"{how} {bound:g} µs"
    else:
        reached, unit = row.ratio(over, under), "×"
        wanted = f"{over} {how} {bound:g} × {under}"
    if reached is None:
        return f"{wanted}: –"
    met = reached <= bound if how == "≤" else reached >= bound
    said = f"{number(reached)} {unit}"
    return f"{wanted}: {said if met else f'**{said}**'}"


def summary_table(results: Results) -> Iterator[str]:
    """Give the lines of the README's table."""
    yield "| | pageferry | floor | copied | pipe | shared memory |"
    yield "|---|---|---|---|---|---|"
    found = {(row.name, row.bytes): row for row in results.rows}
    for what, key in (
        ("64 bytes, inline", ("inline_64B", 64)),
        ("a page", ("page", 4096)),
        ("one of 64 adjacent pages in one doorbell", ("batch64_adjacent", 4096)),
        ("one of 64 scattered pages in one doorbell", ("batch64_scattered", 4096)),
        ("2 MiB, each page read", ("extent_touched", 2 * MIB)),
        ("128 MiB, untouched", ("extent_untouched", 128 * MIB)),
        ("128 MiB, each page read", ("extent_touched", 128 * MIB)),
        ("1 GiB, untouched", ("extent_untouched", GIB)),
        ("a page, with 1,000 machines", ("alive_1000", 4096)),
    ):
        columns = ("ours", "floor", "copy", "pipe", "shared_memory")
        yield f"| {' | '.join([what, *(cell(found[key], column) for column in columns)])} |"


def even_table(results: Results) -> Iterator[str]:
    """Give the lines of the table of sizes from which on moving is cheaper than anything else."""
    yield "| moved is cheaper than | untouched, from | each page touched, from |"
    yield "|---|---|---|"
    ways = {"copy": "copied", "pipe": "a pipe", "socket": "a socket"}
    ways["shared_memory"] = "shared memory"
    for column, way in ways.items():
        sizes = []
        for name in EXTENTS:
            rows = list(results.named(name))
            ours, other = (
                {row.bytes: found.p50 for row in rows if (found := row.column(each))}
                for each in ("ours", column)
            )
            size = break_even(ours, other)
            sizes.append("–" if size is None else f"{size / MIB:.2g} MiB")
        yield f"| {' | '.join([way, *sizes])} |"


TABLES: dict[str, Callable[[Results], Iterator[str]]] = {
    "targets": targets_table,
    "rows": rows_table,
    "linux": linux_table,
    "calls": calls_table,
    "summary": summary_table,
    "even": even_table,
}


def filled(page: str, results: Results) -> str:
    """Return a page with its tables as the results are."""

    def table(found: re.Match[str]) -> str:
        name = found[1]
        lines = "\n".join(TABLES[name](results))
        return f"<!-- {name} -->\n{lines}\n<!-- /{name} -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- /\1 -->", table, page, flags=re.DOTALL)


def taken(results: Results, newer: Results) -> Results:
    """Return results with the rows of newer ones, instead of those of the same name and size."""
    rows = {(row.name, row.bytes): row for row in (*results.rows, *newer.rows)}
    ordered = sorted(rows.values(), key=lambda row: ROW_NAMES.index(row.name))
    return dataclasses.replace(results, rows=tuple(ordered))


def main() -> None:
    """Write the tables, or with --check only compare them."""
    results = load(RESULTS)
    if "--take" in sys.argv[1:]:
        results = taken(results, load(Path(sys.argv[-1])))
        RESULTS.write_text(json.dumps(results.as_json(), indent=1) + "\n", encoding="utf-8")
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        made = filled(page, results)
        if "--check" not in sys.argv[1:]:
            path.write_text(made, encoding="utf-8")
        elif made != page:
            stale, source = path.relative_to(ROOT), RESULTS.relative_to(ROOT)
            sys.exit(f"{stale} is not what {source} says: run scripts/{Path(__file__).name}")


if __name__ == "__main__":
    main()
