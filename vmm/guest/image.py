"""ELF images of guests: read, checked, and turned into segments.

What an image costs is known from its headers, and checked, before any of it is read.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

from vmm.errors import GuestImageError
from vmm.guest import abi, elf
from vmm.guest.executable import PAGE, Executable, end_page, page_end, page_start
from vmm.guest.files import ImageFiles
from vmm.guest.symbols import Symbols
from vmm.sizes import format_size

_RELINK = "link with guest.ld"


@dataclasses.dataclass(frozen=True, slots=True)
class Segment:
    """One PT_LOAD: `data` at `gpa`, then zeros up to `size` bytes."""

    gpa: int
    data: bytes
    size: int
    write: bool
    execute: bool

    @property
    def first_page(self) -> int:
        """The address of the segment's first page."""
        return page_start(self.gpa)

    def word_at(self, gpa: int) -> int | None:
        """Return the 64-bit word at an address, if it is in the file."""
        start = gpa - self.gpa
        if not 0 <= start <= len(self.data) - 8:
            return None
        return int.from_bytes(self.data[start : start + 8], "little")

    @property
    def end_page(self) -> int:
        """The address after the segment's last page."""
        return page_end(self.gpa + self.size)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Image:
    """A guest program, checked: it can be loaded as it is. Equal to itself only.

    thread    where the FS base points: after its thread-local variables; 0 if it has none
    """

    name: str
    entry: int
    thread: int
    segments: tuple[Segment, ...]
    symbols: Symbols

    @property
    def end(self) -> int:
        """The first page-aligned address after the image."""
        return max(segment.end_page for segment in self.segments)

    @property
    def held(self) -> int:
        """How many bytes of memory it takes."""
        return sum(len(segment.data) for segment in self.segments) + self.symbols.held


@dataclasses.dataclass(frozen=True, slots=True)
class Room:
    """The private memory that an image has to fit into, with its stack above it; in bytes."""

    private: int
    stack: int

    def check(self, name: str, end: int) -> None:
        """Raise GuestImageError if an image that ends at `end` does not fit."""
        if end + self.stack > self.private:
            raise self.too_small(name, end)

    def too_small(self, name: str, end: int) -> GuestImageError:
        """Return what is to be said of an image that does not fit."""
        return GuestImageError(
            f"{name}: the image ends at {end:#x}: {format_size(self.private)} of private "
            f"memory with a stack of {format_size(self.stack)} is too small: give more "
            "(memory=, --memory)"
        )


_files: ImageFiles[Image] = ImageFiles()


def load_image(path: str | Path, room: Room | None = None) -> Image:
    """Read and check an ELF file.

    room    what it has to fit into: an image that is too large is refused before it is read

    The same file gives the same object again, as long as it is kept. Raises GuestImageError, naming
    the file and what to do about it; OSError if no more files can be opened.
    """
    return _files.load(path, lambda source, name: read_image(source, name, room))


def parse_image(data: bytes, name: str, room: Room | None = None) -> Image:
    """Check an ELF file's bytes and return what is to be loaded. Raises GuestImageError."""
    return read_image(elf.Source.of(data), name, room)


def read_image(source: elf.Source, name: str, room: Room | None) -> Image:
    """Check an ELF file and return what is to be loaded. Raises GuestImageError, OSError."""
    try:
        made = Executable.open(source, name, _RELINK)
        if made.kind != "ET_EXEC":
            raise GuestImageError(f"{name}: {_other_type(made.kind, name)}")
        if not made.find_abi(abi.NOTE_ABI):
            raise GuestImageError(
                f"{name}: no pageferry ABI note: link the guest library "
                "(pageferry build makes a guest of C sources)"
            )
        loads = made.loads()
        _check_layout(loads, made)
        if room is not None:
            room.check(name, max(end_page(load) for load in loads))
        made.check_entry(loads)
        segments = tuple(_segment(source, load) for load in loads)
    except elf.Malformed as error:
        raise GuestImageError(f"{name}: truncated or malformed ELF: build it again") from error
    thread = _thread(made.of_type("PT_TLS"), segments, name)
    symbols = Symbols(elf.sections(source, Symbols.WANTED))
    return Image(name, made.entry, thread, segments, symbols)


def _other_type(kind: str, name: str) -> str:
    """Return what is wrong with an ELF file that is no executable, and what to do."""
    if kind == "ET_REL":
        return f"an object file ({kind}), not an executable: link it (pageferry build {name})"
    if kind == "ET_DYN":
        return (
            f"not a static executable ({kind}: dynamic, or position-independent): "
            "build its sources for pageferry (pageferry build FILE.c)"
        )
    return f"not a static executable ({kind}): give a guest built for pageferry"


def _thread(headers: list[Any], segments: tuple[Segment, ...], name: str) -> int:
    """Return the FS base: the first multiple of the alignment after the thread-local variables.

    By the ABI there is a pointer there to itself, and guest.ld lays it out.
    """
    for header in headers:
        first, size, align = header.p_vaddr, header.p_memsz, max(1, header.p_align)
        base = -(-(first + size) // align) * align
        if any(s.word_at(base) == base for s in segments):
            return int(base)
        if size and any(s.gpa <= first < s.gpa + s.size for s in segments):
            raise GuestImageError(
                f"{name}: thread-local variables, and nothing after them for the FS base to "
                "point to: link with guest.ld"
            )
    return 0


def _segment(source: elf.Source, load: Any) -> Segment:
    data = source.read(load.p_offset, load.p_filesz) if load.p_filesz else b""
    return Segment(load.p_vaddr, data, load.p_memsz, bool(load.p_flags & 2), bool(load.p_flags & 1))


def _check_layout(loads: list[Any], made: Executable) -> None:
    """Check that the segments lie where an image may lie, and that no two share a page."""
    ordered = sorted(loads, key=lambda load: load.p_vaddr)
    for load in ordered:
        if load.p_vaddr < abi.IMAGE_GPA or end_page(load) > abi.DOORBELL_GPA:
            raise GuestImageError(
                f"{made.name}: segment at {load.p_vaddr:#x} ({load.p_memsz} bytes) is out of "
                f"range: images lie between {abi.IMAGE_GPA:#x} and {abi.DOORBELL_GPA:#x}, "
                "link with guest.ld, and keep its data small enough"
            )
    made.check_overlap(loads)
    for low, high in itertools.pairwise(ordered):
        if end_page(low) > page_start(high.p_vaddr):
            raise GuestImageError(
                f"{made.name}: segments at {low.p_vaddr:#x} and {high.p_vaddr:#x} share a page: "
                f"align them to {PAGE}"
            )
