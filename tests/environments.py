"""What the command may find itself in: streams that are closed or full, odd variables, limits.

Each is a shell's command line, with the command for "$@". All of them begin with the real thing:
what is closed is closed before Python starts.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from pathlib import Path

from command import TIMEOUT, Argument, Ended, command, environment

FULL = "full standard output"
ENVIRONMENTS = {
    "no standard input": '"$@" <&-',
    "no standard output": '"$@" >&-',
    "no standard error": '"$@" 2>&-',
    "no streams": '"$@" <&- >&- 2>&-',
    FULL: '"$@" >/dev/full',
    "full standard error": '"$@" 2>/dev/full',
    "ASCII streams": 'PYTHONIOENCODING=ascii "$@"',
    "C locale": 'LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 "$@"',
    "empty environment": 'env -i PYTHONPATH="$PYTHONPATH" "$@"',
    "no columns": 'COLUMNS=0 LINES=0 TERM=dumb "$@"',
    "odd columns": 'COLUMNS=² LINES=99999999999999999999 TERM= "$@"',
    "no directory": 'mkdir gone; cd gone; rmdir ../gone; "$@"',
    "no cache, no temporary directory": 'PAGEFERRY_CACHE=/dev/null TMPDIR=/dev/null "$@"',
    "few descriptors": 'ulimit -n 24; "$@"',
    "small files": 'ulimit -f 200000; "$@"',
    "no name, no home": 'unset HOME XDG_CACHE_HOME PAGEFERRY_CACHE; "$@"',
}
# Whoever this is has no name here; imports first, since the interpreter may not be his to read.
NAMELESS = """import os
from vmm.command.cli import main
os.setgroups([]); os.setgid(54321); os.setuid(54321)
main(prog_name='pageferry')"""


def within(name: str, folder: Path, *arguments: Argument) -> Ended:
    """Run the command in an environment, with a folder to work in."""
    nameless = name.startswith("no name") and os.geteuid() == 0
    words = command(*arguments, **({"code": NAMELESS} if nameless else {}))
    done = subprocess.run(
        ["sh", "-c", ENVIRONMENTS[name], "sh", *words],
        env=environment(),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=TIMEOUT,
        text=True,
        errors="surrogateescape",
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def check(name: str, ended: Ended) -> None:
    """Check that a command did what it does elsewhere, or said in one line why it could not."""
    assert "Traceback" not in ended.err + ended.out, ended
    assert "Exception ignored" not in ended.err, ended
    if name == FULL:
        said = "standard output: No space left on device: free some space, or write elsewhere"
        assert (ended.code, ended.err) == (1, f"pageferry: {said}\n")
    else:
        assert (ended.code, ended.err) == (0, ""), ended
    assert bool(ended.out) == (name not in (FULL, "no standard output", "no streams"))


def through_a_pipe_that_does_not_block(*arguments: Argument, stream: str) -> Ended:
    """Run the command with a stream that is such a pipe, of a page, and slow to read."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(writer, False)
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    other = "stderr" if stream == "stdout" else "stdout"
    streams = {stream: writer, other: subprocess.PIPE}
    with subprocess.Popen(command(*arguments), env=environment(), **streams) as process:  # type: ignore[call-overload]
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            time.sleep(0.5)  # it is full by then
            read = pipe.read().decode()
        rest = getattr(process, other).read().decode()
        process.wait(TIMEOUT)
    return Ended(process.returncode, *((read, rest) if stream == "stdout" else (rest, read)))
