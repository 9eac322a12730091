"""The options that every command that runs machines has, and the monitor that they describe."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from vmm.command.output import check_output, open_in_place
from vmm.command.values import Count, OutputPath, Seconds, Size
from vmm.guest.x86 import LARGE_PAGE
from vmm.host.choice import DOORBELLS
from vmm.memory.movers import MOVERS
from vmm.monitor import Monitor
from vmm.observe.trace import TraceFile, cannot_write

_STANDARD_ERROR = Path("-")

_F = TypeVar("_F", bound=Callable[..., Any])


def machine_options(function: _F) -> _F:
    """Add the common options to a command."""
    options = (
        click.option(
            "--mover", type=click.Choice(list(MOVERS)), help="How pages move [this host's]."
        ),
        click.option(
            "--ring", type=click.Choice(["0", "3"]), help="The guests' ring [this host's]."
        ),
        click.option(
            "--doorbell", type=click.Choice(DOORBELLS), help="How guests ring [this host's]."
        ),
        click.option(
            "--window",
            type=Size(unit=LARGE_PAGE),
            default="1G",
            show_default=True,
            help="Each machine's window.",
        ),
        click.option(
            "--copy-below",
            type=Size(limit=True),
            help="Copy exchanges of less, 0 for none [this host's].",
        ),
        click.option(
            "--timeout",
            type=Seconds(),
            metavar="SECONDS",
            help="Stop the guests after this long.",
        ),
        click.option(
            "--workers",
            type=Count(256),
            metavar="N",
            default=1,
            help="Threads that run machines [1].",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
        click.option(
            "--trace",
            type=OutputPath(),
            help="Write every event to this file, a line each; - is standard error.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


@contextlib.contextmanager
def open_monitor(
    options: dict[str, Any],
    console: Callable[[str, str], None],
    inputs: Iterable[Path],
    pool: int | None = None,
    *,
    audit: bool = False,
) -> Iterator[Monitor]:
    """Open a monitor as the common options say, with its trace file, which may be no input."""
    ring, trace = options["ring"], options["trace"]
    if trace not in (None, _STANDARD_ERROR):
        check_output(trace, inputs)
    with contextlib.ExitStack() as stack:
        monitor = stack.enter_context(
            Monitor(
                ring=None if ring is None else int(ring),
                doorbell=options["doorbell"],
                mover=options["mover"],
                pool=pool,
                workers=options["workers"],
                copy_below=options["copy_below"],
                console=console,
                audit=audit,
            )
        )
        if trace is not None:
            monitor.trace.listen(stack.enter_context(_trace_file(trace)))
        yield monitor


@contextlib.contextmanager
def _trace_file(path: Path) -> Iterator[TraceFile]:
    if path == _STANDARD_ERROR:
        with TraceFile(sys.stderr.fileno(), "standard error") as file:
            yield file
        return
    try:
        descriptor = open_in_place(path)
    except OSError as error:
        raise cannot_write(str(path), error) from error
    try:
        with TraceFile(descriptor, str(path)) as file:
            yield file
    finally:
        os.close(descriptor)
