"""ELF images of guests: read, checked, and turned into segments.

What an image costs is known from its headers, and checked, before any of it is read.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import itertools
import os
import stat
from pathlib import Path
from typing import Any

from vmm.errors import GuestImageError
from vmm.guest import abi, elf
from vmm.guest.symbols import Symbols
from vmm.kvm.given import opened
from vmm.sizes import format_size

PAGE = abi.PAGE_SIZE
_MAX_BYTES = 256 << 20  # an image file over this is refused rather than read
_MAX_HEADERS = 64
_MOST_CACHED = 64  # images,
_MOST_CACHED_BYTES = 256 << 20  # and what they take together


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


_Key = tuple[str, tuple[int, ...]]
_cache: collections.OrderedDict[_Key, Image] = collections.OrderedDict()  # the last used is last


def load_image(path: str | Path, room: Room | None = None) -> Image:
    """Read and check an ELF file.

    room    what it has to fit into: an image that is too large is refused before it is read

    The same file gives the same object again, as long as it is kept. Raises GuestImageError, naming
    the file and what to do about it; OSError if no more files can be opened.
    """
    path = os.fspath(path)
    if "\0" in path:
        raise GuestImageError(f"{path!r}: no file has such a name: give the path of a guest ELF")
    try:
        key = (path, _identity(path, os.stat(path)))  # noqa: PTH116 (a Path takes far longer)
        image = _cache.get(key)
        if image is None:
            key, image = _read(path, room)
            _make_room(image)
            _cache[key] = image
        else:
            with contextlib.suppress(KeyError):  # another thread has made room
                _cache.move_to_end(key)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):  # nothing is wrong with the file
            raise
        raise GuestImageError(f"{path}: cannot be read: {error.strerror}") from error
    return image


def _identity(path: str, status: os.stat_result) -> tuple[int, ...]:
    """Return what changes when a file does. Raises GuestImageError if none like it is an image."""
    if not stat.S_ISREG(status.st_mode):
        what = " but a directory" if stat.S_ISDIR(status.st_mode) else ""
        raise GuestImageError(f"{path}: not a regular file{what}: give the path of a guest ELF")
    if status.st_size > _MAX_BYTES:
        raise GuestImageError(f"{path}: {status.st_size} bytes is too large for a guest image")
    times = (status.st_mtime_ns, status.st_ctime_ns)
    return (status.st_dev, status.st_ino, status.st_size, *times)


def _read(path: str, room: Room | None) -> tuple[_Key, Image]:
    with opened(os.open, path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK) as file:
        fd = file.fileno()
        identity = _identity(path, os.fstat(fd))
        source = elf.Source(identity[2], lambda length, offset: os.pread(fd, length, offset))
        try:
            image = _parse(source, path, room)
        finally:
            if _identity(path, os.fstat(fd)) != identity:
                raise GuestImageError(f"{path}: was changed while it was read: try again")
    return (path, identity), image


def _make_room(image: Image) -> None:
    """Let go of cached images, those used longest ago first, as another is to be kept. Each step is
    one of the interpreter's, so that threads, and signal handlers, may do this at the same time.
    """
    kept = list(_cache.items())
    total = sum(other.held for _, other in kept) + image.held
    for count, (key, other) in zip(range(len(kept), 0, -1), kept, strict=True):
        if count < _MOST_CACHED and total <= _MOST_CACHED_BYTES:
            break
        _cache.pop(key, None)
        total -= other.held


def parse_image(data: bytes, name: str, room: Room | None = None) -> Image:
    """Check an ELF file's bytes and return what is to be loaded. Raises GuestImageError."""
    return _parse(elf.Source.of(data), name, room)


def _parse(source: elf.Source, name: str, room: Room | None) -> Image:
    try:
        file = _open(source, name)
        headers = elf.program_headers(file)
        _check_note(elf.find_note(source, file, headers, abi.NOTE_NAME, abi.NOTE_ABI), name)
        loads = _loads(headers, source.size, name)
        _check_layout(loads, name)
        if room is not None:
            room.check(name, max(_end_page(load) for load in loads))
        entry = int(file["e_entry"])
        if not any(load.p_flags & 1 and _holds(load, entry) for load in loads):
            raise GuestImageError(
                f"{name}: the entry point {entry:#x} is not in executable code: link with guest.ld"
            )
        segments = tuple(_segment(source, load) for load in loads)
    except elf.Malformed as error:
        raise GuestImageError(f"{name}: truncated or malformed ELF: build it again") from error
    thread = _thread(headers, segments, name)
    return Image(name, entry, thread, segments, Symbols(elf.sections(source, Symbols.WANTED)))


def _open(source: elf.Source, name: str) -> Any:
    """Return an executable that a guest can be, as pyelftools has it. Raises Malformed."""
    start = source.pread(len(elf.MAGIC), 0)
    if start != elf.MAGIC:
        raise GuestImageError(f"{name}: {_no_elf(start, name)}")
    file = elf.open_elf(source)
    if file.elfclass != 64:
        raise GuestImageError(f"{name}: 32-bit ELF: guests are 64-bit, compile with -m64")
    if not file.little_endian:
        raise GuestImageError(f"{name}: big-endian ELF: guests are x86-64")
    if file["e_machine"] != "EM_X86_64":
        machine = _said(file["e_machine"], "machine").removeprefix("EM_")
        raise GuestImageError(f"{name}: built for {machine}: guests are x86-64")
    if file["e_type"] != "ET_EXEC":
        kind = _said(file["e_type"], "type")
        raise GuestImageError(f"{name}: {_other_type(kind, name)}")
    if file["e_phnum"] > _MAX_HEADERS:
        raise GuestImageError(
            f"{name}: {file['e_phnum']} program headers are too many: link with guest.ld"
        )
    return file


_SOURCES = (".c", ".i", ".s", ".S")


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


def _no_elf(start: bytes, name: str) -> str:
    """Return what is wrong with a file that is no ELF, and what to do."""
    if start.startswith(b"#!"):
        return "a script, not an ELF file: give a guest built for pageferry"
    if name.endswith(_SOURCES):
        return f"a source, not an ELF file: build it first (pageferry build {name})"
    return "not an ELF file: give a guest built for pageferry"


def _said(value: str | int, what: str) -> str:
    """Return a number's name, if pyelftools knows one."""
    return value if isinstance(value, str) else f"{what} {value}"


def _check_note(note: Any, name: str) -> None:
    """Check the ABI version before anything is loaded: same major, minor not above ours."""
    if note is None:
        raise GuestImageError(
            f"{name}: no pageferry ABI note: link the guest library "
            "(pageferry build makes a guest of C sources)"
        )
    descriptor = note["n_descdata"]
    if note["n_descsz"] != 8 or len(descriptor) != 8:
        raise GuestImageError(
            f"{name}: the pageferry ABI note is {note['n_descsz']} bytes, not 8: rebuild it"
        )
    major, minor = (int.from_bytes(descriptor[i : i + 4], "little") for i in (0, 4))
    if major != abi.ABI_MAJOR or minor > abi.ABI_MINOR:
        raise GuestImageError(
            f"{name}: built for ABI {major}.{minor}, "
            f"this monitor has {abi.ABI_MAJOR}.{abi.ABI_MINOR}: "
            "rebuild the guest against its pageferry.h"
        )


def _loads(headers: list[Any], size: int, name: str) -> list[Any]:
    """Return what takes memory, once it is known to be in the file."""
    found = []
    for index, load in enumerate(h for h in headers if h.p_type == "PT_LOAD"):
        where = f"{name}: segment {index}"
        end = load.p_offset + load.p_filesz
        if load.p_filesz and end > size:  # without bytes, the offset means nothing
            raise GuestImageError(f"{where} ends at byte {end} of {size}: the file is truncated")
        if load.p_filesz > load.p_memsz:
            raise GuestImageError(
                f"{where} has more bytes in the file than in memory: the file is malformed"
            )
        if load.p_memsz:
            found.append(load)
    if not found:
        raise GuestImageError(f"{name}: nothing to load (no PT_LOAD segment): link with guest.ld")
    return found


def _thread(headers: list[Any], segments: tuple[Segment, ...], name: str) -> int:
    """Return the FS base: the first multiple of the alignment after the thread-local variables.

    By the ABI there is a pointer there to itself, and guest.ld lays it out.
    """
    for header in headers:
        if header.p_type != "PT_TLS":
            continue
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


def _holds(load: Any, address: int) -> bool:
    return bool(load.p_vaddr <= address < load.p_vaddr + load.p_memsz)


def _end_page(load: Any) -> int:
    return -(-int(load.p_vaddr + load.p_memsz) // PAGE) * PAGE


def _check_layout(loads: list[Any], name: str) -> None:
    """Check that the segments lie where an image may lie, and that no two share a page."""
    ordered = sorted(loads, key=lambda load: load.p_vaddr)
    for load in ordered:
        if load.p_vaddr < abi.IMAGE_GPA or _end_page(load) > abi.DOORBELL_GPA:
            raise GuestImageError(
                f"{name}: segment at {load.p_vaddr:#x} ({load.p_memsz} bytes) is out of range: "
                f"images lie between {abi.IMAGE_GPA:#x} and {abi.DOORBELL_GPA:#x}, "
                "link with guest.ld, and keep its data small enough"
            )
    for low, high in itertools.pairwise(ordered):
        if low.p_vaddr + low.p_memsz > high.p_vaddr:
            raise GuestImageError(
                f"{name}: segments at {low.p_vaddr:#x} and {high.p_vaddr:#x} overlap: "
                "link with guest.ld"
            )
        if _end_page(low) > high.p_vaddr // PAGE * PAGE:
            raise GuestImageError(
                f"{name}: segments at {low.p_vaddr:#x} and {high.p_vaddr:#x} share a page: "
                f"align them to {PAGE}"
            )
