"""The numbers in the documents are those that were measured."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from unit.bench_scene import results, row

ROOT = Path(__file__).resolve().parents[2]


def test_the_tables_are_what_the_results_say() -> None:
    script = ROOT / "scripts/performance_tables.py"
    done = subprocess.run(
        [sys.executable, script, "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture(scope="module")
def tables() -> Any:
    spec = importlib.util.spec_from_file_location(
        "performance_tables", ROOT / "scripts/performance_tables.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rows_that_were_measured_again_take_the_place_of_the_former_ones(tables: Any) -> None:
    former = results(row("call_empty", 0, ours=90.0), row("page", ours=100.0))
    newer = results(row("call_empty", 0, ours=70.0), row("decoder", 0, ours=5.0))
    merged = tables.taken(former, newer)
    assert [(found.name, found.ours.p50) for found in merged.rows] == [
        *(("page", 100.0), ("call_empty", 70.0), ("decoder", 5.0)),
    ]


def test_a_target_that_was_missed_is_bold(tables: Any) -> None:
    measured = results(
        row("call_64m", 64 << 20, ours=1200.0, floor=1000.0, host=1000.0, executor=50000.0),
        row("restore", 262144, ours=151.0),
        row("pool_2", 0, ours=50.0),
    )
    _, _, call, restore, pool = tables.calls_table(measured)
    assert "ours ≤ 1.3 × floor: 1.20 ×; ours ≤ 1.1 × host: **1.20 ×**" in call
    assert "executor ≥ 20 × ours: 41.7 ×" in call
    assert "≤ 150 µs: **151 µs**" in restore
    assert "plain ≥ 1.8 × ours: –" in pool
