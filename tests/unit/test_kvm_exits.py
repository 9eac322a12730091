"""Decoding of exits that no small guest can bring about on every host: bytes in, values out."""

import mmap
from collections.abc import Iterator
from ctypes import addressof
from pathlib import Path
from typing import get_args

import pytest

from vmm.kvm import (
    Exit,
    FailEntry,
    Hypercall,
    InternalError,
    IrqWindowOpen,
    MemoryFault,
    Shutdown,
    SystemEvent,
    Unknown,
    uapi,
)
from vmm.kvm.run_page import _VIEWS, RunPage


@pytest.fixture
def page() -> Iterator[RunPage]:
    made = RunPage(-1, 3 * mmap.PAGESIZE)
    yield made
    made.close()


def test_a_hypercall_has_its_arguments_and_takes_a_result(page: RunPage) -> None:
    page.run.exit_reason = uapi.KVM_EXIT_HYPERCALL
    call = page.hypercall
    call.nr, call.longmode = 12, 1
    call.args[:] = [0x1000, 1, 2, 3, 4, (1 << 64) - 1]
    assert page.decode() == Hypercall(12, (0x1000, 1, 2, 3, 4, (1 << 64) - 1), True)
    page.put_hypercall(-22)
    assert call.ret == (1 << 64) - 22


def test_the_other_flags_of_a_hypercall_are_not_its_mode(page: RunPage) -> None:
    page.run.exit_reason = uapi.KVM_EXIT_HYPERCALL
    page.hypercall.longmode = 2
    assert page.decode() == Hypercall(0, (0,) * 6, False)


@pytest.mark.parametrize(
    ("reason", "value"),
    [
        (uapi.KVM_EXIT_SHUTDOWN, Shutdown()),
        (uapi.KVM_EXIT_IRQ_WINDOW_OPEN, IrqWindowOpen()),
        (uapi.KVM_EXIT_NOTIFY, Unknown(uapi.KVM_EXIT_NOTIFY)),
        (9999, Unknown(9999)),
    ],
)
def test_exits_without_details(page: RunPage, reason: int, value: Exit) -> None:
    page.run.exit_reason = reason
    assert page.decode() == value


def test_an_unknown_exit_has_the_hardwares_reason(page: RunPage) -> None:
    page.exit.hw.hardware_exit_reason = 77
    assert page.decode() == Unknown(uapi.KVM_EXIT_UNKNOWN, 77)


def test_a_failed_entry_has_the_hardwares_reason(page: RunPage) -> None:
    page.run.exit_reason = uapi.KVM_EXIT_FAIL_ENTRY
    page.exit.fail_entry.hardware_entry_failure_reason = 0x80000021
    page.exit.fail_entry.cpu = 3
    assert page.decode() == FailEntry(0x80000021, 3)


@pytest.mark.parametrize("count", [0, 2, 16, 17, 0xFFFFFFFF])
def test_counted_details_never_run_over(page: RunPage, count: int) -> None:
    words = tuple(range(100, 116))
    page.run.exit_reason = uapi.KVM_EXIT_INTERNAL_ERROR
    error = page.exit.internal
    error.suberror, error.ndata, error.data[:] = 1, count, list(words)
    assert page.decode() == InternalError(1, words[:count])
    page.run.exit_reason = uapi.KVM_EXIT_SYSTEM_EVENT
    assert page.decode() == SystemEvent(1, words[:count])


def test_a_memory_fault_has_the_address_that_this_run_wrote(page: RunPage) -> None:
    page.run.exit_reason = uapi.KVM_EXIT_MEMORY_FAULT
    fault = page.exit.memory_fault
    fault.flags, fault.gpa, fault.size = 8, 0x5000, 0x1000
    assert page.memory_fault() == MemoryFault(0x5000, 0x1000, 8)


@pytest.mark.parametrize("reason", [0, uapi.KVM_EXIT_MMIO, uapi.KVM_EXIT_IO])
def test_a_memory_fault_has_no_address_that_is_something_else(page: RunPage, reason: int) -> None:
    page.exit.memory_fault.gpa = 0x5000
    page.run.exit_reason = reason
    assert page.memory_fault() == MemoryFault(None, None, 0)


def test_exits_of_different_kinds_are_never_equal() -> None:
    empty = [kind() for kind in get_args(Exit) if not kind.__dataclass_fields__]
    assert len(empty) == len(set(empty)) == 4
    assert all(empty)


def test_after_close_the_page_is_unmapped_and_no_view_of_it_is_left() -> None:
    page = RunPage(-1, 3 * mmap.PAGESIZE)
    page.run.exit_reason = uapi.KVM_EXIT_IO
    page.decode()
    address = f"{addressof(page.run):x}-"
    assert address in Path("/proc/self/maps").read_text()
    page.close()
    assert address not in Path("/proc/self/maps").read_text()
    for name in _VIEWS:
        assert not hasattr(page, name)
