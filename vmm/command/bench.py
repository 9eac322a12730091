"""`pageferry bench`: the command line."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator
from os.path import realpath
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vmm.bench import chart, ours, programs
from vmm.bench.check import check
from vmm.bench.describe import LANE, describe
from vmm.bench.plan import FULL, QUICK, QUICK_IN_LANE, Composed, Effort, cases, measure
from vmm.bench.results import COLUMNS, ROW_NAMES, Results, load
from vmm.bench.table import show_results
from vmm.command.failure import EXIT_FAILED, Failure
from vmm.command.output import Output, output
from vmm.command.values import FilePath, OutputPath
from vmm.errors import ConfigError

_STANDARD_OUTPUT = Path("-")
_TRIES = 3  # of a check


class _Rows(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions only
    """Names of rows with commas between them, as a tuple."""

    name = "rows"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        names = tuple(str(value).split(","))
        for name in names:
            if name not in ROW_NAMES:
                self.fail(f"there is no row {name!r}: there are {', '.join(ROW_NAMES)}", param, ctx)
        return names


@click.command()
@click.option("--quick", is_flag=True, help="Fewer sizes and fewer messages: two minutes.")
@click.option(
    "--rows",
    type=_Rows(),
    default=",".join(ROW_NAMES),
    metavar="A,B,…",
    help="Measure these rows only [all].",
)
@click.option(
    "--json",
    "json_file",
    type=OutputPath(),
    metavar="FILE",
    help="Write the results to FILE; - prints them instead of the table.",
)
@click.option(
    "--plot",
    type=OutputPath(),
    metavar="FILE.svg",
    help="Draw what a message costs over its size; needs pageferry[plot].",
)
@click.option(
    "--from",
    "source",
    type=FilePath(),
    metavar="FILE",
    help="Measure nothing: take the results that --json has written.",
)
@click.option(
    "--check",
    "checked",
    is_flag=True,
    help="Fail if something costs more, compared with the others, than it should. What does is"
    " measured again, as often as twice.",
)
def bench(
    quick: bool,
    rows: tuple[str, ...],
    json_file: Path | None,
    plot: Path | None,
    source: Path | None,
    checked: bool,
) -> None:
    """Measure what a message costs: moved, copied, and by pipe, socket and shared memory.

    Rows are kinds of messages, and sizes of them; columns are ways to send them: ours; the floor, a
    C program that does the same system calls; a copy by the same monitor; and, between two Python
    processes, a pipe, a Unix socket and shared memory. The columns of a row take turns.
    """
    given = click.get_current_context().get_parameter_source("rows")
    if source is not None and (quick or given is click.core.ParameterSource.COMMANDLINE):
        raise click.UsageError("--from measures nothing: leave --quick and --rows out")
    kind = "" if plot is None else chart.check_format(plot)
    with contextlib.ExitStack() as stack:
        to_json, to_plot = _outputs(stack, json_file, plot, source)
        results = load(source) if source else _measured(_effort(quick=quick), rows)
        if checked and not source:
            results = _again(results, _effort(quick=quick))
        if to_json is not None:
            to_json.write((json.dumps(results.as_json(), indent=1) + "\n").encode())
        if to_plot is not None:
            to_plot.write(chart.draw(results, kind))
        if json_file == _STANDARD_OUTPUT:
            click.echo(json.dumps(results.as_json()))
        else:
            show_results(Console(), results)
    if checked:
        _check(results)


def _outputs(
    stack: contextlib.ExitStack, json_file: Path | None, plot: Path | None, source: Path | None
) -> tuple[Output | None, Output | None]:
    """Open the files to be written: what is wrong with them is said before anything is measured."""
    if json_file is not None and plot is not None and realpath(json_file) == realpath(plot):
        raise ConfigError(f"{plot}: would be written twice: give --json and --plot two names")
    inputs = [] if source is None else [source]
    paths = (None if json_file == _STANDARD_OUTPUT else json_file, plot)
    to_json, to_plot = (
        None if path is None else stack.enter_context(output(path, inputs)) for path in paths
    )
    return to_json, to_plot


def _effort(*, quick: bool) -> Effort:
    if quick:
        return QUICK_IN_LANE if LANE in os.environ else QUICK
    return FULL


def _measured(effort: Effort, rows: tuple[str, ...]) -> Results:
    from vmm.bench.calls import Calls  # multiprocessing is slow to load
    from vmm.bench.elsewhere import Elsewhere

    host = describe()
    plan = list(cases(effort, rows))
    measured = []
    steps_in_all = len(plan) * effort.rounds * len(COLUMNS)
    with Elsewhere() as elsewhere, Calls() as calls, _progress(steps_in_all) as tell:
        for done, case in enumerate(plan):
            steps = iter(range(done * effort.rounds * len(COLUMNS), sys.maxsize))
            row = measure(
                Composed(case, (ours.columns, programs.columns, elsewhere.columns, calls.columns)),
                effort.rounds,
                lambda label=case.label, steps=steps: tell(label, next(steps)),  # type: ignore[misc]
            )
            measured.append(row)
    return Results(host, tuple(measured))


def _again(results: Results, effort: Effort) -> Results:
    """Measure rows again that are out of bounds: another program may have had the processors, when
    one column's turn was. What costs too much does so every time.
    """
    for _ in range(_TRIES - 1):
        beyond = check(results).beyond
        if not beyond:
            break
        click.echo(f"pageferry: check: once more: {', '.join(beyond)}", err=True)
        rows = iter(_measured(effort, beyond).rows)
        kept = (next(rows) if row.name in beyond else row for row in results.rows)
        results = dataclasses.replace(results, rows=tuple(kept))
    return results


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[str, int], None]]:
    """Show a bar on standard error, if that is a terminal.

    It moves when it is told to, and at no other time: a thread of its own would be measured, too.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda what, done: None
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as bars:
        task = bars.add_task("", total=total)
        yield lambda what, done: bars.update(task, description=what, completed=done, refresh=True)


def _check(results: Results) -> None:
    """Say what was not compared. Raises Failure, with what is out of bounds, if anything is."""
    verdict = check(results)
    for line in verdict.skipped:
        click.echo(f"pageferry: check: skipped: {line}", err=True)
    if verdict.violations:
        number = f"{len(verdict.violations)} of {verdict.compared} ratios are out of bounds:"
        raise Failure(f"check: {number}", EXIT_FAILED, "\n".join(verdict.violations))
    if not verdict.ok:
        raise Failure("check: there was nothing to compare: leave --rows out", EXIT_FAILED)
    click.echo(f"pageferry: check: {verdict.compared} ratios are within bounds", err=True)
