"""`pageferry run`: guests and programs for Linux, until they have exited."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click

from vmm import host
from vmm.command import programs
from vmm.command.channels import channels, named
from vmm.command.failure import EXIT_FAILED, EXIT_FAULT, EXIT_TIMEOUT, EXIT_USAGE, Failure
from vmm.command.options import machine_options, open_monitor
from vmm.command.programs import Stream, program_options
from vmm.command.values import Count, FilePath, Size
from vmm.engine.machine import Machine, State
from vmm.errors import ConfigError, GuestImageError
from vmm.linux.kinds import is_program
from vmm.linux.machine import LinuxMachine


@click.command(cls=programs.Command)
@click.argument(
    "guests",
    nargs=-1,
    required=True,
    type=FilePath(),
    metavar="FILE … [-- ARG …]",
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
    help="Each machine's private memory [16M; for a program 256M, a limit].",
)
@click.option(
    "--stack",
    type=Size(pages=True),
    help="Each machine's stack, a part of its memory [256K; for a program 8M].",
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
@click.option(
    "--populate", is_flag=True, help="Map pages as they arrive: the machines read what they get."
)
@click.option("--audit", is_flag=True, help="Check after every operation who owns each page.")
@program_options
@machine_options
def run(
    guests: tuple[Path, ...],
    connect: tuple[str, ...],
    one_way: tuple[str, ...],
    audit: bool,
    as_json: bool,
    save: tuple[tuple[str, str], ...],
    **options: Any,
) -> None:
    """Run guests, and programs for Linux, until they have exited.

    What each FILE is, it says itself. Each may send to all the others, unless --connect or
    --one-way say who may to whom. A machine is called as its file, without the suffix; a second one
    of that name is NAME-2.

    The ARGs are for the last one, which also reads standard input, if it is a program. A program
    that is alone prints to standard output and error, byte by byte; otherwise what they print is
    printed line by line, with their names.

    The exit code is the first one of theirs that is not 0; 70 if one was stopped by a fault, 124 if
    it was the time-out.
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
    inputs = [*guests, *(Path(file) for _, file in options["files"])]
    with open_monitor(options, say, inputs, pool, audit=audit) as monitor:
        for name, path, more in _given(paths, options, as_json=as_json):
            common = {what: options[what] for what in _FOR_EACH}
            monitor.spawn(path, name=name, **common, **more)
        for a, b, both in wanted:
            monitor.connect(monitor.machines[a], monitor.machines[b], both=both)
        monitor.run(options["timeout"])
        machines = list(monitor.machines.values())
        for machine in machines:
            if machine.state is not State.STOPPED:
                monitor.kill(machine, "waits for a message, and nobody is left to send one")
        _show_run(machines, monitor.audit() if audit else None, as_json)
        code = _exit_code(machines)
        if save:
            code = _save(machines[-1], save, inputs) or code
    sys.exit(code)


_FROM_OUTSIDE = ("timeout", "killed")  # nothing is wrong with where it was
_FOR_EACH = ("window", "memory", "stack", "quota", "queue", "populate")


def _given(
    paths: dict[str, Path], options: dict[str, Any], *, as_json: bool
) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Yield every machine's name, its file, and what only a program is given.

    Guests among programs get nothing of that; where there are none, it is refused.
    """
    args, strace = options.pop("args"), options.pop("strace")
    every = programs.given(options)
    linux = _programs(paths)
    last, alone = [*paths][-1], len(paths) == 1
    for name, path in paths.items():
        more = {} if linux and name not in linux else dict(every)
        if name == last and args:
            more["args"] = args
        if name in linux:
            if name == last:
                more["stdin"] = programs.standard_input()
            more["stdout"] = Stream(error=as_json) if alone else "console"
            more["stderr"] = Stream(error=True) if alone else "console"
        if strace and (name in linux or not linux):
            more["strace"] = partial(_trace, name)
        yield name, path, more


def _programs(paths: dict[str, Path]) -> set[str]:
    """Return the names of those that are programs for Linux. Raises GuestImageError."""
    found: set[str] = set()
    for name, path in paths.items():
        try:
            if is_program(path):
                found.add(name)
        except GuestImageError as error:
            if not found or path.exists():
                raise
            raise GuestImageError(f"{error}: what is for a program follows --") from error
    return found


def _trace(name: str, call: str) -> None:
    click.echo(f"{name}: {call}", err=True)


def _save(machine: Machine, wanted: tuple[tuple[str, str], ...], inputs: list[Path]) -> int:
    if not isinstance(machine, LinuxMachine):
        raise ConfigError(f"--save: {machine.name} is a bare guest, which has no files")
    programs.save(machine, wanted, inputs)
    return 0


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


def _exit_code(machines: list[Machine]) -> int:
    """Print what went wrong; return the command's exit code."""
    for machine in machines:
        if isinstance(machine, LinuxMachine) and machine.not_served:
            calls = ", ".join(f"{name} ({n})" for name, n in machine.not_served.items())
            click.echo(f"pageferry: {machine.name}: not served: {calls}", err=True)
    faults = [machine.fault for machine in machines if machine.fault is not None]
    for fault in faults:
        click.echo(f"pageferry: {fault}", err=True)
        if fault.kind not in _FROM_OUTSIDE and (details := fault.details()):
            click.echo(details, err=True)
    if faults:
        return EXIT_TIMEOUT if all(fault.kind == "timeout" for fault in faults) else EXIT_FAULT
    codes = [machine.exit_code or 0 for machine in machines]
    failed = next((code for code in codes if code), 0)
    return failed & 0xFF or (EXIT_FAILED if failed else 0)
