"""What the CPU says when it takes an exception: its frame, decoded and in words. Pure.

Sources: Intel SDM volume 3, 6.12 to 6.15.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Sequence

from vmm.guest.x86 import VECTORS

GENERAL_PROTECTION, PAGE_FAULT = 13, 14

EXCEPTIONS = {
    0: "#DE divide error",
    1: "#DB debug",
    2: "NMI",
    3: "#BP breakpoint",
    4: "#OF overflow",
    5: "#BR bound range",
    6: "#UD invalid opcode",
    7: "#NM no FPU",
    8: "#DF double fault",
    10: "#TS invalid TSS",
    11: "#NP segment not present",
    12: "#SS stack fault",
    13: "#GP general protection",
    14: "#PF page fault",
    16: "#MF x87 error",
    17: "#AC alignment check",
    18: "#MC machine check",
    19: "#XM SIMD error",
    20: "#VE virtualization",
    21: "#CP control protection",
    29: "#VC VMM communication",
    30: "#SX security",
}
WITH_ERROR_CODE = frozenset({8, 10, 11, 12, 13, 14, 17, 21, 29, 30})


@dataclasses.dataclass(frozen=True, slots=True)
class TrapFrame:
    """What the CPU pushed when it took an exception."""

    error_code: int | None
    rip: int
    cs: int
    rflags: int
    rsp: int


def frame_sizes(vector: int) -> tuple[int, ...]:
    """Return how many bytes may be pushed: RIP, CS, RFLAGS, RSP, SS, and below an error code."""
    return (40, 48) if vector in WITH_ERROR_CODE else (40,)


def trap_frame(vector: int, frame: bytes) -> TrapFrame:
    """Decode what the CPU has pushed.

    The vector alone does not tell whether there is an error code: INT n pushes none.
    """
    words: Sequence[int] = struct.unpack(f"<{len(frame) // 8}Q", frame)
    error: int | None = None
    if vector in WITH_ERROR_CODE and len(words) == 6:
        error, words = words[0] & 0xFFFFFFFF, words[1:]
    return TrapFrame(error, words[0], words[1] & 0xFFFF, words[2], words[3])


def page_fault_access(error_code: int) -> str:
    """Return what a page fault's access was (SDM 4.7): "read", "write" or "execute"."""
    if error_code & 1 << 4:
        return "execute"
    return "write" if error_code & 1 << 1 else "read"


_INT = 0xCD  # the opcode of INT n

# What no CPU raises in a machine, which has no NMIs, INTO, machine checks, CET or nested guests.
_NEVER_RAISED = frozenset({2, 4, 9, 15, 18, *range(20, VECTORS)})


def exception_text(vector: int, error_code: int | None) -> str:
    """Return in words what has called a vector's gate."""
    name = EXCEPTIONS.get(vector, f"exception {vector}")
    if error_code is None and vector in WITH_ERROR_CODE | _NEVER_RAISED:
        return f"INT {vector}, a software interrupt, not {name}"
    # About a gate of the IDT, and caused by the program itself: INT n (SDM 6.13).
    if vector == GENERAL_PROTECTION and error_code is not None and error_code & 7 == 2:
        return f"{name}, a software interrupt"
    return name


def software_interrupt(trap: TrapFrame, code: bytes) -> tuple[int, int] | None:
    """Return which INT n a #GP is about, and its address; None if it is about something else.

    code    the 4 bytes around `trap.rip`

    The CPU says n * 8 + 2, at the instruction (SDM 6.13); QEMU's says n * 16 + 2, behind it. So
    both are compared with the instruction itself.
    """
    error = trap.error_code or 0
    for at, rip in ((2, trap.rip), (0, trap.rip - 2)):
        opcode, number = code[at : at + 2] or (0, 0)
        if opcode == _INT and error in (number * 8 + 2, number * 16 + 2):
            return number, rip
    return None
