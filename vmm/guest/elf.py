"""ELF files of guests, as pyelftools reads them, within bounds.

Every number in one is its author's, who may mean no good, and pyelftools believes them all. So it
reads through a stream that counts, and what it stumbles over is Malformed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import struct
from collections.abc import Callable, Iterator
from typing import IO, Any, cast

from elftools.elf.elffile import ELFFile
from elftools.elf.notes import iter_notes

MAGIC = b"\x7fELF"
_HEADER_SIZE, _PROGRAM_HEADER_SIZE = 64, 56
_NOT_NEEDED = ((8, 16), (40, 48), (58, 64))  # of a header: padding, and what tells of sections
_SYMBOL_SIZE = 24

_MOST_READS = 100_000  # by pyelftools, for one image: half a second
_MOST_AT_ONCE = 1 << 16  # bytes of one read, but for sections
_MOST_NOTE_BYTES = 8 << 20  # of all note segments together
_MOST_SECTIONS = 4096  # an executable has some 30
MOST_KEPT = 32 << 20  # bytes of an image's sections that are kept for its faults


class Malformed(ValueError):
    """A file that is not what it says, or is cut off, or takes too long to read."""


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """A file of `size` bytes; `pread(length, offset)` reads a part of it."""

    size: int
    pread: Callable[[int, int], bytes]

    @classmethod
    def of(cls, data: bytes) -> Source:
        """Return a source that is in memory."""
        return cls(len(data), lambda length, offset: data[offset : offset + length])

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly these bytes. Raises Malformed, OSError."""
        if offset + length > self.size:
            raise Malformed
        parts = []
        while length:
            part = self.pread(length, offset)
            if not part:  # the file has become shorter
                raise Malformed
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return b"".join(parts)


@dataclasses.dataclass(slots=True)
class Budget:
    """How many reads are left."""

    left: int


class Stream:
    """A source as pyelftools reads it. Whatever it does takes a read, or nearly: so a number of
    reads bounds its time and memory, and the same number does for whoever asks again.
    """

    __slots__ = ("_at", "_budget", "_most", "_source")

    def __init__(self, source: Source, budget: Budget, most: int = _MOST_AT_ONCE) -> None:
        self._source, self._budget, self._most, self._at = source, budget, most, 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to an offset."""
        start = (0, self._at, self._source.size)[whence]
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        """Return the offset."""
        return self._at

    def read(self, length: int) -> bytes:
        """Return bytes, at most as many as one read may have. Raises Malformed, OSError."""
        self._budget.left -= 1
        if self._budget.left < 0 or length < 0 or self._at < 0:
            raise Malformed
        length = min(length, self._most, max(self._source.size - self._at, 0))
        data = self._source.pread(length, self._at) if length else b""
        self._at += len(data)
        return data


@contextlib.contextmanager
def _stumbling() -> Iterator[None]:
    try:
        yield
    except (Malformed, OSError):
        raise
    except Exception as error:  # pyelftools has many ways of it
        raise Malformed from error


def _elf(source: Source, most: int = _MOST_AT_ONCE) -> Any:
    return ELFFile(cast(IO[bytes], Stream(source, Budget(_MOST_READS), most)))


def open_elf(source: Source) -> Any:
    """Return the file as an ELFFile that knows of no sections. Raises Malformed.

    Some versions of pyelftools read the sections' names at once. But a guest needs no sections, and
    a stripped one has garbage for them.
    """

    def pread(length: int, offset: int) -> bytes:
        data = source.pread(length, offset)
        return bytes(header[offset : offset + length]) + data[max(len(header) - offset, 0) :]

    with _stumbling():
        header = bytearray(source.read(0, min(_HEADER_SIZE, source.size)))
        if header[4:5] == b"\2" and len(header) == _HEADER_SIZE:
            for first, last in _NOT_NEEDED:
                header[first:last] = bytes(last - first)
        return _elf(Source(source.size, pread))


def program_headers(elf: Any) -> list[Any]:
    """Return the program headers; their number has been checked. Raises Malformed."""
    with _stumbling():
        if elf["e_phnum"] and elf["e_phentsize"] != _PROGRAM_HEADER_SIZE:
            raise Malformed
        return [elf.get_segment(index).header for index in range(elf["e_phnum"])]


def find_note(source: Source, elf: Any, headers: list[Any], owner: str, kind: int) -> Any:
    """Return the first note of a name and type, or None if there is none. Raises Malformed.

    Linkers join notes of two alignments in one segment, of which pyelftools knows one, and it takes
    40 us for each: so it is pointed at the note. Of segments larger than any that is meant, only
    the beginning is looked at.
    """
    name = owner.encode() + b"\0"
    start = re.compile(
        struct.pack("<I", len(name)) + b".{4}" + re.escape(struct.pack("<I", kind) + name),
        re.DOTALL,
    )
    left = _MOST_NOTE_BYTES
    for segment in headers:
        if segment.p_type != "PT_NOTE" or not segment.p_filesz:
            continue
        if segment.p_offset + segment.p_filesz > source.size:
            raise Malformed
        data = source.read(segment.p_offset, min(segment.p_filesz, left))
        left -= len(data)
        if match := start.search(data):
            with _stumbling():
                at = match.start()
                return next(iter_notes(elf, segment.p_offset + at, segment.p_filesz - at), None)
    return None


def sections(source: Source, wanted: tuple[str, ...]) -> dict[str, bytes]:
    """Return the symbol table (".symtab", ".strtab") and the sections of these names.

    Whatever is malformed, or too large to be kept, is left out; no image is refused for it.
    """
    found: dict[str, Any] = {}
    with contextlib.suppress(Malformed), _stumbling():
        elf = _elf(source, MOST_KEPT)
        count = elf.num_sections()
        for index in range(count if count <= _MOST_SECTIONS else 0):
            with contextlib.suppress(Malformed), _stumbling():
                _note_down(found, elf.get_section(index), wanted)
    kept: dict[str, bytes] = {}
    left = MOST_KEPT
    for name in (".symtab", ".strtab", *wanted):
        with contextlib.suppress(Malformed), _stumbling():
            kept[name] = _content(found[name], left, source.size)
            left -= len(kept[name])
    return kept


def _note_down(found: dict[str, Any], section: Any, wanted: tuple[str, ...]) -> None:
    if section["sh_type"] == "SHT_SYMTAB" and section["sh_entsize"] == _SYMBOL_SIZE:
        found.setdefault(".symtab", section)
        found.setdefault(".strtab", section.stringtable)
    elif section.name in wanted:
        found.setdefault(section.name, section)


def _content(section: Any, most: int, end: int) -> bytes:
    """Return what a section holds, decompressed, if that is no more than `most` bytes."""
    size = section["sh_size"]
    absent = section["sh_type"] == "SHT_NOBITS" or section["sh_offset"] + size > end
    if absent or max(size, section.data_size) > most:
        raise Malformed
    return bytes(section.data())
