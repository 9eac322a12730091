"""The results' JSON, and files that have none."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from unit.bench_scene import HOST, results, row

from vmm.bench.results import Results, Row, load
from vmm.bench.samples import Samples
from vmm.errors import ConfigError

MEASURED = Results(
    HOST,
    (
        Row(
            "page",
            4096,
            "us",
            ours=Samples(38.1, 55.0, 1500),
            pipe=Samples(7.0, 9.0, 1500),
            unstable=("pipe",),
            note="floor: no compiler",
        ),
        row("rate_1_worker", 64, ours=21000.0),
    ),
)


def test_a_row_has_every_key_also_where_there_is_nothing() -> None:
    assert MEASURED.as_json()["rows"][0] == {
        "name": "page",
        "bytes": 4096,
        "unit": "us",
        "ours": {"p50": 38.1, "p99": 55.0, "n": 1500},
        "floor": None,
        "copy": None,
        "bare": None,
        "host": None,
        "pipe": {"p50": 7.0, "p99": 9.0, "n": 1500},
        "socket": None,
        "shared_memory": None,
        "executor": None,
        "wasm": None,
        "plain": None,
        "cold": None,
        "unstable": ["pipe"],
        "note": "floor: no compiler",
    }


def test_a_file_from_before_there_were_calls_is_read() -> None:
    value = MEASURED.as_json()
    for each in value["rows"]:
        for column in ("executor", "wasm", "plain", "cold"):
            del each[column]
    assert Results.from_json(value) == MEASURED


def test_results_come_back_from_their_json(tmp_path: Path) -> None:
    for measured in (MEASURED, results(), Results({}, ())):
        assert Results.from_json(measured.as_json()) == measured
        file = tmp_path / "results.json"
        file.write_text(json.dumps(measured.as_json()))
        assert load(file) == measured


def test_numbers_are_kept_to_the_nanosecond() -> None:
    exact = results(row(ours=1 / 3))
    assert exact.as_json()["rows"][0]["ours"]["p50"] == 0.333


def _set(*path: Any, to: Any) -> Callable[[Any], None]:
    def change(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        value[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set("rows", to={}), "rows: {} is not a list"),
        (_set("host", to="here"), 'host: "here" is not an object'),
        (_set("more", to=1), "the whole: has 'more', which is unknown"),
        (_set("rows", 0, to=7), "rows[0]: 7 is not an object"),
        (lambda value: value["rows"][1].pop("note"), "rows[1]: has no 'note'"),
        (_set("rows", 0, "name", to="pages"), 'rows[0].name: "pages" is not the name of a row'),
        (_set("rows", 0, "unit", to="ms"), "rows[0].unit: \"ms\" is not 'us', the unit of page"),
        (_set("rows", 0, "bytes", to=-1), "rows[0].bytes: -1 is not a whole number"),
        (_set("rows", 0, "bytes", to=True), "rows[0].bytes: true is not a whole number"),
        (_set("rows", 0, "ours", to=[]), "rows[0].ours: [] is not an object"),
        (_set("rows", 0, "ours", "p50", to="38"), 'rows[0].ours.p50: "38" is not a number'),
        (_set("rows", 0, "ours", "p50", to=float("nan")), "rows[0].ours.p50: NaN is not a number"),
        (lambda value: value["rows"][0]["ours"].pop("n"), "rows[0].ours: has no 'n'"),
        (_set("rows", 0, "unstable", to=["x"]), 'rows[0].unstable: ["x"] is not a list of some of'),
        (_set("rows", 0, "unstable", to=[[]]), "rows[0].unstable: [[]] is not a list of some of"),
        (_set("rows", 0, "note", to=None), "rows[0].note: null is not a text"),
    ],
)
def test_what_is_wrong_is_said_and_where(change: Callable[[Any], None], said: str) -> None:
    value = copy.deepcopy(MEASURED.as_json())
    change(value)
    with pytest.raises(ConfigError) as error:
        Results.from_json(value)
    assert str(error.value).startswith(said)
    assert str(error.value).endswith("give a file that pageferry bench --json has written")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_is_not_json_is_named(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "other.json"
    file.write_bytes(data)
    with pytest.raises(ConfigError) as error:
        load(file)
    assert str(error.value).startswith(f"{file}: is not JSON: ")
    assert "\n" not in str(error.value)


def test_a_ratio_is_one_of_medians() -> None:
    measured = row(ours=10.0, floor=4.0, pipe=0.0)
    assert measured.ratio("ours", "floor") == 2.5
    assert measured.ratio("ours", "copy") is None
    assert measured.ratio("ours", "pipe") is None
