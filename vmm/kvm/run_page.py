"""The page a vCPU shares with its monitor: exits are read from it, answers are written to it.

The only place where the kernel's union is decoded. Source: KVM API, section 5, "The kvm_run
structure".
"""

import ctypes
import mmap
import os
from collections.abc import Callable
from typing import Any

from . import uapi
from .exits import (
    Debug,
    Exit,
    FailEntry,
    Hlt,
    Hypercall,
    InternalError,
    Intr,
    IoIn,
    IoOut,
    IrqWindowOpen,
    MemoryFault,
    MmioRead,
    MmioWrite,
    MsrAccess,
    Shutdown,
    SystemEvent,
    Unknown,
)
from .given import MAP_FAILED, GivenMapping
from .structs import _anon_run_mmio, kvm_regs, kvm_run

_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE

_EXIT_REASON: Any = kvm_run.exit_reason
EXIT_REASON = int(_EXIT_REASON.offset) // 4  # in `words`
_DIRTY_REGS: Any = kvm_run.kvm_dirty_regs
DIRTY_REGS = int(_DIRTY_REGS.offset) // 4
_REGISTERS = slice(kvm_run.s.offset, kvm_run.s.offset + ctypes.sizeof(kvm_regs))

_VIEWS = ("exit", "hypercall", "io", "map", "mmio", "registers", "run", "sync", "words")

INTR = Intr()
_HLT = Hlt()
_SHUTDOWN = Shutdown()
_IRQ_WINDOW_OPEN = IrqWindowOpen()


class RunPage:
    """The mapping a vCPU shares with its monitor, and views of it made once.

    Private to this package: a view that outlived ``close()`` would read memory that is no longer
    there. None is handed out, and after ``close()`` none is left to be used by mistake.
    """

    __slots__ = (*_VIEWS, "_given", "known")

    def __init__(self, fd: int, size: int) -> None:
        """Map ``size`` bytes of the vCPU ``fd``, whose descriptor may be closed before the page.

        With -1 for ``fd`` it is zeroed memory. Raises OSError.
        """
        # Not by the mmap module, which before Python 3.13 keeps a duplicate of the descriptor for
        # each mapping: two more system calls make and close it.
        flags = mmap.MAP_SHARED | (mmap.MAP_ANONYMOUS if fd < 0 else 0)
        self._given = GivenMapping()
        address = self._given.take(0, size, _READ_WRITE, flags, fd, 0)
        if address == MAP_FAILED:
            code = ctypes.get_errno()
            raise OSError(code, f"mmap of vcpu fd {fd}: {os.strerror(code)}")
        try:
            self._look(address, size)
        except BaseException:
            self.close()
            raise

    def _look(self, address: int, size: int) -> None:
        self.map = memoryview((ctypes.c_ubyte * size).from_address(address)).cast("B")
        self.words = self.map.cast("I")  # of 32 bits: an index costs less than a field of ctypes
        self.run = kvm_run.from_address(address)
        self.exit = self.run.exit
        self.io = self.exit.io
        self.mmio = self.exit.mmio
        self.hypercall = self.exit.hypercall
        self.sync = self.run.s.regs
        self.registers = self.map[_REGISTERS].cast("Q")
        # Stores by what the page said of them: to a device they are few, and much the same.
        self.known: dict[bytes, MmioWrite] = {}

    def close(self) -> None:
        """Drop the views, then unmap. Further calls do nothing."""
        for name in ("registers", "words", "map"):
            view = getattr(self, name, None)
            if view is not None:
                view.release()
        for name in _VIEWS:
            if hasattr(self, name):
                delattr(self, name)
        self._given.give_back()

    def decode(self) -> Exit:
        """Return the exit that the kernel described here."""
        reason = self.words[EXIT_REASON]
        decoder = _DECODERS.get(reason)
        return Unknown(reason) if decoder is None else decoder(self)

    def memory_fault(self) -> MemoryFault:
        """Return the fault behind an EFAULT; its address only if this run wrote one.

        The caller cleared ``exit_reason`` before the run: kernels before 6.8 leave it alone.
        """
        if self.run.exit_reason != uapi.KVM_EXIT_MEMORY_FAULT:
            return MemoryFault(None, None, 0)
        fault = self.exit.memory_fault
        return MemoryFault(fault.gpa, fault.size, fault.flags)

    def put_io(self, data: bytes) -> None:
        """Answer an IoIn. Raises ValueError if there is none, or its length is another."""
        io = self.io
        if self.run.exit_reason != uapi.KVM_EXIT_IO or io.direction != uapi.KVM_EXIT_IO_IN:
            raise ValueError("the last exit was no port read")
        _check_length(data, io.size * io.count)
        self.map[io.data_offset : io.data_offset + len(data)] = data

    def put_mmio(self, data: bytes) -> None:
        """Answer an MmioRead. Raises ValueError if there is none, or its length is another."""
        mmio = self.mmio
        if self.run.exit_reason != uapi.KVM_EXIT_MMIO or mmio.is_write:
            raise ValueError("the last exit was no MMIO read")
        _check_length(data, mmio.len)
        mmio.data[: len(data)] = list(data)

    def put_hypercall(self, result: int) -> None:
        """Answer a Hypercall. Raises ValueError if there is none."""
        if self.run.exit_reason != uapi.KVM_EXIT_HYPERCALL:
            raise ValueError("the last exit was no hypercall")
        self.hypercall.ret = result & (1 << 64) - 1

    def put_msr(self, result: int | None) -> None:
        """Answer an MsrAccess. Raises ValueError if there is none."""
        if self.run.exit_reason not in (uapi.KVM_EXIT_X86_RDMSR, uapi.KVM_EXIT_X86_WRMSR):
            raise ValueError("the last exit was no MSR access")
        msr = self.exit.msr
        msr.error = result is None
        msr.data = (result or 0) & (1 << 64) - 1


def _check_length(data: bytes, wanted: int) -> None:
    if len(data) != wanted:
        raise ValueError(f"the guest reads {wanted} bytes, the answer has {len(data)}")


def _io(page: RunPage) -> Exit:
    io = page.io
    size, count = io.size, io.count
    if io.direction == uapi.KVM_EXIT_IO_IN:
        return IoIn(io.port, size, count)
    start = io.data_offset
    return IoOut(io.port, size, count, bytes(page.map[start : start + size * count]))


MMIO = slice(kvm_run.exit.offset, kvm_run.exit.offset + ctypes.sizeof(_anon_run_mmio))
_MOST_KNOWN = 64


def _mmio(page: RunPage) -> Exit:
    raw = bytes(page.map[MMIO])
    known = page.known.get(raw)
    if known is not None:
        return known
    mmio = _anon_run_mmio.from_buffer_copy(raw)
    if not mmio.is_write:
        return MmioRead(mmio.phys_addr, mmio.len)
    if len(page.known) >= _MOST_KNOWN:
        page.known.clear()
    write = page.known[raw] = MmioWrite(mmio.phys_addr, bytes(mmio.data)[: mmio.len])
    return write


def _hypercall(page: RunPage) -> Exit:
    call = page.hypercall
    a, b, c, d, e, f = call.args
    return Hypercall(call.nr, (a, b, c, d, e, f), bool(call.longmode & 1))


def _fail_entry(page: RunPage) -> Exit:
    fail = page.exit.fail_entry
    return FailEntry(fail.hardware_entry_failure_reason, fail.cpu)


def _internal_error(page: RunPage) -> Exit:
    error = page.exit.internal
    return InternalError(error.suberror, _counted(error))


def _system_event(page: RunPage) -> Exit:
    event = page.exit.system_event
    return SystemEvent(event.type, _counted(event))


def _counted(part: Any) -> tuple[int, ...]:
    return tuple(part.data[: part.ndata])


def _debug(page: RunPage) -> Exit:
    arch = page.exit.debug.arch
    return Debug(arch.exception, arch.pc, arch.dr6, arch.dr7)


def _rdmsr(page: RunPage) -> Exit:
    msr = page.exit.msr
    return MsrAccess(msr.index, msr.reason, None)


def _wrmsr(page: RunPage) -> Exit:
    msr = page.exit.msr
    return MsrAccess(msr.index, msr.reason, msr.data)


_DECODERS: dict[int, Callable[[RunPage], Exit]] = {
    uapi.KVM_EXIT_IO: _io,
    uapi.KVM_EXIT_MMIO: _mmio,
    uapi.KVM_EXIT_HLT: lambda _page: _HLT,
    uapi.KVM_EXIT_HYPERCALL: _hypercall,
    uapi.KVM_EXIT_INTR: lambda _page: INTR,
    uapi.KVM_EXIT_SHUTDOWN: lambda _page: _SHUTDOWN,
    uapi.KVM_EXIT_IRQ_WINDOW_OPEN: lambda _page: _IRQ_WINDOW_OPEN,
    uapi.KVM_EXIT_DEBUG: _debug,
    uapi.KVM_EXIT_FAIL_ENTRY: _fail_entry,
    uapi.KVM_EXIT_INTERNAL_ERROR: _internal_error,
    uapi.KVM_EXIT_SYSTEM_EVENT: _system_event,
    uapi.KVM_EXIT_X86_RDMSR: _rdmsr,
    uapi.KVM_EXIT_X86_WRMSR: _wrmsr,
    uapi.KVM_EXIT_UNKNOWN: lambda page: Unknown(0, page.exit.hw.hardware_exit_reason),
}
