"""One vCPU on a real KVM: its exits, its state, and how it is stopped."""

import ctypes
import dataclasses
import mmap
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from kvm.kvm_guest_code import (
    CODE,
    DATA_PAGE,
    HLT,
    NO_RAM,
    PAGE,
    SPIN,
    Machine,
    Runner,
    machine,
    real_mode,
    user_mode,
)

from vmm.kvm import (
    ClosedDescriptorError,
    CpuidEntry,
    Debug,
    Hlt,
    Intr,
    IoIn,
    IoOut,
    MemoryFault,
    MmioRead,
    MmioWrite,
    MsrRefusedError,
    uapi,
)
from vmm.kvm.structs import kvm_regs
from vmm.kvm.uapi import VcpuIoctl

KICK = signal.SIGRTMIN + 3
PATIENCE = 20.0

MSR_TSC = 0x10
MSR_SYSENTER_CS = 0x174
MSR_SYSENTER_ESP = 0x175
MSR_SYSENTER_EIP = 0x176
MSR_STAR = 0xC0000081
MSR_NONE = 0x12345

_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def made() -> Iterator[Machine]:
    with machine() as one:
        yield one


def revoke(address: int, size: int) -> None:
    """Put inaccessible memory in the place of a range of ours."""
    fixed = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10
    _libc.mmap.restype = ctypes.c_void_p
    at = _libc.mmap(ctypes.c_void_p(address), ctypes.c_size_t(size), 0, fixed, -1, 0)
    assert at == address


# ---- exits ----


def test_halting_is_an_exit(made: Machine) -> None:
    real_mode(made, HLT)
    assert made.vcpu.run() == Hlt()


@pytest.mark.parametrize(("code", "size", "data"), [
    (b"\xe6\x42", 1, b"\x78"),  # out 0x42, al
    (b"\xe7\x42", 2, b"\x78\x56"),  # out 0x42, ax
    (b"\x66\xe7\x42", 4, b"\x78\x56\x34\x12"),  # out 0x42, eax
])
def test_a_port_write_carries_its_data(
    made: Machine, code: bytes, size: int, data: bytes
) -> None:
    real_mode(made, code + HLT, rax=0x12345678)
    assert made.vcpu.run() == IoOut(0x42, size, 1, data)
    assert made.vcpu.run() == Hlt()


def test_a_string_of_port_writes_has_all_their_data(made: Machine) -> None:
    made.ram.write(DATA_PAGE, b"abcd")
    # rep outsb from DS:0 to port DX
    real_mode(made, b"\xf3\x6e" + HLT, ds_base=DATA_PAGE, rcx=4, rdx=0x42)
    told = b""
    while isinstance(stopped := made.vcpu.run(), IoOut):
        assert (stopped.port, stopped.size) == (0x42, 1)
        assert len(stopped.data) == stopped.count
        told += stopped.data
    assert stopped == Hlt()
    assert told == b"abcd"


def test_the_answer_to_a_port_read_reaches_the_guest(made: Machine) -> None:
    real_mode(made, b"\xe5\x42" + HLT, rax=0x99990000)  # in ax, 0x42
    assert made.vcpu.run() == IoIn(0x42, 2, 1)
    made.vcpu.set_io_data(b"\x34\x12")
    assert made.vcpu.run() == Hlt()
    assert made.vcpu.get_regs().rax == 0x99991234


def test_a_write_beyond_memory_is_an_mmio_write(made: Machine) -> None:
    real_mode(made, b"\xa3\x10\x00" + HLT, ds_base=NO_RAM, rax=0x1234)  # mov [0x10], ax
    assert made.vcpu.run() == MmioWrite(NO_RAM + 0x10, b"\x34\x12")
    assert made.vcpu.run() == Hlt()


def test_the_answer_to_a_read_beyond_memory_reaches_the_guest(made: Machine) -> None:
    real_mode(made, b"\xa1\x10\x00" + HLT, ds_base=NO_RAM)  # mov ax, [0x10]
    assert made.vcpu.run() == MmioRead(NO_RAM + 0x10, 2)
    made.vcpu.set_mmio_data(b"\xcd\xab")
    assert made.vcpu.run() == Hlt()
    assert made.vcpu.get_regs().rax == 0xABCD


def test_a_ring_3_guest_writes_beyond_memory(made: Machine) -> None:
    store = b"\x89\x04\x25" + NO_RAM.to_bytes(4, "little")  # mov [NO_RAM], eax
    user_mode(made, store + SPIN, rax=0x01020304)
    assert made.vcpu.run() == MmioWrite(NO_RAM, b"\x04\x03\x02\x01")


@pytest.mark.parametrize("answer", [b"", b"\x01", b"\x01\x02\x03"])
def test_an_answer_of_the_wrong_length_is_refused(made: Machine, answer: bytes) -> None:
    real_mode(made, b"\xe5\x42\xa1\x10\x00", ds_base=NO_RAM)
    assert made.vcpu.run() == IoIn(0x42, 2, 1)
    with pytest.raises(ValueError, match=f"reads 2 bytes, the answer has {len(answer)}"):
        made.vcpu.set_io_data(answer)
    made.vcpu.set_io_data(b"\x00\x00")
    assert made.vcpu.run() == MmioRead(NO_RAM + 0x10, 2)
    with pytest.raises(ValueError, match=f"reads 2 bytes, the answer has {len(answer)}"):
        made.vcpu.set_mmio_data(answer)


def test_there_is_no_answer_where_nothing_was_asked(made: Machine) -> None:
    real_mode(made, b"\xe6\x42\xa2\x10\x00", ds_base=NO_RAM)
    assert isinstance(made.vcpu.run(), IoOut)
    with pytest.raises(ValueError, match="no port read"):
        made.vcpu.set_io_data(b"\x00")
    assert isinstance(made.vcpu.run(), MmioWrite)
    with pytest.raises(ValueError, match="no MMIO read"):
        made.vcpu.set_mmio_data(b"\x00")
    with pytest.raises(ValueError, match="no hypercall"):
        made.vcpu.set_hypercall_result(0)


@pytest.mark.parametrize("first", [Hlt(), IoOut(0x42, 1, 1, b"\x00")])
def test_revoked_memory_is_a_memory_fault_whatever_came_before(
    made: Machine, first: Hlt | IoOut
) -> None:
    real_mode(made, HLT if first == Hlt() else b"\xe6\x42")
    assert made.vcpu.run() == first
    made.vcpu.complete_pending_io()
    load = b"\x8b\x04\x25" + DATA_PAGE.to_bytes(4, "little")  # mov eax, [DATA_PAGE]
    user_mode(made, load + SPIN)
    revoke(made.ram.address + DATA_PAGE, PAGE)
    stopped = made.vcpu.run()
    assert isinstance(stopped, MemoryFault)
    assert (stopped.gpa, stopped.size) in {(None, None), (DATA_PAGE, PAGE)}


def test_exits_are_frozen(made: Machine) -> None:
    real_mode(made, b"\xe6\x42")
    stopped = made.vcpu.run()
    assert isinstance(stopped, IoOut)
    with pytest.raises(dataclasses.FrozenInstanceError):
        stopped.port = 1  # type: ignore[misc]


# ---- stopping ----


def test_immediate_exit_stays_until_it_is_cleared(made: Machine) -> None:
    real_mode(made, HLT)
    made.vcpu.immediate_exit = True
    assert made.vcpu.immediate_exit
    assert [made.vcpu.run(), made.vcpu.run()] == [Intr(), Intr()]
    assert made.vcpu.get_regs().rip == CODE
    made.vcpu.immediate_exit = False
    assert not made.vcpu.immediate_exit
    assert made.vcpu.run() == Hlt()


def kick_while_running(made: Machine) -> set[int]:
    """Run in a thread that blocks KICK, kick it, and return what was pending there afterwards."""
    made.vcpu.set_signal_mask(signal.pthread_sigmask(signal.SIG_BLOCK, ()) - {KICK})
    pending: set[int] = set()
    ready = threading.Event()

    class Kickable(Runner):
        def run(self) -> None:
            signal.pthread_sigmask(signal.SIG_BLOCK, {KICK})
            ready.set()
            super().run()
            while (info := signal.sigtimedwait({KICK}, 0)) is not None:
                pending.add(info.si_signo)

    runner = Kickable(made.vcpu)
    runner.start()
    assert ready.wait(PATIENCE)
    time.sleep(0.02)  # let it get into the guest; too early must do as well
    assert runner.is_alive()
    signal.pthread_kill(runner.ident or 0, KICK)
    runner.join(PATIENCE)
    assert not runner.is_alive()
    assert runner.exit == Intr()
    return pending


def test_a_kick_gets_an_endless_ring_3_loop_back(made: Machine) -> None:
    user_mode(made, SPIN)
    assert kick_while_running(made) == {KICK}
    assert made.vcpu.get_regs().rip == CODE


def test_a_kick_gets_an_endless_ring_0_loop_back(made: Machine) -> None:
    real_mode(made, SPIN)
    assert kick_while_running(made) == {KICK}
    assert made.vcpu.get_regs().rip == CODE


def test_a_kick_that_comes_too_early_ends_the_next_run(made: Machine) -> None:
    user_mode(made, SPIN)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {KICK})
    try:
        made.vcpu.set_signal_mask(before)
        signal.pthread_kill(threading.get_ident(), KICK)
        assert made.vcpu.run() == Intr()
        assert made.vcpu.run() == Intr()  # it is still pending
        assert signal.sigtimedwait({KICK}, 0) is not None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_a_signal_that_stays_blocked_does_not_stop_the_guest(made: Machine) -> None:
    real_mode(made, HLT)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {KICK})
    try:
        made.vcpu.set_signal_mask(before)
        signal.pthread_kill(threading.get_ident(), KICK)
        assert made.vcpu.run() == Intr()
        made.vcpu.set_signal_mask(None)  # the thread's own mask again, which blocks it
        assert made.vcpu.run() == Hlt()
        made.go(CODE)
        made.vcpu.set_signal_mask({KICK})
        assert made.vcpu.run() == Hlt()
    finally:
        assert signal.sigtimedwait({KICK}, 0) is not None
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_the_interpreter_goes_on_while_a_guest_runs(made: Machine) -> None:
    user_mode(made, SPIN)
    counted = 0
    runner = Runner(made.vcpu)
    made.vcpu.set_signal_mask(None)
    before = signal.signal(KICK, lambda _number, _frame: None)
    try:
        runner.start()
        until = time.monotonic() + 0.05
        while time.monotonic() < until:
            counted += 1
        assert runner.is_alive()
        signal.pthread_kill(runner.ident or 0, KICK)
        runner.join(PATIENCE)
        assert runner.exit == Intr()
    finally:
        signal.signal(KICK, before)
    assert counted > 100


def test_requests_other_than_a_run_are_made_again_after_a_signal(made: Machine) -> None:
    # The guest waits for a byte that only the signal's handler writes. So the request can come
    # back only if it was interrupted, the handler ran, and the request was made again.
    flag = DATA_PAGE
    real_mode(made, b"\x80\x3e\x00\x00\x00\x74\xf9" + HLT, ds_base=flag)  # cmp [0], 0; je -7
    before = signal.signal(KICK, lambda _number, _frame: made.ram.write(flag, b"\x01"))
    timer = threading.Timer(0.05, signal.pthread_kill, (threading.get_ident(), KICK))
    try:
        timer.start()
        assert made.vcpu._ioctl(VcpuIoctl.KVM_RUN) == 0
    finally:
        timer.join()
        signal.signal(KICK, before)
    assert made.ram.read(flag, 1) == b"\x01"


# ---- pending instructions ----


def test_a_pending_read_is_completed_and_nothing_more(made: Machine) -> None:
    real_mode(made, b"\xe4\x42" + HLT)  # in al, 0x42
    assert made.vcpu.run() == IoIn(0x42, 1, 1)
    made.vcpu.set_io_data(b"\x7f")
    assert made.vcpu.complete_pending_io() == Intr()
    regs = made.vcpu.get_regs()
    assert (regs.rax, regs.rip) == (0x7F, CODE + 2)
    assert not made.vcpu.immediate_exit
    assert made.vcpu.run() == Hlt()


def test_new_registers_after_completion_are_what_the_guest_gets(made: Machine) -> None:
    real_mode(made, b"\xe6\x42" + HLT)
    made.ram.write(CODE + 0x100, b"\xe6\x43" + HLT)
    assert made.vcpu.run() == IoOut(0x42, 1, 1, b"\x00")
    made.vcpu.complete_pending_io()
    made.go(CODE + 0x100, rax=5)
    assert made.vcpu.run() == IoOut(0x43, 1, 1, b"\x05")
    assert made.vcpu.run() == Hlt()


def test_completion_leaves_an_asked_for_immediate_exit(made: Machine) -> None:
    real_mode(made, b"\xe6\x42" + HLT)
    assert isinstance(made.vcpu.run(), IoOut)
    made.vcpu.immediate_exit = True
    made.vcpu.complete_pending_io()
    assert made.vcpu.immediate_exit


# ---- state ----


def test_general_registers_are_kept(made: Machine) -> None:
    names = ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "rip",
             *(f"r{number}" for number in range(8, 16))]
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
    with pytest.raises(OSError, match="KVM_SET_SREGS on vcpu fd .*: Invalid argument"):
        made.vcpu.set_sregs(sregs)


def test_floating_point_state_is_kept(made: Machine) -> None:
    fpu = made.vcpu.get_fpu()
    fpu.fcw, fpu.mxcsr = 0x37F, 0x1FA0
    fpu.xmm[3][0] = 0xAB
    made.vcpu.set_fpu(fpu)
    after = made.vcpu.get_fpu()
    assert (after.fcw, after.mxcsr, after.xmm[3][0]) == (0x37F, 0x1FA0, 0xAB)


def test_msrs_are_kept(made: Machine) -> None:
    values = {MSR_SYSENTER_CS: 8, MSR_SYSENTER_ESP: 0x1000, MSR_SYSENTER_EIP: 0x2000}
    made.vcpu.set_msrs(values)
    assert made.vcpu.get_msrs(values) == values
    assert made.vcpu.get_msrs([]) == {}


def test_more_msrs_than_fit_one_request_are_read(made: Machine) -> None:
    made.vcpu.set_msrs({MSR_SYSENTER_CS: 8})
    assert made.vcpu.get_msrs([MSR_TSC] * 300 + [MSR_SYSENTER_CS])[MSR_SYSENTER_CS] == 8


def test_a_refused_msr_is_named(made: Machine) -> None:
    with pytest.raises(MsrRefusedError, match="KVM_GET_MSRS on vcpu .* MSR 0x12345") as caught:
        made.vcpu.get_msrs([MSR_TSC, MSR_NONE, MSR_STAR])
    assert caught.value.index == MSR_NONE
    with pytest.raises(MsrRefusedError, match="KVM_SET_MSRS on vcpu .* MSR 0x12345") as caught:
        made.vcpu.set_msrs({MSR_SYSENTER_CS: 16, MSR_NONE: 1, MSR_SYSENTER_ESP: 7})
    assert caught.value.index == MSR_NONE
    assert made.vcpu.get_msrs([MSR_SYSENTER_CS, MSR_SYSENTER_ESP]) == {
        MSR_SYSENTER_CS: 16, MSR_SYSENTER_ESP: 0}


def test_the_guests_cpuid_is_what_was_set(made: Machine) -> None:
    assert made.vcpu.get_cpuid() == []
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
        with pytest.raises(OSError, match="KVM_SET_XCRS on vcpu fd"):
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


def test_an_interrupt_is_queued_once(made: Machine) -> None:
    made.vcpu.interrupt(0x20)
    events = made.vcpu.get_events()
    assert (events.interrupt.injected, events.interrupt.nr) == (1, 0x20)
    with pytest.raises(FileExistsError, match="KVM_INTERRUPT on vcpu fd"):
        made.vcpu.interrupt(0x21)


def test_a_vcpu_without_interrupt_chips_is_always_runnable(made: Machine) -> None:
    assert made.vcpu.get_mp_state() == uapi.KVM_MP_STATE_RUNNABLE
    made.vcpu.set_mp_state(uapi.KVM_MP_STATE_RUNNABLE)
    with pytest.raises(OSError, match="KVM_SET_MP_STATE on vcpu fd"):
        made.vcpu.set_mp_state(uapi.KVM_MP_STATE_SIPI_RECEIVED)


def test_translation_follows_the_guests_page_tables(made: Machine) -> None:
    user_mode(made, SPIN)
    found = made.vcpu.translate(NO_RAM + 0x123)
    assert (found.physical_address, found.valid) == (NO_RAM + 0x123, True)
    assert not made.vcpu.translate(0x40000000).valid


def test_single_steps_are_exits(made: Machine) -> None:
    real_mode(made, b"\x90\x90" + HLT)
    step = uapi.KVM_GUESTDBG_ENABLE | uapi.KVM_GUESTDBG_SINGLESTEP
    made.vcpu.set_guest_debug(step)
    stopped = made.vcpu.run()
    assert isinstance(stopped, Debug)
    assert (stopped.exception, stopped.pc) == (1, CODE + 1)
    made.vcpu.set_guest_debug(0)
    assert made.vcpu.run() == Hlt()


def test_synced_registers_are_those_of_the_exit(made: Machine) -> None:
    real_mode(made, b"\xe6\x42" + HLT, rax=0x77)
    with pytest.raises(ValueError, match="sync_regs is off"):
        made.vcpu.exit_regs()
    made.vcpu.sync_regs = True
    for _ in range(2):
        made.vcpu.run()
        assert made.vcpu.exit_regs() == made.vcpu.get_regs()
    assert (made.vcpu.exit_regs().rip, made.vcpu.exit_regs().rax) == (CODE + 3, 0x77)
    made.vcpu.sync_regs = False
    assert not made.vcpu.sync_regs


# ---- life ----


def mappings() -> int:
    with open("/proc/self/maps") as maps:  # noqa: PTH123
        return sum("kvm-vcpu" in line for line in maps)


def test_closing_gives_mapping_and_descriptors_back(made: Machine) -> None:
    before = mappings(), sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208
    vcpu = made.vm.create_vcpu(1)
    vcpu.immediate_exit = True
    vcpu.run()
    assert mappings() == before[0] + 1
    vcpu.close()
    vcpu.close()
    assert (mappings(), sorted(os.listdir("/proc/self/fd"))) == before  # noqa: PTH208


def test_a_closed_vcpu_does_nothing_any_more(made: Machine) -> None:
    vcpu = made.vm.create_vcpu(1)
    vcpu.close()
    for use in (vcpu.run, vcpu.get_regs, vcpu.complete_pending_io, vcpu.exit_regs,
                lambda: vcpu.immediate_exit, lambda: vcpu.set_io_data(b"")):
        with pytest.raises(ClosedDescriptorError, match="vcpu descriptor is closed"):
            use()


def test_any_thread_may_run_a_vcpu(made: Machine) -> None:
    real_mode(made, b"\xe6\x42" + HLT)
    exits = []
    for _ in range(2):
        runner = Runner(made.vcpu)
        runner.start()
        runner.join(PATIENCE)
        exits.append(runner.exit)
    assert exits == [IoOut(0x42, 1, 1, b"\x00"), Hlt()]
