"""The picture that is made of results."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from unit.bench_scene import results, row

from vmm.bench import chart
from vmm.errors import ConfigError

# With the extra "test" it is there; in a nested lane, or with less, it need not be.
pytest.importorskip("matplotlib", reason="there is no matplotlib: pip install 'pageferry[plot]'")


def test_the_picture_has_both_panels_every_column_and_the_break_even_sizes() -> None:
    text = chart.draw(results(), "svg").decode()
    words = [element.text for element in ElementTree.fromstring(text).iter() if element.text]
    for wanted in (
        "the receiver touches nothing",
        "the receiver reads every page",
        "one-way latency (median)",
        "What a message costs, A Processor, 6.18.0, npt back end",
        "multiprocessing.Pipe: from about 9.8 KiB",
    ):
        assert any(wanted in word for word in words), wanted
    for line in chart._LINES.values():
        assert any(word == line.label for word in words), line.label


def test_the_same_results_make_the_same_picture() -> None:
    first, second = chart.draw(results(), "svg"), chart.draw(results(), "svg")
    assert first == second
    assert b"<dc:date>" not in first


def test_other_formats_come_by_the_files_suffix() -> None:
    assert chart.check_format(Path("a.SVG")) == "svg"
    assert chart.check_format(Path("a.png")) == "png"
    assert chart.draw(results(), "png").startswith(b"\x89PNG")
    for name in ("picture", "a.json"):
        with pytest.raises(ConfigError, match=r"name it \.svg, \.png or \.pdf"):
            chart.check_format(Path(name))


def test_what_is_missing_is_not_drawn() -> None:
    few = results(row("extent_touched", 4096, ours=40), row("extent_touched", 1 << 20, ours=40))
    text = chart.draw(few, "svg").decode()
    assert "pageferry: moved" in text
    assert "multiprocessing.Pipe" not in text
    assert "moving is cheaper than" not in text
    with pytest.raises(ConfigError, match="nothing to plot: there are no rows extent_untouched"):
        chart.draw(results(row(ours=40)), "svg")


def test_break_even_sizes_are_of_what_was_measured() -> None:
    found = dict(chart.break_evens(results(), "extent_touched"))
    assert list(found) == ["copy", "pipe", "socket", "shared_memory"]
    assert found["copy"] == pytest.approx(10_000)
