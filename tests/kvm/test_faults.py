"""Guests that do what no status can answer: each stops with a fault that says what, where and why.

Nobody else stops: every scene has innocent machines in it, which run on meanwhile and afterwards.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_scene import MOVERS, PAGE, Scene, line_of, scene

from vmm import Monitor, host
from vmm.errors import GuestFault
from vmm.guest.abi import DOORBELL_GPA

PAGE_FAULT = 14
GENERAL_PROTECTION = 13


def fault_of(s: Scene) -> GuestFault:
    """Run the scene; return the guest's fault, which is the only one."""
    s.run()
    assert [m.name for m in s.m.machines.values() if m.fault is not None] == ["guest"]
    fault = s.guest.fault
    assert fault is not None
    assert s.guest.exit_code is None
    assert fault.machine == "guest"
    return fault


def place(fault: GuestFault) -> tuple[str | None, str | None, int | None]:
    return fault.place.symbol, fault.place.file, fault.place.line


def marked(name: str) -> tuple[str, str, int]:
    """Where a guest's source says that it faults."""
    return "main", f"{name}.c", line_of(name)


def general_protection(fault: GuestFault) -> bool:
    return (fault.kind, fault.vector, fault.error_code) == ("exception", GENERAL_PROTECTION, 0)


# ---- Pages that were sent away ----


@pytest.mark.parametrize("mover", MOVERS)
@pytest.mark.parametrize(
    ("name", "access", "offset"),
    [
        ("revoked_read", "read", 0x128),
        ("revoked_write", "write", 0x128),
        ("revoked_sse", "read", 0x120),
    ],
)
def test_using_a_page_that_was_sent_names_its_exact_address(
    name: str, access: str, offset: int, mover: str
) -> None:
    with scene(name, mover) as s:
        before = s.give(b"abc")
        fault = fault_of(s)
        address = s.guest.window.base + PAGE + offset  # of the three pages it sent the second
        assert (fault.kind, fault.access, fault.address) == ("access", access, address)
        assert f"{access} of {address:#x}" in str(fault)
        assert fault.place.symbol == "main"
        if (access, mover) != ("write", "slots"):  # a store that KVM emulated: rip is past it
            assert place(fault) == marked(name)
        assert s.logged_by(s.peer) == [f"from {s.guest.number}, tag 0, 1 pages of b: "]
        after = s.m.audit()
        assert (after["owned"], after["in_flight"]) == (1, 0)  # the peer's; its own two went free
        assert sum(after.values()) == sum(before.values())


# ---- Addresses without memory ----


@pytest.mark.parametrize("mover", MOVERS)
@pytest.mark.parametrize("access", ["read", "write"])
@pytest.mark.parametrize("width", [1, 4, 8])
def test_a_page_of_the_window_that_never_came_is_an_access_fault(
    width: int, access: str, mover: str
) -> None:
    with scene("outside_memory", mover) as s:
        address = s.guest.window.base + 5 * PAGE + 0x40
        s.m.host.send(s.guest, payload=struct.pack("<QBc", address, width, access[:1].encode()))
        fault = fault_of(s)
        assert (fault.kind, fault.access, fault.address) == ("access", access, address)
        assert "a page of the window it does not own" in fault.reason


@pytest.mark.parametrize(
    ("offset", "width", "access"),
    [(8, 4, "read"), (8, 4, "write"), (0, 1, "write"), (0, 8, "write"), (0, 4, "read")],
)
def test_only_a_whole_word_stored_to_the_doorbell_rings_it(
    offset: int, width: int, access: str
) -> None:
    with scene("outside_memory") as s:
        address = DOORBELL_GPA + offset
        s.m.host.send(s.guest, payload=struct.pack("<QBc", address, width, access[:1].encode()))
        fault = fault_of(s)
        assert (fault.kind, fault.access, fault.address) == ("access", access, address)
        assert fault.place.symbol == "main"


# ---- Exceptions of the CPU ----


@pytest.mark.parametrize(("name", "vector"), [("divide_by_zero", 0), ("undefined_instruction", 6)])
def test_an_exception_is_named_with_its_place(name: str, vector: int) -> None:
    with scene(name) as s:
        fault = fault_of(s)
        assert (fault.kind, fault.vector, fault.error_code) == ("exception", vector, None)
        assert (fault.address, fault.access) == (None, None)
        assert place(fault) == marked(name)


@pytest.mark.parametrize(
    ("name", "access", "address", "error_code"),
    [("wild_pointer", "read", 0x123456789A8, 0), ("null_pointer", "write", 0, 2)],
)
def test_a_pointer_to_nowhere_is_a_page_fault(
    name: str, access: str, address: int, error_code: int
) -> None:
    with scene(name) as s:
        fault = fault_of(s)
        user = 4 if s.m.ring == 3 else 0
        assert (fault.kind, fault.vector) == ("exception", PAGE_FAULT)
        assert (fault.access, fault.address) == (access, address)
        assert fault.error_code == error_code | user
        assert place(fault) == marked(name)


def test_constants_cannot_be_written() -> None:
    with scene("write_rodata") as s:
        fault = fault_of(s)
        assert (fault.kind, fault.vector, fault.access) == ("exception", PAGE_FAULT, "write")
        assert fault.error_code == (7 if s.m.ring == 3 else 3)  # present: a violation
        assert [(g.write, g.execute) for g in segments_of(s, fault.address)] == [(False, False)]
        assert place(fault) == marked("write_rodata")


def test_data_cannot_be_executed() -> None:
    with scene("execute_data") as s:
        fault = fault_of(s)
        assert (fault.kind, fault.vector, fault.access) == ("exception", PAGE_FAULT, "execute")
        assert fault.error_code == (0x15 if s.m.ring == 3 else 0x11)
        assert fault.address == fault.rip
        assert [(g.write, g.execute) for g in segments_of(s, fault.address)] == [(True, False)]


def segments_of(s: Scene, address: int | None) -> list[object]:
    assert address is not None
    segments = s.guest.guest.image.segments
    return [g for g in segments if g.gpa <= address < g.gpa + g.size]


def test_a_stack_overflow_stops_at_the_guard_page() -> None:
    with scene("stack_overflow") as s:
        fault = fault_of(s)
        stack = s.guest.guest.layout.stack.base
        assert (fault.kind, fault.vector, fault.access) == ("exception", PAGE_FAULT, "write")
        assert fault.address is not None
        assert stack - PAGE <= fault.address < stack
        assert "stack overflow" in fault.reason
        assert fault.place.symbol == "descend"


# ---- Instructions that belong to the system ----


def test_an_empty_idt_is_a_triple_fault_that_ring_3_cannot_cause() -> None:
    with scene("triple_fault") as s:
        fault = fault_of(s)
        if s.m.ring == 3:
            assert general_protection(fault)
            assert place(fault) == marked("triple_fault")
        else:
            assert (fault.kind, fault.vector) == ("triple-fault", None)


def test_hlt_is_no_way_to_wait() -> None:
    with scene("halt") as s:
        fault = fault_of(s)
        if s.m.ring == 3:
            assert general_protection(fault)
            assert place(fault) == marked("halt")
        else:
            assert fault.kind == "halt"
        assert fault.place.symbol == "main"


def test_a_port_that_is_not_the_doorbell_stops_the_machine() -> None:
    with scene("port_io") as s:
        fault = fault_of(s)
        if fault.kind == "exception":  # the host keeps ring 3 off its ports
            assert s.m.ring == 3
            assert general_protection(fault)
            assert place(fault) == marked("port_io")
        else:
            assert (fault.kind, fault.access) == ("port", "write")
            assert "port 0x80" in fault.reason
        assert fault.place.symbol == "main"


# ---- Guests that mean it ----


def test_an_endless_loop_holds_nobody_up_and_ends_with_the_time_out() -> None:
    with scene("endless_loop") as s:
        start = time.monotonic()
        s.run(timeout=0.3)  # in which the innocents' page came back
        assert 0.3 <= time.monotonic() - start < 10
        fault = s.guest.fault
        assert fault is not None
        assert (fault.kind, fault.place.symbol) == ("timeout", "main")
        assert Path(fault.place.file or "").name == "endless_loop.c"
        s.run_beside(s.spawn_innocents("later"))


def test_a_panic_is_reported_without_what_would_steer_a_terminal() -> None:
    with scene("panic") as s:
        fault = fault_of(s)
        assert fault.kind == "panic"
        assert fault.place.symbol == "pf_panic" or fault.place.file == "pf.c"
        assert str(fault).isprintable()
        assert fault.reason.startswith("panic: out of \N{REPLACEMENT CHARACTER}[31mcheese")
        assert "cheese host: all is well" in fault.reason  # which begins no line


@pytest.mark.not_in_lanes("10,000 lines, whatever maps the guest that says them")
def test_a_flood_of_lines_is_printed_in_order() -> None:
    with scene("log_flood") as s:
        s.run()
        assert (s.guest.exit_code, s.guest.fault) == (0, None)
        assert s.logged_by(s.guest) == [f"line {n}" for n in range(10_000)]


@pytest.mark.parametrize("code", [0, 1, 255, 256, -1, 2**31 - 1, -(2**31)])
def test_an_exit_code_is_any_word(code: int) -> None:
    with scene("exit_codes") as s:
        s.m.host.send(s.guest, payload=struct.pack("<i", code))
        s.run()
        assert (s.guest.exit_code, s.guest.fault) == (code, None)


def test_an_sse_instruction_that_kvm_cannot_emulate_is_named_with_what_to_do(
    test_guest: Callable[[str], Path],
) -> None:
    with Monitor(ring=0, pool="16M") as monitor:
        machine = monitor.spawn(test_guest("sse"), name="m", window="2M")
        monitor.run(60)
        fault = machine.fault
    if host.inspect().native(0):
        assert (fault, machine.exit_code) == (None, 4)
        return
    assert fault is not None
    assert fault.kind == "internal"
    assert "SSE" in fault.reason
    assert "compile with -mgeneral-regs-only, or run the guest in ring 3" in fault.reason
    assert (fault.place.symbol, fault.place.file) == ("main", "sse.c")
