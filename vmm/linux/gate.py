"""A program's system calls: recognized among its exits, and answered."""

from __future__ import annotations

from vmm.kvm import Exit, MmioWrite, Vcpu
from vmm.linux.boot import ENTERED, GATE

# In what `Vcpu.exit_words` returns.
RAX, RBX, RCX, RDX, RSI, RDI, RSP, RBP, R8, R9, R10, R11, R12, R13, R14, R15, RIP, RFLAGS = range(
    18
)

NAMES = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11"),
    *("r12", "r13", "r14", "r15", "rip", "rflags"),
)

# CF PF AF ZF SF TF DF OF NT AC ID are the program's; IF is always set, and bit 1.
_FLAGS, _FIXED_FLAGS = 0x244DD5, 0x202
_CANONICAL = 1 << 47


class Gate:
    """What one vCPU, entered by `vmm.linux.boot.enter`, asks for. Not thread-safe.

    run         runs the vCPU until it exits
    registers   of the last call, by the numbers above: RAX is what is asked for, the arguments are
                in RDI, RSI, RDX, R10, R8, R9; RCX is where the program goes on
    """

    __slots__ = ("_last", "_ring_3", "registers", "run", "vcpu")

    def __init__(self, vcpu: Vcpu) -> None:
        self.vcpu = vcpu
        self.run = vcpu.run
        self._last: Exit | None = None  # the same object, as long as it is the same exit
        self._ring_3 = False
        self.registers: list[int] = []

    def called(self, exit_: Exit) -> bool:
        """Whether an exit, the last one, is a system call; then its registers are there.

        It stays one when it has been answered, until the program runs on. A jump to where SYSCALL
        leads is one as well, on every host.
        """
        if exit_ is not self._last:
            if type(exit_) is not MmioWrite or exit_.gpa != GATE or len(exit_.data) != 2:
                return False
            self._ring_3 = exit_.data[0] & 3 == 3
            self._last = exit_
        self.registers = self.vcpu.exit_words() or self.registers
        return self.registers[RIP] == ENTERED

    def arguments(self) -> tuple[int, ...]:
        """Return the call's number, and its six arguments."""
        r = self.registers
        return r[RAX], r[RDI], r[RSI], r[RDX], r[R10], r[R8], r[R9]

    def snapshot(self) -> dict[str, int]:
        """Return the general registers as the last exit left them, by name."""
        return dict(zip(NAMES, self.vcpu.exit_words(), strict=True))

    def stopped(self, answer: int | None) -> dict[str, int]:
        """Return the general registers with which the program would go on, by name.

        answer    what its last call has been answered, if it has not run on since
        """
        if self.registers and not self.vcpu.exit_words():  # changed, for the next run
            registers = dict(zip(NAMES, self.registers, strict=True))
            registers["rip"], registers["rflags"] = registers["rcx"], registers["r11"]
            if answer is not None:
                registers["rax"] = answer & _MASK
            return registers
        found = self.vcpu.get_regs()
        return {name: getattr(found, name) for name in NAMES}

    def answer(self, result: int) -> None:
        """Let the call return `result`, or -errno: then the exit has been acted on. Again is fine,
        as long as it has not run on.
        """
        registers = self.registers
        if not self._ring_3:
            self.vcpu.enter_with(result & _MASK)
            return
        # What cannot be an address stops the program at the next instruction, as it should.
        rip = registers[RCX]
        if rip >= _CANONICAL:
            rip = 0
        rflags = registers[R11] & _FLAGS | _FIXED_FLAGS
        self.vcpu.enter_with(result & _MASK, rip, rflags)


_MASK = (1 << 64) - 1
