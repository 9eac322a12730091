"""ELF images of guests: read, checked, and turned into segments. Pure: bytes in, values out."""

from __future__ import annotations

import dataclasses
import errno
import functools
import io
import itertools
import os
import stat
from pathlib import Path
from typing import Any

from elftools.common.exceptions import DWARFError, ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import NoteSegment

from vmm.errors import GuestImageError
from vmm.guest import abi
from vmm.guest.symbols import Symbols

PAGE = abi.PAGE_SIZE
_MAX_BYTES = 256 << 20  # an image file over this is refused rather than read


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
        return self.gpa // PAGE * PAGE

    def word_at(self, gpa: int) -> int | None:
        """Return the 64-bit word at an address, if it is in the file."""
        start = gpa - self.gpa
        if not 0 <= start <= len(self.data) - 8:
            return None
        return int.from_bytes(self.data[start : start + 8], "little")

    @property
    def end_page(self) -> int:
        """The address after the segment's last page."""
        return -(-(self.gpa + self.size) // PAGE) * PAGE


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


def load_image(path: str | Path) -> Image:
    """Read and check an ELF file.

    Raises GuestImageError, naming the file and what to do about it; OSError if no more files can be
    opened.
    """
    path = os.fspath(path)
    if "\0" in path:
        raise GuestImageError(f"{path!r}: no file has such a name: give the path of a guest ELF")
    try:
        status = os.stat(path)  # noqa: PTH116 (a Path takes three times as long to make)
        if not stat.S_ISREG(status.st_mode):
            raise GuestImageError(f"{path}: not a regular file: give the path of a guest ELF")
        if status.st_size > _MAX_BYTES:
            raise GuestImageError(f"{path}: {status.st_size} bytes is too large for a guest image")
        identity = (
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
        )
        return _load(path, identity)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):  # nothing is wrong with the file
            raise
        raise GuestImageError(f"{path}: cannot be read: {error.strerror}") from error


@functools.lru_cache(maxsize=64)
def _load(path: str, _identity: tuple[int, ...]) -> Image:
    return parse_image(Path(path).read_bytes(), path)


def parse_image(data: bytes, name: str) -> Image:
    """Check an ELF file's bytes and return what is to be loaded. Raises GuestImageError."""
    try:
        elf = ELFFile(io.BytesIO(data))
        _check_header(elf, name)
        _check_note(elf, name)
        segments = tuple(_segments(elf, data, name))
        _check_layout(segments, name)
        thread = _thread(elf, segments, name)
        entry = int(elf.header["e_entry"])
    except GuestImageError:
        raise
    except (ELFError, DWARFError) as error:
        if not data.startswith(b"\x7fELF"):
            raise GuestImageError(
                f"{name}: not an ELF file: give a guest built for pageferry"
            ) from error
        raise GuestImageError(f"{name}: truncated or malformed ELF: build it again") from error
    except Exception as error:  # the parser's own ways of stumbling over hostile bytes
        raise GuestImageError(
            f"{name}: malformed ELF ({type(error).__name__}): build it again"
        ) from error
    if not any(s.execute and s.gpa <= entry < s.gpa + s.size for s in segments):
        raise GuestImageError(
            f"{name}: the entry point {entry:#x} is not in executable code: link with guest.ld"
        )
    return Image(name, entry, thread, segments, Symbols(data))


def _check_header(elf: Any, name: str) -> None:
    header = elf.header
    if elf.elfclass != 64:
        raise GuestImageError(
            f"{name}: {elf.elfclass}-bit ELF: guests are 64-bit, compile with -m64"
        )
    if header["e_machine"] != "EM_X86_64":
        machine = str(header["e_machine"]).removeprefix("EM_")
        raise GuestImageError(f"{name}: built for {machine}: guests are x86-64")
    if header["e_type"] != "ET_EXEC":
        raise GuestImageError(
            f"{name}: not a static executable ({header['e_type']}): "
            "link with -static -no-pie -T guest.ld"
        )
    if header["e_phnum"] > 64:
        raise GuestImageError(
            f"{name}: {header['e_phnum']} program headers are too many: link with guest.ld"
        )


def _check_note(elf: Any, name: str) -> None:
    """Check the ABI version before anything is loaded: same major, minor not above ours."""
    for segment in elf.iter_segments():
        if not isinstance(segment, NoteSegment):
            continue
        for note in segment.iter_notes():
            # The parser gives known types by name; ours has none, and stays a number.
            name_and_type: tuple[Any, Any] = (note["n_name"], note["n_type"])
            if name_and_type == (abi.NOTE_NAME, abi.NOTE_ABI):
                _check_version(note["n_descdata"], name)
                return
    raise GuestImageError(
        f"{name}: no pageferry ABI note: link the guest library "
        "(pageferry build makes a guest of C sources)"
    )


def _check_version(descriptor: bytes, name: str) -> None:
    if len(descriptor) != 8:
        raise GuestImageError(
            f"{name}: the pageferry ABI note is {len(descriptor)} bytes, not 8: rebuild it"
        )
    major, minor = (int.from_bytes(descriptor[i : i + 4], "little") for i in (0, 4))
    if major != abi.ABI_MAJOR or minor > abi.ABI_MINOR:
        raise GuestImageError(
            f"{name}: built for ABI {major}.{minor}, "
            f"this monitor has {abi.ABI_MAJOR}.{abi.ABI_MINOR}: "
            "rebuild the guest against its pageferry.h"
        )


def _segments(elf: Any, data: bytes, name: str) -> list[Segment]:
    found = []
    for index, segment in enumerate(elf.iter_segments("PT_LOAD")):
        header = segment.header
        where = f"{name}: segment {index}"
        offset, filesz, memsz = header["p_offset"], header["p_filesz"], header["p_memsz"]
        if offset + filesz > len(data):
            raise GuestImageError(
                f"{where} ends at byte {offset + filesz} of {len(data)}: the file is truncated"
            )
        if filesz > memsz:
            raise GuestImageError(
                f"{where} has more bytes in the file than in memory: the file is malformed"
            )
        if memsz:
            flags = header["p_flags"]
            content = data[offset : offset + filesz]
            found.append(
                Segment(header["p_vaddr"], content, memsz, bool(flags & 2), bool(flags & 1))
            )
    if not found:
        raise GuestImageError(f"{name}: nothing to load (no PT_LOAD segment): link with guest.ld")
    return found


def _thread(elf: Any, segments: tuple[Segment, ...], name: str) -> int:
    """Return the FS base: the first multiple of the alignment after the thread-local variables.

    By the ABI there is a pointer there to itself, and guest.ld lays it out.
    """
    for segment in elf.iter_segments("PT_TLS"):
        header = segment.header
        first, size, align = header["p_vaddr"], header["p_memsz"], max(1, header["p_align"])
        base = -(-(first + size) // align) * align
        if any(s.word_at(base) == base for s in segments):
            return int(base)
        if size and any(s.gpa <= first < s.gpa + s.size for s in segments):
            raise GuestImageError(
                f"{name}: thread-local variables, and nothing after them for the FS base to "
                "point to: link with guest.ld"
            )
    return 0


def _check_layout(segments: tuple[Segment, ...], name: str) -> None:
    """Check that the segments lie where an image may lie, and that no two share a page."""
    ordered = sorted(segments, key=lambda s: s.gpa)
    for segment in ordered:
        if segment.gpa < abi.IMAGE_GPA or segment.end_page > abi.DOORBELL_GPA:
            raise GuestImageError(
                f"{name}: segment at {segment.gpa:#x} ({segment.size} bytes) is out of range: "
                f"images lie between {abi.IMAGE_GPA:#x} and {abi.DOORBELL_GPA:#x}, "
                "link with guest.ld, and keep its data small enough"
            )
    for low, high in itertools.pairwise(ordered):
        if low.gpa + low.size > high.gpa:
            raise GuestImageError(
                f"{name}: segments at {low.gpa:#x} and {high.gpa:#x} overlap: link with guest.ld"
            )
        if low.end_page > high.first_page:
            raise GuestImageError(
                f"{name}: segments at {low.gpa:#x} and {high.gpa:#x} share a page: "
                f"align them to {PAGE}"
            )
