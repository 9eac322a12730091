"""Executables of Linux: from an ELF file to what is to be in memory, as Linux's own loader has it.

What a file is, it says itself: `load` gives a guest's image or a program. Pure but for `load`,
which opens the file. What an image costs is known from its headers, and checked, before it is read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vmm.errors import GuestImageError, Place
from vmm.guest import abi
from vmm.guest.elf import Malformed, Source, sections
from vmm.guest.executable import PAGE, Executable, page_end, page_start
from vmm.guest.files import ImageFiles
from vmm.guest.image import Image, Room, read_image
from vmm.guest.symbols import Symbols
from vmm.linux.kinds import Kind, detect, interpreter_of, kind_of, malformed, opened
from vmm.sizes import format_size

LOWEST, HIGHEST = abi.IMAGE_GPA, abi.DOORBELL_GPA  # where images may lie
PIE_BASE = 0x10000000  # where one lies that may lie anywhere
# Beyond any program, so that the heap after it has room to grow.
INTERPRETER_BASE = 0x3E000000
READ, WRITE, EXECUTE = 1, 2, 4  # rights, as mmap(2) has them


class Segment(NamedTuple):
    """Whole pages of a program's first memory: `data` from `start` on, then zeros up to `end`.

    rights    READ, WRITE, EXECUTE together
    """

    start: int
    end: int
    data: bytes
    rights: int


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Program:
    """A program for Linux, checked: it can be loaded as it is. Equal to itself only.

    base            what has been added to the addresses that it is linked at
    entry           its entry point
    segments        by address; no two have a page in common
    headers         the address of its program headers; 0 if they are in no segment
    header_count    how many these are, of 56 bytes each
    end             the first page-aligned address after it, where the heap begins
    interpreter     the path that a dynamic one names, without its zero
    peer            whether it uses pageferry's ABI
    stack_code      whether it wants its stack to be executable
    """

    name: str
    base: int
    entry: int
    segments: tuple[Segment, ...]
    headers: int
    header_count: int
    end: int
    interpreter: bytes | None
    peer: bool
    stack_code: bool
    symbols: Symbols

    @property
    def size(self) -> int:
        """How many bytes of its machine's memory it takes, in whole pages."""
        return sum([segment.end - segment.start for segment in self.segments])

    @property
    def held(self) -> int:
        """How many bytes of this process's memory it takes."""
        return sum(len(segment.data) for segment in self.segments) + self.symbols.held

    def place(self, rip: int) -> Place:
        """Return the symbol and the source line of an instruction pointer."""
        return self.symbols.place(rip - self.base)


_files: ImageFiles[Image | Program] = ImageFiles()


def load(
    path: str | Path, room: Room | None = None, memory: int | None = None, *, rooted: bool = False
) -> Image | Program:
    """Read and check an executable: an Image if it is a guest, otherwise a Program.

    room      what a guest has to fit into; memory, in bytes, what a program has to: an image that
              is too large is refused before it is read
    rooted    whether its machine has files that an interpreter can be among (`root=`)

    The same file gives the same object again, as long as it is kept. Raises GuestImageError, naming
    the file and what to do about it; OSError if no more files can be opened.
    """

    def parse(source: Source, name: str) -> Image | Program:
        if detect(source, name) is Kind.GUEST:
            return read_image(source, name, room)
        return read_program(source, name, memory, rooted=rooted)

    found = _files.load(path, parse)
    if isinstance(found, Program):  # it may have been kept
        _check_interpreter(found.name, found.interpreter, rooted)
        _check_memory(found.name, found.size, memory)
    return found


def read_program(
    source: Source, name: str, memory: int | None = None, *, rooted: bool = False
) -> Program:
    """Check a program for Linux and return what is to be loaded; the arguments are `load`'s.

    Raises GuestImageError, OSError.
    """
    try:
        made = opened(source, name)
        if kind_of(made) is Kind.GUEST:
            raise GuestImageError(f"{name}: a guest, and no program for Linux")
        interpreter = interpreter_of(made)
        _check_interpreter(name, interpreter, rooted)
        return _read(made, PIE_BASE, interpreter, memory)
    except Malformed as error:
        raise malformed(name) from error


def read_interpreter(source: Source, name: str) -> Program:
    """Check an interpreter (ld.so) and return what is to be loaded beside a dynamic program.

    Raises GuestImageError, OSError.
    """
    try:
        made = opened(source, name)
        if made.of_type("PT_INTERP"):
            raise GuestImageError(f"{name}: an interpreter that wants one itself: check root=")
        return _read(made, INTERPRETER_BASE, None, None)
    except Malformed as error:
        raise malformed(name) from error


def _check_interpreter(name: str, interpreter: bytes | None, rooted: bool) -> None:
    if interpreter is not None and not rooted:
        raise GuestImageError(
            f"{name}: dynamically linked: link it with cc -static, or give the directory that has "
            "its libraries (root=, --root)"
        )


# ---- What is to be loaded ----


def _read(made: Executable, base: int, interpreter: bytes | None, memory: int | None) -> Program:
    loads = made.loads()
    made.check_overlap(loads)
    bias = _bias(made, loads, base)
    _check_layout(made, loads, bias, HIGHEST if interpreter is None else INTERPRETER_BASE)
    _check_memory(made.name, sum(_last(load) - page_start(load.p_vaddr) for load in loads), memory)
    made.check_entry(loads)
    segments: list[Segment] = []
    for load in loads:
        for segment in _mapped(made, load, bias):
            segments = [*_without(segments, segment.start, segment.end), segment]
    return Program(
        name=made.name,
        base=bias,
        entry=bias + made.entry,
        segments=tuple(sorted(segments)),
        headers=_headers(made, loads, bias),
        header_count=len(made.headers),
        end=bias + max(_last(load) for load in loads),
        interpreter=interpreter,
        peer=made.find_abi(abi.NOTE_LINUX),
        stack_code=any(header.p_flags & 1 for header in made.of_type("PT_GNU_STACK")),
        symbols=Symbols(sections(made.source, Symbols.WANTED)),
    )


def _bias(made: Executable, loads: list[Any], base: int) -> int:
    if made.kind == "ET_EXEC":
        return 0
    return base - page_start(min(load.p_vaddr for load in loads))


def _last(load: Any) -> int:
    return page_end(int(load.p_vaddr + load.p_memsz))


def _check_layout(made: Executable, loads: list[Any], bias: int, highest: int) -> None:
    for load in loads:
        first, what = bias + load.p_vaddr, f"{made.name}: segment at {load.p_vaddr:#x}"
        if load.p_filesz and (load.p_vaddr - load.p_offset) % PAGE:
            raise GuestImageError(
                f"{what} is not aligned as it is in the file: the file is malformed"
            )
        if first < LOWEST:
            raise GuestImageError(
                f"{what} is linked too low: programs lie from {LOWEST:#x} on: link it with "
                "-Wl,-Ttext-segment=0x400000"
            )
        if bias + _last(load) > highest:
            raise GuestImageError(
                f"{what} ({load.p_memsz} bytes) is out of range: programs lie between "
                f"{LOWEST:#x} and {highest:#x}: link it with -Wl,-Ttext-segment=0x400000, and "
                "keep its data small enough"
            )


def _check_memory(name: str, size: int, memory: int | None) -> None:
    if memory is not None and size > memory:
        raise GuestImageError(
            f"{name}: the program takes {format_size(size)}, more than the {format_size(memory)} "
            "of memory that its machine has: give more (memory=, --memory)"
        )


def _mapped(made: Executable, load: Any, bias: int) -> Iterator[Segment]:
    """Yield a segment as Linux has it: pages of the file, what lies around it in them too, and
    then pages of zeros.
    """
    rights = _rights(load.p_flags)
    first = page_start(load.p_vaddr)
    middle = page_end(load.p_vaddr + load.p_filesz) if load.p_filesz else first
    if middle > first:
        lead = load.p_vaddr - first
        length = min(middle - first, made.source.size - (load.p_offset - lead))
        data = made.source.read(load.p_offset - lead, length)
        if load.p_memsz > load.p_filesz and rights & WRITE:
            data = data[: lead + load.p_filesz]
        yield Segment(bias + first, bias + middle, data, rights)
    if _last(load) > middle and load.p_memsz > load.p_filesz:
        yield Segment(bias + middle, bias + _last(load), b"", READ | WRITE | rights & EXECUTE)


def _rights(flags: int) -> int:
    """Return a segment's flags as rights: the bits are the other way round."""
    return (flags >> 2 & 1) * READ | (flags & 2) | (flags & 1) * EXECUTE


def _without(segments: list[Segment], start: int, end: int) -> Iterator[Segment]:
    """Yield what is left of segments where others are mapped over them."""
    for segment in segments:
        if segment.end <= start or end <= segment.start:
            yield segment
            continue
        if segment.start < start:
            yield segment._replace(end=start, data=segment.data[: start - segment.start])
        if end < segment.end:
            yield segment._replace(start=end, data=segment.data[end - segment.start :])


def _headers(made: Executable, loads: list[Any], bias: int) -> int:
    """Return where the program headers are in memory, by the segment that has them; or 0."""
    at = made.file["e_phoff"]
    for load in loads:
        if load.p_offset <= at < load.p_offset + load.p_filesz:
            return int(bias + load.p_vaddr + at - load.p_offset)
    return 0
