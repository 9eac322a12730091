"""The program that a sandbox runs: built from C, or built before."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vmm.endpoint import arguments
from vmm.errors import ConfigError, GuestImageError
from vmm.guest.compiler import BuildError, find_compiler
from vmm.guest.elf import Source
from vmm.guest.inputs import CPP_SUFFIXES, absolute
from vmm.sandbox import archives, prototypes
from vmm.sandbox.building import build, found_archives
from vmm.sandbox.header import read_header
from vmm.sandbox.lengths import Length, bounds, declared
from vmm.sandbox.prototypes import Prototypes

_TYPE = slice(16, 18)  # of an ELF file's header, e_type
_WRITTEN = (".c", ".h", *CPP_SUFFIXES)
_PROGRAMS = (b"\x02\0", b"\x03\0")  # ET_EXEC, ET_DYN
# Libraries that come with a compiler, and are linked as far as others need them.
_OF_COMPILERS = frozenset(("c", "c++", "c++abi", "dl", "gcc", "m", "pthread", "rt", "stdc++"))
_RUNTIME = "pf_enter_function"  # which every sandbox has
# The first error that a compiler or a linker tells of.
_ERROR = re.compile(r"^.*(error: |undefined (reference|symbol)|cannot find ).*$", re.MULTILINE)


class Program:
    """An ELF file whose functions can be called.

    path        where it is
    prototypes  its functions
    said        what the compiler warned of
    archives    those that are linked, as far as that is known; None, if it was built before
    """

    archives: Sequence[Path] | None = None

    def __init__(
        self,
        path: Path,
        directory: tempfile.TemporaryDirectory[str] | None,
        sources: Sequence[str] = (),
    ) -> None:
        self.path = path
        self._directory = directory
        self._sources = sources
        self.said = ""
        with path.open("rb") as file:
            descriptor = file.fileno()
            source = Source(
                os.fstat(descriptor).st_size,
                lambda length, offset: os.pread(descriptor, length, offset),
            )
            self.prototypes: Prototypes = prototypes.read(source, path.name)

    def read_header(self, header: str, flags: Sequence[str], compiler: str | None) -> None:
        """Know what a header says of functions that the debug information does not tell of.

        Raises GuestImageError, with what the compiler says.
        """
        try:
            found = read_header(header, self.prototypes, find_compiler(compiler), flags)
        except BuildError as error:
            raise _failure(str(error)) from None
        self.prototypes.learn(found)

    @property
    def functions(self) -> list[str]:
        """The functions that are the library's, and can be called: not those of the C library, nor
        what a compiler or this has added.
        """
        known = self.prototypes
        if self.archives is None:
            others = known.learned
        else:
            there = {name for path in self.archives for name in archives.names(path)}
            others = {name for name in there & known.keys() if not known[name].unknown}
        told = (*known.defined, *sorted(others.difference(known.defined)))
        return [name for name in told if name != "main" and not name.startswith(("_", "pf_"))]

    def lengths(self, name: str) -> dict[str, Length]:
        """Return how long the sources say that a function's arrays are."""
        return next(filter(None, (declared(text, name) for text in self._sources)), {})

    def bounds(self, name: str) -> dict[str, tuple[str, ...]]:
        """Return what the sources have between the brackets of a function's arrays."""
        return next(filter(None, (bounds(text, name) for text in self._sources)), {})

    def close(self) -> None:
        """Remove it, if it has been built for this."""
        if self._directory is not None:
            self._directory.cleanup()

    def disown(self) -> None:
        """Leave it to the process that has forked this one: it would be removed when this exits."""
        if self._directory is not None:
            self._directory._finalizer.detach()  # type: ignore[attr-defined]


def program(
    sources: Sequence[Any],
    headers: Any,
    flags: Iterable[str],
    compiler: str | None,
    name: str | None,
    **options: Any,
) -> Program:
    """Build a program from sources, objects and archives; or take the one that is given.

    sources    if there are none, the libraries that are named in `options` are all there is
    headers    what declares its functions: the name of one, or several
    options    as `build_guest` has them

    Raises ConfigError, GuestImageError for what is none, or cannot be built.
    """
    for what, given in (("cflags", flags), *options.items()):
        if isinstance(given, str | bytes):
            raise arguments.wrong_type(what, "a list", given)
    flags = tuple(flags)
    options = {what: tuple(given) for what, given in options.items()}  # looked at several times
    if sources:
        paths = [Path(arguments.file_path(source, "source")) for source in sources]
    elif options["libraries"]:
        name = name or options["libraries"][0]
        paths, options["libraries"] = _whole(options, compiler)
    else:
        raise ConfigError("a sandbox needs a source: Sandbox('blur.c')")
    try:
        with paths[0].open("rb") as file:
            head = file.read(_TYPE.stop)
    except OSError as error:
        raise GuestImageError(f"{paths[0]}: {error.strerror}") from error
    if head[:4] == b"\x7fELF" and head[_TYPE] in _PROGRAMS:
        if len(paths) > 1:
            raise ConfigError(f"{paths[0]} is a program already: give it alone")
        made = Program(paths[0], None)
        if _RUNTIME not in made.prototypes:
            if ".so" in paths[0].suffixes:
                raise GuestImageError(
                    f"{paths[0]} is a shared library: give its source, or its static one "
                    "(lib*.a) with the header that declares its functions"
                )
            raise GuestImageError(
                f"{paths[0]}: it was not built for this: pageferry build --sandbox, "
                "and do not strip it"
            )
    else:
        made = _built(paths, flags, compiler, name or paths[0].stem, options)
    try:
        named = [headers] if isinstance(headers, str | os.PathLike) else headers
        for header in named:
            path = arguments.file_path(header, "header")
            made.read_header(path, (*flags, *absolute("-I", options["includes"])), compiler)
    except BaseException:
        made.close()
        raise
    return made


def _built(
    paths: Sequence[Path], flags: tuple[str, ...], compiler: str | None, name: str, options: Any
) -> Program:
    directory = tempfile.TemporaryDirectory(prefix="pageferry-sandbox-")
    try:
        into = Path(directory.name).resolve() / f"{Path(name).name}.elf"
        try:
            about = build(paths, into, flags, compiler, options)
        except BuildError as error:
            raise _failure(str(error)) from None
        texts = [path.read_text(errors="replace") for path in paths if path.suffix in _WRITTEN]
        made = Program(into, directory, texts)
        made.said, made.archives = about.said, [Path(path) for path in about.archives]
        return made
    except BaseException:
        directory.cleanup()
        raise


def _whole(options: Any, compiler: str | None) -> tuple[list[Path], tuple[str, ...]]:
    """Return the archives of libraries that are to be all there is, and the names of the others,
    which are linked as far as those need them. Raises GuestImageError.
    """
    try:
        chosen = find_compiler(compiler)
    except BuildError as error:
        raise _failure(str(error)) from None
    wanted = [name for name in options["libraries"] if name not in _OF_COMPILERS]
    found = {name: found_archives(options | {"libraries": [name]}, chosen) for name in wanted}
    for name, paths in found.items():
        if not paths:
            raise GuestImageError(
                f"there is no lib{name}.a where the compiler looks: install the library's "
                "development package, name its directory (library_dirs), or give its sources"
            )
    if not wanted:
        raise ConfigError(f"{options['libraries'][0]} is the compiler's own: name a library")
    rest = tuple(name for name in options["libraries"] if name in _OF_COMPILERS)
    return [path for paths in found.values() for path in paths], rest


def _failure(text: str) -> GuestImageError:
    """Return what cannot be built as one line, with all that the compiler says as a note."""
    first, _, rest = text.partition("\n")
    found = _ERROR.search(rest)
    error = GuestImageError(f"{first} {found[0]}" if found else first)
    if rest:
        error.add_note(rest)
    return error
