"""What exchanges cost: measured once, kept for the next process, and what is decided from it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmm.errors import ConfigError, ResourceError
from vmm.guest.abi import PAGE_SIZE
from vmm.host import choice, copying
from vmm.host.copying import SIZES, Cost
from vmm.memory.mapping import HUGE

FOUND = (Cost(4096, 20.0, 10.0), Cost(8192, 20.0, 18.0), Cost(16384, 20.0, 26.0))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[int]]:
    """Measurements that are made up, and how many there were; an empty cache."""
    times: list[int] = []

    def measure() -> tuple[Cost, ...]:
        times.append(1)
        return FOUND

    monkeypatch.setattr(copying, "measure", measure)
    monkeypatch.setenv("PAGEFERRY_CACHE", str(tmp_path / "cache"))
    copying._costs.cache_clear()
    yield times
    copying._costs.cache_clear()


def next_process() -> tuple[Cost, ...]:
    """What the next process finds."""
    copying._costs.cache_clear()
    return copying.costs()


def saved(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


# ---- Measuring ----


@pytest.mark.usefixtures("no_leaks")
def test_every_size_is_measured_up_to_the_first_that_is_not_cheaper_copied() -> None:
    start = time.perf_counter()
    found = copying.measure()
    took = time.perf_counter() - start
    assert tuple(cost.size for cost in found) == SIZES[: len(found)]
    assert all(cost.moved > 0 and cost.copied > 0 for cost in found)
    assert all(cost.copied < cost.moved for cost in found[:-1])
    assert took < 1  # 30 ms, on a host that has nothing else to do


# ---- The cache ----


def test_a_host_is_measured_once(measured: list[int], tmp_path: Path) -> None:
    assert copying.costs() == copying.costs() == next_process() == FOUND
    assert len(measured) == 1
    (path,) = saved(tmp_path)
    assert json.loads(path.read_text()) == [list(cost) for cost in FOUND]


@pytest.mark.parametrize("what", ["release", "cores", "version"])
def test_another_host_is_measured_again(
    measured: list[int], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    copying.costs()
    if what == "release":
        system = os.uname()
        other = os.uname_result((system[0], system[1], "9.9", system[3], system[4]))
        monkeypatch.setattr(os, "uname", lambda: other)
    elif what == "cores":
        monkeypatch.setattr(os, "cpu_count", lambda: 999)
    else:
        monkeypatch.setattr(copying, "__version__", "9.9")
    assert next_process() == FOUND
    assert len(measured) == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "[]",
        "7",
        "null",
        '{"a": 1}',
        "[[4096, 1]]",
        "[[4096, 2, 1]]",
        "[[4096, 1, 2], [8192, 2, 1], [16384, 1, 2]]",
        "[[8192, 1, 1]]",
        "[[4096, NaN, 1]]",
        "[[4096, 1, Infinity]]",
        "[[Infinity, 1, 1]]",
        "[[4096, 0, -1]]",
        '[[4096, "x", 1]]',
        "[" * 100_000,
    ],
)
def test_a_cache_that_is_damaged_is_written_anew(
    measured: list[int], tmp_path: Path, text: str
) -> None:
    copying.costs()
    (path,) = saved(tmp_path)
    path.write_text(text)
    assert next_process() == FOUND
    assert len(measured) == 2
    assert next_process() == FOUND
    assert len(measured) == 2


def test_without_a_place_for_it_every_process_measures_and_says_nothing(
    measured: list[int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("")
    for place in ("/proc/none", str(tmp_path / "file"), str(tmp_path / "file" / "below")):
        monkeypatch.setenv("PAGEFERRY_CACHE", place)
        assert next_process() == FOUND

    def nowhere() -> Path:
        raise ConfigError("no HOME is set")

    monkeypatch.setattr(copying, "cache_root", nowhere)
    assert next_process() == next_process() == FOUND
    assert len(measured) == 5
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("error", [OSError(12, "no memory"), ResourceError("no address space")])
def test_a_host_that_refuses_to_be_measured_copies_nothing(
    measured: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    def refuse() -> tuple[Cost, ...]:
        raise error

    monkeypatch.setattr(copying, "measure", refuse)
    assert next_process() == ()
    assert saved(tmp_path) == []
    assert choice.copy_below(()).value == 0
    assert not measured


def test_what_a_busy_host_was_not_measured_for_is_measured_again(
    measured: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert measured == []
    monkeypatch.setattr(copying, "measure", lambda: FOUND[:2])
    assert next_process() == FOUND[:2]
    assert saved(tmp_path) == []
    monkeypatch.setattr(copying, "measure", lambda: FOUND)
    assert next_process() == FOUND
    assert len(saved(tmp_path)) == 1


# ---- The choice ----


def test_what_is_copied_ends_where_the_costs_meet() -> None:
    found = choice.copy_below(FOUND)
    assert found.value == 8192 + PAGE_SIZE  # a quarter of the way, in whole pages
    for words in ("8192 B", "18 µs copied, 20 µs moved", "16 KiB", "26 µs copied, 20 µs moved"):
        assert words in found.why


@pytest.mark.parametrize(
    ("costs", "below"),
    [
        pytest.param([Cost(4096, 20, 20)], 0, id="nothing"),
        pytest.param([Cost(4096, 20, 10)], 8192, id="there was no time for more"),
        pytest.param([Cost(4096, 20, 19.9), Cost(8192, 20, 90)], 8192, id="just so"),
        pytest.param([Cost(4096, 20, 10), Cost(8192, 20, 20)], 8192, id="as much"),
        pytest.param([Cost(4096, 20, 10), Cost(8192, 20, 30)], 8192, id="half way"),
        pytest.param([Cost(size, 20, 10) for size in SIZES], HUGE, id="all that is no huge page"),
    ],
)
def test_what_was_cheaper_copied_is_copied(costs: list[Cost], below: int) -> None:
    found = choice.copy_below(costs)
    assert found.value == below
    assert "copied" in found.why
    assert ("took too long" in found.why) == (len(costs) < len(SIZES) and below > costs[-1].size)
