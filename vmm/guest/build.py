"""Build guests: freestanding, static x86-64 ELF programs, from C sources.

Uses the standard library and, by a relative import, ``compiler``; nothing else of this package: the
build hook (``scripts/hatch_build.py``) loads the two without ``vmm``, before anything is installed.

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
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

from .compiler import (
    COMPILE_FLAGS,
    FAMILY_FLAGS,
    LINK_FLAGS,
    PROGRAM_FLAGS,
    BuildError,
    Compiler,
    run,
    work_directory,
)

_T = TypeVar("_T")
_Target = tuple[Sequence[Path], Path]  # sources, output

LINKER_SCRIPT = "guest.ld"
# The library and the bundled guests do without SSE, so that they also run where a ring is emulated:
# KVM's emulator knows little of it. Functions that want it say so, by a target attribute.
BUNDLED_FLAGS = ("-mno-sse", "-mno-mmx")


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
    with work_directory("pageferry-build-") as work:
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
            run([*command, "-o", str(partial)], failure, cwd=self._work)
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
