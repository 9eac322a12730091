"""Building a sandbox's program, unless it has been built before."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vmm.guest import build as builder
from vmm.guest import builds, inputs
from vmm.guest import compiler as compilers
from vmm.guest.bundled import ROOT
from vmm.guest.compiler import BuildError, Compiler, find_compiler, likely_compiler
from vmm.sandbox import archives, kept_builds
from vmm.sandbox.kept_builds import About

_MODULES = builder, builds, compilers, inputs
# What every program is built with, besides its own sources, and by what.
_FRAME = [ROOT / "lib", ROOT / "include", *(Path(module.__file__ or "") for module in _MODULES)]
_SEARCH = ("-I", "-isystem", "-iquote", "-idirafter", "-L")  # options that name a directory
_SEARCHED = ("CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH", "LIBRARY_PATH")
_LOCAL = (Path("/usr/local/include"), Path("/usr/local/lib"))


def build(
    paths: Sequence[Path],
    into: Path,
    flags: Sequence[str],
    compiler: str | None,
    options: Mapping[str, Any],
) -> About:
    """Have a program in a file, and return what is known of it. Raises BuildError.

    options    as `build_guest` has them
    """
    searched = list(_searched(paths, flags, options))
    asked = [*flags, sorted(options.items())]
    likely = likely_compiler(compiler)
    name = None if likely is None else kept_builds.key(likely, _FRAME, paths, asked)
    if name is not None and (about := kept_builds.load(name, into, searched)) is not None:
        return about
    chosen, began = find_compiler(compiler), time.time_ns()
    if chosen != likely:
        name = None
    read: list[Path] = []
    try:
        about = _build(paths, into, flags, chosen, options, read if name else None)
    except BuildError as error:
        if not name or "dependency-file" not in str(error):
            raise
        name = None  # the linker cannot tell what it has read
        about = _build(paths, into, flags, chosen, options, None)
    if name is not None:
        kept_builds.store(name, into, about, read, searched, began)
    return about


def _build(
    paths: Sequence[Path],
    into: Path,
    flags: Sequence[str],
    compiler: Compiler,
    options: Mapping[str, Any],
    read: list[Path] | None,
) -> About:
    said: list[str] = []
    found = found_archives(options, compiler)
    builder.build_guest(
        paths,
        into,
        include_dirs=[ROOT / "include"],
        library_dir=ROOT / "lib",
        compiler=compiler,
        sandbox=True,
        flags=flags,
        report=said.append,
        reads=read,
        **options,
    )
    linked = [str(path.absolute()) for path in (*paths, *found) if archives.is_archive(path)]
    return About("\n".join(said), linked)


def found_archives(options: Mapping[str, Any], compiler: Compiler) -> list[Path]:
    """Return the archives of the libraries that are named, as far as they are found."""
    directories = [Path(directory).absolute() for directory in options["library_dirs"]]
    found = (archives.find(name, directories, compiler) for name in options["libraries"])
    return [path for path in found if path is not None]


def _searched(
    paths: Sequence[Path], flags: Sequence[str], options: Mapping[str, Any]
) -> Iterator[Path]:
    """Yield the directories in which a file may come to be that would be read from then on."""
    yield from dict.fromkeys(path.absolute().parent for path in paths)
    for what in ("includes", "library_dirs"):
        yield from (Path(directory).absolute() for directory in options[what])
    for flag, after in zip(flags, (*flags[1:], ""), strict=False):
        for option in _SEARCH:
            if flag.startswith(option):
                yield Path(flag.removeprefix(option) or after)
    for variable in _SEARCHED:
        yield from map(Path, filter(None, os.environ.get(variable, "").split(":")))
    yield from _LOCAL
