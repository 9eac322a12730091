"""The `pageferry` command as a user runs it: a process of its own."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import forkserver
from tests_support import IN_LANE

ROOT = Path(__file__).resolve().parent.parent
CODE = "from vmm.command.cli import main; main(prog_name='pageferry')"
# Says when the command begins: until then it is Python's own start that is interrupted.
_CODE_THAT_SAYS = """import os
from vmm.command.cli import main
os.close(int(os.environ['READY']))
main(prog_name='pageferry')"""
TIMEOUT = 60.0
Argument = str | bytes | Path


# In a nested lane the command does not start, it is forked: see forkserver. There, started now,
# before a test counts what this process holds.
Process: Any
if IN_LANE:
    Process = forkserver.Process
    forkserver.server()
else:
    Process = functools.partial(
        subprocess.Popen, stdin=subprocess.DEVNULL, text=True, errors="surrogateescape"
    )


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


def start(
    *arguments: Argument,
    code: str = CODE,
    stdout: int = subprocess.PIPE,
    stderr: int = subprocess.PIPE,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    start_new_session: bool = False,
) -> Any:
    """Start `pageferry ARGUMENTS…`; return a subprocess.Popen, or what is as good as one."""
    return Process(
        command(*arguments, code=code),
        env=environment() | (env or {}),
        stdout=stdout,
        stderr=stderr,
        cwd=cwd,
        pass_fds=pass_fds,
        start_new_session=start_new_session,
    )


@contextlib.contextmanager
def started(folder: Path, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """Start a command in a process group of its own, its temporary files in a folder.

    The block begins when the command does. It is killed if it has not ended with the block.
    """
    reader, writer = os.pipe()
    process = start(
        *arguments,
        code=_CODE_THAT_SAYS,
        env={"READY": str(writer), "TMPDIR": str(folder)},
        pass_fds=[writer],
        start_new_session=True,
    )
    os.close(writer)
    try:
        with process:
            try:
                os.read(reader, 1)
                yield process
            finally:
                process.kill()
    finally:
        os.close(reader)


def members(group: int) -> list[str]:
    """Return the names of a process group's processes, but for dead ones nobody has asked about."""
    names = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = stat.read_text().rpartition(")")
            state, _, its_group = rest.split()[:3]
            if int(its_group) == group and state != "Z":
                names.append(name)
    return names


def pageferry(
    *arguments: Argument, code: str = CODE, stdout: int = subprocess.PIPE, cwd: Path | None = None
) -> Ended:
    """Run `pageferry ARGUMENTS…` to its end.

    code     the Python program that calls it
    stdout   a file descriptor instead of the returned text
    """
    with start(*arguments, code=code, stdout=stdout, cwd=cwd) as process:
        try:
            out, err = process.communicate(timeout=TIMEOUT)
        except BaseException:
            process.kill()
            raise
    return Ended(process.returncode, out or "", err)


def one_line(text: str) -> str:
    """Return the only line of what a command wrote to standard error, without its prefix."""
    lines = text.splitlines()
    assert len(lines) == 1, text
    assert lines[0].startswith("pageferry: "), text
    assert "Errno" not in text, text
    return lines[0].removeprefix("pageferry: ")
