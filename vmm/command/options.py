"""The options that every command that runs machines has, and the monitor that they describe."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from vmm.errors import ConfigError
from vmm.host.choice import DOORBELLS
from vmm.memory.movers import MOVERS
from vmm.monitor import Monitor
from vmm.observe.trace import TraceFile
from vmm.sizes import parse_limit, parse_size

_STANDARD_ERROR = Path("-")

_F = TypeVar("_F", bound=Callable[..., Any])


class Size(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions only
    """A size as people write them, in bytes: "64K" is 65536; 0 only for a `limit`."""

    name = "size"

    def __init__(self, *, limit: bool = False) -> None:
        self._parse = parse_limit if limit else parse_size

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return self._parse(value)
        except ConfigError as error:
            self.fail(str(error), param, ctx)


class _Seconds(click.FloatRange):
    name = "seconds"

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        seconds = float(super().convert(value, param, ctx))
        if not math.isfinite(seconds):
            self.fail(f"{value} is not a number of seconds", param, ctx)
        return seconds


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
            "--window", type=Size(), default="1G", show_default=True, help="Each machine's window."
        ),
        click.option(
            "--copy-below",
            type=Size(limit=True),
            help="Copy exchanges of less, 0 for none [this host's].",
        ),
        click.option(
            "--timeout",
            type=_Seconds(),
            help="Stop the guests after this long.",
        ),
        click.option(
            "--workers",
            type=click.IntRange(1, 256),
            default=1,
            help="Threads that run machines [1].",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
        click.option(
            "--trace",
            type=click.Path(readable=False, path_type=Path),
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
            target = sys.stderr.fileno() if trace == _STANDARD_ERROR else trace
            monitor.trace.listen(stack.enter_context(TraceFile(target)))
        yield monitor


def check_output(output: Path, inputs: Iterable[Path]) -> None:
    """Raise ConfigError if a file that is to be written is one that is to be read."""
    for path in inputs:
        with contextlib.suppress(OSError):  # one that is not there is another
            if output.samefile(path):
                raise ConfigError(f"{output}: would be overwritten: name another file to write to")
