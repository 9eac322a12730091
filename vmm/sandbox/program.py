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
from vmm.guest.build import build_guest
from vmm.guest.bundled import ROOT
from vmm.guest.compiler import BuildError, find_compiler
from vmm.guest.elf import Source
from vmm.guest.inputs import CPP_SUFFIXES, absolute
from vmm.sandbox import prototypes
from vmm.sandbox.header import read_header
from vmm.sandbox.lengths import Length, declared
from vmm.sandbox.prototypes import Prototypes

_TYPE = slice(16, 18)  # of an ELF file's header, e_type
_WRITTEN = (".c", ".h", *CPP_SUFFIXES)
_PROGRAMS = (b"\x02\0", b"\x03\0")  # ET_EXEC, ET_DYN
_RUNTIME = "pf_enter_function"  # which every sandbox has
# The first error that a compiler or a linker tells of.
_ERROR = re.compile(r"^.*(error: |undefined (reference|symbol)|cannot find ).*$", re.MULTILINE)


class Program:
    """An ELF file whose functions can be called.

    path        where it is
    prototypes  its functions
    said        what the compiler warned of
    """

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
            raise _failure(str(error)) from error
        self.prototypes.learn(found)

    def lengths(self, name: str) -> dict[str, Length]:
        """Return how long the sources say that a function's arrays are."""
        for text in self._sources:
            if found := declared(text, name):
                return found
        return {}

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

    headers    what declares its functions: the name of one, or several
    options    as `build_guest` has them

    Raises GuestImageError for what is none, or cannot be built.
    """
    if not sources:
        raise ConfigError("a sandbox needs a source: Sandbox('blur.c')")
    paths = [Path(arguments.file_path(source, "source")) for source in sources]
    if isinstance(flags, str | bytes):
        raise arguments.wrong_type("cflags", "a list of options", flags)
    flags = tuple(flags)
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
    said: list[str] = []
    try:
        try:
            elf = build_guest(
                paths,
                Path(directory.name) / f"{Path(name).name}.elf",
                include_dirs=[ROOT / "include"],
                library_dir=ROOT / "lib",
                compiler=find_compiler(compiler),
                sandbox=True,
                flags=flags,
                report=said.append,
                **options,
            )
        except BuildError as error:
            raise _failure(str(error)) from error
        texts = [path.read_text(errors="replace") for path in paths if path.suffix in _WRITTEN]
        made = Program(elf, directory, texts)
        made.said = "\n".join(said)
        return made
    except BaseException:
        directory.cleanup()
        raise


def _failure(text: str) -> GuestImageError:
    """Return what cannot be built as one line, with all that the compiler says as a note."""
    first, _, rest = text.partition("\n")
    found = _ERROR.search(rest)
    error = GuestImageError(f"{first} {found[0]}" if found else first)
    if rest:
        error.add_note(rest)
    return error
