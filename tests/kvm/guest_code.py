"""Tiny guests in machine code, for the tests of vmm.kvm: one VM, one vCPU, a few pages.

All of them run on hosts that emulate ring 0: it takes no more than a few instructions there.
"""

import ctypes
import mmap
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from vmm.kvm import Exit, Kvm, Vcpu, Vm
from vmm.kvm.structs import kvm_regs, kvm_segment, kvm_sregs

PAGE = 4096
RAM = 32 * PAGE
CODE = 0x1000
DATA_PAGE = 0x1F000  # the last page of RAM: nothing else is there
NO_RAM = 0x200000  # beyond RAM; linear = physical for user_mode guests

_PML4, _PDPT, _PD, _TSS = 0x2000, 0x3000, 0x4000, 0x6000
_PRESENT_WRITE_USER, _LARGE = 7, 0x80

HLT = b"\xf4"
SPIN = b"\xeb\xfe"  # jmp to itself

RFLAGS = 0x202  # IF is set: see vmm.guest.boot

PATIENCE = 20.0  # seconds; for what comes at once on any host


class Ram:
    """Anonymous memory of this process, for a slot at guest-physical 0."""

    def __init__(self, size: int = RAM) -> None:
        self.size = size
        self.map = mmap.mmap(-1, size)
        self._anchor: ctypes.c_char | None = ctypes.c_char.from_buffer(self.map)
        self.address = ctypes.addressof(self._anchor)

    def write(self, at: int, data: bytes) -> None:
        self.map[at : at + len(data)] = data

    def read(self, at: int, size: int) -> bytes:
        return self.map[at : at + size]

    def close(self) -> None:
        self._anchor = None  # a view would keep the mapping open
        self.map.close()


@dataclass
class Machine:
    kvm: Kvm
    vm: Vm
    vcpu: Vcpu
    ram: Ram

    def go(self, rip: int = CODE, **registers: int) -> None:
        """Set the general registers: zero but for those given."""
        self.vcpu.set_regs(kvm_regs(**{"rip": rip, "rflags": RFLAGS, **registers}))


@contextmanager
def machine(slot_flags: int = 0) -> Iterator[Machine]:
    """A VM with RAM in slot 0 and a vCPU in its reset state."""
    ram = Ram()
    try:
        with Kvm.open() as kvm, kvm.create_vm() as vm:
            vm.set_user_memory_region(0, 0, ram.size, ram.address, slot_flags)
            with vm.create_vcpu() as vcpu:
                vcpu.set_cpuid(kvm.supported_cpuid())  # it cannot be changed after the first run
                yield Machine(kvm, vm, vcpu, ram)
    finally:
        ram.close()


def real_mode(made: Machine, code: bytes, ds_base: int = 0, **registers: int) -> None:
    """Put ``code`` at CODE, in ring 0 and 16 bit mode; DS may begin beyond RAM."""
    made.ram.write(CODE, code)
    sregs = made.vcpu.get_sregs()
    sregs.cs.base, sregs.cs.selector = 0, 0
    sregs.ds.base, sregs.ds.selector = ds_base, ds_base >> 4 & 0xFFFF
    made.vcpu.set_sregs(sregs)
    made.go(**registers)


def user_mode(made: Machine, code: bytes, **registers: int) -> None:
    """Put ``code`` at CODE, in ring 3 of long mode; the first 4 MiB are mapped one to one."""
    long_mode(made, code, 3, **registers)


def long_mode(made: Machine, code: bytes, ring: int, **registers: int) -> None:
    """Do so in a ring of choice."""
    made.ram.write(CODE, code)
    flags = _PRESENT_WRITE_USER
    made.ram.write(_PML4, struct.pack("<Q", _PDPT | flags))
    made.ram.write(_PDPT, struct.pack("<Q", _PD | flags))
    made.ram.write(_PD, struct.pack("<2Q", flags | _LARGE, NO_RAM | flags | _LARGE))
    made.vcpu.set_sregs(_long_mode(made.vcpu.get_sregs(), ring))
    made.go(**registers)


def _long_mode(sregs: kvm_sregs, ring: int) -> kvm_sregs:
    def flat(selector: int, kind: int, long: int) -> kvm_segment:
        return kvm_segment(
            limit=0xFFFFFFFF,
            selector=selector | ring,
            type=kind,
            present=1,
            dpl=ring,
            db=1 - long,
            s=1,
            l=long,
            g=1,
        )

    sregs.cs = flat(0x28, 0xB, 1)
    sregs.ss = sregs.ds = sregs.es = sregs.fs = sregs.gs = flat(0x20, 3, 0)
    sregs.tr = kvm_segment(base=_TSS, limit=0x67, selector=0x30, type=0xB, present=1)
    sregs.cr0, sregs.cr3, sregs.cr4 = 0x80050033, _PML4, 0x620
    sregs.efer = 0xD00
    sregs.idt.base = sregs.idt.limit = 0  # every exception is fatal
    return sregs


class Runner(threading.Thread):
    """Runs a vCPU once in a thread of its own, and keeps what came of it."""

    def __init__(self, vcpu: Vcpu) -> None:
        super().__init__(name="runner")
        self._vcpu = vcpu
        self.exit: Exit | None = None

    def run(self) -> None:
        self.exit = self._vcpu.run()
