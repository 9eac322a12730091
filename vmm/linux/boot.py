"""A Linux program's machine: where things lie in it, and the state that it is entered in.

It runs in ring 3, whatever the host. `SYSCALL` leads to ENTRY, where it stores CS at GATE, which
is no memory: the exit (`vmm.linux.gate`) says in which ring it is. With hardware paging that is 0;
run on, the next instruction is SYSRETQ. On kvm_pvm, SYSCALL stays in ring 3: there the monitor sets
RIP and RFLAGS itself. That costs the same as any other store that exits; to have the entry page
refused, and handle a page fault, takes 7 us more there.

Pure: what the state is, not where it goes. Sources: Intel SDM volume 2, SYSCALL, SYSRET; volume 3,
2.5, 2.6, 5.8.8; x86-64 psABI, A.2.1.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator, Mapping, Sequence

from vmm.errors import ConfigError
from vmm.guest import abi, boot, x86
from vmm.guest.blueprint import Shape
from vmm.guest.x86 import LARGE_PAGE, TABLE_SPAN, PageTables
from vmm.kvm import CpuidEntry, CpuidTable, Vcpu, kvm_regs, kvm_sregs
from vmm.linux.address_map import STACK_GAP
from vmm.linux.loader import Program
from vmm.linux.tables import ENTRY_PAGE, tables_size
from vmm.memory.region import Region

ENTRY = ENTRY_PAGE.start  # LSTAR
GATE = abi.DOORBELL_GPA + 0x800
_ENTRY_CODE = b"\x8c\x0c\x25" + struct.pack("<I", GATE) + b"\x48\x0f\x07"  # mov [GATE], cs; sysretq
ENTERED = ENTRY + 7  # RIP after the store

_ADDRESSES = 64 << 20  # of the arena, besides what memory and stack take: reserved areas, holes
_MAPPED_TWICE = 2  # to be read, and to be written

_MOST_ROOTS = 32  # of which registers are kept
_CR4_OSXSAVE = 1 << 18
_EFER_SCE = 1 << 0
_RFLAGS = 0x202

MSR_STAR, MSR_LSTAR, MSR_SFMASK = 0xC0000081, 0xC0000082, 0xC0000084
MSR_FS_BASE, MSR_GS_BASE = 0xC0000100, 0xC0000101
# As Linux: CF PF AF ZF SF TF IF DF OF IOPL NT RF AC ID. No interrupt ever comes to a machine.
_SFMASK = 0x257FD5

_MSRS: Mapping[int, int] = {
    # SYSCALL: CS 0x08, SS 0x10; SYSRETQ: SS 0x10 + 8, CS 0x10 + 16, both with RPL 3.
    MSR_STAR: (x86.DATA0 | 3) << 48 | x86.CODE0 << 32,
    MSR_LSTAR: ENTRY,
    MSR_SFMASK: _SFMASK,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Layout(boot.Layout):
    """Where things lie in a Linux program's machine.

    private   its private memory, from address 0: the system area, and `low`
    guard     the area below the stack that is never given away unasked
    stack     at the arena's top
    tables    their roots; they are written by `vmm.linux.tables`, behind the arena
    low       for the image and its heap
    arena     for all else
    """

    low: Region
    arena: Region


def plan(low: int, arena: int, stack: int, window: int) -> Layout:
    """Lay a machine out. All sizes in bytes, multiples of the page size.

    low       where private memory ends: at least 2 MiB, at most the doorbell's address
    arena     is made a multiple of 2 MiB
    window    a multiple of 2 MiB, or 0

    Raises ConfigError if all that is more than 512 GiB.
    """
    window_region = Region(abi.WINDOW_GPA, window)
    base = -(-window_region.end // TABLE_SPAN) * TABLE_SPAN
    arena_region = Region(base, -(-arena // LARGE_PAGE) * LARGE_PAGE)
    if arena_region.end + tables_size(window_region, arena_region) > 512 * TABLE_SPAN:
        raise ConfigError("memory and window are together more than 512 GiB: use less")
    roots = PageTables(b"", arena_region.end, arena_region.end + x86.PAGE)
    stack_region = Region(arena_region.end - stack, stack)
    return Layout(
        private=Region(0, low),
        guard=Region(stack_region.base - STACK_GAP, STACK_GAP),
        stack=stack_region,
        window=window_region,
        tables=roots,
        low=Region(x86.TABLES_END, low - x86.TABLES_END),
        arena=arena_region,
    )


def layout(program: Program, memory: int, shape: Shape, lent: int = 0) -> Layout:
    """Say where things are to lie; `lent` bytes of the window are to be mapped elsewhere as well.
    Raises ConfigError.
    """
    dynamic = program.interpreter is not None  # which lies near the end of what there is
    low = abi.DOORBELL_GPA if dynamic else min(program.end + memory, abi.DOORBELL_GPA)
    arena = memory + _ADDRESSES + _MAPPED_TWICE * lent + shape.stack
    return plan(low, arena, shape.stack, shape.window)


def contents() -> Iterator[tuple[int, bytes]]:
    """Yield what is in private memory at first besides the image, as (address, bytes)."""
    yield from x86.system_area()
    yield ENTRY, _ENTRY_CODE


# ---- the processor ----

# XCR0: x87, SSE, AVX. What needs more (AVX-512, AMX, protection keys) is taken away from what CPUID
# answers; so is what needs a bit of CR4, or a monitor that serves it.
_STATE = 0x7


def _bits(*numbers: int) -> int:
    return sum(1 << number for number in numbers)


_EVERY = (1 << 32) - 1
_HIDDEN: Mapping[tuple[int, int], tuple[int, int, int, int]] = {
    # MONITOR, VMX, PCID, x2APIC, the deadline timer
    (0x1, 0): (0, 0, _bits(3, 5, 17, 21, 24), 0),
    # FSGSBASE, MPX, PT, AVX512 F DQ IFMA PF ER CD BW VL; AVX512 VBMI VBMI2 VNNI BITALG VPOPCNTDQ,
    # PKU, OSPKE, WAITPKG, shadow stacks; AVX512 4VNNIW 4FMAPS VP2INTERSECT FP16, IBT, AMX
    (0x7, 0): (
        0,
        _bits(0, 14, 16, 17, 21, 25, 26, 27, 28, 30, 31),
        _bits(1, 3, 4, 5, 6, 7, 11, 12, 14),
        _bits(2, 3, 8, 20, 22, 23, 24, 25),
    ),
    # AVX512 BF16, AMX FP16, LAM; AMX-COMPLEX, UIRET, AVX10, APX
    (0x7, 1): (_bits(5, 21, 26), 0, 0, _bits(8, 17, 19, 21)),
    (0xD, 0): (_EVERY & ~_STATE, 0, 0, _EVERY),
    # XSAVES, XFD, and what they save
    (0xD, 1): (_bits(3, 4), 0, _EVERY, _EVERY),
    # SVM, LWP; FMA4 and XOP need no more than AVX
    (0x80000001, 0): (0, 0, _bits(2, 15), 0),
}
# MONITOR, counters, traces, branch records, AMX (2), counters (extended), AVX10
_NOT_THERE = frozenset({0x5, 0xA, 0x14, 0x1C, 0x1D, 0x1E, 0x23, 0x24})


@dataclasses.dataclass(frozen=True, slots=True)
class Processor:
    """What a program's CPU is to be like on this host.

    cpuid   what CPUID answers; in ring 3 on kvm_pvm the hardware answers itself
    xcr0    the state that XSAVE knows of; 0 where there is no XSAVE
    hwcap   what the C library is told of it (AT_HWCAP): leaf 1's EDX
    entered the system registers that programs have been entered with, by their tables' root
    """

    cpuid: CpuidTable
    xcr0: int
    hwcap: int
    entered: dict[int, kvm_sregs] = dataclasses.field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, supported: Sequence[CpuidEntry]) -> Processor:
        """Return the best that a program can use of what KVM supports."""
        entries = [filtered(entry) for entry in supported if entry.function not in _NOT_THERE]
        found = {(entry.function, entry.index): entry for entry in entries}
        nothing = CpuidEntry(0, 0, 0, 0, 0, 0, 0)
        state = found.get((0xD, 0), nothing).eax & _STATE
        features = found.get((1, 0), nothing)
        xsave = features.ecx & 1 << 26 and state & 3 == 3
        return cls(CpuidTable.of(entries), state if xsave else 0, features.edx)


def filtered(entry: CpuidEntry) -> CpuidEntry:
    """Return what a program may know of a leaf."""
    if entry.function == 0xD and entry.index > 2:
        return dataclasses.replace(entry, eax=0, ebx=0, ecx=0, edx=0)
    hidden = _HIDDEN.get((entry.function, entry.index))
    if hidden is None:
        return entry
    eax, ebx, ecx, edx = hidden
    return dataclasses.replace(
        entry,
        eax=entry.eax & ~eax,
        ebx=entry.ebx & ~ebx,
        ecx=entry.ecx & ~ecx,
        edx=entry.edx & ~edx,
    )


def sregs(reset: kvm_sregs, layout: Layout, processor: Processor) -> kvm_sregs:
    """Return the system registers to enter with; `reset` are those of a new vCPU."""
    made = boot.flat(reset, layout.tables.root, user=True)
    if processor.xcr0:
        made.cr4 |= _CR4_OSXSAVE
    made.efer |= _EFER_SCE
    return made


def regs(entry: int, stack: int) -> kvm_regs:
    """Return the general registers to enter with: RDX is 0, as nothing is to be called at exit."""
    return kvm_regs(rip=entry, rsp=stack, rflags=_RFLAGS)


def enter(vcpu: Vcpu, layout: Layout, processor: Processor, entry: int, stack: int) -> None:
    """Give a fresh vCPU its first state. Raises OSError."""
    vcpu.set_cpuid(processor.cpuid)
    root = layout.tables.root
    made = processor.entered.get(root)
    if made is None:  # every vCPU is the same after its reset
        if len(processor.entered) >= _MOST_ROOTS:
            processor.entered.clear()
        made = processor.entered[root] = sregs(vcpu.get_sregs(), layout, processor)
    vcpu.set_sregs(made)
    if processor.xcr0:
        vcpu.set_xcrs({0: processor.xcr0})
    vcpu.set_msrs(_MSRS)
    vcpu.set_regs(regs(entry, stack))
    vcpu.sync_regs = True
