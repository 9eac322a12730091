"""One vCPU's registers and other state, on a real KVM."""

import time
from collections.abc import Iterator

import pytest
from kvm.guest_code import NO_RAM, SPIN, Machine, machine, real_mode, user_mode

from vmm.kvm import CpuidEntry, Hlt, MsrRefusedError, uapi
from vmm.kvm.structs import kvm_regs

MSR_TSC = 0x10
MSR_SYSENTER_CS = 0x174
MSR_SYSENTER_ESP = 0x175
MSR_SYSENTER_EIP = 0x176
MSR_STAR = 0xC0000081
MSR_NONE = 0x12345


@pytest.fixture
def made() -> Iterator[Machine]:
    with machine() as one:
        yield one


def test_general_registers_are_kept(made: Machine) -> None:
    names = [
        "rax",
        "rbx",
        "rcx",
        "rdx",
        "rsi",
        "rdi",
        "rsp",
        "rbp",
        "rip",
        *(f"r{number}" for number in range(8, 16)),
    ]
    regs = kvm_regs(rflags=2, **{name: 0x1000 + at for at, name in enumerate(names)})
    made.vcpu.set_regs(regs)
    assert made.vcpu.get_regs() == regs


def test_special_registers_are_kept(made: Machine) -> None:
    sregs = made.vcpu.get_sregs()
    sregs.fs.base, sregs.gdt.base, sregs.gdt.limit = 0x5000, 0x6000, 0x37
    made.vcpu.set_sregs(sregs)
    after = made.vcpu.get_sregs()
    assert (after.fs.base, after.gdt.base, after.gdt.limit) == (0x5000, 0x6000, 0x37)


def test_impossible_control_registers_are_refused(made: Machine) -> None:
    sregs = made.vcpu.get_sregs()
    sregs.cr0, sregs.efer, sregs.cr4 = 0x80000001, 0x500, 0  # long mode without PAE
    with pytest.raises(OSError, match=r"KVM_SET_SREGS on vcpu fd .*: Invalid argument"):
        made.vcpu.set_sregs(sregs)


def test_floating_point_state_is_kept(made: Machine) -> None:
    fpu = made.vcpu.get_fpu()
    fpu.fcw = 0x37F
    fpu.xmm[3][0] = 0xAB
    made.vcpu.set_fpu(fpu)
    after = made.vcpu.get_fpu()
    assert (after.fcw, after.xmm[3][0]) == (0x37F, 0xAB)


def test_all_that_xsave_stores_is_kept(made: Machine) -> None:
    state = made.vcpu.get_xsave()
    state.region[40], state.region[128] = 0x12345678, state.region[128] | 3  # XMM0; XSTATE_BV
    made.vcpu.set_xsave(state)
    assert made.vcpu.get_xsave().region[40] == 0x12345678
    assert bytes(made.vcpu.get_fpu().xmm[0])[:4] == (0x12345678).to_bytes(4, "little")


def test_msrs_are_kept(made: Machine) -> None:
    values = {MSR_SYSENTER_CS: 8, MSR_SYSENTER_ESP: 0x1000, MSR_SYSENTER_EIP: 0x2000}
    made.vcpu.set_msrs(values)
    assert made.vcpu.get_msrs(values) == values
    assert made.vcpu.get_msrs([]) == {}


def test_more_msrs_than_fit_one_request_are_read(made: Machine) -> None:
    made.vcpu.set_msrs({MSR_SYSENTER_CS: 8})
    assert made.vcpu.get_msrs([MSR_TSC] * 300 + [MSR_SYSENTER_CS])[MSR_SYSENTER_CS] == 8


def test_a_refused_msr_is_named(made: Machine) -> None:
    with pytest.raises(MsrRefusedError, match=r"KVM_GET_MSRS on vcpu .* MSR 0x12345") as caught:
        made.vcpu.get_msrs([MSR_TSC, MSR_NONE, MSR_STAR])
    assert caught.value.index == MSR_NONE
    with pytest.raises(MsrRefusedError, match=r"KVM_SET_MSRS on vcpu .* MSR 0x12345") as caught:
        made.vcpu.set_msrs({MSR_SYSENTER_CS: 16, MSR_NONE: 1, MSR_SYSENTER_ESP: 7})
    assert caught.value.index == MSR_NONE
    assert made.vcpu.get_msrs([MSR_SYSENTER_CS, MSR_SYSENTER_ESP]) == {
        MSR_SYSENTER_CS: 16,
        MSR_SYSENTER_ESP: 0,
    }


def test_the_guests_cpuid_is_what_was_set(made: Machine) -> None:
    with made.vm.create_vcpu(1) as fresh:
        assert fresh.get_cpuid() == []
    leaf = CpuidEntry(0x40000000, 0, 0, 0x40000000, 0x64636261, 0, 0)
    first = next(entry for entry in made.kvm.supported_cpuid() if entry.function == 0)
    made.vcpu.set_cpuid([first, leaf])
    assert made.vcpu.get_cpuid() == [first, leaf]


def test_extended_control_registers_are_kept(made: Machine) -> None:
    made.vcpu.set_cpuid(made.kvm.supported_cpuid())
    xcrs = made.vcpu.get_xcrs()
    made.vcpu.set_xcrs(xcrs)
    assert made.vcpu.get_xcrs() == xcrs
    if xcrs:
        with pytest.raises(OSError, match=r"KVM_SET_XCRS on vcpu fd"):
            made.vcpu.set_xcrs({0: 0})  # x87 state cannot be off


def test_debug_registers_are_kept(made: Machine) -> None:
    registers = made.vcpu.get_debugregs()
    registers.db[2] = 0x1234
    made.vcpu.set_debugregs(registers)
    assert made.vcpu.get_debugregs().db[2] == 0x1234


def test_a_masked_nmi_is_pending(made: Machine) -> None:
    events = made.vcpu.get_events()
    assert (events.nmi.pending, events.nmi.injected) == (0, 0)
    events.nmi.masked = 1
    events.flags = uapi.KVM_VCPUEVENT_VALID_NMI_PENDING
    made.vcpu.set_events(events)
    made.vcpu.nmi()
    assert made.vcpu.get_events().nmi.pending == 1


def test_one_interrupt_is_queued_the_last_one(made: Machine) -> None:
    for vector in (0x20, 0x21):
        made.vcpu.interrupt(vector)
        queued = made.vcpu.get_events().interrupt
        assert (queued.injected, queued.nr) == (1, vector)


def test_a_vcpu_without_interrupt_chips_is_always_runnable(made: Machine) -> None:
    assert made.vcpu.get_mp_state() == uapi.KVM_MP_STATE_RUNNABLE
    made.vcpu.set_mp_state(uapi.KVM_MP_STATE_RUNNABLE)
    with pytest.raises(OSError, match=r"KVM_SET_MP_STATE on vcpu fd"):
        made.vcpu.set_mp_state(uapi.KVM_MP_STATE_SIPI_RECEIVED)


def test_translation_follows_the_guests_page_tables(made: Machine) -> None:
    user_mode(made, SPIN)
    found = made.vcpu.translate(NO_RAM + 0x123)
    assert (found.physical_address, found.valid) == (NO_RAM + 0x123, True)
    assert not made.vcpu.translate(0x40000000).valid


def test_the_time_stamp_counter_makes_so_many_thousand_ticks_in_a_second(made: Machine) -> None:
    khz = made.vcpu.get_tsc_khz()
    real_mode(made, b"\x0f\x31\xf4\x0f\x31\xf4")  # rdtsc; hlt; rdtsc; hlt
    ticks = []
    for _ in range(2):
        before = time.monotonic()
        assert made.vcpu.run() == Hlt()
        regs = made.vcpu.get_regs()
        ticks.append((regs.rdx << 32 | regs.rax & 0xFFFFFFFF, before, time.monotonic()))
        time.sleep(0.05)
    (first, began, begun), (second, ends, ended) = ticks
    least, most = ends - begun, ended - began
    assert least * 0.99 <= (second - first) / (khz * 1e3) <= most * 1.01
