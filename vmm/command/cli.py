"""The `pageferry` command."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from vmm import __version__, host
from vmm.command.bench import bench
from vmm.command.channels import channels, named
from vmm.command.compiling import compiler_options
from vmm.command.demo import DEFAULT_FILE, check_file, run_demo
from vmm.command.doctor import examine
from vmm.command.doctor_report import show_examination
from vmm.command.failure import (
    EXIT_FAILED,
    EXIT_FAULT,
    EXIT_HOST,
    EXIT_TIMEOUT,
    EXIT_USAGE,
    Failure,
    Group,
)
from vmm.command.nested import nested
from vmm.command.options import machine_options, open_monitor
from vmm.command.output import output
from vmm.command.reports import live_progress, show_report
from vmm.command.values import Count, FilePath, OutputPath, Size
from vmm.engine.machine import Machine, State
from vmm.errors import ConfigError
from vmm.guest.abi import PAGE_SIZE
from vmm.guest.build import build_guest
from vmm.guest.bundled import ROOT
from vmm.guest.compiler import find_compiler, work_directory
from vmm.sizes import pages_for

_LONG_NAME = 200  # bytes; a compiler's own files have names that are longer
_SPARE_PAGES = 16  # of the demo's, besides the file's: the page of its proof


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pageferry")
def main() -> None:
    """Virtual machines that talk by moving pages, on Linux /dev/kvm."""


main.add_command(bench)
main.add_command(nested)


@main.command()
@click.argument("file", type=FilePath(), required=False)
@machine_options
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
        open_monitor(options, keep, [path], pool) as monitor,
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
    type=FilePath(),
    metavar="GUEST.elf …",
)
@click.option(
    "--connect",
    multiple=True,
    metavar="A:B",
    help="Only these channels: A and B may send to each other. Repeatable.",
)
@click.option(
    "--one-way",
    multiple=True,
    metavar="A:B",
    help="Only these channels: A may send to B. Repeatable.",
)
@click.option(
    "--memory",
    type=Size(pages=True),
    default="16M",
    show_default=True,
    help="Each machine's private memory.",
)
@click.option(
    "--stack",
    type=Size(pages=True),
    default="256K",
    show_default=True,
    help="Each machine's stack, a part of its memory.",
)
@click.option(
    "--quota",
    type=Size(pages=True),
    help="What each machine may own at a time [what its window holds].",
)
@click.option(
    "--queue",
    type=Count(65536),
    metavar="N",
    default=64,
    show_default=True,
    help="Messages that may wait for each machine.",
)
@click.option("--audit", is_flag=True, help="Check after every operation who owns each page.")
@machine_options
def run(
    guests: tuple[Path, ...],
    connect: tuple[str, ...],
    one_way: tuple[str, ...],
    memory: int,
    stack: int,
    quota: int | None,
    queue: int,
    audit: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Run guests of your own until they have exited.

    Each may send to all the others, unless --connect or --one-way say who may to whom. A machine
    is called as its file, without the suffix; a second one of that name is NAME-2.

    What they log is printed with their names. The exit code is the first one of theirs that is not
    0; 70 if one was stopped by a fault, 124 if it was the time-out.
    """

    def say(name: str, line: str) -> None:
        click.echo(f"{name}: {line}", err=as_json)

    paths = dict(named(guests))
    try:
        wanted = channels(paths, connect, one_way)
    except ConfigError as error:
        raise Failure(str(error), EXIT_USAGE) from error
    # Nobody can have more than the windows hold: address space for more would be reserved in vain.
    pool = min(len(guests) * options["window"], host.pool_memory())
    with open_monitor(options, say, guests, pool, audit=audit) as monitor:
        for name, path in paths.items():
            monitor.spawn(
                path,
                name=name,
                window=options["window"],
                memory=memory,
                stack=stack,
                quota=quota,
                queue=queue,
            )
        for a, b, both in wanted:
            monitor.connect(monitor.machines[a], monitor.machines[b], both=both)
        monitor.run(options["timeout"])
        machines = list(monitor.machines.values())
        for machine in machines:
            if machine.state is not State.STOPPED:
                monitor.kill(machine, "waits for a message, and nobody is left to send one")
        _show_run(machines, monitor.audit() if audit else None, as_json)
        code = _exit_code(machines)
    sys.exit(code)


def _show_run(machines: list[Machine], pages: dict[str, int] | None, as_json: bool) -> None:
    """Print what became of the machines, as JSON; and, after an audit, what became of all pages."""
    outcomes = [machine.outcome() for machine in machines]
    if pages is None:
        if as_json:
            click.echo(json.dumps(outcomes))
        return
    pool = sum(pages.values())
    if as_json:
        click.echo(json.dumps({"machines": outcomes, "pages": pages, "pool": pool}))
    else:
        states = ", ".join(f"{count} {state.replace('_', ' ')}" for state, count in pages.items())
        click.echo(f"audit: {states}: {pool} pages, the whole pool")


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
@click.argument("sources", nargs=-1, required=True, type=FilePath(exists=True, dir_okay=False))
@click.option(
    "-o",
    "--output",
    "target",
    type=OutputPath(),
    help="The ELF to write [the first source's name].",
)
@click.option("--cc", help="The C compiler [$PAGEFERRY_CC, cc, or the ziglang package].")
@click.option("--libc", is_flag=True, help="Link a C library: make a static program for Linux.")
@compiler_options
def build(sources: tuple[Path, ...], target: Path | None, cc: str | None, **options: Any) -> None:
    """Build a guest from C sources, with pageferry's headers, library and linker script.

    Assembly (.s, .S), objects and archives (.o, .a) can be given as well, and with --libc also C++.
    What the compiler warns of is printed, and is no error.
    """
    target = target or sources[0].with_suffix(".elf")
    with output(target, sources, parents=True) as file, work_directory("pageferry-elf-") as work:
        elf = build_guest(
            sources,
            work / (target.name if len(os.fsencode(target.name)) < _LONG_NAME else "guest.elf"),
            include_dirs=[ROOT / "include"],
            library_dir=ROOT / "lib",
            compiler=find_compiler(cc),
            report=lambda text: click.echo(text, err=True),
            **options,
        )
        file.write(elf.read_bytes(), 0o777)
    click.echo(os.fsencode(target))  # as its bytes are: a script may use it
