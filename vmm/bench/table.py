"""The results as a table for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vmm.bench.results import COLUMNS, RATE, Results, Row, row_label
from vmm.bench.samples import Samples
from vmm.sizes import format_size

_HEADINGS = ("what", "size", "ours", "p99", "floor", "ours/floor")
_OTHERS = COLUMNS[2:]  # each is left out if no row has it
_WIDEST = 1000


def show_results(console: Console, results: Results) -> None:
    """Print the host, the table, and what there is to say about it."""
    for line in _host(results.host):
        _say(console, line)
    unit = "us" if console.options.ascii_only else "\N{MICRO SIGN}s"
    title = f"medians in {unit} per message, one way; rates in messages/s"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    others = [name for name in _OTHERS if any(row.column(name) for row in results.rows)]
    headings = (*_HEADINGS, *(name.replace("_", " ") for name in others), "n")
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left", no_wrap=True)
    for row in results.rows:
        table.add_row(*_cells(row, others))
    # As wide as it has to be, also where that is more than the terminal is: a number is not folded.
    console.width = console.measure(table, options=console.options.update(width=_WIDEST)).maximum
    console.print(table)
    for line in _notes(results):
        _say(console, line)


def _host(host: dict[str, object]) -> Iterator[str]:
    said = {key: str(host.get(key, "?")) for key in ("cpu", "cores", "kernel", "date")}
    yield f"[bold]{escape(said['cpu'])}[/], {said['cores']} cores, Linux {escape(said['kernel'])}"
    machines = ", ".join(
        f"{key} {host[key]}" for key in ("backend", "doorbell", "mover", "ring") if key in host
    )
    yield escape(f"{machines}; huge pages: {_huge_pages(host.get('thp'))}")
    versions = ", ".join(f"{key} {host[key]}" for key in ("pageferry", "python") if key in host)
    yield escape(f"{versions}; {said['date']}")
    if host.get("emulated"):
        yield "[bold]an emulated processor[/]: compare these times with each other only"


def _huge_pages(settings: object) -> str:
    if not isinstance(settings, dict):
        return "?"
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _cells(row: Row, others: Iterable[str]) -> Iterator[str]:
    yield row.name
    yield format_size(row.bytes) if row.bytes else "-"
    yield _cell(row, "ours")
    yield "-" if row.ours is None or row.unit == RATE else number(row.ours.p99)
    yield _cell(row, "floor")
    ratio = row.ratio("ours", "floor")
    yield "-" if ratio is None else f"{ratio:.2f}"
    for name in others:
        yield _cell(row, name)
    yield _count(row)


def _cell(row: Row, name: str) -> str:
    samples = row.column(name)
    return "-" if samples is None else number(samples.p50) + "~" * (name in row.unstable)


def _count(row: Row) -> str:
    counted: list[Samples] = [found for name in COLUMNS if (found := row.column(name))]
    return str((row.ours or counted[0]).n) if counted else "-"


def number(value: float) -> str:
    """Return a number for people: three digits at least, and no more decimals than that takes."""
    decimals = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{decimals}f}"


def _notes(results: Results) -> Iterator[str]:
    if any(row.unstable for row in results.rows):
        yield "~ unstable: the medians of its rounds differ by more than 10 %"
    if any(row.unit == RATE for row in results.rows):
        yield "n of a rate: how many times it was measured"
    by_note: dict[str, list[str]] = {}
    for row in results.rows:
        if row.note:
            by_note.setdefault(row.note, []).append(row_label(row.name, row.bytes))
    everywhere = len(results.rows) > 1
    for note, rows in by_note.items():
        where = "all" if everywhere and len(rows) == len(results.rows) else ", ".join(rows)
        yield escape(f"- {where}: {note}")


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)
