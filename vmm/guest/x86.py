"""The x86-64 state a machine is entered in: descriptor tables, page tables, trap stubs. Pure:
bytes out.

The monitor lays these out in the first 2 MiB of private memory and enters long mode directly; a
guest needs no boot code. Linear addresses equal guest-physical ones. Sources: Intel SDM volume 3
(3.4 descriptors, 4.5 4-level paging, 6.14 64-bit interrupts, 7.7 the 64-bit TSS), AMD APM volume 2
(4.8, 5.3, 8.9, 12.2.5).

    0x00001000  GDT, and the TSS at 0x00001100          read-only, supervisor
    0x00002000  IDT                                     read-only, supervisor
    0x00003000  trap stubs, one per exception vector    read+execute, supervisor
    0x00004000  trap stack, to 0x00008000               read+write, supervisor
    0x00010000  control structure (PF_CONTROL_GPA)      read+write
    0x00040000  page tables                             not mapped: no guest can reach them
    0x00200000  the image, and the stack at the top

Page zero and everything else is not mapped, so that a wild pointer faults.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import struct

from vmm.guest import abi
from vmm.memory.region import Region

GDT = 0x1000
TSS = 0x1100
IDT = 0x2000
TRAP_STUBS = 0x3000
TRAP_STACK = Region(0x4000, 0x4000)
PAGE_TABLES = 0x40000
TABLES_END = abi.IMAGE_GPA

VECTORS = 32
STUB_BYTES = 4
BREAKPOINT = 3

CODE0, DATA0, DATA3, CODE3, TASK = 0x08, 0x10, 0x1B, 0x23, 0x28

PAGE = abi.PAGE_SIZE
LARGE_PAGE = 2 << 20
TABLE_SPAN = 1 << 30  # what one page directory maps

# Page-table entry bits (SDM 4.5, tables 4-15 to 4-20). Accessed and dirty are set beforehand, so
# that no walk ever has to write to the tables.
PRESENT, WRITE, USER, ACCESSED, DIRTY, LARGE = 1 << 0, 1 << 1, 1 << 2, 1 << 5, 1 << 6, 1 << 7
NO_EXECUTE = 1 << 63


@dataclasses.dataclass(frozen=True, slots=True)
class Range:
    """Linear addresses to map onto themselves; both ends are page-aligned.

    user      whether ring 3 may use them: only where the machine runs in ring 3
    """

    start: int
    end: int
    write: bool = False
    execute: bool = False
    user: bool = True

    def flags(self) -> int:
        """Return the leaf entry's bits, the address left out."""
        bits = PRESENT | ACCESSED | DIRTY
        bits |= WRITE * self.write | USER * self.user
        return bits | (0 if self.execute else NO_EXECUTE)


@dataclasses.dataclass(frozen=True, slots=True)
class PageTables:
    """Page tables as they go into memory at PAGE_TABLES.

    root              CR3 of the whole space
    root_no_window    CR3 of the same space without the window: with it, an access to the window is
                      a page fault, which tells its exact address on every kind of host (see
                      `vmm.guest.trap`)
    """

    data: bytes
    root: int
    root_no_window: int


class _Tables:
    """Builds 4-level tables below 512 GiB: tables are kept by the address range they map."""

    def __init__(self, base: int) -> None:
        self._base = base
        self._pages: list[list[int]] = []
        self.top = self.new()
        self.pdpt = self.new()
        self.entry(self.top, 0, self.pdpt)

    def new(self) -> int:
        """Add an empty table; return its index."""
        self._pages.append([0] * 512)
        return len(self._pages) - 1

    def address(self, table: int) -> int:
        return self._base + table * PAGE

    def entry(self, table: int, index: int, child: int) -> None:
        """Point an entry of one table to another; rights are restricted at the leaves only."""
        bits = PRESENT | WRITE | USER | ACCESSED
        self._pages[table][index] = self.address(child) | bits

    def child(self, table: int, index: int) -> int:
        """Return the table that an entry points to, made now if there is none."""
        current = self._pages[table][index]
        if not current:
            self.entry(table, index, self.new())
            current = self._pages[table][index]
        return (current - self._base) // PAGE

    def directory(self, address: int) -> int:
        """Return the page directory for an address."""
        return self.child(self.pdpt, address // TABLE_SPAN)

    def map(self, wanted: Range) -> None:
        """Map a range, with large pages where it is aligned for them."""
        address, flags = wanted.start, wanted.flags()
        while address < wanted.end:
            directory, index = self.directory(address), address // LARGE_PAGE % 512
            if address % LARGE_PAGE == 0 and wanted.end - address >= LARGE_PAGE:
                self._pages[directory][index] = address | flags | LARGE
                address += LARGE_PAGE
            else:
                table = self.child(directory, index)
                self._pages[table][address // PAGE % 512] = address | flags
                address += PAGE

    def pack(self) -> bytes:
        return b"".join(struct.pack("<512Q", *page) for page in self._pages)


@functools.lru_cache(maxsize=64)
def page_tables(ranges: tuple[Range, ...], window: Region, user: bool) -> PageTables:
    """Return the tables that map `ranges` and, readable and writable, the window.

    The window's size is a multiple of 2 MiB. Raises ValueError if the tables do not fit below the
    image.
    """
    if window.end > 512 * TABLE_SPAN:
        raise ValueError(
            f"a window up to {window.end:#x} is beyond what one table maps: use a smaller one"
        )
    tables = _Tables(PAGE_TABLES)
    for wanted in ranges:
        tables.map(wanted)
    # The alternative root shares every directory below the window.
    root_no_window, pdpt = tables.new(), tables.new()
    tables.entry(root_no_window, 0, pdpt)
    tables.entry(pdpt, 0, tables.directory(0))
    tables.map(Range(window.base, window.end, write=True, user=user))
    data = tables.pack()
    if PAGE_TABLES + len(data) > TABLES_END:
        raise ValueError(
            f"page tables of {len(data)} bytes do not fit: use a smaller window or image"
        )
    return PageTables(data, tables.address(tables.top), tables.address(root_no_window))


def system_ranges(user: bool) -> tuple[Range, ...]:
    """Return what every machine has mapped besides its image, stack and window."""
    control_end = abi.CONTROL_GPA + -(-ctypes.sizeof(abi.Control) // PAGE) * PAGE
    return (
        Range(GDT, IDT + PAGE, user=False),
        Range(TRAP_STUBS, TRAP_STUBS + PAGE, execute=True, user=False),
        Range(TRAP_STACK.base, TRAP_STACK.end, write=True, user=False),
        Range(abi.CONTROL_GPA, control_end, write=True, user=user),
        Range(abi.DOORBELL_GPA, abi.DOORBELL_GPA + PAGE, write=True, user=user),
    )


def _gdt() -> bytes:
    """Return the GDT: flat code and data for rings 0 and 3, and the TSS (SDM 3.4.5, 7.2.3)."""
    tss_limit = 0x67
    busy_tss = 0x8B << 40 | tss_limit | (TSS & 0xFFFFFF) << 16
    return struct.pack(
        "<7Q",
        0,
        0x00AF9B000000FFFF,  # CODE0: long mode, accessed
        0x00CF93000000FFFF,  # DATA0
        0x00CFF3000000FFFF,  # DATA3
        0x00AFFB000000FFFF,  # CODE3
        busy_tss,
        TSS >> 32,
    )


def _tss() -> bytes:
    """Return the TSS: the trap stack for rings 3 to 0 and as IST1, and no I/O permission bitmap."""
    tss = bytearray(104)
    struct.pack_into("<Q", tss, 4, TRAP_STACK.end)  # RSP0
    struct.pack_into("<Q", tss, 36, TRAP_STACK.end)  # IST1
    struct.pack_into("<H", tss, 102, len(tss))
    return bytes(tss)


def _idt() -> bytes:
    """Return the IDT: interrupt gates to the stubs, on IST1 so that a broken stack is no triple
    fault.

    Only the breakpoint's may be called from ring 3. INT n for any other is a #GP that says n (SDM
    6.12.1.2), so that no guest there can pretend an exception that it has not had.
    """
    gates = []
    for vector in range(VECTORS):
        stub = TRAP_STUBS + vector * STUB_BYTES
        kind = 0xEE01 if vector == BREAKPOINT else 0x8E01
        gates.append(struct.pack("<HHHHQ", stub & 0xFFFF, CODE0, kind, stub >> 16, 0))
    return b"".join(gates)


def _stubs() -> bytes:
    """Return the trap stubs: HLT; JMP back. The HLT exits, and its address tells the vector."""
    return b"\xf4\xeb\xfd\x90" * VECTORS


@functools.cache
def system_area() -> tuple[tuple[int, bytes], ...]:
    """Return the tables that are the same in every machine, as (guest-physical address, bytes)."""
    return ((GDT, _gdt()), (TSS, _tss()), (IDT, _idt()), (TRAP_STUBS, _stubs()))


def trap_vector(rip: int) -> int | None:
    """Return the exception whose stub has just halted with this instruction pointer, or None."""
    offset = rip - TRAP_STUBS
    if 0 <= offset < VECTORS * STUB_BYTES and offset % STUB_BYTES == 1:
        return offset // STUB_BYTES
    return None
