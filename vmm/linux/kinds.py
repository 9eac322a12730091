"""What an executable is: it says so itself. Pure, but for `is_program`, which opens the file."""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from vmm.errors import GuestImageError
from vmm.guest import abi
from vmm.guest.elf import Malformed, Source
from vmm.guest.executable import Executable
from vmm.guest.files import ImageFiles

_RELINK = "link it again, with cc -static"
_MOST_PATH = 4096  # of an interpreter, with its zero, as in Linux
_MOST_DYNAMIC = 1024  # entries of the dynamic section that are looked at
_DYNAMIC = struct.Struct("<QQ")
_DT_NULL, _DT_NEEDED, _DT_SONAME, _DT_FLAGS_1 = 0, 1, 14, 0x6FFFFFFB
_DF_1_PIE = 0x08000000


class Kind(enum.Enum):
    """What an executable is.

    GUEST     freestanding, with the guest library
    PEER      a static program for Linux that uses pageferry's ABI
    STATIC    a static program for Linux
    DYNAMIC   one that wants an interpreter (ld.so), which is a file of its system's
    """

    GUEST = "guest"
    PEER = "peer"
    STATIC = "static"
    DYNAMIC = "dynamic"


class _Known(NamedTuple):
    """What a file is known to be."""

    kind: Kind
    held: int = 0


_kinds: ImageFiles[_Known] = ImageFiles()


def is_program(path: str | Path) -> bool:
    """Whether a file is a program for Linux, of any kind, and no guest. Raises as `load` does."""
    return (
        _kinds.load(path, lambda source, name: _Known(detect(source, name))).kind is not Kind.GUEST
    )


def detect(source: Source, name: str) -> Kind:
    """Return what an executable is. Raises GuestImageError if it is none for a machine; OSError."""
    try:
        return kind_of(opened(source, name))
    except Malformed as error:
        raise malformed(name) from error


def opened(source: Source, name: str) -> Executable:
    """Return an executable or what is linked like one. Raises GuestImageError, Malformed."""
    made = Executable.open(source, name, _RELINK)
    advice = {
        "ET_REL": "an object file, not linked yet: link it with cc -static, "
        f"or make a guest of it (pageferry build {name})",
        "ET_CORE": "a core dump: give the executable that it is of",
    }
    if made.kind not in ("ET_EXEC", "ET_DYN"):
        what = advice.get(made.kind, f"not an executable ({made.kind}): give one")
        raise GuestImageError(f"{name}: {what}")
    return made


def kind_of(made: Executable) -> Kind:
    """Return what it is. Raises GuestImageError, Malformed."""
    if made.of_type("PT_INTERP"):
        return Kind.DYNAMIC
    if made.find_abi(abi.NOTE_ABI):
        return Kind.GUEST
    if made.kind == "ET_DYN" and _is_library(made):
        raise GuestImageError(f"{made.name}: a shared library: give an executable")
    return Kind.PEER if made.find_abi(abi.NOTE_LINUX) else Kind.STATIC


def _is_library(made: Executable) -> bool:
    """Whether what can be loaded anywhere is no program: linkers mark those."""
    found: dict[int, int] = {}
    for tag, value in _dynamic(made):
        found.setdefault(tag, value)
    if found.get(_DT_FLAGS_1, 0) & _DF_1_PIE:
        return False
    return not made.entry or _DT_SONAME in found or _DT_NEEDED in found


def _dynamic(made: Executable) -> Iterator[tuple[int, int]]:
    for header in made.of_type("PT_DYNAMIC")[:1]:
        count = min(header.p_filesz // _DYNAMIC.size, _MOST_DYNAMIC)
        for tag, value in _DYNAMIC.iter_unpack(
            made.source.read(header.p_offset, count * _DYNAMIC.size)
        ):
            if tag == _DT_NULL:
                return
            yield tag, value


def interpreter_of(made: Executable) -> bytes | None:
    """Return the path that it names, the first one. Raises Malformed."""
    for header in made.of_type("PT_INTERP"):
        if not 2 <= header.p_filesz <= _MOST_PATH:
            raise Malformed
        text = made.source.read(header.p_offset, header.p_filesz)
        if text[-1]:
            raise Malformed
        return text.partition(b"\0")[0]
    return None


def malformed(name: str) -> GuestImageError:
    """Return the error of a file that has parts missing, or that make no sense."""
    return GuestImageError(f"{name}: truncated or malformed ELF: build it again")
