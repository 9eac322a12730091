"""One VM: memory slots, dirty logs, eventfds, interrupt hardware."""

import errno
import os
from collections.abc import Iterator

import pytest
from kvm.guest_code import (
    CODE,
    DATA_PAGE,
    HLT,
    NO_RAM,
    PAGE,
    RAM,
    Machine,
    Ram,
    machine,
    real_mode,
)

from vmm.kvm import MEM_LOG_DIRTY_PAGES, MEM_READONLY, Hlt, IoOut, Kvm, MmioRead, MmioWrite, Vm
from vmm.kvm.uapi import (
    KVM_CAP_EXIT_HYPERCALL,
    KVM_CAP_NR_VCPUS,
    KVM_HC_MAP_GPA_RANGE,
)

OUT_AND_HALT = b"\xe6\x10" + HLT  # out 0x10, al
STORE_AND_HALT = b"\xa2\x00\x00" + HLT  # mov [0], al
LOAD_AND_HALT = b"\xa0\x00\x00" + HLT  # mov al, [0]


@pytest.fixture
def made() -> Iterator[Machine]:
    with machine() as one:
        yield one


@pytest.fixture
def bare() -> Iterator[Vm]:
    """A VM with neither memory nor vCPU."""
    with Kvm.open() as kvm, kvm.create_vm() as vm:
        yield vm


@pytest.fixture
def event() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


def dirty_pages(bitmap: bytes) -> set[int]:
    bits = int.from_bytes(bitmap, "little")
    return {page for page in range(len(bitmap) * 8) if bits >> page & 1}


def test_a_vcpu_number_is_taken_once(made: Machine) -> None:
    fd = made.vm.fileno()
    with pytest.raises(FileExistsError, match=f"KVM_CREATE_VCPU on vm fd {fd}: File exists"):
        made.vm.create_vcpu(0)


def test_a_vm_has_several_vcpus(made: Machine) -> None:
    with made.vm.create_vcpu(1) as second:
        assert second.fileno() != made.vcpu.fileno()


def test_a_vcpu_runs_on_after_its_vm_is_closed(made: Machine) -> None:
    real_mode(made, HLT)
    made.vm.close()
    assert made.vcpu.run() == Hlt()


def test_capabilities_can_be_asked_of_the_vm(bare: Vm) -> None:
    assert bare.check_extension(KVM_CAP_NR_VCPUS) > 0
    assert bare.check_extension(0x7FFFFFFF) == 0


def test_slots_must_not_overlap(made: Machine) -> None:
    with pytest.raises(FileExistsError, match="KVM_SET_USER_MEMORY_REGION on vm fd"):
        made.vm.set_user_memory_region(1, RAM - PAGE, PAGE, made.ram.address)


@pytest.mark.parametrize(
    ("at", "size", "shift"), [(RAM + 1, PAGE, 0), (RAM, 100, 0), (RAM, PAGE, 8)]
)
def test_slots_are_whole_pages(made: Machine, at: int, size: int, shift: int) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        made.vm.set_user_memory_region(1, at, size, made.ram.address + shift)


def test_a_slot_shows_the_hosts_memory(made: Machine) -> None:
    made.vm.set_user_memory_region(1, NO_RAM, PAGE, made.ram.address + DATA_PAGE)
    real_mode(made, STORE_AND_HALT, ds_base=NO_RAM, rax=0x5A)
    assert made.vcpu.run() == Hlt()
    assert made.ram.read(DATA_PAGE, 1) == b"\x5a"


def test_a_slot_taken_away_is_no_memory_any_more(made: Machine) -> None:
    made.vm.set_user_memory_region(1, NO_RAM, PAGE, made.ram.address + DATA_PAGE)
    made.vm.set_user_memory_region(1, NO_RAM, 0, 0)
    real_mode(made, LOAD_AND_HALT, ds_base=NO_RAM)
    assert made.vcpu.run() == MmioRead(NO_RAM, 1)


def test_a_write_to_a_read_only_slot_comes_to_the_monitor(made: Machine) -> None:
    made.vm.set_user_memory_region(1, NO_RAM, PAGE, made.ram.address + DATA_PAGE, MEM_READONLY)
    real_mode(made, STORE_AND_HALT, ds_base=NO_RAM, rax=0x5A)
    assert made.vcpu.run() == MmioWrite(NO_RAM, b"\x5a")
    assert made.vcpu.run() == Hlt()
    assert made.ram.read(DATA_PAGE, 1) == b"\x00"


def test_the_dirty_log_has_the_pages_written_and_begins_anew() -> None:
    with machine(MEM_LOG_DIRTY_PAGES) as made:
        real_mode(made, STORE_AND_HALT, ds_base=0x12000)
        made.vm.get_dirty_log(0, RAM // PAGE)
        assert made.vcpu.run() == Hlt()
        log = made.vm.get_dirty_log(0, RAM // PAGE)
        assert len(log) == 8
        # Some hosts report more than was written, but never everything.
        assert 0x12 in dirty_pages(log)
        assert dirty_pages(log) < set(range(RAM // PAGE))
        assert 0x12 not in dirty_pages(made.vm.get_dirty_log(0, RAM // PAGE))


def test_the_dirty_log_of_many_pages_is_as_long_as_the_kernel_writes_it(bare: Vm) -> None:
    ram = Ram(65 * PAGE)
    try:
        bare.set_user_memory_region(3, 0, ram.size, ram.address, MEM_LOG_DIRTY_PAGES)
        assert bare.get_dirty_log(3, 65) == bytes(16)
        with pytest.raises(ValueError, match="slot 3 has more than 64 pages"):
            bare.get_dirty_log(3, 64)
    finally:
        bare.close()
        ram.close()


def test_a_slot_without_a_dirty_log_has_none_to_give(made: Machine) -> None:
    with pytest.raises(FileNotFoundError, match="KVM_GET_DIRTY_LOG on vm fd"):
        made.vm.get_dirty_log(0, RAM // PAGE)


def test_an_ioeventfd_takes_the_place_of_the_exit(made: Machine, event: int) -> None:
    made.vm.ioeventfd(event, 0x10, 1, pio=True)
    real_mode(made, OUT_AND_HALT)
    assert made.vcpu.run() == Hlt()
    assert os.eventfd_read(event) == 1
    made.vm.ioeventfd(event, 0x10, 1, pio=True, deassign=True)
    made.go(CODE)
    assert made.vcpu.run() == IoOut(0x10, 1, 1, b"\x00")


def test_an_ioeventfd_may_wait_for_one_value(made: Machine, event: int) -> None:
    made.vm.ioeventfd(event, NO_RAM, 1, datamatch=7)
    real_mode(made, STORE_AND_HALT, ds_base=NO_RAM, rax=8)
    assert made.vcpu.run() == MmioWrite(NO_RAM, b"\x08")
    made.vcpu.complete_pending_io()
    made.go(CODE, rax=7)
    assert made.vcpu.run() == Hlt()
    assert os.eventfd_read(event) == 1


def test_an_ioeventfd_that_is_not_there_cannot_be_taken_away(bare: Vm, event: int) -> None:
    with pytest.raises(FileNotFoundError, match="KVM_IOEVENTFD on vm fd"):
        bare.ioeventfd(event, 0x10, 1, pio=True, deassign=True)


def test_interrupt_lines_need_the_chips(bare: Vm, event: int) -> None:
    with pytest.raises(OSError, match="KVM_IRQ_LINE on vm fd") as caught:
        bare.irq_line(4, True)
    assert caught.value.errno == errno.ENXIO
    bare.create_irqchip()
    bare.irq_line(4, True)
    bare.irqfd(event, 5)
    bare.irqfd(event, 5, deassign=True)


def test_an_eventfd_raises_one_interrupt_only_once(bare: Vm, event: int) -> None:
    bare.create_irqchip()
    bare.irqfd(event, 5)
    with pytest.raises(OSError, match="KVM_IRQFD on vm fd") as caught:
        bare.irqfd(event, 5)
    assert caught.value.errno == errno.EBUSY


def test_the_timer_is_there_once(bare: Vm) -> None:
    bare.create_irqchip()  # without which newer kernels refuse the timer
    bare.create_pit2()
    with pytest.raises(FileExistsError, match="KVM_CREATE_PIT2 on vm fd"):
        bare.create_pit2()


def test_the_clock_goes_on_from_where_it_is_set(bare: Vm) -> None:
    hour = 3600 * 10**9
    bare.set_clock(hour)
    assert hour <= bare.get_clock() < hour + 60 * 10**9


def test_the_identity_map_must_be_placed_before_the_first_vcpu(bare: Vm) -> None:
    bare.set_tss_addr(0xFFFBD000)
    bare.set_identity_map_addr(0xFFFBC000)
    with bare.create_vcpu(), pytest.raises(OSError, match="KVM_SET_IDENTITY_MAP_ADDR on vm fd"):
        bare.set_identity_map_addr(0xFFFB0000)


def test_a_capability_is_turned_on_only_as_far_as_the_vm_has_it(bare: Vm) -> None:
    offered = bare.check_extension(KVM_CAP_EXIT_HYPERCALL)
    if offered & 1 << KVM_HC_MAP_GPA_RANGE:
        bare.enable_cap(KVM_CAP_EXIT_HYPERCALL, 1 << KVM_HC_MAP_GPA_RANGE)
    with pytest.raises(OSError, match="KVM_ENABLE_CAP on vm fd"):
        bare.enable_cap(KVM_CAP_EXIT_HYPERCALL, ~offered & (1 << 64) - 1)
