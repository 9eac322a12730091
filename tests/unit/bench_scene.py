"""Results as a bench would have measured them."""

from __future__ import annotations

import dataclasses
from typing import Any

from vmm.bench.results import COLUMNS, ROW_UNITS, Results, Row
from vmm.bench.samples import Samples

HOST: dict[str, Any] = {
    "date": "2030-01-02T03:04:05+00:00",
    "pageferry": "0.1.0",
    "python": "3.11.7",
    "kernel": "6.18.0",
    "cpu": "A Processor",
    "cores": 2,
    "backend": "npt",
    "ring": 0,
    "doorbell": "hypercall",
    "mover": "memfd",
    "thp": {"enabled": "madvise", "shmem_enabled": "never"},
    "emulated": False,
    "lane": None,
}
SIZES = (4 << 10, 256 << 10, 16 << 20)


def row(name: str = "page", size: int = 4096, **columns: float | None) -> Row:
    """Return a row with these medians, and without the other columns."""
    samples = {
        column: None if p50 is None else Samples(p50, p50 * 2, 100)
        for column, p50 in columns.items()
    }
    return dataclasses.replace(Row(name, size, ROW_UNITS[name]), **samples)  # type: ignore[arg-type]


def results(*rows: Row) -> Results:
    """Return results of these rows, or of all extents: moving costs 10, all others size/1000."""
    if not rows:
        rows = tuple(
            row(name, size, **{c: 10.0 if c == "ours" else size / 1000 for c in COLUMNS})
            for name in ("extent_untouched", "extent_touched")
            for size in SIZES
        )
    return Results(dict(HOST), rows)
