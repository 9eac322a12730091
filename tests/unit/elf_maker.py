"""ELF files and debug information made by hand: as linkers never would, and as they do."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

from vmm.guest import abi

PT_LOAD, PT_NOTE = 1, 4
READ, CODE, DATA = 4, 5, 6
SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB = 1, 2, 3
COMPRESSED = 1 << 11
ENTRY = abi.IMAGE_GPA

Load = tuple[int, int, int, int, int, int]  # type, flags, offset, address, size in file, in memory


def note(name: bytes, kind: int, descriptor: bytes, align: int = 4) -> bytes:
    """A note of an ELF file."""
    made = struct.pack("<3I", len(name) + 1, len(descriptor), kind) + name + b"\0"
    made += bytes(-len(made) % align) + descriptor
    return made + bytes(-len(made) % align)


ABI_NOTE = note(
    abi.NOTE_NAME.encode(), abi.NOTE_ABI, struct.pack("<2I", abi.ABI_MAJOR, abi.ABI_MINOR)
)


class Elf:
    """An executable with one page of code, notes, and what else it is given."""

    def __init__(self, notes: bytes = ABI_NOTE, loads: Sequence[Load] = ()) -> None:
        self.notes = notes
        self.loads = list(loads)
        self.sections: list[tuple[bytes, int, int, bytes, int]] = []

    def section(
        self, name: str, data: bytes, kind: int = SHT_PROGBITS, flags: int = 0, link: int = 0
    ) -> None:
        """Add a section; the first one has the number 1."""
        self.sections.append((name.encode(), kind, flags, data, link))

    def symbols(self, table: bytes, names: bytes) -> None:
        """Add a symbol table and its names."""
        number = len(self.sections) + 1
        self.section(".symtab", table, SHT_SYMTAB, link=number + 1)
        self.section(".strtab", names, SHT_STRTAB)

    def pack(self, empty_sections: int = 0) -> bytes:
        """Return the file. `empty_sections` are put before the others' headers."""
        code = 0x1000
        headers = [
            (PT_LOAD, CODE, code, ENTRY, 16, 16),
            (PT_NOTE, READ, 0x2000, 0, len(self.notes), len(self.notes)),
            *self.loads,
        ]
        before = 64 + 56 * len(headers)
        body = bytes(code - before) + b"\xf4" * 16 + bytes(0x1000 - 16)
        tail = bytearray(self.notes)
        at = 0x2000
        table = [bytes(64)] + [bytes(64)] * empty_sections
        names = b"\0"
        for name, kind, flags, data, link in [*self.sections, (b".shstrtab", 3, 0, b"", 0)]:
            start = len(names)
            names += name + b"\0"
            if name == b".shstrtab":
                data = names
            link += empty_sections if link else 0
            table.append(
                struct.pack(
                    "<IIQQQQIIQQ", start, kind, flags, 0, at + len(tail), len(data), link, 0, 1, 24
                )
            )
            tail += data
        shoff, count = at + len(tail), len(table)
        if count >= 0xFF00:  # more than the header can say: the first section says it
            table[0] = struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, count, count - 1, 0, 0, 0)
        many = count >= 0xFF00
        header = struct.pack(
            "<16sHHIQQQIHHHHHH",
            b"\x7fELF\2\1\1",
            *(2, 62, 1, ENTRY, 64, shoff, 0, 64, 56, len(headers), 64),
            *((0, 0xFFFF) if many else (count, count - 1)),
        )
        programs = b"".join(
            struct.pack("<IIQQQQQQ", kind, flags, offset, gpa, gpa, filesz, memsz, 4096)
            for kind, flags, offset, gpa, filesz, memsz in headers
        )
        return header + programs + body + bytes(tail) + b"".join(table)


def symbol(name: int, address: int, size: int, kind: int = 2) -> bytes:
    """An entry of a symbol table: by default a function."""
    return struct.pack("<IBBHQQ", name, 0x10 | kind, 0, 1, address, size)


def compressed(data: bytes, kind: int = 1) -> bytes:
    """The contents of a section that is compressed by zlib, or says that it is by another way."""
    return struct.pack("<IIQQ", kind, 0, len(data), 1) + zlib.compress(data, 9)


def uleb(value: int) -> bytes:
    made = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        made.append(low | 0x80 * bool(value))
        if not value:
            return bytes(made)


def rows(address: int, steps: Sequence[tuple[int, int]]) -> bytes:
    """A line program: from `address` on, each step advances the address and then the line."""
    program = b"\0\x09\2" + struct.pack("<Q", address)
    for length, line in steps:
        program += b"\3" + uleb(line) + b"\1" + b"\2" + uleb(length)
    return program + b"\0\1\1"


def line_unit(
    program: bytes, version: int = 4, wide: bool = False, file: bytes = b"dir/x.c", base: int = 13
) -> bytes:
    """A unit of .debug_line with one file, and any line program."""
    offset = "Q" if wide else "I"
    lengths = bytes([0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1])[: base - 1]
    fixed = bytes([1]) + bytes([1] * (version >= 4)) + struct.pack("<BbBB", 1, -5, 14, base)
    if version == 5:
        tables = bytes([1, 1, 8, 1]) + b"dir\0" + bytes([1, 1, 8, 2]) + b"unused\0" + file + b"\0"
    else:
        tables = b"dir\0\0" + file + b"\0\1\0\0" + b"\0"
    rest = fixed + lengths + tables
    head = struct.pack("<H", version) + (b"\x08\0" if version == 5 else b"")
    body = head + struct.pack("<" + offset, len(rest)) + rest + program
    length = b"\xff\xff\xff\xff" + struct.pack("<Q", len(body)) if wide else None
    return (length or struct.pack("<I", len(body))) + body
