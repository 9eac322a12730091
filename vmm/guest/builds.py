"""One run of a compiler and its linker: a guest, or a program for Linux, from its parts.

Uses the standard library and, by relative imports, ``compiler`` and ``inputs``: see ``build``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from .compiler import (
    COMPILE_FLAGS,
    DRIVER_FLAGS,
    FAMILY_FLAGS,
    LIBC_COMPILE_FLAGS,
    LIBC_LINK_FLAGS,
    LINK_FLAGS,
    STRICT_FLAGS,
    BuildError,
    Compiler,
    run,
)
from .inputs import CPP_SUFFIXES

_T = TypeVar("_T")
_R = TypeVar("_R")

LINKER_SCRIPT = "guest.ld"
# The library and the bundled guests do without SSE, so that they also run where a ring is emulated:
# KVM's emulator knows little of it. Functions that want it say so, by a target attribute.
BUNDLED_FLAGS = ("-mno-sse", "-mno-mmx")
# Of the guest library, what programs for Linux have too.
_LIBC_SOURCES = ("pf.c", "text.c")
_NO_LIBC = (
    "the C library's static files are not installed (Debian: libc6-dev; Fedora: glibc-static): "
    "install them, or build with ziglang, which has its own (--cc ziglang)"
)
_MAIN = (
    "it has a main, and a sandbox has one of its own: take it out, or give it another name "
    "(-Dmain=other)"
)


def to_standard_error(text: str) -> None:
    """Print it there."""
    print(text, file=sys.stderr)


@dataclass(frozen=True)
class Target:
    """One guest: what it is linked from, each with whether to compile it; and more options."""

    inputs: tuple[tuple[Path, bool], ...]
    output: Path
    compile: tuple[str, ...] = ()
    link: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()


def own_guest(source: Path, into: Path, flags: tuple[str, ...]) -> Target:
    """Return the guest of one source, under its name in a directory."""
    return Target(((source, True),), into / f"{source.stem}.elf", compile=flags)


class Build:
    """Of guests: one compiler, one library, one directory of objects. Not for use by several
    threads.
    """

    _library_flags: tuple[str, ...] = (*BUNDLED_FLAGS, *STRICT_FLAGS)

    def __init__(
        self, compiler: Compiler, work: Path, library_dir: Path, include_dirs: Iterable[Path]
    ) -> None:
        self._compiler = compiler
        self._work = work.resolve()
        self._work.mkdir(parents=True, exist_ok=True)
        self._library_dir = library_dir.resolve()
        self._include_dirs = [path.resolve() for path in (*include_dirs, library_dir)]
        self._library = self._library_sources()
        headers = [path for root in self._include_dirs for path in sorted(root.rglob("*.h"))]
        self._base = _digest(compiler.version, *headers)
        self._stamp_file = self._work / "stamps.json"
        self._stamps = _read_stamps(self._stamp_file)

    def build(
        self, targets: Sequence[Target], report: Callable[[str], None] = to_standard_error
    ) -> None:
        """Compile the library and each target's sources once, then link each target's output.

        What the compiler says all the same is reported.
        """
        jobs: dict[Path, tuple[str, ...]]
        jobs = dict.fromkeys(self._library, self._library_flags)
        jobs |= {path: t.compile for t in targets for path, source in t.inputs if source}
        for said in self._in_parallel(lambda job: self._compile_one(*job), jobs.items()):
            if said:
                report(said)
        for said in self._in_parallel(self._link_one, targets):
            if said:
                report(said)

    def _in_parallel(self, function: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
        """Return what ``function`` says of every item; after all have ended, raise the first one's
        error.

        Ctrl-C lets those end that are under way, and begins no other.
        """
        pool = ThreadPoolExecutor(max_workers=os.cpu_count())
        try:
            results = [pool.submit(function, item) for item in items]
            wait(results)
        finally:
            pool.shutdown(cancel_futures=True)
        _replace_text(self._stamp_file, json.dumps(self._stamps, indent=1))
        return [result.result() for result in results]

    def _compile_one(self, source: Path, flags: tuple[str, ...]) -> str:
        preprocessed = source.suffix in (".c", ".S", *CPP_SUFFIXES)
        includes = [f"-I{path}" for path in self._include_dirs if preprocessed]
        options = (*self._flags(source, flags), *includes, *self._prefix_maps(source))
        command = [*self._driver([source]), *options, "-c", str(source)]
        return self._produce(self._object(source), command, [source], f"cannot compile {source}")

    def _link_one(self, target: Target) -> str:
        library = [self._object(source) for source in self._library]
        own = [self._object(path) if source else path for path, source in target.inputs]
        sources = [path for path, source in target.inputs if source]
        # In a group: archives may need each other, whatever their order.
        group = (*self._given(own), *target.libraries, *self._runtime(sources))
        command = [*self._driver(sources), *self._link_flags(target), *map(str, library)]
        command += ["-Wl,--start-group", *group, "-Wl,--end-group"]
        inputs = [self._library_dir / LINKER_SCRIPT, *library, *own]
        failure = f"cannot link {target.output.name}"
        try:
            said = self._produce(target.output, command, inputs, failure)
        except BuildError as error:
            raise BuildError(self._with_sources(str(error), sources)) from None
        return self._with_sources(said, sources)

    def _with_sources(self, text: str, given: Iterable[Path]) -> str:
        """Return what a linker says of objects with the names of the sources in their places."""
        for source in (*given, *self._library):
            shown = _shown(source)
            # With what it was compiled from, which debug information has as a relative path.
            inside = f"{re.escape('./' + source.parent.name + '/' + source.name)}(?=:)"
            text = re.sub(rf"{re.escape(str(self._object(source)))}:(?={inside})", "", text)
            text = text.replace(str(self._object(source)), shown)
            text = re.sub(rf"(?<![\w/.]){inside}", lambda _: shown, text)  # noqa: B023
        return text

    def _produce(
        self, output: Path, command: list[str], inputs: Iterable[Path], failure: str
    ) -> str:
        """Run a command that makes a file, unless it is there; return what it said."""
        key = _digest(self._base, *command, *inputs)
        if self._stamps.get(str(output)) == key and output.is_file():
            return ""
        output.parent.mkdir(parents=True, exist_ok=True)
        # Written beside and renamed, so that nobody ever sees half a file.
        partial = output.with_name(f".{output.name}.{os.getpid()}")
        try:
            said = run([*command, "-o", str(partial)], failure, cwd=self._work).stderr
            partial.replace(output)
        finally:
            partial.unlink(missing_ok=True)
        self._stamps[str(output)] = key
        return said.rstrip()

    def _driver(self, sources: Iterable[Path]) -> tuple[str, ...]:
        return (*self._command(sources), *DRIVER_FLAGS.get(self._compiler.family, ()))

    def _object(self, source: Path) -> Path:
        return self._work / f"{source.name}-{_digest(str(source))[:8]}.o"

    def _prefix_maps(self, source: Path) -> tuple[str, ...]:
        """Flags that make every path in the debug information a relative one."""
        maps = {self._compiler.system_directory: "system"}
        maps |= {str(self._work): ".", str(source.parent): source.parent.name}
        maps |= {str(path): f"guests/{path.name}" for path in self._include_dirs}
        return tuple(f"-ffile-prefix-map={path}={name}" for path, name in maps.items())

    # ---- What is different for a program with a C library ----

    def _command(self, sources: Iterable[Path]) -> tuple[str, ...]:
        """Return what compiles, or links, these."""
        return self._compiler.command

    def _library_sources(self) -> list[Path]:
        return _sources(self._library_dir)

    def _flags(self, source: Path, own: tuple[str, ...]) -> tuple[str, ...]:
        """Return what a source is compiled with, its own flags last."""
        return (*COMPILE_FLAGS, *FAMILY_FLAGS[self._compiler.family], *own)

    def _link_flags(self, target: Target) -> tuple[str, ...]:
        return (*LINK_FLAGS, *target.link, "-T", str(self._library_dir / LINKER_SCRIPT))

    def _runtime(self, sources: Iterable[Path]) -> tuple[str, ...]:
        """Return the libraries that are linked without being asked for."""
        return self._compiler.runtime

    def _given(self, own: Sequence[Path]) -> tuple[str, ...]:
        """Return what a target is linked of, for the linker."""
        return tuple(map(str, own))


class ProgramBuild(Build):
    """The same of static programs for Linux that need no C library, nor ours, and have no peers."""

    def _library_sources(self) -> list[Path]:
        return []

    def _link_flags(self, target: Target) -> tuple[str, ...]:
        return (*LINK_FLAGS, *target.link)


class LibcBuild(Build):
    """The same of static programs for Linux, with a C library, in C or C++."""

    _library_flags = STRICT_FLAGS

    def _command(self, sources: Iterable[Path]) -> tuple[str, ...]:
        return self._compiler.for_linux_cpp if _cpp(sources) else self._compiler.for_linux

    def _library_sources(self) -> list[Path]:
        shared = [self._library_dir / name for name in _LIBC_SOURCES]
        return shared + c_files(self._library_dir / "linux")

    def _flags(self, source: Path, own: tuple[str, ...]) -> tuple[str, ...]:
        cpp = _cpp([source])  # a standard is one language's
        own = tuple(f for f in own if not f.startswith("-std=") or ("++" in f) == cpp)
        return (*(() if cpp else ("-std=gnu17",)), *LIBC_COMPILE_FLAGS, *own)

    def _link_flags(self, target: Target) -> tuple[str, ...]:
        return (*LIBC_LINK_FLAGS, *target.link)

    def _runtime(self, sources: Iterable[Path]) -> tuple[str, ...]:
        named = _cpp(sources) and self._compiler.family != "zig"
        return ("-lstdc++", "-lm") if named else ("-lm",)

    def _link_one(self, target: Target) -> str:
        try:
            return super()._link_one(target)
        except BuildError as error:
            if not re.search(r"cannot find -lc\b", str(error)):
                raise
            raise BuildError(f"cannot link {target.output.name}: {_NO_LIBC}") from error


class SandboxBuild(LibcBuild):
    """The same of programs whose functions the host calls, and which need no `main`."""

    def _library_sources(self) -> list[Path]:
        return [*super()._library_sources(), *_sources(self._library_dir / "sandbox")]

    def _given(self, own: Sequence[Path]) -> tuple[str, ...]:
        given = super()._given(own)
        if any(path.suffix != ".a" for path in own):
            return given
        # Nothing asks for what is in them, but the host will.
        return ("-Wl,--whole-archive", *given, "-Wl,--no-whole-archive")

    def _link_flags(self, target: Target) -> tuple[str, ...]:
        # Nobody in the program calls its functions, and zig's linker drops what nobody calls.
        return (*super()._link_flags(target), "-Wl,--no-gc-sections")

    def _link_one(self, target: Target) -> str:
        try:
            return super()._link_one(target)
        except BuildError as error:
            if not re.search(r"(multiple definition of|duplicate symbol:)\W+main\b", str(error)):
                raise
            raise BuildError(f"cannot link {target.output.name}: {_MAIN}") from error


def _shown(source: Path) -> str:
    """Return a source's path as its user has it in view: relative, if that is no longer."""
    try:
        return min(os.path.relpath(source), str(source), key=len)
    except OSError:  # the current directory is no longer there
        return str(source)


def c_files(directory: Path) -> list[Path]:
    """Return the C files of a directory, by their names."""
    return sorted(directory.resolve().glob("*.c"))


def _sources(directory: Path) -> list[Path]:
    return c_files(directory) + sorted(directory.glob("*.S"))


def _cpp(sources: Iterable[Path]) -> bool:
    return any(source.suffix in CPP_SUFFIXES for source in sources)


def _digest(*parts: str | Path) -> str:
    """A hash of strings and of the names and contents of files, in order."""
    total = hashlib.sha256()
    for part in parts:
        content = part.read_bytes() if isinstance(part, Path) else b""
        total.update(os.fsencode(f"{part}\0{len(content)}\0") + content)
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
