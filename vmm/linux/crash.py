"""How a program that has crashed is told of: as a debugger would."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from vmm.errors import GuestFault
from vmm.guest.x86 import TRAP_STACK
from vmm.linux.trace import described

if TYPE_CHECKING:
    from vmm.linux.process import Process

# By exception, as Linux has them (arch/x86/kernel/traps.c).
_SIGNALS = {0: "SIGFPE", 1: "SIGTRAP", 3: "SIGTRAP", 4: "SIGSEGV", 5: "SIGSEGV", 6: "SIGILL"}
_SIGNALS |= {11: "SIGBUS", 12: "SIGBUS", 13: "SIGSEGV", 14: "SIGSEGV"}
_SIGNALS |= {16: "SIGFPE", 17: "SIGBUS", 19: "SIGFPE"}
_KINDS = {"access": "SIGSEGV", "halt": "SIGSEGV", "port": "SIGSEGV"}


def signalled(fault: GuestFault, process: Process) -> GuestFault:
    """Return a fault as Linux would have it: with a signal, registers and the last calls."""
    name, reason, address = _KINDS.get(fault.kind), fault.reason, fault.address
    if fault.vector is not None:
        name = _SIGNALS.get(fault.vector)
    if name is None:
        return fault
    if fault.kind == "access" and address is not None:
        shown = process.memory.lent(address)
        if shown is not None:
            name, address = "SIGBUS", shown
            what = fault.access or "access"
            reason = f"{what} of {shown:#x}, a page of a file that was lent, and has gone back"
    registers = process.gate.snapshot()
    if registers["rsp"] in range(TRAP_STACK.base, TRAP_STACK.end):  # those of the trap's stub
        frame = process.memory.low.read(TRAP_STACK.end - 24, 16)
        registers["rflags"], registers["rsp"] = struct.unpack("<QQ", frame)
    if fault.rip is not None:
        registers["rip"] = fault.rip
    return GuestFault(
        fault.kind,
        fault.machine,
        f"{name}: {reason}",
        vector=fault.vector,
        error_code=fault.error_code,
        address=address,
        access=fault.access,
        rip=fault.rip,
        place=lambda: fault.place,
        signal=name,
        registers=registers,
        calls=[described(record) for record in process.last],
        printed=process.outputs[0].tail.lines(),
    )
