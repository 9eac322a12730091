"""A Linux program's machine without a program: a vCPU in ring 3 that does one thing at a time.

Hand-made code, since a lane has no compiler.
"""

from __future__ import annotations

import struct
from types import TracebackType

from vmm.guest import x86
from vmm.kvm import Hlt, Kvm, Vcpu
from vmm.linux import boot
from vmm.linux.areas import Areas
from vmm.linux.boot import Layout, Processor
from vmm.linux.gate import RAX, RDI, Gate
from vmm.linux.memory import Memory
from vmm.linux.plans import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE
from vmm.memory.private import PrivateMemory
from vmm.memory.template import Template

PAGE, MIB = 4096, 1 << 20
CODE = 0x400000
LOAD, STORE, JUMP = CODE, CODE + 16, CODE + 32
_SYSCALL = b"\x0f\x05"
_CODE = b"".join(
    part.ljust(16, b"\xf4")
    for part in (
        b"\x48\x8b\x07" + _SYSCALL,  # mov rax, [rdi]
        b"\x48\x89\x37\x48\x89\xf0" + _SYSCALL,  # mov [rdi], rsi; mov rax, rsi
        b"\x48\x89\xf8\xff\xe7",  # mov rax, rdi; jmp rdi
    )
)
# What a page that can be jumped to has at its beginning.
CALLABLE = int.from_bytes(_SYSCALL.ljust(8, b"\xf4"), "little")
SLOTS = (0, 500, 501, 502)

ANONYMOUS = MAP_PRIVATE | MAP_ANONYMOUS
FIXED = ANONYMOUS | MAP_FIXED


class Refused(Exception):
    """A page fault, at `address`."""

    def __init__(self, address: int) -> None:
        super().__init__(hex(address))
        self.address = address


class Scene:
    """One machine. Use as a context manager."""

    def __init__(
        self,
        low: int = 16 * MIB,
        arena: int = 32 * MIB,
        window: int = 2 * MIB,
        limit: int = 1 << 40,
    ) -> None:
        self.kvm = Kvm.open()
        self.layout: Layout = boot.plan(low, arena, MIB, window)
        self._template = Template([*boot.contents(), (CODE, _CODE)])
        private = PrivateMemory(self.layout.private, self._template, aligned=True)
        areas = Areas(self.layout.low, self.layout.arena, limit, MIB)
        areas.start_heap(CODE + MIB)
        self.memory = Memory(private, areas, self.layout.window)
        self.memory.mmap(CODE, PAGE, 5, MAP_PRIVATE | MAP_FIXED)
        self.memory.fill(CODE, _CODE)
        self.vm = self.kvm.create_vm()
        self.memory.attach(self.vm, SLOTS)
        self.vcpu: Vcpu = self.vm.create_vcpu()
        self.processor = Processor.of(self.kvm.supported_cpuid())
        boot.enter(self.vcpu, self.layout, self.processor, CODE, self.stack)
        self._sregs = self.vcpu.get_sregs()
        self.gate = Gate(self.vcpu)
        self.root = self.layout.tables.root

    @property
    def stack(self) -> int:
        """A stack pointer."""
        return self.layout.stack.end - 64

    def load(self, address: int) -> int:
        """Read 8 bytes, as the program. Raises Refused."""
        return self._go(LOAD, address)

    def store(self, address: int, value: int) -> None:
        """Write 8 bytes, as the program. Raises Refused."""
        assert self._go(STORE, address, value) == value

    def jump(self, address: int) -> None:
        """Execute what is there, CALLABLE, as the program. Raises Refused."""
        assert self._go(JUMP, address) == address

    def _go(self, rip: int, address: int, value: int = 0) -> int:
        regs = boot.regs(rip, self.stack)
        regs.rdi, regs.rsi = address, value
        self._sregs.cr3 = self.root
        self.vcpu.set_sregs(self._sregs)
        self.vcpu.set_regs(regs)
        exit_ = self.vcpu.run()
        if self.gate.called(exit_):
            assert self.gate.registers[RDI] == address
            return self.gate.registers[RAX]
        at = self.vcpu.get_regs()
        assert exit_ == Hlt(), exit_
        assert x86.trap_vector(at.rip) == 14, hex(at.rip)
        raise Refused(self.vcpu.get_sregs().cr2)

    def frame(self) -> tuple[int, ...]:
        """What the CPU has pushed for the last exception."""
        rsp = self.vcpu.get_regs().rsp
        size = x86.TRAP_STACK.end - rsp
        return struct.unpack(f"<{size // 8}Q", self.memory.low.read(rsp, size))

    def close(self) -> None:
        """Close it all."""
        self.vcpu.close()
        self.vm.close()
        self.kvm.close()
        self.memory.close()
        self._template.close()

    def __enter__(self) -> Scene:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
