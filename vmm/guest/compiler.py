"""C compilers for guests: which one there is, and how it is run.

Uses the standard library only and imports nothing of this package: see ``build``.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

SYSTEM_COMPILERS = ("cc", "gcc", "clang")

COMPILE_FLAGS = (
    *("-std=c11", "-O2", "-g", "-ffreestanding", "-fno-pic", "-fno-pie"),
    *("-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fcf-protection=none"),
    *("-mno-red-zone", "-Wall", "-Wextra"),
)
# For what is pageferry's own.
STRICT_FLAGS = ("-Werror",)
LINK_FLAGS = (
    *("-static", "-nostdlib", "-no-pie", "-Wl,--build-id=none"),
    *("-Wl,-z,max-page-size=4096", "-Wl,-z,noexecstack"),
)
# For programs that are linked with a C library, and are machines all the same. DWARF 5 says which
# types are atomic; zig writes DWARF 4 for -g.
LIBC_COMPILE_FLAGS = ("-O2", "-gdwarf-5", "-Wall", "-Wextra")
# zig builds its C library as the program is linked: optimized, if that says so.
LIBC_LINK_FLAGS = ("-O2", "-static", "-Wl,--build-id=none", "-Wl,-z,noexecstack")
# For programs of this system, not guests.
PROGRAM_FLAGS = ("-std=c17", "-O2", "-Wall", "-Wextra", "-Werror")
# A frame of many pages is touched page by page as it is made, so that no stack overflow jumps over
# the guard area. clang's driver knows that for Linux only, its compiler for every system.
_CLANG_PROBES = ("-Xclang", "-fstack-clash-protection")
FAMILY_FLAGS: dict[str, tuple[str, ...]] = {
    # Even freestanding, gcc turns a loop that copies into a call of memcpy, and so the loop
    # inside a guest's own memcpy into a call of itself. clang does not when freestanding.
    "gcc": ("-fno-tree-loop-distribute-patterns", "-fstack-clash-protection"),
    "clang": _CLANG_PROBES,
    "zig": _CLANG_PROBES,
}
# zig's driver turns the undefined-behaviour sanitizer on, which wants a run-time library.
DRIVER_FLAGS: dict[str, tuple[str, ...]] = {"zig": ("-fno-sanitize=all",)}


_ZIG_BARE, _ZIG_LINUX = "x86_64-freestanding-none", "x86_64-linux-musl"


# What this process, or the host, has run out of.
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)


class BuildError(Exception):
    """A guest cannot be built; the message says which source, why, or what to install."""


@dataclass(frozen=True)
class Compiler:
    """A C compiler driver: its command, its family (a key of FAMILY_FLAGS) and its version."""

    command: tuple[str, ...]
    family: str
    version: str

    @property
    def for_linux(self) -> tuple[str, ...]:
        """The command that builds programs for Linux, with a C library."""
        return tuple(_ZIG_LINUX if word == _ZIG_BARE else word for word in self.command)

    @property
    def for_linux_cpp(self) -> tuple[str, ...]:
        """The command that builds such programs in C++; gcc's and clang's want -lstdc++ as well."""
        if self.family != "zig":
            return self.for_linux
        return tuple("c++" if word == "cc" else word for word in self.for_linux)

    @cached_property
    def runtime(self) -> tuple[str, ...]:
        """What to link for the functions that compilers call: 128-bit division, bit counting."""
        if self.family == "zig":
            return ("-rtlib=compiler-rt",)
        asked = run([*self.command, "-print-libgcc-file-name"], "no library of the compiler's")
        return tuple(path for path in [asked.stdout.strip()] if Path(path).is_file())

    @cached_property
    def system_directory(self) -> str:
        """Where the compiler's own headers are, as it writes it into debug information."""
        # Asked by preprocessing: with a warm cache zig says nothing to -v. It also writes paths
        # below the current directory as relative ones, hence "/".
        options = ("-ffreestanding", "-E", "-include", "stdarg.h", "-x", "c", os.devnull)
        probe = run([*self.command, *options], "no freestanding headers", cwd=Path("/"))
        marker = re.search(r'^# \d+ "(.+)/stdarg\.h"', probe.stdout, re.MULTILINE)
        return str(Path("/", marker[1])) if marker else "/usr/include"


def find_compiler(prefer: str | None = None) -> Compiler:
    """The C compiler to build guests with.

    ``prefer``, else ``$PAGEFERRY_CC``, names one: a command line, or ``ziglang`` for the wheel of
    that name. Otherwise the first of ``cc``, ``gcc`` and ``clang`` that can link an x86-64
    program, and without one the ``ziglang`` wheel. Raises BuildError when there is none.
    """
    named = prefer or os.environ.get("PAGEFERRY_CC")
    if named and named != "ziglang":
        return _named_compiler(named)
    compiler = None if named else _system_compiler()
    compiler = compiler or _zig_compiler()
    if compiler is None:
        what = "the ziglang wheel is not installed" if named else "no C compiler found"
        raise BuildError(
            f"{what}: install gcc or clang (on Debian: apt install gcc), "
            "or the ziglang wheel (pip install ziglang), or name a compiler in PAGEFERRY_CC"
        )
    return compiler


def likely_compiler(prefer: str | None = None) -> Compiler | None:
    """What find_compiler() will answer with, if that can link; None if it is not known so soon."""
    named = prefer or os.environ.get("PAGEFERRY_CC")
    if named:
        return None if named == "ziglang" else _named_compiler(named)
    paths = (shutil.which(name) for name in SYSTEM_COMPILERS)
    found = next((path for path in paths if path), None)
    return _identify((found,)) if found else None


def needs_ziglang() -> bool:
    """Whether find_compiler() could only answer with the ziglang wheel."""
    named = os.environ.get("PAGEFERRY_CC")
    return named == "ziglang" if named else _system_compiler() is None


def _named_compiler(command_line: str) -> Compiler:
    try:
        command = tuple(shlex.split(command_line))
    except ValueError as error:
        raise BuildError(
            f"C compiler {command_line!r}: {error}: check --cc, or PAGEFERRY_CC"
        ) from error
    path = shutil.which(command[0]) if command else None
    if path is None:
        raise BuildError(f"C compiler {command_line!r} not found: check --cc, or PAGEFERRY_CC")
    command = (os.path.abspath(path), *command[1:])  # noqa: PTH100 (it is run in other directories)
    compiler = _identify(command)
    if compiler is None:
        raise BuildError(f"{command_line!r} is not a gcc, clang or zig cc that works")
    return compiler


def _system_compiler() -> Compiler | None:
    for name in SYSTEM_COMPILERS:
        path = shutil.which(name)
        if path and (compiler := _identify((path,))) and _can_link(compiler):
            return compiler
    return None


def _zig_compiler() -> Compiler | None:
    if importlib.util.find_spec("ziglang") is None:
        return None
    return _identify((sys.executable, "-m", "ziglang", "cc", "-target", _ZIG_BARE))


def _identify(command: tuple[str, ...]) -> Compiler | None:
    try:
        version = run([*command, "--version"], str(command)).stdout
    except BuildError:
        return None  # a dangling link, or a version manager's stand-in for nothing
    family = "zig" if _is_zig(command) else "clang" if "clang" in version else "gcc"
    return Compiler(command, family, version.strip())


def _is_zig(command: Sequence[str]) -> bool:
    return any(Path(word).name in ("zig", "ziglang") for word in command[:3])


def _can_link(compiler: Compiler) -> bool:
    """Whether a trivial guest can be built: there is an assembler and linker, and for x86-64."""
    with work_directory("pageferry-probe-") as work:
        source = work / "probe.c"
        source.write_text("void _start(void);\nvoid _start(void) {}\n")
        command = [*compiler.command, *COMPILE_FLAGS, *LINK_FLAGS, str(source)]
        try:
            run([*command, "-o", str(source.with_suffix(".elf"))], "probe", cwd=work)
        except BuildError:
            return False
    return True


def run(
    command: Sequence[str], failure: str, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a compiler to its end; BuildError is ``failure`` and what the compiler said."""
    environment = dict(os.environ) | {"LC_ALL": "C"}
    if _is_zig(command):
        environment |= _zig_cache()
    # Without $PWD gcc records the directory it runs in by its real name, which the maps know.
    environment.pop("PWD", None)
    if cwd is not None:  # where the compiler's own temporary files are, and go with it
        environment["TMPDIR"] = str(cwd)
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="backslashreplace",  # it quotes sources, which may be in any encoding
        )
    except (OSError, ValueError) as error:  # ValueError: a zero byte in an argument
        if isinstance(error, OSError) and error.errno in _EXHAUSTED:
            raise  # which says nothing about the compiler
        raise BuildError(f"{failure}: {error}") from error
    if done.returncode:
        said = done.stderr.strip() or f"the compiler ended with status {done.returncode}"
        raise BuildError(f"{failure}:\n{said}")
    return done


def _zig_cache() -> dict[str, str]:
    """Where zig keeps what it builds for itself, if it would find no place by the environment: a
    service or a container may have no home, or one that cannot be written to.
    """
    if os.environ.get("ZIG_GLOBAL_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME"):
        return {}
    with contextlib.suppress(RuntimeError, OSError):  # not a user that the system knows; no home
        home = Path("~").expanduser()
        if home.is_dir():
            usual = home / ".cache" / "zig"
            usual.mkdir(parents=True, exist_ok=True)
            if os.access(usual, os.W_OK):
                return {"HOME": str(home)}
    cache = Path(tempfile.gettempdir(), f"pageferry-zig-{os.getuid()}")
    with contextlib.suppress(OSError):
        cache.mkdir(mode=0o700, exist_ok=True)
        if cache.lstat().st_uid == os.getuid() and not cache.is_symlink():
            return {"ZIG_GLOBAL_CACHE_DIR": str(cache)}
    return {}


@contextlib.contextmanager
def work_directory(prefix: str) -> Iterator[Path]:
    """A temporary directory for the block.

    tempfile's own would stay if Ctrl-C came just as it is made or removed.
    """
    path: Path | None = None
    try:
        with uninterrupted():
            path = Path(tempfile.mkdtemp(prefix=prefix))
        yield path
    finally:
        if path is not None:
            with uninterrupted():
                _remove(path)


def _remove(directory: Path) -> None:
    """Remove a directory, also if what an interrupted compiler left running still writes there."""
    for _ in range(20):
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return
        time.sleep(0.01)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait until the block is done. What is started in the block never gets it, though a
    terminal sends it to all.

    Any thread of this process may be given the signal, so the handler waits as well.
    """
    came: list[int] = []
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread():  # where no handler runs
        handler = None
    if handler is not None:
        signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
        if came:
            signal.raise_signal(signal.SIGINT)
