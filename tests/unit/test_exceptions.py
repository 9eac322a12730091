"""What the CPU pushes when it takes an exception, decoded and in words."""

from __future__ import annotations

import struct

import pytest

from vmm.guest import exceptions, x86


@pytest.mark.parametrize("vector", range(x86.VECTORS))
def test_a_trap_frame_has_an_error_code_where_the_cpu_pushes_one(vector: int) -> None:
    pushes = vector in (8, 10, 11, 12, 13, 14, 17, 21, 29, 30)
    error = [0xFFFFFFFF_00000006] if pushes else []
    words = [*error, 0x201000, 0xABCD_0023, 0x246, 0x3FFFF8, 0x1B, 0, 0]
    frame = exceptions.trap_frame(vector, struct.pack("<6Q", *words[:6]))
    assert frame == exceptions.TrapFrame(6 if pushes else None, 0x201000, 0x23, 0x246, 0x3FFFF8)


@pytest.mark.parametrize(("vector", "sizes"), [(6, (40,)), (13, (40, 48)), (18, (40,))])
def test_a_frame_of_another_size_is_none_of_the_cpus(vector: int, sizes: tuple[int, ...]) -> None:
    assert exceptions.frame_sizes(vector) == sizes


@pytest.mark.parametrize("vector", [8, 13, 14, 18])
def test_a_software_interrupt_has_no_error_code_whatever_its_vector(vector: int) -> None:
    frame = exceptions.trap_frame(vector, struct.pack("<5Q", 0x201000, 0x23, 0x246, 0x3FFFF8, 0x1B))
    assert frame == exceptions.TrapFrame(None, 0x201000, 0x23, 0x246, 0x3FFFF8)


@pytest.mark.parametrize(
    ("vector", "error_code", "text"),
    [
        (6, None, "#UD invalid opcode"),
        (9, None, "INT 9, a software interrupt, not exception 9"),
        (18, None, "INT 18, a software interrupt, not #MC machine check"),
        (13, 0, "#GP general protection"),
        (13, 48, "#GP general protection"),  # about a selector
        (13, 13 * 8 + 2, "#GP general protection, a software interrupt"),
        (13, 13 * 8 + 3, "#GP general protection"),  # about an event from outside
        (13, None, "INT 13, a software interrupt, not #GP general protection"),
        (14, None, "INT 14, a software interrupt, not #PF page fault"),
    ],
)
def test_an_exception_in_words_is_what_the_cpu_said(
    vector: int, error_code: int | None, text: str
) -> None:
    assert exceptions.exception_text(vector, error_code) == text


def trap(error_code: int) -> exceptions.TrapFrame:
    return exceptions.TrapFrame(error_code, 0x201000, 0x23, 0x246, 0x3FFFF8)


@pytest.mark.parametrize(
    ("error_code", "code", "found"),
    [
        (13 * 8 + 2, "9090 cd0d", (13, 0x201000)),  # as CPUs say it
        (13 * 16 + 2, "cd0d 9090", (13, 0x200FFE)),  # as QEMU does
        (128 * 16 + 2, "9090 cd80", (128, 0x201000)),
        (13 * 8 + 2, "9090 cd0e", None),  # another than the error code's
        (13 * 8 + 2, "9090 ff0d", None),
        (0, "cd0d cd0d", None),
        (13 * 8 + 2, "", None),  # code that is nowhere
    ],
)
def test_the_instruction_itself_tells_which_software_interrupt_it_was(
    error_code: int, code: str, found: tuple[int, int] | None
) -> None:
    assert exceptions.software_interrupt(trap(error_code), bytes.fromhex(code)) == found


@pytest.mark.parametrize(
    ("code", "access"),
    [(0, "read"), (5, "read"), (2, "write"), (7, "write"), (0x10, "execute"), (0x15, "execute")],
)
def test_a_page_faults_error_code_tells_the_access(code: int, access: str) -> None:
    assert exceptions.page_fault_access(code) == access
