"""The `pageferry` command."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

from vmm import __version__, host
from vmm.demo import DEFAULT_FILE, check_file, run_demo
from vmm.doctor import examine
from vmm.doctor_report import show_examination
from vmm.errors import ConfigError
from vmm.failure import EXIT_FAILED, EXIT_FAULT, EXIT_HOST, EXIT_TIMEOUT, Failure, Group
from vmm.guest.abi import NAME_MAX, PAGE_SIZE
from vmm.guest.build import build_guest
from vmm.guest.bundled import ROOT
from vmm.guest.compiler import find_compiler
from vmm.host.choice import DOORBELLS
from vmm.machine import Machine, State
from vmm.memory.movers import MOVERS
from vmm.monitor import Monitor
from vmm.nested.command import nested
from vmm.report import live_progress, show_report
from vmm.sizes import pages_for, parse_size
from vmm.trace import TraceFile

_SPARE_PAGES = 16  # of the demo's, besides the file's: the page of its proof
_LONGEST_NAME = NAME_MAX - len("-999") - 1

_F = TypeVar("_F", bound=Callable[..., Any])


class _Size(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions only
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_size(value)
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


def _machine_options(function: _F) -> _F:
    """Add the options that every command that runs machines has."""
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
            "--window", type=_Size(), default="1G", show_default=True, help="Each machine's window."
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
            help="Write every event to this file, a line each.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


@contextlib.contextmanager
def _monitor(
    options: dict[str, Any],
    console: Callable[[str, str], None],
    inputs: Iterable[Path],
    pool: int | None = None,
) -> Iterator[Monitor]:
    """Open a monitor as the common options say, with its trace file, which may be no input."""
    ring, trace = options["ring"], options["trace"]
    if trace is not None:
        _check_output(trace, inputs)
    with contextlib.ExitStack() as stack:
        monitor = stack.enter_context(
            Monitor(
                ring=None if ring is None else int(ring),
                doorbell=options["doorbell"],
                mover=options["mover"],
                pool=pool,
                workers=options["workers"],
                console=console,
            )
        )
        if trace is not None:
            monitor.trace.listen(stack.enter_context(TraceFile(trace)))
        yield monitor


def _check_output(output: Path, inputs: Iterable[Path]) -> None:
    """Raise ConfigError if a file that is to be written is one that is to be read."""
    for path in inputs:
        with contextlib.suppress(OSError):  # one that is not there is another
            if output.samefile(path):
                raise ConfigError(f"{output}: would be overwritten: name another file to write to")


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pageferry")
def main() -> None:
    """Virtual machines that talk by moving pages, on Linux /dev/kvm."""


main.add_command(nested)


@main.command()
@click.argument("file", type=click.Path(readable=False, path_type=Path), required=False)
@_machine_options
def demo(file: Path | None, as_json: bool, **options: Any) -> None:
    """Send FILE from one machine to another by its pages, and show that it is true.

    Two machines boot. The file goes into a's window; a sends it to b; b computes its SHA-256,
    changes it in place and sends it back. Then a touches a page that it has sent, and is stopped.
    """
    path, window = file or DEFAULT_FILE, options["window"]
    pool = (pages_for(check_file(path, window)) + _SPARE_PAGES) * PAGE_SIZE
    terminal = Console(stderr=as_json)
    lines: list[tuple[str, str]] = []

    def keep(name: str, line: str) -> None:
        lines.append((name, line))

    with (
        _monitor(options, keep, [path], pool) as monitor,
        live_progress(terminal, monitor, enabled=not as_json) as progress,
    ):
        report = run_demo(monitor, path, window, options["timeout"], progress)
    if as_json:
        click.echo(json.dumps(report.as_json()))
    else:
        show_report(terminal, report, lines)
    if not report.ok:
        raise Failure("the demo saw something that should not be: look at the report", EXIT_FAILED)


@main.command()
@click.argument(
    "guests",
    nargs=-1,
    required=True,
    type=click.Path(readable=False, path_type=Path),
    metavar="GUEST.elf …",
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

    # Nobody can have more than the windows hold: address space for more would be reserved in vain.
    pool = min(len(guests) * options["window"], host.total_memory())
    with _monitor(options, say, guests, pool) as monitor:
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


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(as_json: bool) -> None:
    """Examine this host: what its KVM can do, what will be used and why, and what to mend.

    The exit code is 0 if the demo would run.
    """
    findings = examine()
    if as_json:
        click.echo(json.dumps(findings.as_json()))
    else:
        show_examination(Console(), findings)
    if findings.verdict == "unusable":
        sys.exit(EXIT_HOST)


def _named(guests: tuple[Path, ...]) -> Iterator[tuple[str, Path]]:
    """Name each guest after its file, numbering those that would be called the same."""
    used = {"host"}
    for path in guests:
        stem = _printable(path.stem)
        names = (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))
        name = next(name for name in names if name not in used)
        used.add(name)
        yield name, path


def _printable(stem: str) -> str:
    """Return what a machine may be called: printable, and with room for a number."""
    text = "".join(c if c.isprintable() else "_" for c in stem)
    return text.encode()[:_LONGEST_NAME].decode(errors="ignore") or "guest"


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
    _check_output(target, sources)
    if target.is_dir():
        raise ConfigError(f"{target}: is a directory: name the ELF to write (-o)")
    build_guest(
        sources,
        target.absolute(),
        include_dirs=[ROOT / "include"],
        library_dir=ROOT / "lib",
        compiler=find_compiler(cc),
    )
    click.echo(str(target))
