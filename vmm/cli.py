"""The `pageferry` command."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

from vmm import __version__
from vmm.demo import DEFAULT_FILE, check_file, run_demo
from vmm.errors import ConfigError, GuestFault, HostError, PageferryError
from vmm.guest.build import BuildError, build_guest, find_compiler
from vmm.guest.bundled import ROOT
from vmm.host.facts import DOORBELLS
from vmm.machine import Machine, State
from vmm.memory.movers import MOVERS
from vmm.monitor import Monitor
from vmm.report import live_progress, show_report
from vmm.sizes import parse_size
from vmm.trace import TraceFile

# Exit codes besides 0, click's 2 for a wrong command line, and a guest's own; see docs/cli.md.
EXIT_FAILED = 1
EXIT_HOST = 69  # sysexits.h EX_UNAVAILABLE: this host cannot run machines
EXIT_FAULT = 70  # EX_SOFTWARE: a guest was stopped by a fault
EXIT_TIMEOUT = 124  # as timeout(1)
EXIT_INTERRUPTED = 130  # as a shell says of SIGINT

_F = TypeVar("_F", bound=Callable[..., Any])


class Failure(click.ClickException):
    """What ends the command: one line on standard error, and an exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(" ".join(message.split()))
        self.exit_code = code  # type: ignore[misc]  # click declares it on the class only

    def show(self, file: Any = None) -> None:
        """Print the line."""
        click.echo(f"pageferry: {self.message}", file=file or sys.stderr)


def _failure(error: BaseException) -> Failure:
    """Return the failure that stands for an error."""
    if isinstance(error, HostError):
        return Failure(str(error), EXIT_HOST)
    if isinstance(error, GuestFault):
        return Failure(str(error), EXIT_TIMEOUT if error.kind == "timeout" else EXIT_FAULT)
    if isinstance(error, MemoryError):
        return Failure("out of memory: free some, or use smaller files and windows", EXIT_FAILED)
    return Failure(str(error), EXIT_FAILED)


class _Group(click.Group):
    """Turns every expected error into one line and an exit code.

    What is left is a bug, and shows itself.
    """

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (PageferryError, BuildError, MemoryError) as error:
            raise _failure(error) from error
        except BrokenPipeError:
            raise  # click ends quietly when its reader has gone
        except OSError as error:
            raise _failure(error) from error
        except (KeyboardInterrupt, click.Abort) as error:
            raise Failure("interrupted", EXIT_INTERRUPTED) from error


class _Size(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions only
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_size(value)
        except ConfigError as error:
            self.fail(str(error), param, ctx)


def _machine_options(function: _F) -> _F:
    """Add the options that every command that runs machines has."""
    options = (
        click.option("--mover", type=click.Choice(list(MOVERS)), help="How pages move [memfd]."),
        click.option(
            "--ring", type=click.Choice(["0", "3"]), help="The guests' ring [this host's]."
        ),
        click.option(
            "--doorbell", type=click.Choice(DOORBELLS), help="How guests ring [this host's]."
        ),
        click.option(
            "--window", type=_Size(), default="1G", show_default=True, help="Each machine's window."
        ),
        click.option(
            "--timeout",
            type=click.FloatRange(min=0, min_open=True),
            help="Stop the guests after SECONDS.",
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
            type=click.Path(path_type=Path),
            help="Write every event to this file, a line each.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


@contextlib.contextmanager
def _monitor(options: dict[str, Any], console: Callable[[str, str], None]) -> Iterator[Monitor]:
    """Open a monitor as the common options say, with its trace file."""
    ring = options["ring"]
    with contextlib.ExitStack() as stack:
        trace = options["trace"]
        file = stack.enter_context(TraceFile(trace)) if trace is not None else None
        monitor = stack.enter_context(
            Monitor(
                ring=None if ring is None else int(ring),
                doorbell=options["doorbell"],
                mover=options["mover"],
                workers=options["workers"],
                console=console,
            )
        )
        if file is not None:
            monitor.trace.listen(file)
        yield monitor


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pageferry")
def main() -> None:
    """Virtual machines that talk by moving pages, on Linux /dev/kvm."""


@main.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@_machine_options
def demo(file: Path | None, as_json: bool, **options: Any) -> None:
    """Send FILE from one machine to another by its pages, and show that it is true.

    Two machines boot. The file goes into a's window; a sends it to b; b computes its SHA-256,
    changes it in place and sends it back. Then a touches a page that it has sent, and is stopped.
    """
    path, window = file or DEFAULT_FILE, options["window"]
    check_file(path, window)
    terminal = Console(stderr=as_json)
    lines: list[tuple[str, str]] = []
    with _monitor(options, lambda name, line: lines.append((name, line))) as monitor:
        with live_progress(terminal, monitor, enabled=not as_json) as progress:
            report = run_demo(monitor, path, window, options["timeout"], progress)
    if as_json:
        click.echo(json.dumps(report.as_json()))
    else:
        show_report(terminal, report, lines)
    if not report.ok:
        raise Failure("the demo saw something that should not be: look at the report", EXIT_FAILED)


@main.command()
@click.argument(
    "guests", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="GUEST.elf …"
)
@click.option(
    "--memory",
    type=_Size(),
    default="16M",
    show_default=True,
    help="Each machine's private memory.",
)
@_machine_options
def run(guests: tuple[Path, ...], memory: int, as_json: bool, **options: Any) -> None:
    """Run guests of your own, each connected to all the others, until they have exited.

    What they log is printed with their names. The exit code is the first one of theirs that is not
    0; 70 if one was stopped by a fault, 124 if it was the time-out.
    """

    def say(name: str, line: str) -> None:
        click.echo(f"{name}: {line}", err=as_json)

    with _monitor(options, say) as monitor:
        for name, path in _named(guests):
            monitor.spawn(path, name=name, window=options["window"], memory=memory)
        machines = list(monitor.machines.values())
        for index, a in enumerate(machines):
            for b in machines[index + 1 :]:
                monitor.connect(a, b)
        monitor.run(options["timeout"])
        for machine in machines:
            if machine.state is not State.STOPPED:
                monitor.kill(machine, "waits for a message, and nobody is left to send one")
        if as_json:
            click.echo(json.dumps([machine.outcome() for machine in machines]))
        code = _exit_code(machines)
    sys.exit(code)


def _named(guests: tuple[Path, ...]) -> Iterator[tuple[str, Path]]:
    """Name each guest after its file, numbering those that would be called the same."""
    used: set[str] = set()
    for path in guests:
        stem = path.stem or "guest"
        names = (
            stem if number == 1 else f"{stem}-{number}" for number in range(1, len(guests) + 1)
        )
        name = next(name for name in names if name not in used)
        used.add(name)
        yield name, path


def _exit_code(machines: list[Machine]) -> int:
    """Print the faults; return the command's exit code."""
    faults = [machine.fault for machine in machines if machine.fault is not None]
    for fault in faults:
        click.echo(f"pageferry: {fault}", err=True)
    if faults:
        return EXIT_TIMEOUT if all(fault.kind == "timeout" for fault in faults) else EXIT_FAULT
    codes = [machine.exit_code or 0 for machine in machines]
    failed = next((code for code in codes if code), 0)
    return failed & 0xFF or (EXIT_FAILED if failed else 0)


@main.command()
@click.argument(
    "sources", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False)
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The ELF to write [the first source's name].",
)
@click.option("--cc", help="The C compiler [$PAGEFERRY_CC, cc, or the ziglang package].")
def build(sources: tuple[Path, ...], output: Path | None, cc: str | None) -> None:
    """Build a guest from C sources, with pageferry's headers, library and linker script."""
    target = output or sources[0].with_suffix(".elf")
    build_guest(
        sources,
        target,
        include_dirs=[ROOT / "include"],
        library_dir=ROOT / "lib",
        compiler=find_compiler(cc),
    )
    click.echo(str(target))
