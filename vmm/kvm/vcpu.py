"""A vCPU: its registers, and the call that runs it."""

from __future__ import annotations

import ctypes
import errno
import mmap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from vmm.kvm import exits, uapi
from vmm.kvm.blocks import CpuidEntry, flexible, pack_cpuid, unpack_cpuid
from vmm.kvm.descriptor import Descriptor, ioctl_pointer
from vmm.kvm.exits import Exit
from vmm.kvm.uapi import Ioctl

_S = TypeVar("_S", bound=uapi.Struct)
_INTR = exits.Intr()
_HLT = exits.Hlt()
_RUN_NUMBER = uapi.RUN.number
_SIGSET_BYTES = 8  # the kernel's, not libc's


class Vcpu(Descriptor):
    """A vCPU descriptor and its run structure, made by `Vm.create_vcpu`.

    Thread-safety: any thread may run it and use its registers, one at a time. `immediate_exit` and
    signals are for the others.
    """

    kind = "vcpu"

    def __init__(self, fd: int, run_size: int) -> None:
        super().__init__(fd)
        try:
            self._map = mmap.mmap(fd, run_size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        except BaseException:
            super().close()
            raise
        self._run = uapi.Run.from_buffer(self._map)

    def close(self) -> None:
        """Unmap the run structure and close the descriptor. Further calls do nothing."""
        if self.closed:
            return
        del self._run  # a live view would keep the mapping from being closed
        self._map.close()
        super().close()

    # ---- Running ----

    def run(self) -> Exit:
        """Enter the guest and return why it came back (KVM API 4.10 and 5).

        A signal is an Intr, never repeated here. An access to memory that this process has made
        inaccessible is a MemoryFault. After an Io, Mmio, Hypercall or Msr exit the instruction is still
        pending: the next run completes it, so registers may not be changed before (see
        `complete_pending_io`). Raises OSError for anything else the kernel refuses.
        """
        run = self._run
        run.exit_reason = 0  # on EFAULT older kernels leave what the previous run wrote
        if ioctl_pointer(self.fileno(), _RUN_NUMBER, 0) < 0:
            return self._failed(ctypes.get_errno())
        decode = _DECODERS.get(run.exit_reason)
        if decode is None:
            return exits.Unknown(run.exit_reason, run.exit.hardware_exit_reason)
        return decode(self)

    def _failed(self, code: int) -> Exit:
        """Return the exit that a failed KVM_RUN stands for. Raises OSError if it stands for none."""
        if code in (errno.EINTR, errno.EAGAIN):  # EAGAIN: not yet runnable, as if interrupted
            return _INTR
        if code not in (errno.EFAULT, errno.EHWPOISON):
            raise self._error(uapi.RUN, code)
        if self._run.exit_reason != uapi.EXIT_MEMORY_FAULT:
            return exits.MemoryFault(None, None, 0)
        fault = self._run.exit.memory_fault
        return exits.MemoryFault(fault.gpa, fault.size, fault.flags)

    @property
    def immediate_exit(self) -> bool:
        """Whether KVM_RUN returns at once, after completing what is pending (5, immediate_exit)."""
        return bool(self._run.immediate_exit)

    @immediate_exit.setter
    def immediate_exit(self, value: bool) -> None:
        self._run.immediate_exit = value

    def complete_pending_io(self) -> None:
        """Complete the instruction of the last exit without running the guest any further.

        Needed before registers are changed after an Io, Mmio, Hypercall or Msr exit: otherwise the next
        run completes it into the new state.
        """
        self._run.immediate_exit = 1
        try:
            stopped = self.run()
        finally:
            self._run.immediate_exit = 0
        if not isinstance(stopped, exits.Intr):
            raise OSError(errno.EPROTO, f"{uapi.RUN.name} on {self.kind} fd {self._fd}: {stopped}")

    def set_io_data(self, data: bytes) -> None:
        """Answer an IoIn: `size` times `count` bytes."""
        io = self._run.exit.io
        if len(data) != io.size * io.count:
            raise ValueError(f"{len(data)} bytes for a read of {io.size * io.count}")
        self._map[io.data_offset : io.data_offset + len(data)] = data

    def set_mmio_data(self, data: bytes) -> None:
        """Answer an MmioRead: `size` bytes."""
        mmio = self._run.exit.mmio
        if len(data) != mmio.len:
            raise ValueError(f"{len(data)} bytes for a read of {mmio.len}")
        mmio.data[: len(data)] = data

    def set_hypercall_result(self, value: int) -> None:
        """Answer a Hypercall: what the guest finds in RAX, 64 bits."""
        self._run.exit.hypercall.ret = value

    def set_signal_mask(self, blocked: Iterable[int] | None) -> None:
        """Set which signals are blocked while the guest runs; None: as in the thread (4.34).

        A signal that the thread blocks and this mask does not ends KVM_RUN with Intr and stays pending,
        so that a thread can be kicked out of the guest without a handler and without a race.
        """
        if blocked is None:
            self._call(uapi.SET_SIGNAL_MASK, 0)
            return
        bits = sum(1 << (int(number) - 1) for number in set(blocked))
        mask = bits.to_bytes(_SIGSET_BYTES, "little")
        block = ctypes.create_string_buffer(_SIGSET_BYTES.to_bytes(4, "little") + mask)
        self._call_with(uapi.SET_SIGNAL_MASK, block)

    # ---- Registers ----

    def _get(self, request: Ioctl, kind: type[_S]) -> _S:
        value = kind()
        self._call_with(request, value)
        return value

    def get_regs(self) -> uapi.Regs:
        """Return a copy of the general registers (4.11)."""
        return self._get(uapi.GET_REGS, uapi.Regs)

    def set_regs(self, regs: uapi.Regs) -> None:
        """Set the general registers (4.12)."""
        self._call_with(uapi.SET_REGS, regs)

    def get_sregs(self) -> uapi.Sregs:
        """Return a copy of segments, descriptor tables and control registers (4.13)."""
        return self._get(uapi.GET_SREGS, uapi.Sregs)

    def set_sregs(self, sregs: uapi.Sregs) -> None:
        """Set them; translations are flushed (4.14)."""
        self._call_with(uapi.SET_SREGS, sregs)

    def get_fpu(self) -> uapi.Fpu:
        """Return a copy of the x87 and SSE state (4.22)."""
        return self._get(uapi.GET_FPU, uapi.Fpu)

    def set_fpu(self, fpu: uapi.Fpu) -> None:
        """Set the x87 and SSE state (4.23)."""
        self._call_with(uapi.SET_FPU, fpu)

    def get_events(self) -> uapi.VcpuEvents:
        """Return what is pending or injected: exceptions, interrupts, NMI, SMI (4.31)."""
        return self._get(uapi.GET_VCPU_EVENTS, uapi.VcpuEvents)

    def set_events(self, events: uapi.VcpuEvents) -> None:
        """Set what is pending or injected (4.32)."""
        self._call_with(uapi.SET_VCPU_EVENTS, events)

    def get_debugregs(self) -> uapi.DebugRegs:
        """Return a copy of the debug registers (4.33)."""
        return self._get(uapi.GET_DEBUGREGS, uapi.DebugRegs)

    def set_debugregs(self, registers: uapi.DebugRegs) -> None:
        """Set the debug registers (4.34)."""
        self._call_with(uapi.SET_DEBUGREGS, registers)

    def get_xcrs(self) -> uapi.Xcrs:
        """Return a copy of the extended control registers (4.44)."""
        return self._get(uapi.GET_XCRS, uapi.Xcrs)

    def set_xcrs(self, xcrs: uapi.Xcrs) -> None:
        """Set the extended control registers (4.45)."""
        self._call_with(uapi.SET_XCRS, xcrs)

    def get_mp_state(self) -> int:
        """Return KVM_MP_STATE_*: 0 is runnable (4.38)."""
        return int(self._get(uapi.GET_MP_STATE, uapi.MpState).mp_state)

    def set_mp_state(self, state: int) -> None:
        """Set KVM_MP_STATE_* (4.39)."""
        self._call_with(uapi.SET_MP_STATE, uapi.MpState(state))

    def translate(self, linear_address: int) -> int | None:
        """Return the guest-physical address behind a linear one, None if it is not mapped (4.15)."""
        request = uapi.Translation(linear_address=linear_address)
        self._call_with(uapi.TRANSLATE, request)
        return int(request.physical_address) if request.valid else None

    def set_guest_debug(self, control: int, debugreg: Sequence[int] = ()) -> None:
        """Ask for single steps or breakpoints (4.87). Set registers first: see GUESTDBG_*."""
        request = uapi.GuestDebug(control=control)
        request.arch[: len(debugreg)] = list(debugreg)
        self._call_with(uapi.SET_GUEST_DEBUG, request)

    def interrupt(self, vector: int) -> None:
        """Queue an external interrupt; without an irqchip in the kernel only (4.16)."""
        self._call_with(uapi.INTERRUPT, uapi.Interrupt(vector))

    def nmi(self) -> None:
        """Queue an NMI (4.64)."""
        self._call(uapi.NMI)

    # ---- MSRs and CPUID ----

    def get_msrs(self, indices: Sequence[int]) -> dict[int, int]:
        """Return MSRs by index (4.18). Raises OSError naming the first that cannot be read."""
        block = self._msr_block([(index, 0) for index in indices])
        self._msrs(uapi.GET_MSRS, block)
        return {item.index: item.data for item in block.items}

    def set_msrs(self, values: Mapping[int, int]) -> None:
        """Set MSRs in order (4.19). Raises OSError naming the first refused; those before it are set."""
        self._msrs(uapi.SET_MSRS, self._msr_block(list(values.items())))

    @staticmethod
    def _msr_block(pairs: Sequence[tuple[int, int]]) -> Any:
        block = flexible(uapi.Msrs, uapi.MsrEntry, len(pairs))
        block.header.nmsrs = len(pairs)
        for item, (index, value) in zip(block.items, pairs, strict=True):
            item.index, item.data = index, value
        return block

    def _msrs(self, request: Ioctl, block: Any) -> None:
        done = self._call_with(request, block)  # how many, not an error code
        if done < len(block.items):
            raise self._error(request, errno.EINVAL, f", MSR {block.items[done].index:#x}")

    def set_cpuid(self, entries: Sequence[CpuidEntry]) -> None:
        """Set what the guest's CPUID says, before it first runs (4.20)."""
        self._call_with(uapi.SET_CPUID2, pack_cpuid(entries))

    def get_cpuid(self) -> list[CpuidEntry]:
        """Return what the guest's CPUID says (4.21)."""
        block = flexible(uapi.Cpuid2, uapi.CpuidEntry2, 256)
        block.header.nent = 256
        self._call_with(uapi.GET_CPUID2, block)
        return unpack_cpuid(block)


# ---- Decoding the run structure ----


def _io(vcpu: Vcpu) -> Exit:
    io = vcpu._run.exit.io
    if io.direction == uapi.EXIT_IO_IN:
        return exits.IoIn(io.port, io.size, io.count)
    offset = io.data_offset
    data = vcpu._map[offset : offset + io.size * io.count]
    return exits.IoOut(io.port, io.size, io.count, data)


def _mmio(vcpu: Vcpu) -> Exit:
    mmio = vcpu._run.exit.mmio
    if mmio.is_write:
        return exits.MmioWrite(mmio.phys_addr, bytes(mmio.data)[: mmio.len])
    return exits.MmioRead(mmio.phys_addr, mmio.len)


def _hypercall(vcpu: Vcpu) -> Exit:
    call = vcpu._run.exit.hypercall
    return exits.Hypercall(call.nr, tuple(call.args), bool(call.longmode))


def _fail_entry(vcpu: Vcpu) -> Exit:
    failure = vcpu._run.exit.fail_entry
    return exits.FailEntry(failure.hardware_entry_failure_reason, failure.cpu)


def _internal_error(vcpu: Vcpu) -> Exit:
    error = vcpu._run.exit.internal
    return exits.InternalError(error.suberror, tuple(error.data[: min(error.ndata, 16)]))


def _memory_fault(vcpu: Vcpu) -> Exit:
    fault = vcpu._run.exit.memory_fault
    return exits.MemoryFault(fault.gpa, fault.size, fault.flags)


def _debug(vcpu: Vcpu) -> Exit:
    debug = vcpu._run.exit.debug
    return exits.Debug(debug.exception, debug.pc, debug.dr6, debug.dr7)


def _system_event(vcpu: Vcpu) -> Exit:
    event = vcpu._run.exit.system_event
    return exits.SystemEvent(event.type, tuple(event.data[: min(event.ndata, 16)]))


def _rdmsr(vcpu: Vcpu) -> Exit:
    msr = vcpu._run.exit.msr
    return exits.MsrAccess(msr.index, msr.reason, None)


def _wrmsr(vcpu: Vcpu) -> Exit:
    msr = vcpu._run.exit.msr
    return exits.MsrAccess(msr.index, msr.reason, msr.data)


_DECODERS: dict[int, Callable[[Vcpu], Exit]] = {
    uapi.EXIT_IO: _io,
    uapi.EXIT_MMIO: _mmio,
    uapi.EXIT_HLT: lambda vcpu: _HLT,
    uapi.EXIT_HYPERCALL: _hypercall,
    uapi.EXIT_SHUTDOWN: lambda vcpu: exits.Shutdown(),
    uapi.EXIT_FAIL_ENTRY: _fail_entry,
    uapi.EXIT_INTERNAL_ERROR: _internal_error,
    uapi.EXIT_MEMORY_FAULT: _memory_fault,
    uapi.EXIT_INTR: lambda vcpu: _INTR,
    uapi.EXIT_DEBUG: _debug,
    uapi.EXIT_SYSTEM_EVENT: _system_event,
    uapi.EXIT_IRQ_WINDOW_OPEN: lambda vcpu: exits.IrqWindowOpen(),
    uapi.EXIT_X86_RDMSR: _rdmsr,
    uapi.EXIT_X86_WRMSR: _wrmsr,
}
