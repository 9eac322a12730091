"""Build guests: freestanding, static x86-64 ELF programs, from C sources.

Uses the standard library and, by relative imports, ``builds``, ``compiler`` and ``inputs``; nothing
else of this package: the build hook (``scripts/hatch_build.py``) loads them without ``vmm``, before
anything is installed.

A guest is its own sources, linked with every source of the guest library (start-up and calls)
by the library's linker script. With ``libc`` it is a program for Linux instead: its own sources,
linked with a C library and with what the guest library has for such programs. The layout that
:func:`build_bundled` expects is::

    guests/include/       headers shared with the monitor (the ABI)
    guests/lib/           library: *.c, *.S, *.h, guest.ld
    guests/lib/linux/     what programs for Linux have of their own
    guests/*.c            one guest per file           -> bin/<name>.elf
    guests/faults/*.c     one fault guest per file     -> bin/faults/<name>.elf
    guests/linux/*.c      one program per file that needs no library -> bin/linux/<name>.elf
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from .builds import (
    BUNDLED_FLAGS,
    Build,
    LibcBuild,
    ProgramBuild,
    SandboxBuild,
    Target,
    c_files,
    own_guest,
    to_standard_error,
)
from .compiler import PROGRAM_FLAGS, STRICT_FLAGS, BuildError, Compiler, run, work_directory
from .inputs import absolute, dependencies, sort_inputs

_LINKED = "linked.d"
_LINK_PREFIXES = ("-O", "-flto", "-fuse-ld", "-Wl,")  # of a user's flags, those that linking needs


def build_guest(
    sources: Iterable[Path],
    output: Path,
    *,
    include_dirs: Iterable[Path],
    library_dir: Path,
    compiler: Compiler,
    libc: bool = False,
    sandbox: bool = False,
    optimize: str | int | None = None,
    defines: Iterable[str] = (),
    includes: Iterable[str | os.PathLike[str]] = (),
    library_dirs: Iterable[str | os.PathLike[str]] = (),
    libraries: Iterable[str] = (),
    flags: Iterable[str] = (),
    report: Callable[[str], None] = to_standard_error,
    reads: list[Path] | None = None,
) -> Path:
    """Build one guest from ``sources`` and the guest library; returns ``output``.

    sources         C (.c, .i) and assembly (.s, .S), objects and archives
    include_dirs    the ABI's headers; library_dir the guest library
    libc            link a C library: a static program for Linux, of C++ (.cc, .cpp, .cxx) as well
    sandbox         the same, without a main: its functions are called by the host
    optimize        the compiler's -O: "0", "3", "s"; 2 by default
    defines         its -D: "NAME", "NAME=VALUE"
    includes        its -I, searched before the ABI's
    library_dirs    its -L, and libraries its -l, by their names
    flags           other options of the compiler's, for these sources
    report          is told of the compiler's warnings, as text
    reads           is filled with all files that compiler and linker have read; they are to be
                    gcc's or clang's

    The options concern ``sources`` only; the library is compiled as it always is. Nothing is kept
    but ``output``, which is replaced only when all of it succeeded. Raises BuildError with the
    compiler's own message.
    """
    own = (() if optimize is None else (f"-O{optimize}",)) + tuple(flags)
    target = Target(
        tuple(sort_inputs(sources, libc or sandbox)),
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
        if reads is not None:
            linked = f"-Wl,--dependency-file={work / _LINKED}"
            target = replace(target, compile=(*target.compile, "-MD"), link=(*target.link, linked))
        kind = SandboxBuild if sandbox else LibcBuild if libc else Build
        kind(compiler, work, library_dir, include_dirs).build([target], report)
        if reads is not None:
            rules = [rule.read_text() for rule in work.glob("*.d")]
            found = {work / path for rule in rules for path in dependencies(rule)}
            ours = work, work.resolve()
            reads += sorted(path for path in found if path.parent not in ours)
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
    sources = c_files(sources_dir)
    targets = [own_guest(source, output_dir, STRICT_FLAGS) for source in sources]
    Build(compiler, output_dir / ".obj", library_dir, include_dirs).build(targets)
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
        targets += [own_guest(source, into, flags) for source in c_files(sources)]
    include_dirs = [guests_dir / "include"]
    programs = c_files(guests_dir / "linux")
    others = [own_guest(source, binaries / "linux", STRICT_FLAGS) for source in programs]
    for kind, made in ((Build, targets), (ProgramBuild, others)):
        kind(compiler, output_dir / ".obj", guests_dir / "lib", include_dirs).build(made)
    outputs = [target.output for target in (*targets, *others)]
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
