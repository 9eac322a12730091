"""What the command gives to programs for Linux, and takes from them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from vmm.command.output import output
from vmm.command.values import Context, FilePath, Parameter, Size
from vmm.errors import ConfigError
from vmm.linux.machine import LinuxMachine
from vmm.linux.spawning import ENVIRONMENT

_F = TypeVar("_F", bound=Callable[..., Any])


class Pair(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions only
    """LEFT=RIGHT."""

    def __init__(self, left: str, right: str) -> None:
        self.name = f"{left}={right}"

    def convert(self, value: Any, param: Parameter, ctx: Context) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        left, equals, right = value.partition("=")
        if not left or not equals:
            self.fail(f"{value!r} is not {self.name}", param, ctx)
        return left, right


class Command(click.Command):
    """A command whose arguments end at `--`: what follows is `args`, as it stands."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        at = args.index("--") if "--" in args else len(args)
        ctx.params["args"] = tuple(args[at + 1 :])
        return super().parse_args(ctx, args[:at])


def program_options(function: _F) -> _F:
    """Add what only programs for Linux are given."""
    options = (
        click.option(
            "--file",
            "files",
            type=Pair("PATH", "FILE"),
            metavar="PATH=FILE",
            multiple=True,
            help="Let programs read this FILE at the absolute PATH. Repeatable.",
        ),
        click.option(
            "--root",
            type=FilePath(exists=True, file_okay=False),
            help="Show programs this directory as their /; they change none of it.",
        ),
        click.option(
            "--env",
            type=Pair("NAME", "VALUE"),
            metavar="NAME=VALUE",
            multiple=True,
            help="Set this besides PATH and HOME. Repeatable.",
        ),
        click.option(
            "--save",
            type=Pair("PATH", "FILE"),
            metavar="PATH=FILE",
            multiple=True,
            help="Write to FILE what the last program has written at PATH. Repeatable.",
        ),
        click.option("--disk", type=Size(), help="What a program's files may take [256M]."),
        click.option(
            "--clock",
            type=click.Choice(["real", "frozen"]),
            help="frozen: time and chance are the same in every run [real].",
        ),
        click.option("--seed", type=int, metavar="N", help="Of frozen chance [0]."),
        click.option("--strace", is_flag=True, help="Show each system call as it is served."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Take these out of a command's options; return what `spawn` takes for every program."""
    files, env = options.pop("files"), options.pop("env")
    found = {name: options.pop(name) for name in ("root", "disk", "clock", "seed")}
    found = {name: value for name, value in found.items() if value is not None}
    if files:
        found["files"] = {path: Path(file) for path, file in files}
    if env:
        found["env"] = ENVIRONMENT | dict(env)
    return found


def standard_input() -> Any:
    """Return this process's own, as a program gets it."""
    return open(0, "rb", buffering=0, closefd=False)


class Stream:
    """Standard output, or error, of this process, as bytes that are out when they are written."""

    def __init__(self, *, error: bool) -> None:
        self._error = error

    def write(self, data: bytes) -> int:
        """Write all of it."""
        stream = (sys.stderr if self._error else sys.stdout).buffer
        stream.write(data)
        stream.flush()
        return len(data)


def save(machine: LinuxMachine, wanted: Iterable[tuple[str, str]], inputs: Iterable[Path]) -> None:
    """Write what a program has written to files. Raises ConfigError if it has not; OSError."""
    for path, file in wanted:
        data = machine.files.get(path)
        if data is None:
            there = ", ".join(sorted(machine.files)[:20]) or "nothing"
            raise ConfigError(f"--save {path}: {machine.name} has written no such file: {there}")
        with output(Path(os.fsdecode(file)), inputs) as target:
            target.write(data)
