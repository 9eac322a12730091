"""From a stopped vCPU to a `GuestFault`: what happened, to which address, at which instruction.

Hosts tell a guest's access to memory that is not there in different ways: an MMIO exit with the
address; an EFAULT with it; an EFAULT without. And no emulator knows every instruction. One way
works on all of them: run the vCPU once more with page tables that lack the window. The same access
is then a page fault, the CPU itself says which address and which kind, and the trap stub halts
with both.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from vmm.errors import GuestFault, Place
from vmm.guest import abi, boot, exceptions, x86
from vmm.guest.boot import Layout
from vmm.guest.simd import LONGEST, simd
from vmm.kvm import (
    Exit,
    FailEntry,
    Hlt,
    InternalError,
    IoIn,
    IoOut,
    MemoryFault,
    MmioRead,
    MmioWrite,
    Shutdown,
    Vcpu,
)
from vmm.memory.private import PrivateMemory
from vmm.memory.region import OutOfBounds

# What a page of the window is to a machine that may not do with it what it tried.
_PAGES = {
    abi.Hold.NONE: "a page of the window it does not own",
    abi.Hold.SENT: "a page that it has sent",
    abi.Hold.LENT: "a page that it has lent",
    abi.Hold.INCOMING: "a page that it has not received yet",
    abi.Hold.VIEWED: "a page that it may only read",
    abi.Hold.REVOKED: "a page that it had borrowed, and whose owner has reclaimed it",
}


class Places(Protocol):
    """What knows symbols and source lines: Symbols, or several of them."""

    def place(self, rip: int) -> Place: ...


class Diagnosis:
    """Explains one machine's exits. The vCPU is not running, and will not run again afterwards."""

    def __init__(
        self, name: str, vcpu: Vcpu, memory: PrivateMemory, layout: Layout, symbols: Places
    ) -> None:
        self._name = name
        self._vcpu = vcpu
        self._memory = memory
        self._layout = layout
        self._symbols = symbols
        self._hold: Callable[[int], abi.Hold] = lambda gpa: abi.Hold.NONE

    def fault(
        self,
        kind: str,
        reason: str,
        *,
        vector: int | None = None,
        error_code: int | None = None,
        address: int | None = None,
        access: str | None = None,
        rip: int | None = None,
        signal: str | None = None,
        registers: Mapping[str, int] | None = None,
        calls: Sequence[str] = (),
        printed: Sequence[str] = (),
    ) -> GuestFault:
        """Return a fault at `rip`, or at the vCPU's present instruction pointer."""
        if rip is None:
            rip = self._vcpu.get_regs().rip
        return GuestFault(
            kind,
            self._name,
            reason,
            vector=vector,
            error_code=error_code,
            address=address,
            access=access,
            rip=rip,
            place=functools.partial(self._symbols.place, rip),
            signal=signal,
            registers=registers,
            calls=calls,
            printed=printed,
        )

    def explain(
        self,
        stopped: Exit,
        run: Callable[[], Exit],
        hold: Callable[[int], abi.Hold] | None = None,
    ) -> GuestFault:
        """Return why the machine cannot go on after `stopped`.

        `run` runs the vCPU once more, for a while; `hold` tells what the page at an address of the
        window is to the machine.
        """
        self._hold = hold or self._hold
        match stopped:
            case Hlt():
                return self._halt()
            case MmioRead(gpa=gpa):
                return self._access(gpa, "read")
            case MmioWrite(gpa=gpa):
                return self._access(gpa, "write")
            case IoIn(port=port):
                return self.fault("port", f"read of I/O port {port:#x}", access="read")
            case IoOut(port=port):
                return self.fault("port", f"write of I/O port {port:#x}", access="write")
            case MemoryFault(gpa=gpa):
                return self._probe(run) or self._access(gpa, None)
            case InternalError(suberror=suberror):
                rip = self._vcpu.get_regs().rip
                return self._probe(run) or self.fault(
                    "internal",
                    f"KVM could not go on (internal error {suberror}): {self._not_emulated(rip)}",
                    rip=rip,
                )
            case Shutdown():
                return self.fault("triple-fault", "triple fault")
            case FailEntry(hardware_reason=code):
                return self.fault(
                    "internal", f"the CPU refused to enter the guest (reason {code:#x})"
                )
        return self.fault("internal", f"unexpected exit {stopped}")

    def _not_emulated(self, rip: int) -> str:
        """Return what to say of an instruction that KVM had to emulate, and could not."""
        kind = simd(self._code(rip, 0, LONGEST))
        if kind is None:
            return "an instruction this host cannot run"
        text = f"it emulates this {kind} instruction, and cannot: compile with -mgeneral-regs-only"
        in_ring0 = self._vcpu.get_sregs().cs.dpl == 0
        return f"{text}, or run the guest in ring 3, if this host does" if in_ring0 else text

    def _halt(self) -> GuestFault:
        frame = self._trap()
        if frame is None:
            return self.fault("halt", "HLT with no interrupt to wake it: use wait")
        vector, trap = frame
        if vector == exceptions.PAGE_FAULT and trap.error_code is not None:
            return self._page_fault(trap)
        reason, rip = exceptions.exception_text(vector, trap.error_code), trap.rip
        if vector == exceptions.GENERAL_PROTECTION:
            called = exceptions.software_interrupt(trap, self._code(rip, 2, 4))
            if called is not None:
                number, rip = called
                reason += f", INT {number}"
        return self.fault("exception", reason, vector=vector, error_code=trap.error_code, rip=rip)

    def _code(self, rip: int, before: int, count: int) -> bytes:
        """Return bytes around an instruction pointer, if they are the guest's."""
        try:
            return self._memory.read(rip - before, count)
        except OutOfBounds:
            return b""

    def _page_fault(self, trap: exceptions.TrapFrame) -> GuestFault:
        address = self._vcpu.get_sregs().cr2
        access = exceptions.page_fault_access(trap.error_code or 0)
        reason = f"#PF page fault, {access} of {address:#x}"
        if self._below_stack(address, trap.rsp):
            reason += ", the guard area below the stack: stack overflow"
        return self.fault(
            "exception",
            reason,
            vector=exceptions.PAGE_FAULT,
            error_code=trap.error_code,
            address=address,
            access=access,
            rip=trap.rip,
        )

    def _below_stack(self, address: int, rsp: int) -> bool:
        """Whether an access of the guard area is a stack's that has overflowed.

        Far below the stack it may as well be of what follows the image: the stack pointer tells.
        """
        guard = self._layout.guard
        if not guard.base <= address < guard.end:
            return False
        return address >= guard.end - boot.GUARD or guard.base <= rsp <= guard.end

    def _trap(self) -> tuple[int, exceptions.TrapFrame] | None:
        """Return the exception whose stub has halted, and its frame; None for any other HLT."""
        regs = self._vcpu.get_regs()
        vector = x86.trap_vector(regs.rip)
        size = x86.TRAP_STACK.end - regs.rsp
        if vector is None or size not in exceptions.frame_sizes(vector):
            return None  # a guest in ring 0 may have jumped to the stub, with any stack
        frame = exceptions.trap_frame(vector, self._memory.read(regs.rsp, size))
        return (vector, frame) if frame.cs in (x86.CODE0, x86.CODE3) else None

    def _probe(self, run: Callable[[], Exit]) -> GuestFault | None:
        """Let the access that stopped the vCPU happen again without a window, and read the trap.

        Where the emulator gave up, the kernel has queued a #UD for the guest; that is taken back.
        """
        events = self._vcpu.get_events()
        events.exception.injected = events.exception.pending = 0
        self._vcpu.set_events(events)
        sregs = self._vcpu.get_sregs()
        sregs.cr3 = self._layout.tables.root_no_window
        self._vcpu.set_sregs(sregs)
        if not isinstance(run(), Hlt):
            return None
        frame = self._trap()
        if frame is None or frame[0] != exceptions.PAGE_FAULT:
            return None
        address, trap = self._vcpu.get_sregs().cr2, frame[1]
        if address < abi.WINDOW_GPA or trap.error_code is None:
            return None
        return self._access(address, exceptions.page_fault_access(trap.error_code), trap.rip)

    def _access(self, gpa: int | None, access: str | None, rip: int | None = None) -> GuestFault:
        where = "an address the host does not tell" if gpa is None else f"{gpa:#x}"
        window = self._layout.window
        if gpa is not None and window.base <= gpa < window.end:
            where += f", {_PAGES.get(self._hold(gpa), _PAGES[abi.Hold.NONE])}"
        elif gpa is not None:
            where += ", where it has no memory"
        reason = f"{access or 'access'} of {where}"
        return self.fault("access", reason, address=gpa, access=access, rip=rip)
