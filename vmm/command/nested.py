"""`pageferry nested`: the command line of the lanes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import click

from vmm.command.failure import EXIT_INTERRUPTED, EXIT_TIMEOUT, Failure, expected_errors
from vmm.command.values import FilePath, Seconds
from vmm.errors import ConfigError
from vmm.host.cache import cache_root
from vmm.nested import shell as terminal
from vmm.nested.cache import Cache
from vmm.nested.errors import LaneTimeout
from vmm.nested.lanes import LANES
from vmm.nested.payload import Job
from vmm.nested.run import run

DEFAULT_LIMIT = 3600.0


class _Command(click.Command):
    """Ends with one line and an exit code also when it is not part of the `pageferry` command."""

    def invoke(self, ctx: click.Context) -> Any:
        with expected_errors():
            try:
                return super().invoke(ctx)
            except LaneTimeout as error:
                raise Failure(str(error), EXIT_TIMEOUT) from error
            except KeyboardInterrupt as error:
                raise Failure("interrupted", EXIT_INTERRUPTED) from error


@click.command(cls=_Command, context_settings={"allow_interspersed_args": False})
@click.option(
    "--lane", type=click.Choice(list(LANES)), required=True, help="Which hardware to emulate."
)
@click.option("--shell", is_flag=True, help="A shell in the lane instead of a command.")
@click.option(
    "--limit",
    type=Seconds(),
    default=DEFAULT_LIMIT,
    show_default=True,
    metavar="SECONDS",
    help="Give up this long after the command has started.",
)
@click.option(
    "--output",
    type=FilePath(file_okay=False),
    metavar="DIR",
    help="Bring back the files that the command leaves in DIR.",
)
@click.option("--rebuild", is_flag=True, help="Build kernel and root anew, from today's packages.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[COMMAND …]")
def nested(
    lane: str,
    shell: bool,
    limit: float,
    output: Path | None,
    rebuild: bool,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND where KVM has NPT or EPT: in an emulator, with the project and the files it
    names.

    npt is QEMU with SVM, ept is Bochs with VMX; neither needs this machine's /dev/kvm. The command
    runs in the same directory as here. Its output comes to standard output, its exit status is
    ours. The first use builds a small Debian system into the cache ($PAGEFERRY_CACHE), in about a
    minute.
    """
    if shell == bool(command):
        raise click.UsageError("give a command, or --shell")
    if shell:
        terminal.check_terminal()
    size = shutil.get_terminal_size()
    cwd = Path.cwd()
    job = Job(lane, command, cwd, _output(cwd, output), size.lines, size.columns)
    with _ended_by_signals():
        cache = Cache(cache_root(), _say)
        if rebuild:
            cache.forget()
        sys.exit(run(job, cache, limit, _write))


def _output(cwd: Path, output: Path | None) -> Path | None:
    """Return the output's directory as an absolute path.

    Raises ConfigError for one that a lane cannot have.
    """
    if output is None:
        return None
    path = Path(os.path.realpath(cwd / output))
    if path == Path("/"):
        raise ConfigError(
            f"--output {output}: that would be the whole lane: name a directory in it"
        )
    return path


def _say(line: str) -> None:
    click.echo(f"pageferry: {line}", err=True)


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let signals that end a process end this one in order.

    The emulator is killed, its files are removed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    kept = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
