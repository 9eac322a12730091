"""Each quirk that is said to apply to this host shows here, as its evidence has it, and no other.

Those of the page movers and of huge pages have tests elsewhere: test_faults.py, test_doctor.py.
"""

from __future__ import annotations

import ctypes
import errno
import functools
from pathlib import Path

import pytest
from kvm.guest_code import CODE, DATA_PAGE, NO_RAM, PAGE, Machine, long_mode, machine, user_mode

from vmm import host
from vmm.command.doctor import Examination, examine
from vmm.engine.kick import deadline, masked_while_running
from vmm.guest.abi import HYPERCALL, Doorbell
from vmm.host.canary import sing
from vmm.host.quirks import QUIRKS
from vmm.host.system import read_system, read_text
from vmm.kvm import Exit, Hypercall, Intr, IoOut, MemoryFault, MmioRead, MmioWrite, Shutdown, uapi

VMCALL, VMMCALL = b"\x0f\x01\xc1", b"\x0f\x01\xd9"
OUT = b"\xe7\x80"  # out %eax, $0x80
TELL = b"\x89\x04\x25" + NO_RAM.to_bytes(4, "little")  # mov %eax, NO_RAM
LOAD = b"\x8b\x04\x25" + DATA_PAGE.to_bytes(4, "little")  # mov DATA_PAGE, %eax
LOAD_NO_RAM = b"\x8b\x04\x25" + NO_RAM.to_bytes(4, "little")
IOPL_3 = 0x3202
TSS_BITMAP = 102  # where the TSS says where its I/O permission bitmap is (SDM 7.7)


@functools.cache
def examined() -> Examination:
    return examine()


def applies(name: str) -> bool:
    assert name in {quirk.name for quirk in QUIRKS}
    return name in {quirk.name for quirk in examined().quirks}


def run(made: Machine, seconds: float = 0.3) -> Exit:
    made.vcpu.set_signal_mask(masked_while_running())
    with deadline(seconds):
        return made.vcpu.run()


def hypercall(made: Machine, ring: int) -> None:
    """Let the guest call the one that user space would see, and then tell what it got."""
    if not made.kvm.check_extension(uapi.KVM_CAP_EXIT_HYPERCALL) >> HYPERCALL & 1:
        pytest.skip("this kernel hands no hypercalls to user space")
    made.vm.enable_cap(uapi.KVM_CAP_EXIT_HYPERCALL, 1 << HYPERCALL)
    code = VMMCALL if read_system().vendor_module == "kvm_amd" else VMCALL
    long_mode(made, code + TELL, ring, rax=HYPERCALL, rbx=DATA_PAGE, rcx=1)


def test_ring_3_hypercall_is_refused_by_kvm_before_user_space_sees_it() -> None:
    with machine() as made:
        hypercall(made, ring=3)
        assert run(made) == MmioWrite(NO_RAM, b"\xff\xff\xff\xff")  # the first exit there is
        assert ctypes.c_int64(made.vcpu.get_regs().rax).value == -errno.EPERM
        assert applies("ring-3-hypercall")


def test_hypercall_livelock_shows_where_ring_0_is_emulated_and_else_the_call_arrives() -> None:
    with machine() as made:
        hypercall(made, ring=0)
        exit_ = run(made)
        if applies("hypercall-livelock"):
            assert exit_ == Intr()
            assert made.vcpu.get_regs().rip == CODE
        else:
            assert isinstance(exit_, Hypercall)
            assert (exit_.nr, exit_.args[:2]) == (HYPERCALL, (DATA_PAGE, 1))


def round_ns(ring: int) -> float:
    """Return what a round of the canary's loops takes; the quickest is the least disturbed."""
    with host.open_kvm() as kvm:
        songs = [sing(kvm, ring, Doorbell.MMIO) for _ in range(5)]
    return min(song.loop_ns for song in songs if song.loop_ns is not None)


def test_emulated_ring_takes_a_hundred_times_as_long_for_a_loop() -> None:
    slower = round_ns(0) / max(round_ns(3), 0.2)
    assert (slower > 50) == applies("emulated-ring"), slower


@pytest.mark.parametrize("bitmap", [True, False])
def test_lost_iopl_makes_a_port_in_ring_3_a_fault_unless_the_task_has_a_bitmap(
    bitmap: bool,
) -> None:
    with machine() as made:
        user_mode(made, OUT, rflags=IOPL_3)
        if not bitmap:  # it begins beyond the task's end; else it is all zero, and permits
            made.ram.write(made.vcpu.get_sregs().tr.base + TSS_BITMAP, b"\xff\xff")
        exit_ = run(made)
        # There is no IDT: a #GP is a triple fault.
        assert isinstance(exit_, Shutdown if applies("lost-iopl") and not bitmap else IoOut)


def hide(made: Machine) -> None:
    """Make the last page of the guest's RAM inaccessible to this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    assert libc.mprotect(made.ram.address + DATA_PAGE, PAGE, 0) == 0


@pytest.mark.parametrize("ring", [0, 3])
def test_hidden_memory_stops_a_guest_in_one_of_the_known_ways(ring: int) -> None:
    assert applies("hidden-memory")
    with machine() as made:
        hide(made)
        long_mode(made, LOAD, ring)
        exit_ = run(made)
    assert isinstance(exit_, MemoryFault | MmioRead)
    if isinstance(exit_, MemoryFault) and applies("no-fault-address"):
        assert exit_.gpa is None


def test_stale_exit_reason_is_what_a_failed_run_leaves() -> None:
    with machine() as made:
        hide(made)
        user_mode(made, LOAD)
        made.vcpu._shared().run.exit_reason = uapi.KVM_EXIT_MMIO
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.ioctl(made.vcpu.fileno(), uapi.VcpuIoctl.KVM_RUN.request, 0) == -1
        assert ctypes.get_errno() == errno.EFAULT
        stale = made.vcpu._shared().run.exit_reason == uapi.KVM_EXIT_MMIO
        assert stale == applies("stale-exit-reason")


def test_pending_instruction_is_finished_by_the_next_run() -> None:
    assert applies("pending-instruction")
    with machine() as made:
        user_mode(made, LOAD_NO_RAM)
        assert run(made) == MmioRead(NO_RAM, 4)
        made.vcpu.set_mmio_data(b"\x78\x56\x34\x12")
        assert (made.vcpu.get_regs().rip, made.vcpu.get_regs().rax) == (CODE, 0)
        assert made.vcpu.complete_pending_io() == Intr()
        regs = made.vcpu.get_regs()
        assert (regs.rip, regs.rax) == (CODE + len(LOAD_NO_RAM), 0x12345678)


def test_recovery_task_is_there_while_a_vm_has_run() -> None:
    with machine() as made:
        user_mode(made, TELL)
        run(made)
        names = [read_text(task / "comm") or "" for task in Path("/proc/self/task").iterdir()]
    assert any(name.startswith("kvm-nx-lpage") for name in names) == applies("recovery-task")


def test_small_memfd_is_what_was_seen() -> None:
    assert applies("small-memfd") == (not examined().huge_pages.memfd)
