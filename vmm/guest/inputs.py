"""What a guest is built from: sources, which are compiled, and objects and archives, which are not.

Uses the standard library and, by a relative import, ``compiler``: see ``build``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from .compiler import BuildError

SOURCE_SUFFIXES = (".c", ".i", ".s", ".S")
CPP_SUFFIXES = (".cc", ".cpp", ".cxx", ".C")  # where there is a C library
_OTHER_LANGUAGES = (".m", ".rs", ".zig")
_ARCHIVES = (b"!<arch>\n", b"!<thin>\n")
_BITCODE = b"BC\xc0\xde"  # an object of clang's for the link-time optimizer
_RELOCATABLE, _X86_64 = 1, 62  # e_type, e_machine


def sort_inputs(inputs: Iterable[Path], libc: bool = False) -> list[tuple[Path, bool]]:
    """Return the absolute paths of what is to be linked, each with whether to compile it before.

    A source is known by its suffix, an object or archive by its content. It may be C++ where there
    is to be a C library. Raises BuildError for what is neither.
    """
    sorted_ = [(path, _is_source(path, libc)) for path in inputs]
    if not sorted_:
        raise BuildError("nothing to build: name a C source")
    return [(path.resolve(), source) for path, source in sorted_]


def _is_source(path: Path, libc: bool) -> bool:
    try:
        start = _first_bytes(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BuildError(f"{path}: cannot be read: {reason}") from error
    if start.startswith(b"\x7fELF"):
        _check_object(path, start)
        return False
    if start[: len(_ARCHIVES[0])] in _ARCHIVES or start.startswith(_BITCODE):
        return False
    if path.suffix in SOURCE_SUFFIXES or (libc and path.suffix in CPP_SUFFIXES):
        return True
    if path.suffix in CPP_SUFFIXES:
        raise BuildError(f"{path}: C++ wants a C library: give --libc, or write it in C")
    if path.suffix in _OTHER_LANGUAGES:
        raise BuildError(f"{path}: not C: guests are C or assembly, or objects that need no more")
    raise BuildError(
        f"{path}: neither a source ({', '.join(SOURCE_SUFFIXES)}) nor an object or archive"
    )


def _first_bytes(path: Path) -> bytes:
    """Return the beginning of a file; of a pipe nothing, which can be read only once."""
    path.stat()
    if not path.is_file():
        return b""
    with path.open("rb") as stream:
        return stream.read(64)


def _check_object(path: Path, header: bytes) -> None:
    kind, machine = (int.from_bytes(header[i : i + 2], "little") for i in (16, 18))
    if header[4:6] != b"\x02\x01" or machine != _X86_64:
        raise BuildError(f"{path}: an object for another machine: compile it for x86-64")
    if kind != _RELOCATABLE:
        raise BuildError(
            f"{path}: a program or shared library, which cannot be linked into a guest: "
            "give sources, objects (.o) or archives (.a)"
        )


def absolute(flag: str, directories: Iterable[str | os.PathLike[str]]) -> tuple[str, ...]:
    """Return a flag for each directory, by its absolute path: compilers run elsewhere."""
    return tuple(f"{flag}{Path(directory).absolute()}" for directory in directories)


def dependencies(rule: str) -> list[str]:
    """Return the files that a rule of make's, as compilers write them, says a target depends on."""
    _, _, rest = rule.replace("\\\n", " ").partition(": ")
    first = rest.partition("\n")[0]  # what follows are rules without dependencies
    words = re.findall(r"(?:\\[ #]|\$\$|[^\s])+", first)
    return [re.sub(r"\\([ #])", r"\1", word).replace("$$", "$") for word in words]
