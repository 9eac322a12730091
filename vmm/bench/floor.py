"""The floor: a C program that does the same system calls in the same order, and nothing else.

Its source is scripts/bench/floor.c; for programs for Linux, floor_calls.c. It is built on the spot
where there is a C compiler; where there is none, the one is taken that was built with the package.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Sequence
from pathlib import Path

from vmm.bench.plan import Unavailable
from vmm.guest.build import build_program
from vmm.guest.bundled import ROOT
from vmm.guest.compiler import BuildError, find_compiler, work_directory

_SOURCES = ROOT / "bench"
_PATIENCE = 5.0  # seconds, for it to end when nothing more is asked of it


class Floor:
    """The program, running, with the machines of a scene (vmm.bench.scene). Close it.

    name    the source's, without its suffix

    Raises Unavailable, with the reason, if it cannot be built or does not answer.
    """

    def __init__(self, scene: bytes, name: str = "floor") -> None:
        with contextlib.ExitStack() as stack:
            work = stack.enter_context(work_directory("pageferry-floor-"))
            program = program_of(name, work)
            (work / "scene").write_bytes(scene)
            self._process = _start(program, work / "scene")
            stack.callback(_end, self._process)
            self._line()
            self._stack = stack.pop_all()

    def ask(self, command: str) -> Sequence[float]:
        """Give a command (scripts/bench/floor.c); return its samples, in microseconds."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failed() from None
        return [int(word) / 1000 for word in self._line().split()]

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._failed()
        return line

    def _failed(self) -> Unavailable:
        assert self._process.stderr is not None
        said = self._process.stderr.read().strip() or f"status {self._process.wait()}"
        return Unavailable(f"the floor has ended: {said.splitlines()[-1].removeprefix('floor: ')}")

    def close(self) -> None:
        """End the program, and remove what it was built in. Further calls do nothing."""
        self._stack.close()


def _start(program: Path, scene: Path) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    try:
        return subprocess.Popen([program, scene], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    except OSError as error:  # a folder for temporary files from which nothing may be run
        raise Unavailable(f"no floor: {program}: {error.strerror}") from error


def _end(process: subprocess.Popen[str]) -> None:
    """End the program: it reads to the end of its input."""
    try:
        for pipe in (process.stdin, process.stdout, process.stderr):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):  # it has ended, and not read everything
                pipe.close()
        process.wait(_PATIENCE)
    except BaseException as error:
        process.kill()
        process.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise


def program_of(name: str, work: Path) -> Path:
    """Return a program of the bench's in C, built in `work` if it can be. Raises Unavailable."""
    source = _SOURCES / f"{name}.c"
    built = source.with_suffix("")
    if not source.is_file():
        raise Unavailable(f"the source of {name} is not installed: install the package again")
    try:
        include = [ROOT / "include"]
        return build_program(source, work / name, include_dirs=include, compiler=find_compiler())
    except BuildError as error:
        if built.is_file():
            return built
        raise Unavailable(f"no {name}: {str(error).splitlines()[0]}") from error
