"""Build guests: freestanding, static x86-64 ELF programs, from C sources.

Uses the standard library and, by relative imports, ``compiler`` and ``inputs``; nothing else of
this package: the build hook (``scripts/hatch_build.py``) loads them without ``vmm``, before
anything is installed.

A guest is its own sources, linked with every source of the guest library (start-up and calls)
by the library's linker script. The layout that :func:`build_bundled` expects is::

    guests/include/       headers shared with the monitor (the ABI)
    guests/lib/           library: *.c, *.S, *.h, guest.ld
    guests/*.c            one guest per file           -> bin/<name>.elf
    guests/faults/*.c     one fault guest per file     -> bin/faults/<name>.elf
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
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
    LINK_FLAGS,
    PROGRAM_FLAGS,
    STRICT_FLAGS,
    BuildError,
    Compiler,
    run,
    work_directory,
)
from .inputs import absolute, sort_inputs

_T = TypeVar("_T")
_R = TypeVar("_R")

LINKER_SCRIPT = "guest.ld"
# The library and the bundled guests do without SSE, so that they also run where a ring is emulated:
# KVM's emulator knows little of it. Functions that want it say so, by a target attribute.
BUNDLED_FLAGS = ("-mno-sse", "-mno-mmx")
_LINK_PREFIXES = ("-O", "-flto", "-fuse-ld", "-Wl,")  # of a user's flags, those that linking needs


def _to_standard_error(text: str) -> None:
    print(text, file=sys.stderr)


def build_guest(
    sources: Iterable[Path],
    output: Path,
    *,
    include_dirs: Iterable[Path],
    library_dir: Path,
    compiler: Compiler,
    optimize: str | int | None = None,
    defines: Iterable[str] = (),
    includes: Iterable[str | os.PathLike[str]] = (),
    library_dirs: Iterable[str | os.PathLike[str]] = (),
    libraries: Iterable[str] = (),
    flags: Iterable[str] = (),
    report: Callable[[str], None] = _to_standard_error,
) -> Path:
    """Build one guest from ``sources`` and the guest library; returns ``output``.

    sources         C (.c, .i) and assembly (.s, .S), objects and archives
    include_dirs    the ABI's headers; library_dir the guest library
    optimize        the compiler's -O: "0", "3", "s"; 2 by default
    defines         its -D: "NAME", "NAME=VALUE"
    includes        its -I, searched before the ABI's
    library_dirs    its -L, and libraries its -l, by their names
    flags           other options of the compiler's, for these sources
    report          is told of the compiler's warnings, as text

    The options concern ``sources`` only; the library is compiled as it always is. Nothing is kept
    but ``output``, which is replaced only when all of it succeeded. Raises BuildError with the
    compiler's own message.
    """
    own = (() if optimize is None else (f"-O{optimize}",)) + tuple(flags)
    target = _Target(
        tuple(sort_inputs(sources)),
        output.resolve(),
        compile=(
            *(f"-D{name}" for name in defines),
            *(flag for flag in own if not flag.startswith("-Wl,")),
            *absolute("-I", includes),
        ),
        link=(
            *(flag for flag in own if flag.startswith(_LINK_PREFIXES)),
            *absolute("-L", library_dirs),
        ),
        libraries=tuple(f"-l{name}" for name in libraries),
    )
    with work_directory("pageferry-build-") as work:
        _Build(compiler, work, library_dir, include_dirs).build([target], report)
    return output.resolve()


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
    targets = [_own_guest(source, output_dir, STRICT_FLAGS) for source in sources]
    _Build(compiler, output_dir / ".obj", library_dir, include_dirs).build(targets)
    return [target.output for target in targets]


def build_bundled(guests_dir: Path, output_dir: Path, compiler: Compiler) -> list[Path]:
    """Build every guest under ``guests_dir`` into ``output_dir``/bin; returns the ELF files.

    Only what changed is built again (by content: sources, headers, flags, compiler), and an ELF
    file whose source is gone is removed. Objects are kept in ``output_dir``/.obj.
    """
    guests_dir, output_dir = guests_dir.resolve(), output_dir.resolve()
    binaries = output_dir / "bin"
    flags = (*BUNDLED_FLAGS, *STRICT_FLAGS)
    targets = []
    for sources, into in ((guests_dir, binaries), (guests_dir / "faults", binaries / "faults")):
        targets += [_own_guest(source, into, flags) for source in _c_files(sources)]
    include_dirs = [guests_dir / "include"]
    _Build(compiler, output_dir / ".obj", guests_dir / "lib", include_dirs).build(targets)
    outputs = [target.output for target in targets]
    for stale in set(binaries.rglob("*.elf")) - set(outputs):
        stale.unlink()
    return outputs


def build_program(
    source: Path, output: Path, *, include_dirs: Iterable[Path], compiler: Compiler
) -> Path:
    """Build a program for Linux from one C file, static if this system has what that takes.

    Raises BuildError with the compiler's own message.
    """
    includes = [f"-I{path.resolve()}" for path in include_dirs]
    with work_directory("pageferry-build-") as work:
        partial = work / output.name
        command = [*compiler.for_linux, *PROGRAM_FLAGS, *includes, str(source.resolve())]
        failure = f"cannot build {source}"
        try:
            run([*command, "-static", "-o", str(partial)], failure, cwd=work)
        except BuildError:
            run([*command, "-o", str(partial)], failure, cwd=work)
        output.parent.mkdir(parents=True, exist_ok=True)
        beside = output.with_name(f".{output.name}.{os.getpid()}")
        try:
            shutil.copy(partial, beside)
            beside.replace(output)
        finally:
            beside.unlink(missing_ok=True)
    return output


@dataclass(frozen=True)
class _Target:
    """One guest: what it is linked from, each with whether to compile it; and more options."""

    inputs: tuple[tuple[Path, bool], ...]
    output: Path
    compile: tuple[str, ...] = ()
    link: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()


def _own_guest(source: Path, into: Path, flags: tuple[str, ...]) -> _Target:
    return _Target(((source, True),), into / f"{source.stem}.elf", compile=flags)


class _Build:
    """One compiler, one library, one directory of objects. Not for use by several threads."""

    def __init__(
        self, compiler: Compiler, work: Path, library_dir: Path, include_dirs: Iterable[Path]
    ) -> None:
        self._compiler = compiler
        self._driver = (*compiler.command, *DRIVER_FLAGS.get(compiler.family, ()))
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

    def build(
        self, targets: Sequence[_Target], report: Callable[[str], None] = _to_standard_error
    ) -> None:
        """Compile the library and each target's sources once, then link each target's output.

        What the compiler says all the same is reported.
        """
        jobs: dict[Path, tuple[str, ...]]
        jobs = dict.fromkeys(self._library, (*BUNDLED_FLAGS, *STRICT_FLAGS))
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
        includes = [f"-I{path}" for path in self._include_dirs if source.suffix in (".c", ".S")]
        common = (*COMPILE_FLAGS, *FAMILY_FLAGS[self._compiler.family])
        options = (*common, *flags, *includes, *self._prefix_maps(source))
        command = [*self._driver, *options, "-c", str(source)]
        return self._produce(self._object(source), command, [source], f"cannot compile {source}")

    def _link_one(self, target: _Target) -> str:
        library = [self._object(source) for source in self._library]
        own = [self._object(path) if source else path for path, source in target.inputs]
        # In a group: archives may need each other, whatever their order.
        group = (*map(str, own), *target.libraries, *self._compiler.runtime)
        command = [*self._driver, *LINK_FLAGS, *target.link, "-T", str(self._script)]
        command += [*map(str, library), "-Wl,--start-group", *group, "-Wl,--end-group"]
        failure = f"cannot link {target.output.name}"
        given = [path for path, source in target.inputs if source]
        try:
            said = self._produce(target.output, command, [self._script, *library, *own], failure)
        except BuildError as error:
            raise BuildError(self._with_sources(str(error), given)) from None
        return self._with_sources(said, given)

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

    def _object(self, source: Path) -> Path:
        return self._work / f"{source.name}-{_digest(str(source))[:8]}.o"

    def _prefix_maps(self, source: Path) -> tuple[str, ...]:
        """Flags that make every path in the debug information a relative one."""
        maps = {self._compiler.system_directory: "system"}
        maps |= {str(self._work): ".", str(source.parent): source.parent.name}
        maps |= {str(path): f"guests/{path.name}" for path in self._include_dirs}
        return tuple(f"-ffile-prefix-map={path}={name}" for path, name in maps.items())


def _shown(source: Path) -> str:
    """Return a source's path as its user has it in view: relative, if that is no longer."""
    try:
        return min(os.path.relpath(source), str(source), key=len)
    except OSError:  # the current directory is no longer there
        return str(source)


def _c_files(directory: Path) -> list[Path]:
    return sorted(directory.resolve().glob("*.c"))


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
