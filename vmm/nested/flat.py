"""A bzImage with the kernel in it as it lies in memory: nothing is left to be unpacked by an
emulator.

The boot loader and the kernel's own real-mode code do what they always do; instead of the
decompressor they find a few instructions that turn long mode on and enter the kernel.
Documentation/arch/x86/boot.rst has the header's fields and the states of the processor.
"""

from __future__ import annotations

import io
import struct

from elftools.elf.elffile import ELFFile

_SETUP_SECTORS, _SYSTEM_SIZE, _RELOCATABLE, _INIT_SIZE = 0x1F1, 0x1F4, 0x234, 0x260

# Where a boot loader puts what cannot be moved. The kernel itself runs at any multiple of 2 MiB;
# before it
# are the instructions and a page table of two levels.
_BASE, _ENTRY = 0x100000, 0x200000
_PML4, _PDPT, _GDT, _GDTR = 0x1000, 0x2000, 0x3000, 0x3100
_GIGABYTES = 4  # mapped one to one, by pages of that size


def flatten(image: bytes, elf: bytes) -> bytes | None:
    """Return a bzImage like `image` with the kernel `elf` flat in it.

    None if it does not lend itself.
    """
    kernel = _memory(elf)
    if kernel is None:
        return None
    system = _head() + kernel
    system += b"\0" * (-len(system) % 16)
    setup = bytearray(image[: (image[_SETUP_SECTORS] + 1) * 512])
    (init_size,) = struct.unpack_from("<I", setup, _INIT_SIZE)
    struct.pack_into("<I", setup, _SYSTEM_SIZE, len(system) // 16)
    setup[_RELOCATABLE] = 0
    struct.pack_into("<I", setup, _INIT_SIZE, max(init_size, len(kernel)) + _ENTRY - _BASE)
    return bytes(setup) + system


def _memory(elf: bytes) -> bytes | None:
    """Return a kernel from its entry on as it lies in physical memory.

    None if it starts before that.
    """
    file = ELFFile(io.BytesIO(elf))
    entry: int = file["e_entry"]
    memory = bytearray()
    for segment in file.iter_segments():
        if segment["p_type"] == "PT_LOAD" and segment["p_filesz"]:
            at = segment["p_paddr"] - entry
            if at < 0:
                return None
            memory.extend(bytes(max(0, at - len(memory))))
            memory[at : at + segment["p_filesz"]] = segment.data()
    return bytes(memory)


def _head() -> bytes:
    """Return what comes before the kernel.

    Entered at its start in 32 bit mode, ESI at boot_params.
    """
    head = bytearray(_ENTRY - _BASE)
    code = b"".join(
        (
            b"\xfa",  # cli
            b"\x0f\x20\xe0\x83\xc8\x20\x0f\x22\xe0",  # cr4 |= PAE
            b"\xb8" + struct.pack("<I", _BASE + _PML4) + b"\x0f\x22\xd8",  # cr3 = PML4
            b"\xb9\x80\x00\x00\xc0\x0f\x32\x0f\xba\xe8\x08\x0f\x30",  # EFER |= LME
            b"\x0f\x20\xc0\x0d\x00\x00\x00\x80\x0f\x22\xc0",  # cr0 |= PG
            b"\x0f\x01\x15" + struct.pack("<I", _BASE + _GDTR),  # lgdt
            b"\xea" + struct.pack("<IH", _ENTRY, 0x10),  # ljmp 0x10:entry
        )
    )
    head[: len(code)] = code
    struct.pack_into("<Q", head, _PML4, _BASE + _PDPT | 3)
    for number in range(_GIGABYTES):
        struct.pack_into("<Q", head, _PDPT + 8 * number, number << 30 | 0x83)
    struct.pack_into("<4Q", head, _GDT, 0, 0, 0x00AF9A000000FFFF, 0x00CF92000000FFFF)
    struct.pack_into("<HI", head, _GDTR, 31, _BASE + _GDT)
    return bytes(head)
