"""The first state of a Linux program's machine."""

from __future__ import annotations

import dataclasses
import struct

import pytest

from vmm.errors import ConfigError
from vmm.guest import abi, x86
from vmm.kvm import CpuidEntry, kvm_sregs
from vmm.linux import boot
from vmm.linux.boot import Processor
from vmm.linux.tables import tables_size

MIB, GIB = 1 << 20, 1 << 30


def leaf(function: int, index: int = 0, **registers: int) -> CpuidEntry:
    values = {"eax": 0, "ebx": 0, "ecx": 0, "edx": 0} | registers
    return CpuidEntry(function, index, 0, **values)


EVERYTHING = (1 << 32) - 1
XSAVE, OSXSAVE, AVX = 1 << 26, 1 << 27, 1 << 28
ALL = {
    "eax": EVERYTHING,
    "ebx": EVERYTHING,
    "ecx": EVERYTHING,
    "edx": EVERYTHING,
}


def answers(*supported: CpuidEntry) -> dict[tuple[int, int], CpuidEntry]:
    table = Processor.of(supported).cpuid.structure
    return {
        (e.function, e.index): leaf(e.function, e.index, eax=e.eax, ebx=e.ebx, ecx=e.ecx, edx=e.edx)
        for e in table.entries[: table.nent]
    }


def test_a_processor_with_avx_has_its_state_and_no_more() -> None:
    supported = (
        leaf(1, ecx=XSAVE | AVX),
        leaf(0xD, eax=0xE7),
        leaf(0xD, 2, eax=256),
        leaf(0xD, 5, eax=64),
    )
    made = Processor.of(supported)
    assert made.xcr0 == 7
    found = answers(*supported)
    assert found[0xD, 0].eax == 7
    assert found[0xD, 2].eax == 256
    assert found[0xD, 5].eax == 0
    assert found[1, 0].ecx == XSAVE | AVX


@pytest.mark.parametrize(
    "supported",
    [
        (),
        (leaf(1),),
        (leaf(1, ecx=XSAVE),),
        (leaf(1), leaf(0xD, eax=7)),
        (leaf(1, ecx=XSAVE), leaf(0xD, eax=5)),
    ],
)
def test_a_processor_without_xsave_has_no_xcr0(supported: tuple[CpuidEntry, ...]) -> None:
    assert Processor.of(supported).xcr0 == 0


def test_sse_alone_is_state_too() -> None:
    assert Processor.of((leaf(1, ecx=XSAVE), leaf(0xD, eax=3))).xcr0 == 3


def test_what_needs_more_state_is_not_to_be_seen() -> None:
    found = answers(
        leaf(1, **ALL), leaf(7, **ALL), leaf(7, 1, **ALL), leaf(0x1D, **ALL), leaf(0xA, **ALL)
    )
    seven = found[7, 0]
    for bit in (16, 17, 21, 26, 27, 28, 30, 31):
        assert not seven.ebx & 1 << bit, "AVX-512"
    assert seven.ebx & 1 << 5, "AVX2"
    assert seven.ebx & 1 << 29, "SHA"
    assert not seven.ebx & 1, "FSGSBASE"
    for bit in (1, 3, 4, 6, 11, 12, 14):
        assert not seven.ecx & 1 << bit
    assert seven.ecx & 1 << 9, "VAES"
    assert seven.ecx & 1 << 22, "RDPID"
    for bit in (22, 24, 25):
        assert not seven.edx & 1 << bit, "AMX"
    assert found[7, 1].eax & 1 << 4, "AVX-VNNI"
    assert not found[7, 1].eax & 1 << 5
    assert not {0xA, 0x1D} & {function for function, _ in found}
    assert found[1, 0].ecx & (1 << 12 | AVX) == 1 << 12 | AVX, "FMA, AVX"


def test_a_layout_has_everything_apart() -> None:
    layout = boot.plan(64 * MIB, 100 * MIB + 1, 8 * MIB, 5 * GIB)
    assert layout.low.base == layout.private.base + x86.TABLES_END
    assert layout.low.end == layout.private.end
    assert layout.window.end <= layout.arena.base
    assert layout.arena.base % GIB == 0
    assert layout.arena.size == 102 * MIB
    assert layout.stack.end == layout.arena.end
    assert layout.guard.end == layout.stack.base
    assert layout.tables.root == layout.arena.end
    assert layout.tables.root_no_window == layout.arena.end + x86.PAGE


def test_a_layout_of_more_than_can_be_mapped_is_refused() -> None:
    most = 512 * GIB
    whole = boot.plan(4 * MIB, most - 8 * GIB, MIB, 2 * MIB)
    assert whole.arena.end + tables_size(whole.window, whole.arena) <= most
    with pytest.raises(ConfigError, match="512 GiB"):
        boot.plan(4 * MIB, most - 5 * GIB, MIB, 2 * MIB)
    with pytest.raises(ConfigError, match="512 GiB"):
        boot.plan(4 * MIB, 16 * MIB, MIB, 600 * GIB)


def test_it_is_entered_in_ring_3_with_system_calls_on() -> None:
    layout = boot.plan(4 * MIB, 16 * MIB, MIB, 2 * MIB)
    processor = Processor.of((leaf(1, ecx=XSAVE), leaf(0xD, eax=7)))
    made = boot.sregs(kvm_sregs(), layout, processor)
    assert (made.cs.selector, made.ss.selector, made.cs.dpl, made.cs.l) == (0x23, 0x1B, 3, 1)
    assert made.efer & 1
    assert made.cr4 & 1 << 18
    assert made.cr3 == layout.tables.root
    assert not boot.sregs(kvm_sregs(), layout, dataclasses.replace(processor, xcr0=0)).cr4 & 1 << 18
    regs = boot.regs(0x401000, 0x7000)
    assert (regs.rip, regs.rsp, regs.rflags) == (0x401000, 0x7000, 0x202)


def test_the_segments_that_syscall_and_sysret_load_are_those_of_the_gdt() -> None:
    star = boot._MSRS[boot.MSR_STAR]
    gdt = dict(boot.contents())[x86.GDT]

    def kind(selector: int) -> tuple[int, bool, bool]:
        descriptor = struct.unpack_from("<Q", gdt, selector & ~7)[0]
        return descriptor >> 45 & 3, bool(descriptor >> 43 & 1), bool(descriptor >> 53 & 1)

    called, returned = star >> 32 & 0xFFFF, star >> 48
    assert (kind(called), kind(called + 8)) == ((0, True, True), (0, False, False))
    assert (kind(returned + 16), kind(returned + 8)) == ((3, True, True), (3, False, False))
    assert (returned + 16, returned + 8) == (x86.CODE3, x86.DATA3)


def test_the_gate_is_in_the_doorbells_page_and_is_no_doorbell() -> None:
    assert abi.DOORBELL_GPA < boot.GATE < abi.DOORBELL_GPA + x86.PAGE
    code = dict(boot.contents())[boot.ENTRY]
    assert struct.unpack("<I", code[3:7])[0] == boot.GATE
    assert boot.ENTRY + 7 == boot.ENTERED
