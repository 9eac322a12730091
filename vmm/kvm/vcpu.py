"""One virtual processor: run it, read why it stopped, answer, run on."""

import ctypes
import errno
import functools
from collections.abc import Iterable
from typing import Any, Self

from . import uapi
from .exits import Exit
from .run_page import DIRTY_REGS, EXIT_REASON, INTR, MMIO, RunPage
from .structs import flexible, kvm_regs, kvm_signal_mask, kvm_sync_regs
from .uapi import KVM_SYNC_X86_EVENTS, KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS, VcpuIoctl
from .vcpu_state import VcpuState

_KVM_RUN = VcpuIoctl.KVM_RUN.request
# The hot path: where no argument types are declared a call costs a third less. A KVM_RUN and its
# zero fit into C's int. (fcntl.ioctl would be cheaper still, but from Python 3.14 on it repeats
# an interrupted call: no signal would ever get a guest back.)
_ioctl: Any = ctypes.CDLL(None, use_errno=True).ioctl
_EHWPOISON = 133  # a page the hardware has lost; not in Python's errno
_EVERYTHING = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS
_RIP, _RFLAGS = 16, 17  # in kvm_regs
_SIGSET_BYTES = 8  # the kernel's own sigset_t, not the C library's 128 bytes


class Vcpu(VcpuState):
    """A vCPU, made by ``Vm.create_vcpu``.

    Any thread may run it, but only one at a time, and ``close()`` only when none does.
    ``immediate_exit`` may be set by any thread at any time.
    """

    _page: RunPage | None = None

    def __init__(self, fd: int = -1) -> None:
        """Take ownership of ``fd``, whose page is still to be mapped."""
        super().__init__(fd)
        self._forgotten = True  # the last exit; see forget_exit

    def map_page(self, size: int) -> None:
        """Map the page that it shares, once. Raises OSError."""
        self._page = RunPage(self._fd, size)

    def __enter__(self) -> Self:
        self.fileno()
        return self

    def close(self) -> None:
        """Unmap the run page and close the descriptor. Idempotent."""
        try:
            if self._page is not None:
                self._page.close()
                self._page = None
        finally:
            super().close()

    def _shared(self) -> RunPage:
        if self._page is None:
            self.fileno()  # raises ClosedDescriptorError
            raise AssertionError("a vCPU without a run page is closed")
        return self._page

    # ---- running ----

    def run(self) -> Exit:
        """Let the guest run until it exits, and say why. One KVM_RUN, never repeated.

        Releases the GIL. Returns Intr when a signal or ``immediate_exit`` ended it, also with
        nothing executed. Returns MemoryFault for EFAULT and EHWPOISON. Any other failure is an
        OSError; EAGAIN means a vCPU that waits to be started by another one, or that the kernel
        could not have the thread that a VM's first run starts.
        """
        page = self._page or self._shared()
        # Kernels before 6.8 leave it as the last exit wrote it when the run fails. It is an
        # output of the kernel, which never reads it: completing a pending access goes by state
        # of its own.
        page.words[EXIT_REASON] = 0
        self._forgotten = False  # after it: what the page says is of this run, from here on
        if _ioctl(self._fd, _KVM_RUN, 0) >= 0:
            if page.words[EXIT_REASON] == uapi.KVM_EXIT_MMIO:  # most are: without decode's call
                known = page.known.get(bytes(page.map[MMIO]))
                if known is not None:
                    return known
            return page.decode()
        code = ctypes.get_errno()
        if code == errno.EINTR:
            return INTR
        if code in (errno.EFAULT, _EHWPOISON):
            return page.memory_fault()
        raise self._error(VcpuIoctl.KVM_RUN, code)

    def last_exit(self) -> Exit | None:
        """Return the exit of the last run, for who has not seen it: what was raised as ``run``
        returned has taken its place.

        None if that run has not exited, or failed, or since ``forget_exit``.
        """
        page = self._shared()
        if self._forgotten or page.words[EXIT_REASON] in (0, uapi.KVM_EXIT_MEMORY_FAULT):
            return None
        return page.decode()

    def forget_exit(self) -> None:
        """The exit of the last run has been acted on: ``last_exit`` is None until the next run.

        It may still be answered.
        """
        self._forgotten = True

    def complete_pending_io(self) -> Exit:
        """Let KVM finish the instruction of the last IO, MMIO or hypercall exit, and stop there.

        Must come before any change of registers after such an exit: otherwise the next run
        finishes the old instruction on top of the new state. Answer a read first. Returns Intr
        when the instruction is finished, or the next exit of the same instruction (an access
        that straddles two pages), which is to be handled like any other before calling again.
        Executes no further instruction. Needs KVM_CAP_IMMEDIATE_EXIT.

        A kick must be ``immediate_exit`` *and* a signal: the flag is put back as it was before
        the call, so a flag set during it is lost, the pending signal is not.
        """
        run = self._shared().run
        before = run.immediate_exit
        run.immediate_exit = 1
        try:
            return self.run()
        finally:
            run.immediate_exit = before

    @property
    def immediate_exit(self) -> bool:
        """Whether the next run returns Intr before it enters the guest. Stays until cleared.

        Source: KVM API, section 5, ``immediate_exit``; needs KVM_CAP_IMMEDIATE_EXIT.
        """
        return bool(self._shared().run.immediate_exit)

    @immediate_exit.setter
    def immediate_exit(self, value: bool) -> None:
        self._shared().run.immediate_exit = bool(value)

    def set_signal_mask(self, signals: Iterable[int] | None) -> None:
        """Set which signals are blocked while the guest runs, instead of the thread's mask.

        A signal that the thread blocks and this mask does not ends a run with Intr and is still
        pending afterwards: take it with ``signal.sigtimedwait``. None goes back to the thread's
        own mask.
        """
        if signals is None:
            self._ioctl(VcpuIoctl.KVM_SET_SIGNAL_MASK, None)
            return
        bits = 0
        for number in signals:
            bits |= 1 << number - 1
        self._ioctl(VcpuIoctl.KVM_SET_SIGNAL_MASK, ctypes.byref(_signal_mask(bits)))

    # ---- registers of the last exit, without a system call ----

    @property
    def sync_regs(self) -> bool:
        """Whether every run leaves a copy of the general registers for ``exit_regs()``.

        Off at first. Needs KVM_CAP_SYNC_REGS: where it lacks KVM_SYNC_X86_REGS, turning it on
        makes ``run()`` raise EINVAL. For those who look at the registers at every exit: on a
        shadow-paging host a port-write exit plus ``get_regs()`` took 21 µs, the same plus
        ``exit_regs()`` 13 µs, and the exit alone 12.5 µs with or without this.
        Source: KVM API, section 5, ``kvm_valid_regs``.
        """
        return bool(self._shared().run.kvm_valid_regs & KVM_SYNC_X86_REGS)

    @sync_regs.setter
    def sync_regs(self, value: bool) -> None:
        self._shared().run.kvm_valid_regs = KVM_SYNC_X86_REGS if value else 0

    def exit_regs(self) -> kvm_regs:
        """Return the general registers as the last run left them; ``set_regs`` does not show.

        Meaningless before the first run with ``sync_regs`` on: ValueError while it is off.
        """
        if not self.sync_regs:
            raise ValueError("sync_regs is off")
        return kvm_regs.from_buffer_copy(self._shared().sync.regs)

    def exit_words(self) -> list[int]:
        """Return what ``exit_regs()`` does as numbers, in the order of kvm_regs' fields.

        None at all since ``enter_with`` has changed them. Half as dear. For who has turned
        ``sync_regs`` on.
        """
        page = self._page or self._shared()
        return [] if page.words[DIRTY_REGS] else page.registers.tolist()

    def enter_with(self, rax: int, rip: int | None = None, rflags: int | None = None) -> None:
        """Set these of the general registers of the last exit as the next run begins: no system
        call. The exit has been acted on, as for ``forget_exit``.

        For who has turned ``sync_regs`` on. The others are then what ``exit_words()`` said, so it
        does not go together with ``set_regs``. After an MmioWrite it is safe, as the kernel has
        nothing left to do but to go on; after the other pending ones it is not. Again is fine.
        Source: KVM API, section 5, ``kvm_dirty_regs``.
        """
        page = self._page or self._shared()
        registers = page.registers
        registers[0] = rax
        if rip is not None:
            registers[_RIP] = rip
        if rflags is not None:
            registers[_RFLAGS] = rflags
        page.words[DIRTY_REGS] |= KVM_SYNC_X86_REGS
        self._forgotten = True

    def next_words(self) -> list[int]:
        """Return the general registers with which the next run begins, as ``exit_words()`` does:
        those of the last exit, and what ``enter_with`` and ``enter_as`` have changed.
        """
        return (self._page or self._shared()).registers.tolist()

    def enter_as(self, registers: kvm_sync_regs) -> None:
        """Set general and system registers, and pending events, as the next run begins: no system
        call. Until then ``get_regs`` and its like tell what was.

        Otherwise as ``enter_with``: not while anything but an MmioWrite is pending.
        """
        page = self._page or self._shared()
        page.run.s.regs = registers
        page.words[DIRTY_REGS] = _EVERYTHING
        self._forgotten = True

    # ---- answering ----

    def set_io_data(self, data: bytes) -> None:
        """Answer the last exit, an IoIn, with ``size * count`` bytes. ValueError otherwise."""
        self._shared().put_io(data)

    def set_mmio_data(self, data: bytes) -> None:
        """Answer the last exit, an MmioRead, with ``size`` bytes. ValueError otherwise."""
        self._shared().put_mmio(data)

    def set_hypercall_result(self, result: int) -> None:
        """Answer the last exit, a Hypercall; the guest finds it in RAX. ValueError otherwise."""
        self._shared().put_hypercall(result)

    def set_msr_result(self, result: int | None) -> None:
        """Answer the last exit, an MsrAccess: the value read, for a write anything, or None.

        None is a refusal: the guest gets a general protection fault. ValueError otherwise.
        """
        self._shared().put_msr(result)


@functools.lru_cache(maxsize=16)
def _signal_mask(bits: int) -> Any:
    """Return the kernel's structure for a set of signals; it is never changed."""
    mask = flexible(kvm_signal_mask, _SIGSET_BYTES)(len=_SIGSET_BYTES)
    mask.sigset[:] = list(bits.to_bytes(_SIGSET_BYTES, "little"))
    return mask
