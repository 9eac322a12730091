"""The results as a picture: what a message costs over its size. Needs matplotlib, when called.

The same results make the same picture, byte for byte, with the same matplotlib.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vmm.bench.breakeven import Curve, break_even
from vmm.bench.results import EXTENTS, Results
from vmm.errors import ConfigError
from vmm.sizes import format_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class _Line(NamedTuple):
    """How a column is drawn: colours that the colour-blind tell apart, and markers besides."""

    label: str
    colour: str  # of Okabe's and Ito's
    marker: str
    style: str
    width: float


_LINES = {
    "ours": _Line("pageferry: moved", "#D55E00", "o", "-", 2.4),
    "floor": _Line("moved, in C (the floor)", "#000000", ".", ":", 1.2),
    "copy": _Line("pageferry: copied", "#E69F00", "s", "-", 1.4),
    "pipe": _Line("multiprocessing.Pipe", "#0072B2", "^", "--", 1.4),
    "socket": _Line("Unix socket", "#009E73", "v", "--", 1.4),
    "shared_memory": _Line("shared memory, copied in and out", "#CC79A7", "D", "-.", 1.4),
}
_TITLES = dict(
    zip(EXTENTS, ("the receiver touches nothing", "the receiver reads every page"), strict=True)
)
_SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "pageferry",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 9,
    "axes.unicode_minus": False,
}
# What would make a file differ from the one of yesterday.
_NO_DATE: dict[str, dict[str, Any]] = {
    "svg": {"metadata": {"Date": None, "Creator": None}},
    "pdf": {"metadata": {"CreationDate": None, "ModDate": None}},
    "png": {"metadata": {"Software": None}, "dpi": 150},
}


def check_format(path: Path) -> str:
    """Return the format that a file's suffix asks for.

    Raises ConfigError if there is no matplotlib, or if it does not know it.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib: pip install 'pageferry[plot]'")
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    kind = path.suffix.removeprefix(".").lower()
    if kind not in known:
        raise ConfigError(f"{path}: no picture can be written as that: name it .svg, .png or .pdf")
    return kind


def curve(results: Results, row: str, column: str) -> Curve:
    """Return a column's medians by size, of the rows of a name."""
    points = ((found.bytes, found.column(column)) for found in results.named(row))
    return {size: samples.p50 for size, samples in points if samples is not None and samples.p50}


def draw(results: Results, kind: str) -> bytes:
    """Return the picture in a format that check_format has returned.

    Raises ConfigError if the results have nothing to draw.
    """
    if not any(curve(results, row, column) for row in EXTENTS for column in _LINES):
        raise ConfigError(f"nothing to plot: there are no rows {' and '.join(EXTENTS)}")
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(11, 5.6), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, row in zip(panels, EXTENTS, strict=True):
            _panel(axes, results, row)
        panels[0].set_ylabel("one-way latency (median)")
        handles, labels = _legend(panels)
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        figure.suptitle(_headline(results))
        file = io.BytesIO()
        figure.savefig(file, format=kind, **_NO_DATE.get(kind, {}))
    return file.getvalue()


def _panel(axes: Axes, results: Results, row: str) -> None:
    for name, line in _LINES.items():
        points = sorted(curve(results, row, name).items())
        if points:
            axes.plot(
                *zip(*points, strict=True),
                label=line.label,
                color=line.colour,
                marker=line.marker,
                linestyle=line.style,
                linewidth=line.width,
                markersize=5,
            )
    axes.set_title(_TITLES[row])
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: format_size(round(value)))
    axes.yaxis.set_major_formatter(lambda value, _: _duration(value))
    axes.tick_params(axis="x", labelrotation=45)
    axes.set_xlabel("size of the message")
    axes.grid(visible=True, color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    _break_evens(axes, results, row)


def _break_evens(axes: Axes, results: Results, row: str) -> None:
    """Mark on the curve of ours where it becomes the cheaper one, and list it."""
    lines = []
    for name, size in break_evens(results, row):
        line = _LINES[name]
        if size is None:
            lines.append(f"{line.label}: never")
        elif size == 0:
            lines.append(f"{line.label}: at every size")
        else:
            lines.append(f"{line.label}: from about {_about(size)}")
            axes.axvline(size, color=line.colour, linestyle=line.style, linewidth=0.8, zorder=1)
    if lines:
        axes.text(
            0.02,
            0.98,
            "\n".join(["moving is cheaper than", *lines]),
            transform=axes.transAxes,
            verticalalignment="top",
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "#BBBBBB", "boxstyle": "round"},
        )


def break_evens(results: Results, row: str) -> Iterator[tuple[str, float | None]]:
    """Give the other columns of the rows of a name, and from which size on ours is cheaper.

    Left out are those that cannot be compared, and the floor: it is what ours would be at best.
    """
    ours = curve(results, row, "ours")
    for name in _LINES:
        other = curve(results, row, name)
        if name not in ("ours", "floor") and ours.keys() & other.keys():
            yield name, break_even(ours, other)


def _legend(panels: Any) -> tuple[list[Any], list[str]]:
    """Return the legend's handles and labels: each line once, whichever panels have it."""
    found: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    order = [line.label for line in _LINES.values() if line.label in found]
    return [found[label] for label in order], order


def _headline(results: Results) -> str:
    host = results.host
    words = [str(host[key]) for key in ("cpu", "kernel") if host.get(key)]
    if host.get("backend"):
        words.append(f"{host['backend']} back end")
    if host.get("emulated"):
        words.append("emulated")
    return ", ".join(["What a message costs", *words])


def _about(size: float) -> str:
    """Return a size with two digits: it lies between two that were measured."""
    unit, name = (1 << 20, "MiB") if size >= 1 << 20 else (1 << 10, "KiB")
    return f"{float(f'{size / unit:.2g}'):g} {name}"


def _duration(microseconds: float) -> str:
    for unit, size in (("s", 1e6), ("ms", 1e3), ("µs", 1.0)):
        if microseconds >= size:
            return f"{microseconds / size:g} {unit}"
    return f"{microseconds * 1e3:g} ns"
