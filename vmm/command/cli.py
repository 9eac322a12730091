"""The `pageferry` command."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from vmm import __version__
from vmm.command.bench import bench
from vmm.command.compiling import compiler_options
from vmm.command.demo import DEFAULT_FILE, check_file, run_demo
from vmm.command.doctor import examine
from vmm.command.doctor_report import show_examination
from vmm.command.failure import (
    EXIT_FAILED,
    EXIT_HOST,
    Failure,
    Group,
)
from vmm.command.nested import nested
from vmm.command.new import new
from vmm.command.options import machine_options, open_monitor
from vmm.command.output import output
from vmm.command.reports import live_progress, show_report
from vmm.command.run import run
from vmm.command.values import FilePath, OutputPath
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
main.add_command(new)
main.add_command(run)


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
@click.option("--sandbox", is_flag=True, help="Make a library of functions that Python calls.")
@compiler_options
def build(sources: tuple[Path, ...], target: Path | None, cc: str | None, **options: Any) -> None:
    """Build a guest from C sources, with pageferry's headers, library and linker script.

    Assembly (.s, .S), objects and archives (.o, .a) can be given as well, and with --libc or
    --sandbox also C++.
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
