"""Build guests: freestanding, static x86-64 ELF programs, from C sources.

Uses the standard library only and imports nothing of this package: the build hook
(``scripts/hatch_build.py``) loads this file by its path before anything is installed.

A guest is its own sources, linked with every source of the guest library (start-up and calls)
by the library's linker script. The layout that :func:`build_bundled` expects is::

    guests/include/       headers shared with the monitor (the ABI)
    guests/lib/           library: *.c, *.S, *.h, guest.ld
    guests/*.c            one guest per file           -> bin/<name>.elf
    guests/faults/*.c     one fault guest per file     -> bin/faults/<name>.elf
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

_T = TypeVar("_T")
_Target = tuple[Sequence[Path], Path]  # sources, output

LINKER_SCRIPT = "guest.ld"
SYSTEM_COMPILERS = ("cc", "gcc", "clang")

COMPILE_FLAGS = (
    *("-std=c11", "-O2", "-g", "-ffreestanding", "-fno-pic", "-fno-pie"),
    *("-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fcf-protection=none"),
    *("-mno-red-zone", "-Wall", "-Wextra", "-Werror"),
)
# The library and the bundled guests do without SSE, so that they also run where a ring is emulated:
# KVM's emulator knows little of it. Functions that want it say so, by a target attribute.
BUNDLED_FLAGS = ("-mno-sse", "-mno-mmx")
LINK_FLAGS = (
    *("-static", "-nostdlib", "-no-pie", "-Wl,--build-id=none"),
    *("-Wl,-z,max-page-size=4096", "-Wl,-z,noexecstack"),
)
FAMILY_FLAGS: dict[str, tuple[str, ...]] = {
    # Even freestanding, gcc turns a loop that copies into a call of memcpy, and so the loop
    # inside a guest's own memcpy into a call of itself. clang does not when freestanding.
    "gcc": ("-fno-tree-loop-distribute-patterns",),
    "clang": (),
    # zig's driver turns the undefined-behaviour sanitizer on, which wants a run-time library.
    "zig": ("-fno-sanitize=all",),
}


class BuildError(Exception):
    """A guest cannot be built; the message says which source, why, or what to install."""


@dataclass(frozen=True)
class Compiler:
    """A C compiler driver: its command, its family (a key of FAMILY_FLAGS) and its version."""

    command: tuple[str, ...]
    family: str
    version: str

    @cached_property
    def system_directory(self) -> str:
        """Where the compiler's own headers are, as it writes it into debug information."""
        # Asked by preprocessing: with a warm cache zig says nothing to -v. It also writes paths
        # below the current directory as relative ones, hence "/".
        options = ("-ffreestanding", "-E", "-include", "stdarg.h", "-x", "c", os.devnull)
        probe = _run([*self.command, *options], "no freestanding headers", cwd=Path("/"))
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


def needs_ziglang() -> bool:
    """Whether find_compiler() could only answer with the ziglang wheel."""
    named = os.environ.get("PAGEFERRY_CC")
    return named == "ziglang" if named else _system_compiler() is None


def build_guest(
    sources: Iterable[Path],
    output: Path,
    *,
    include_dirs: Iterable[Path],
    library_dir: Path,
    compiler: Compiler,
) -> Path:
    """Build one guest from ``sources`` (C or assembly) and the library; returns ``output``.

    Nothing is kept but ``output``, which is replaced only when all of it succeeded.
    Raises BuildError with the compiler's own message.
    """
    sources, output = list(sources), output.resolve()
    with _work_directory("pageferry-build-") as work:
        build = _Build(compiler, work, library_dir, include_dirs)
        build.build([(sources, output)])
    return output


def build_each(
    sources_dir: Path,
    output_dir: Path,
    *,
    include_dirs: Iterable[Path],
    library_dir: Path,
    compiler: Compiler,
) -> list[Path]:
    """Build one guest per C file of ``sources_dir`` into ``output_dir``; returns the ELF files.

    Only what changed is built again. Objects are kept in ``output_dir``/.obj.
    """
    output_dir = output_dir.resolve()
    sources = _c_files(sources_dir)
    targets: list[_Target] = [([source], output_dir / f"{source.stem}.elf") for source in sources]
    _Build(compiler, output_dir / ".obj", library_dir, include_dirs).build(targets)
    return [output for _, output in targets]


def build_bundled(guests_dir: Path, output_dir: Path, compiler: Compiler) -> list[Path]:
    """Build every guest under ``guests_dir`` into ``output_dir``/bin; returns the ELF files.

    Only what changed is built again (by content: sources, headers, flags, compiler), and an ELF
    file whose source is gone is removed. Objects are kept in ``output_dir``/.obj.
    """
    guests_dir, output_dir = guests_dir.resolve(), output_dir.resolve()
    binaries = output_dir / "bin"
    targets: list[_Target] = []
    for sources, into in ((guests_dir, binaries), (guests_dir / "faults", binaries / "faults")):
        targets += [([source], into / f"{source.stem}.elf") for source in _c_files(sources)]
    include_dirs = [guests_dir / "include"]
    build = _Build(compiler, output_dir / ".obj", guests_dir / "lib", include_dirs)
    build.build(targets, BUNDLED_FLAGS)
    outputs = [output for _, output in targets]
    for stale in set(binaries.rglob("*.elf")) - set(outputs):
        stale.unlink()
    return outputs


class _Build:
    """One compiler, one library, one directory of objects. Not for use by several threads."""

    def __init__(
        self, compiler: Compiler, work: Path, library_dir: Path, include_dirs: Iterable[Path]
    ) -> None:
        self._compiler = compiler
        self._driver = (*compiler.command, *FAMILY_FLAGS[compiler.family])
        self._work = work.resolve()
        self._work.mkdir(parents=True, exist_ok=True)
        library_dir = library_dir.resolve()
        self._script = library_dir / LINKER_SCRIPT
        self._include_dirs = [path.resolve() for path in (*include_dirs, library_dir)]
        self._library = _c_files(library_dir) + sorted(library_dir.glob("*.S"))
        headers = [path for root in self._include_dirs for path in sorted(root.rglob("*.h"))]
        self._base = _digest(compiler.version, *headers)
        self._stamp_file = self._work / "stamps.json"
        self._stamps = _read_stamps(self._stamp_file)

    def build(self, targets: Sequence[_Target], flags: tuple[str, ...] = ()) -> None:
        """Compile the library and each target's sources once, then link each target's output."""
        jobs: dict[Path, tuple[str, ...]] = dict.fromkeys(self._library, BUNDLED_FLAGS)
        jobs |= {source.resolve(): flags for sources, _ in targets for source in sources}
        self._in_parallel(lambda job: self._compile_one(*job), jobs.items())
        self._in_parallel(lambda target: self._link_one(*target), targets)

    def _in_parallel(self, function: Callable[[_T], None], items: Iterable[_T]) -> None:
        """Call ``function`` on every item; after all have ended, raise the first one's error.

        Ctrl-C lets those end that are under way, and begins no other.
        """
        pool = ThreadPoolExecutor(max_workers=os.cpu_count())
        try:
            results = [pool.submit(function, item) for item in items]
            wait(results)
        finally:
            pool.shutdown(cancel_futures=True)
        _replace_text(self._stamp_file, json.dumps(self._stamps, indent=1))
        for result in results:
            result.result()

    def _compile_one(self, source: Path, flags: tuple[str, ...]) -> None:
        includes = (f"-I{path}" for path in self._include_dirs)
        options = (*COMPILE_FLAGS, *flags, *includes, *self._prefix_maps(source))
        command = [*self._driver, *options, "-c", str(source)]
        self._produce(self._object(source), command, [source], f"cannot compile {source}")

    def _link_one(self, sources: Sequence[Path], output: Path) -> None:
        objects = [self._object(source.resolve()) for source in (*self._library, *sources)]
        command = [*self._driver, *LINK_FLAGS, "-T", str(self._script), *map(str, objects)]
        self._produce(output, command, [self._script, *objects], f"cannot link {output.name}")

    def _produce(
        self, output: Path, command: list[str], inputs: Iterable[Path], failure: str
    ) -> None:
        key = _digest(self._base, *command, *inputs)
        if self._stamps.get(str(output)) == key and output.is_file():
            return
        output.parent.mkdir(parents=True, exist_ok=True)
        # Written beside and renamed, so that nobody ever sees half a file.
        partial = output.with_name(f".{output.name}.{os.getpid()}")
        try:
            _run([*command, "-o", str(partial)], failure, cwd=self._work)
            partial.replace(output)
        finally:
            partial.unlink(missing_ok=True)
        self._stamps[str(output)] = key

    def _object(self, source: Path) -> Path:
        return self._work / f"{source.name}-{_digest(str(source))[:8]}.o"

    def _prefix_maps(self, source: Path) -> tuple[str, ...]:
        """Flags that make every path in the debug information a relative one."""
        maps = {self._compiler.system_directory: "system"}
        maps |= {str(self._work): ".", str(source.parent): source.parent.name}
        maps |= {str(path): f"guests/{path.name}" for path in self._include_dirs}
        return tuple(f"-ffile-prefix-map={path}={name}" for path, name in maps.items())


def _named_compiler(command_line: str) -> Compiler:
    command = tuple(shlex.split(command_line))
    if not command or not shutil.which(command[0]):
        raise BuildError(f"C compiler {command_line!r} not found: check PAGEFERRY_CC")
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
    return _identify((sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-freestanding-none"))


def _identify(command: tuple[str, ...]) -> Compiler | None:
    try:
        version = _run([*command, "--version"], str(command)).stdout
    except BuildError:
        return None  # a dangling link, or a version manager's stand-in for nothing
    is_zig = any(Path(word).name in ("zig", "ziglang") for word in command)
    family = "zig" if is_zig else "clang" if "clang" in version else "gcc"
    return Compiler(command, family, version.strip())


def _can_link(compiler: Compiler) -> bool:
    """Whether a trivial guest can be built: there is an assembler and linker, and for x86-64."""
    with _work_directory("pageferry-probe-") as work:
        source = work / "probe.c"
        source.write_text("void _start(void);\nvoid _start(void) {}\n")
        command = [*compiler.command, *COMPILE_FLAGS, *LINK_FLAGS, str(source)]
        try:
            _run([*command, "-o", str(source.with_suffix(".elf"))], "probe", cwd=work)
        except BuildError:
            return False
    return True


@contextlib.contextmanager
def _work_directory(prefix: str) -> Iterator[Path]:
    """A temporary directory for the block.

    tempfile's own would stay if Ctrl-C came just as it is made or removed.
    """
    path: Path | None = None
    try:
        with _uninterrupted():
            path = Path(tempfile.mkdtemp(prefix=prefix))
        yield path
    finally:
        if path is not None:
            with _uninterrupted():
                _remove(path)


def _remove(directory: Path) -> None:
    """Remove a directory, also if what an interrupted compiler left running still writes there."""
    for _ in range(20):
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return
        time.sleep(0.01)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait until the block is done."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(
    command: Sequence[str], failure: str, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a compiler to its end; BuildError is ``failure`` and what the compiler said."""
    # Without $PWD gcc records the directory it runs in by its real name, which the maps know.
    # zig needs a home for its cache, which a service or a bare environment may not name.
    environment = {"HOME": str(Path("~").expanduser())} | dict(os.environ) | {"LC_ALL": "C"}
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
            text=True,
        )
    except OSError as error:
        raise BuildError(f"{failure}: {error}") from error
    if done.returncode:
        said = done.stderr.strip() or f"the compiler ended with status {done.returncode}"
        raise BuildError(f"{failure}:\n{said}")
    return done


def _c_files(directory: Path) -> list[Path]:
    return sorted(directory.resolve().glob("*.c"))


def _digest(*parts: str | Path) -> str:
    """A hash of strings and of the names and contents of files, in order."""
    total = hashlib.sha256()
    for part in parts:
        content = part.read_bytes() if isinstance(part, Path) else b""
        total.update(f"{part}\0{len(content)}\0".encode() + content)
    return total.hexdigest()


def _replace_text(path: Path, text: str) -> None:
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(text)
    partial.replace(path)


def _read_stamps(path: Path) -> dict[str, str]:
    try:
        stamps = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}  # none yet, or not ours: build everything
    return stamps if isinstance(stamps, dict) else {}
