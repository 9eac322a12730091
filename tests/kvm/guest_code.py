"""Tiny guests for the bindings' tests: a few bytes of machine code, entered in long mode.

Memory is identity-mapped for the first GiB, of which the first 64 KiB exist:

    0x0000  code             0x4000  the page that tests write, hide, protect
    0x1000  page tables      0x5000  GDT, and the TSS at 0x5800
    (three pages)            0x6000  stack, downwards from 0x8000
"""

from __future__ import annotations

import ctypes
import dataclasses
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from vmm.kvm import Kvm, Vcpu, Vm, kvm_segment

PAGE = 4096
SIZE = 16 * PAGE
CODE, TABLES, DATA, GDT, TSS, STACK = 0, 0x1000, 0x4000, 0x5000, 0x5800, 0x8000
MMIO = 0x10000000  # mapped by the guest's tables, backed by nothing
UNMAPPED = 0x40000000  # the first address that the guest's tables do not map
PORT = 0x10

HLT = b"\xf4"
LOOP_FOR_EVER = b"\xeb\xfe"
OUT_AL = b"\xe6\x10"
OUT_EAX = b"\xe7\x10"
IN_EAX = b"\xe5\x10"
REP_OUTSB = b"\xf3\x6e"  # RCX bytes from RSI to the port in DX
STORE_EAX_AT_RBX = b"\x89\x03"
LOAD_EAX_FROM_RBX = b"\x8b\x03"
JUMP_TO_RBX = b"\xff\xe3"
INC_ECX = b"\xff\xc1"
INT3 = b"\xcc"

_CODE0, _DATA0, _DATA3, _CODE3, _TASK = 0x08, 0x10, 0x1B, 0x23, 0x28
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


@dataclasses.dataclass
class TinyGuest:
    kvm: Kvm
    vm: Vm
    vcpu: Vcpu
    memory: mmap.mmap
    address: int
    """The host address of the guest's memory."""

    def set(self, **registers: int) -> None:
        regs = self.vcpu.get_regs()
        for name, value in registers.items():
            setattr(regs, name, value)
        self.vcpu.set_regs(regs)

    def protect(self, gpa: int, protection: int) -> None:
        """Change the protection of one page of the host mapping behind the guest's memory."""
        if _libc.mprotect(self.address + gpa, PAGE, protection):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@contextmanager
def tiny_guest(code: bytes, *, ring: int = 0, **registers: int) -> Iterator[TinyGuest]:
    """Give a machine about to execute `code` in long mode; closed and unmapped at the end."""
    with ExitStack() as undo:
        memory, address = undo.enter_context(host_memory(SIZE))
        _fill(memory, code)
        kvm = undo.enter_context(Kvm.open())
        vm = undo.enter_context(kvm.create_vm())
        vm.set_user_memory_region(0, 0, SIZE, address)
        vcpu = undo.enter_context(vm.create_vcpu())
        guest = TinyGuest(kvm, vm, vcpu, memory, address)
        vcpu.set_cpuid(kvm.supported_cpuid())
        _enter_long_mode(vcpu, user=ring == 3)
        guest.set(**{"rip": CODE, "rsp": STACK, "rflags": 2} | registers)
        yield guest


@contextmanager
def host_memory(size: int) -> Iterator[tuple[mmap.mmap, int]]:
    """Give a zeroed mapping and its address."""
    memory = mmap.mmap(-1, size)
    view = ctypes.c_char.from_buffer(memory)
    try:
        yield memory, ctypes.addressof(view)
    finally:
        del view
        memory.close()


def _fill(memory: mmap.mmap, code: bytes) -> None:
    present = 0x27  # present, writable, user, accessed
    memory[CODE : CODE + len(code)] = code
    memory[TABLES : TABLES + 8] = struct.pack("<Q", TABLES + PAGE | present)
    memory[TABLES + PAGE : TABLES + PAGE + 8] = struct.pack("<Q", TABLES + 2 * PAGE | present)
    large = (n << 21 | present | 0xC0 for n in range(512))  # dirty, 2 MiB
    memory[TABLES + 2 * PAGE : TABLES + 3 * PAGE] = struct.pack("<512Q", *large)
    tss = 0x8B << 40 | 0x67 | TSS << 16
    flat = (0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFF3000000FFFF, 0x00AFFB000000FFFF)
    memory[GDT : GDT + 56] = struct.pack("<7Q", 0, *flat, tss, 0)
    memory[TSS + 4 : TSS + 12] = struct.pack("<Q", STACK)


def _enter_long_mode(vcpu: Vcpu, *, user: bool) -> None:
    """Set flat segments; no interrupt descriptor table, so that every exception is fatal."""
    sregs = vcpu.get_sregs()
    _segment(sregs.cs, _CODE3 if user else _CODE0, 0xB, user)
    sregs.cs.l, sregs.cs.db = 1, 0
    for segment in (sregs.ss, sregs.ds, sregs.es, sregs.fs, sregs.gs):
        _segment(segment, _DATA3 if user else _DATA0, 0x3, user)
    _segment(sregs.tr, _TASK, 0xB, False)
    sregs.tr.base, sregs.tr.limit, sregs.tr.s, sregs.tr.db, sregs.tr.g = TSS, 0x67, 0, 0, 0
    sregs.gdt.base, sregs.gdt.limit = GDT, 55
    sregs.idt.base, sregs.idt.limit = 0, 0
    # PG AM WP NE ET MP PE; SSE and PAE; NXE LMA LME
    sregs.cr0, sregs.cr4, sregs.efer, sregs.cr3 = 0x80050033, 0x620, 0xD00, TABLES
    vcpu.set_sregs(sregs)


def _segment(segment: kvm_segment, selector: int, kind: int, user: bool) -> None:
    segment.base, segment.limit, segment.selector, segment.type = 0, 0xFFFFFFFF, selector, kind
    segment.present, segment.dpl, segment.s = 1, 3 if user else 0, 1
    segment.db, segment.l, segment.g, segment.avl, segment.unusable = 1, 0, 1, 0, 0
