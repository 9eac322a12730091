"""The ABI note among others: linkers put their own beside it, and the parser has to step over them.

These hold for the oldest parser that pyproject.toml allows, too (scripts/minima.py).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from vmm.guest.image import parse_image

PT_NOTE = 4


def note(name: bytes, kind: int, descriptor: bytes, align: int = 4) -> bytes:
    """Return a note of an ELF file, as the generic ABI has it, padded to `align`."""
    head = struct.pack("<3I", len(name), len(descriptor), kind) + name
    whole = head + bytes(-len(head) % 4) + descriptor
    return whole + bytes(-len(whole) % align)


# x86 feature 1 (IBT, SHSTK), as -fcf-protection makes it, and one with an odd length.
PROPERTY = struct.pack("<4I", 0xC0000002, 4, 3, 0)
OTHERS = {
    "property": note(b"GNU\0", 5, PROPERTY),
    "two properties": note(b"GNU\0", 5, PROPERTY + PROPERTY),
    "an unknown property": note(b"GNU\0", 5, struct.pack("<4I", 0xC0010001, 4, 1, 0)),
    "build-id": note(b"GNU\0", 3, bytes(range(20))),
    "ABI tag": note(b"GNU\0", 1, struct.pack("<4I", 0, 3, 2, 0)),
    "somebody's": note(b"stranger\0", 7, b"abc"),
    "nobody's": note(b"", 0, b""),
    "property, build-id": note(b"GNU\0", 5, PROPERTY) + note(b"GNU\0", 3, bytes(20)),
}


def with_notes(elf: bytes, before: bytes) -> bytes:
    """Return an ELF file whose note segment has other notes before its own."""
    changed = bytearray(elf)
    start, size, count = (
        struct.unpack_from(f, elf, o)[0] for f, o in (("<Q", 32), ("<H", 54), ("<H", 56))
    )
    for header in range(start, start + size * count, size):
        if struct.unpack_from("<I", elf, header)[0] == PT_NOTE:
            offset, length = (struct.unpack_from("<Q", elf, header + at)[0] for at in (8, 32))
            ours = elf[offset : offset + length]
            struct.pack_into("<Q", changed, header + 8, len(elf))
            for at in (32, 40):
                struct.pack_into("<Q", changed, header + at, len(before) + len(ours))
            return bytes(changed) + before + ours
    raise AssertionError("there is no note segment")


@pytest.mark.parametrize("before", OTHERS.values(), ids=OTHERS.keys())
def test_a_note_of_somebody_elses_may_come_before_the_abis(
    guest_elf: Callable[[str], Path], before: bytes
) -> None:
    plain = guest_elf("canary").read_bytes()
    image = parse_image(with_notes(plain, before), "guest.elf")
    assert image.segments == parse_image(plain, "guest.elf").segments
