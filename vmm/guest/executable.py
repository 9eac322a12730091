"""ELF files for this CPU: the checks that every kind of machine's image has to pass."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from vmm.errors import GuestImageError
from vmm.guest import abi, elf

PAGE = abi.PAGE_SIZE
_MAX_HEADERS = 64


@dataclasses.dataclass(frozen=True, slots=True)
class Executable:
    """An ELF file's headers, for x86-64; nothing else of it has been read.

    relink    what to do about a file that is linked as it must not be, to end an error with
    file      its header, as pyelftools has it
    headers   its program headers
    """

    name: str
    relink: str
    source: elf.Source
    file: Any
    headers: list[Any]

    @classmethod
    def open(cls, source: elf.Source, name: str, relink: str) -> Executable:
        """Read the headers. Raises GuestImageError, Malformed, OSError."""
        start = source.pread(len(elf.MAGIC), 0)
        if start != elf.MAGIC:
            raise GuestImageError(f"{name}: {_no_elf(start, name)}")
        file = elf.open_elf(source)
        if file.elfclass != 64:
            raise GuestImageError(f"{name}: 32-bit ELF: guests are 64-bit, compile with -m64")
        if not file.little_endian:
            raise GuestImageError(f"{name}: big-endian ELF: guests are x86-64")
        if file["e_machine"] != "EM_X86_64":
            machine = said(file["e_machine"], "machine").removeprefix("EM_")
            raise GuestImageError(f"{name}: built for {machine}: guests are x86-64")
        if file["e_phnum"] > _MAX_HEADERS:
            raise GuestImageError(
                f"{name}: {file['e_phnum']} program headers are too many: {relink}"
            )
        return cls(name, relink, source, file, elf.program_headers(file))

    @property
    def kind(self) -> str:
        """Its type, as ELF calls it: "ET_EXEC"."""
        return said(self.file["e_type"], "type")

    @property
    def entry(self) -> int:
        """Its entry point, as linked."""
        return int(self.file["e_entry"])

    def of_type(self, kind: str) -> list[Any]:
        """Return the program headers of a type: "PT_LOAD"."""
        return [header for header in self.headers if header.p_type == kind]

    def find_abi(self, kind: int) -> bool:
        """Return whether it has the ABI's note of a type; the version in it is this monitor's then:
        same major, minor not above ours. Raises GuestImageError, Malformed.
        """
        note = elf.find_note(self.source, self.file, self.headers, abi.NOTE_NAME, kind)
        if note is None:
            return False
        descriptor = note["n_descdata"]
        if note["n_descsz"] != 8 or len(descriptor) != 8:
            raise GuestImageError(
                f"{self.name}: the pageferry ABI note is {note['n_descsz']} bytes, not 8: "
                "rebuild it"
            )
        major, minor = (int.from_bytes(descriptor[i : i + 4], "little") for i in (0, 4))
        if major != abi.ABI_MAJOR or minor > abi.ABI_MINOR:
            raise GuestImageError(
                f"{self.name}: built for ABI {major}.{minor}, "
                f"this monitor has {abi.ABI_MAJOR}.{abi.ABI_MINOR}: "
                "rebuild the guest against its pageferry.h"
            )
        return True

    def loads(self) -> list[Any]:
        """Return what takes memory, once it is known to be in the file. Raises GuestImageError."""
        found = []
        for index, load in enumerate(self.of_type("PT_LOAD")):
            where = f"{self.name}: segment {index}"
            end, size = load.p_offset + load.p_filesz, self.source.size
            if load.p_filesz and end > size:  # without bytes, the offset means nothing
                raise GuestImageError(
                    f"{where} ends at byte {end} of {size}: the file is truncated"
                )
            if load.p_filesz > load.p_memsz:
                raise GuestImageError(
                    f"{where} has more bytes in the file than in memory: the file is malformed"
                )
            if load.p_memsz:
                found.append(load)
        if not found:
            raise GuestImageError(
                f"{self.name}: nothing to load (no PT_LOAD segment): {self.relink}"
            )
        return found

    def check_overlap(self, loads: list[Any]) -> None:
        """Raise GuestImageError if two segments have an address in common."""
        ordered = sorted(loads, key=lambda load: load.p_vaddr)
        for low, high in itertools.pairwise(ordered):
            if low.p_vaddr + low.p_memsz > high.p_vaddr:
                raise GuestImageError(
                    f"{self.name}: segments at {low.p_vaddr:#x} and {high.p_vaddr:#x} overlap: "
                    f"{self.relink}"
                )

    def check_entry(self, loads: list[Any]) -> None:
        """Raise GuestImageError if the entry point is not in code."""
        entry = self.entry
        if not any(
            load.p_flags & 1 and load.p_vaddr <= entry < load.p_vaddr + load.p_memsz
            for load in loads
        ):
            raise GuestImageError(
                f"{self.name}: the entry point {entry:#x} is not in executable code: {self.relink}"
            )


_SOURCES = (".c", ".i", ".s", ".S")


def _no_elf(start: bytes, name: str) -> str:
    """Return what is wrong with a file that is no ELF, and what to do."""
    if start.startswith(b"#!"):
        return (
            "a script: machines run executables: give its interpreter's, and the script as one of "
            "its files"
        )
    if name.endswith(_SOURCES):
        return f"a source, not an ELF file: build it first (pageferry build {name})"
    return "not an ELF file: give a guest, or a static Linux program"


def said(value: str | int, what: str) -> str:
    """Return a number's name, if pyelftools knows one."""
    return value if isinstance(value, str) else f"{what} {value}"


def page_start(address: int) -> int:
    """Return the address of the page that an address is in."""
    return address // PAGE * PAGE


def page_end(address: int) -> int:
    """Return the first page's address that is not below an address."""
    return -(-address // PAGE) * PAGE


def end_page(load: Any) -> int:
    """Return the address after the last page of a segment."""
    return page_end(int(load.p_vaddr + load.p_memsz))
