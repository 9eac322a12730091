"""Static libraries (lib*.a): where they are, and what names they have."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from vmm.guest.compiler import BuildError, Compiler, run

_MAGIC = (b"!<arch>\n", b"!<thin>\n")
_HEADER = struct.Struct("16s12s6s6s8s10s2s")  # of a member: its name, ..., its size
_WIDTHS = {b"/": "I", b"/SYM64/": "Q"}  # of a number in the table of symbols
_MOST = 64 << 20  # bytes of one


def find(name: str, directories: Iterable[Path], compiler: Compiler) -> Path | None:
    """Return the archive that a compiler's -l means, None if there is none.

    directories    where it is looked for first
    """
    file = f"lib{name}.a"
    for directory in directories:
        if is_archive(directory / file):
            return directory / file
    try:
        asked = run([*compiler.for_linux, f"-print-file-name={file}"], f"no {file}").stdout.strip()
    except BuildError:
        return None
    found = Path(asked)
    return found if found.is_absolute() and is_archive(found) else None


def is_archive(path: Path) -> bool:
    """Whether a file is one: some that are named so are text for the linker."""
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC[0])) in _MAGIC
    except OSError:
        return False


def names(path: Path) -> Iterator[str]:
    """Yield the global names that an archive has, by its table; none, if it has no such table."""
    with path.open("rb") as file:
        file.seek(len(_MAGIC[0]))
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size:
            return
        member, *_, digits, _ = _HEADER.unpack(header)
        width = _WIDTHS.get(member.rstrip())
        size = digits.strip()
        if width is None or not size.isdigit() or int(size) > _MOST:
            return
        table = file.read(int(size))
    number = struct.Struct(f">{width}")
    if len(table) >= number.size:
        (count,) = number.unpack_from(table)
        for name in table[number.size * (1 + count) :].split(b"\0")[:count]:
            yield name.decode(errors="replace")
