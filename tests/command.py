"""The `pageferry` command as a user runs it: a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
CODE = "from vmm.cli import main; main(prog_name='pageferry')"
TIMEOUT = 60.0
Argument = str | bytes | Path


class Ended(NamedTuple):
    """How a command ended: negative codes are signals."""

    code: int
    out: str
    err: str


def environment() -> dict[str, str]:
    """Return this process's environment, with the package that is under test."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "LC_ALL": "C.UTF-8"}


def command(*arguments: Argument, code: str = CODE) -> list[str]:
    """Return the command line of `pageferry ARGUMENTS…`."""
    return [sys.executable, "-c", code, *map(os.fsdecode, arguments)]


def pageferry(
    *arguments: Argument,
    code: str = CODE,
    before: tuple[str, ...] = (),
    stdout: int = subprocess.PIPE,
    cwd: Path | None = None,
) -> Ended:
    """Run `pageferry ARGUMENTS…` to its end.

    code     the Python program that calls it
    before   a program with its arguments to run it by, such as setpriv
    stdout   a file descriptor instead of the returned text
    """
    done = subprocess.run(
        [*before, *command(*arguments, code=code)],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        cwd=cwd,
        timeout=TIMEOUT,
        check=False,
        text=True,
        errors="surrogateescape",
    )
    return Ended(done.returncode, done.stdout or "", done.stderr)


def one_line(text: str) -> str:
    """Return the only line of what a command wrote to standard error, without its prefix."""
    lines = text.splitlines()
    assert len(lines) == 1, text
    assert lines[0].startswith("pageferry: "), text
    assert "Errno" not in text, text
    return lines[0].removeprefix("pageferry: ")
