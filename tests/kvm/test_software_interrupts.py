"""A guest that would have another fault reported than the one it has."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from vmm import Monitor
from vmm.errors import GuestFault
from vmm.guest.x86 import TRAP_STACK

Elf = Callable[[str], Path]


def fault_of(elf: Path, what: int | str, stack: int = 0, ring: int | None = None) -> GuestFault:
    with Monitor(ring=ring, pool="16M") as m:
        guest = m.spawn(elf, name="guest", window="4M")
        kind = what if isinstance(what, int) else ord(what)
        m.host.send(guest, payload=struct.pack("<BQ", kind, stack))
        m.run(60)
        assert guest.fault is not None
        return guest.fault


def said(fault: GuestFault) -> tuple[str, int | None]:
    return fault.reason, fault.vector


@pytest.mark.parametrize("number", [0, 2, 6, 8, 13, 14, 18, 31, 32, 128])
def test_a_software_interrupt_in_ring_3_is_no_exception_of_that_number(
    test_guest: Elf, number: int
) -> None:
    fault = fault_of(test_guest("software_interrupt"), number, ring=3)
    assert fault.kind == "exception"
    if fault.vector == 6:  # KVM does not emulate INT n, as hosts without hardware paging have to
        assert said(fault) == ("#UD invalid opcode", 6)
    else:
        text = f"#GP general protection, a software interrupt, INT {number}"
        assert said(fault) == (text, 13)
        assert fault.error_code in (number * 8 + 2, number * 16 + 2)  # the latter in QEMU
        assert fault.address is None
    assert fault.place.symbol == "main"
    assert fault.rip is not None


@pytest.mark.parametrize("number", [2, 8, 13, 14, 18, 31])
def test_a_guest_in_ring_0_may_call_a_gate_and_is_told_from_the_cpu(
    test_guest: Elf, number: int
) -> None:
    fault = fault_of(test_guest("software_interrupt"), number, ring=0)
    if fault.kind == "internal":  # an emulated ring
        assert "an instruction this host cannot run" in fault.reason
    else:
        assert fault.reason.startswith(f"INT {number}, a software interrupt, not ")
        assert (fault.kind, fault.vector, fault.error_code) == ("exception", number, None)
        assert fault.address is None
    assert fault.place.symbol == "main"


@pytest.mark.parametrize("ring", [0, 3])
@pytest.mark.parametrize(
    ("what", "reason", "vector"), [("b", "#BP breakpoint", 3), ("u", "#UD invalid opcode", 6)]
)
def test_what_the_cpu_raises_is_reported_as_ever(
    test_guest: Elf, what: str, reason: str, vector: int, ring: int
) -> None:
    fault = fault_of(test_guest("software_interrupt"), what, ring=ring)
    if (fault.kind, ring, what) != ("internal", 0, "b"):  # an emulated ring
        assert said(fault) == (reason, vector)
    assert fault.place.symbol == "main"


@pytest.mark.parametrize(
    "stack",
    [0, 8, TRAP_STACK.end - 48, TRAP_STACK.end - 40, TRAP_STACK.end - 44, 1 << 32, (1 << 64) - 8],
)
def test_a_guest_that_jumps_to_a_trap_stub_has_had_no_exception(
    test_guest: Elf, stack: int
) -> None:
    fault = fault_of(test_guest("software_interrupt"), "s", stack, ring=0)
    assert (fault.kind, fault.vector, fault.error_code) == ("halt", None, None)
    outside = fault_of(test_guest("software_interrupt"), "s", stack, ring=3)
    assert (outside.vector, outside.access, outside.address) == (14, "execute", 0x3000 + 13 * 4)
