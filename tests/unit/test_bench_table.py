"""The results as people see them."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console
from unit.bench_scene import HOST, results, row

from vmm.bench.results import Results
from vmm.bench.table import number, show_results


def shown(found: Results, encoding: str = "utf-8", width: int = 60) -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace")
    show_results(Console(file=file, width=width), found)
    file.flush()
    return file.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]


def test_the_host_is_described_above_the_table() -> None:
    first, second, third, *_ = shown(results()).splitlines()
    assert first == "A Processor, 2 cores, Linux 6.18.0"
    assert second.startswith("backend npt, doorbell hypercall, mover memfd, ring 0; huge pages: ")
    assert third == "pageferry 0.1.0, python 3.11.7; 2030-01-02T03:04:05+00:00"
    assert "emulated" not in shown(results())
    assert "an emulated processor" in shown(Results({**HOST, "emulated": True}, ()))


def test_a_row_has_its_numbers_and_the_ratio_to_the_floor_whatever_the_width() -> None:
    found = results(row("extent_touched", 16 << 20, ours=1234.5, floor=617.25, pipe=16176))
    (line,) = [line for line in shown(found).splitlines() if "extent_touched" in line]
    cells = line.split()
    assert cells == [
        *("extent_touched", "16", "MiB", "1,234", "2,469", "617", "2.00"),
        *("16,176", "100"),
    ]


def test_an_unstable_number_is_marked_and_the_mark_explained() -> None:
    noisy = dataclasses.replace(row(ours=40, pipe=7), unstable=("pipe",))
    text = shown(results(noisy))
    assert "7.00~" in text
    assert "40.0~" not in text
    assert "~ unstable: the medians of its rounds differ by more than 10 %" in text
    assert "~" not in shown(results(row(ours=40, pipe=7)))


def test_notes_are_below_the_table_each_once() -> None:
    rows = [
        dataclasses.replace(row("page", ours=1), note="floor: no [compiler]"),
        dataclasses.replace(row("extent_touched", 1 << 30), note="left out"),
        dataclasses.replace(row("share", ours=1), note="floor: no [compiler]"),
    ]
    lines = shown(results(*rows)).splitlines()
    assert lines[-2:] == ["- page, share: floor: no [compiler]", "- extent_touched 1 GiB: left out"]
    same = [dataclasses.replace(one, note="none") for one in rows]
    assert shown(results(*same)).splitlines()[-1] == "- all: none"


def test_a_rate_has_no_99th_percentile_to_show() -> None:
    text = shown(results(row("rate_1_worker", 64, ours=21000, pipe=380000)))
    assert "21,000" in text
    assert "42,000" not in text
    assert "380,000" in text


def test_where_there_is_no_utf_8_it_is_ascii() -> None:
    text = shown(results(), "ascii")
    assert text.isascii()
    assert "\\" not in text
    assert "medians in us per message" in text
    assert "medians in µs per message" in shown(results())


def test_results_of_other_hosts_and_of_nothing_can_be_shown() -> None:
    assert "what" in shown(Results({}, ()))
    assert "what" in shown(Results({"thp": 3, "cpu": None}, (row(),)))


@pytest.mark.parametrize(
    ("value", "text"), [(0.9136, "0.91"), (9.999, "10.00"), (38.14, "38.1"), (16176.4, "16,176")]
)
def test_a_number_has_three_digits_or_more(value: float, text: str) -> None:
    assert number(value) == text
