"""A vCPU's registers and other state: everything that is read or written between two runs."""

import ctypes
import errno
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from . import cpuid
from .cpuid import CpuidEntry, CpuidTable
from .descriptor import Descriptor
from .structs import (
    Struct,
    flexible,
    kvm_debugregs,
    kvm_enable_cap,
    kvm_fpu,
    kvm_guest_debug,
    kvm_interrupt,
    kvm_mp_state,
    kvm_msrs,
    kvm_regs,
    kvm_sregs,
    kvm_translation,
    kvm_vcpu_events,
    kvm_xcrs,
    kvm_xsave,
)
from .uapi import Ioctl, VcpuIoctl

_S = TypeVar("_S", bound=Struct)

_MAX_CPUID_ENTRIES = 256  # the kernel keeps no more (KVM_MAX_CPUID_ENTRIES)
_MSRS_PER_CALL = 255  # the kernel refuses 256 and more with E2BIG


class Translation(NamedTuple):
    """Where a linear address leads. With ``valid`` False the rest means nothing.

    KVM on x86 always says writeable and not usermode: it does not look.
    """

    physical_address: int
    valid: bool
    writeable: bool
    usermode: bool


class MsrRefusedError(OSError):
    """The kernel refused to read or write MSR ``index``. ``errno`` is EINVAL."""

    def __init__(self, message: str, index: int) -> None:
        super().__init__(errno.EINVAL, message)
        self.index = index


class VcpuState(Descriptor):
    """The state of a vCPU that does not run at the moment.

    Structures handed out are copies: change one and set it to make it count. A call made while
    another thread runs the vCPU waits inside the kernel until that run ends.

    After an IoIn, IoOut, MmioRead, MmioWrite or Hypercall the guest's instruction is still
    pending: call ``Vcpu.complete_pending_io()`` before setting registers.
    """

    kind = "vcpu"

    def get_tsc_khz(self) -> int:
        """Return how many thousand ticks the guest's time-stamp counter makes in a second."""
        return self._ioctl(VcpuIoctl.KVM_GET_TSC_KHZ)

    def get_regs(self) -> kvm_regs:
        """Return the general registers."""
        return self._get(VcpuIoctl.KVM_GET_REGS, kvm_regs())

    def set_regs(self, regs: kvm_regs) -> None:
        """Set the general registers."""
        self._ioctl(VcpuIoctl.KVM_SET_REGS, ctypes.byref(regs))

    def get_sregs(self) -> kvm_sregs:
        """Return segments, descriptor tables and control registers."""
        return self._get(VcpuIoctl.KVM_GET_SREGS, kvm_sregs())

    def set_sregs(self, sregs: kvm_sregs) -> None:
        """Set segments, descriptor tables and control registers.

        Raises OSError: EINVAL for control registers that contradict each other or the CPUID.
        """
        self._ioctl(VcpuIoctl.KVM_SET_SREGS, ctypes.byref(sregs))

    def get_fpu(self) -> kvm_fpu:
        """Return x87 and SSE registers; not AVX, and ``mxcsr`` is not filled in by the kernel."""
        return self._get(VcpuIoctl.KVM_GET_FPU, kvm_fpu())

    def set_fpu(self, fpu: kvm_fpu) -> None:
        """Set x87 and SSE registers; not AVX, and the kernel ignores ``mxcsr``."""
        self._ioctl(VcpuIoctl.KVM_SET_FPU, ctypes.byref(fpu))

    def get_xsave(self) -> kvm_xsave:
        """Return all that XSAVE stores: x87, SSE and AVX registers, MXCSR.

        Raises OSError: EINVAL for a vCPU with more state than fits (AMX, by prctl(2)).
        """
        return self._get(VcpuIoctl.KVM_GET_XSAVE, kvm_xsave())

    def set_xsave(self, state: kvm_xsave) -> None:
        """Set all that XSAVE stores. EINVAL for state that the host does not have."""
        self._ioctl(VcpuIoctl.KVM_SET_XSAVE, ctypes.byref(state))

    def get_debugregs(self) -> kvm_debugregs:
        """Return the debug registers as the guest sees them."""
        return self._get(VcpuIoctl.KVM_GET_DEBUGREGS, kvm_debugregs())

    def set_debugregs(self, registers: kvm_debugregs) -> None:
        """Set the debug registers as the guest sees them."""
        self._ioctl(VcpuIoctl.KVM_SET_DEBUGREGS, ctypes.byref(registers))

    def get_events(self) -> kvm_vcpu_events:
        """Return pending exceptions, interrupts and NMIs."""
        return self._get(VcpuIoctl.KVM_GET_VCPU_EVENTS, kvm_vcpu_events())

    def set_events(self, events: kvm_vcpu_events) -> None:
        """Set pending events; ``flags`` says which optional ones count. KVM_SET_VCPU_EVENTS."""
        self._ioctl(VcpuIoctl.KVM_SET_VCPU_EVENTS, ctypes.byref(events))

    def get_mp_state(self) -> int:
        """Return KVM_MP_STATE_*: runnable, halted …"""
        return self._get(VcpuIoctl.KVM_GET_MP_STATE, kvm_mp_state()).mp_state

    def set_mp_state(self, state: int) -> None:
        """Set KVM_MP_STATE_*. EINVAL for most of them without in-kernel interrupt chips."""
        self._ioctl(VcpuIoctl.KVM_SET_MP_STATE, ctypes.byref(kvm_mp_state(state)))

    def get_xcrs(self) -> dict[int, int]:
        """Return the extended control registers by number.

        Empty where the host has no XSAVE.
        """
        xcrs = self._get(VcpuIoctl.KVM_GET_XCRS, kvm_xcrs())
        return {entry.xcr: entry.value for entry in xcrs.xcrs[: xcrs.nr_xcrs]}

    def set_xcrs(self, values: Mapping[int, int]) -> None:
        """Set extended control registers, at most 16.

        Raises OSError: EINVAL for a value that the CPUID set before does not allow.
        """
        xcrs = kvm_xcrs(nr_xcrs=len(values))
        for position, (number, value) in enumerate(values.items()):
            xcrs.xcrs[position].xcr = number
            xcrs.xcrs[position].value = value
        self._ioctl(VcpuIoctl.KVM_SET_XCRS, ctypes.byref(xcrs))

    def get_cpuid(self) -> list[CpuidEntry]:
        """Return what CPUID answers in this vCPU."""
        table = cpuid.empty(_MAX_CPUID_ENTRIES)
        self._ioctl(VcpuIoctl.KVM_GET_CPUID2, ctypes.byref(table))
        return cpuid.unpack(table)

    def set_cpuid(self, entries: Sequence[CpuidEntry] | CpuidTable) -> None:
        """Set what CPUID answers; once, before the first run."""
        table = entries if isinstance(entries, CpuidTable) else CpuidTable.of(entries)
        self._ioctl(VcpuIoctl.KVM_SET_CPUID2, ctypes.byref(table.structure))

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """Return model-specific registers by number.

        Raises MsrRefusedError for the first one that cannot be read.
        """
        values: dict[int, int] = {}
        for part in _parts([(index, 0) for index in indices]):
            table = self._msrs(VcpuIoctl.KVM_GET_MSRS, part)
            values.update((entry.index, entry.data) for entry in table.entries)
        return values

    def set_msrs(self, values: Mapping[int, int]) -> None:
        """Set model-specific registers, in order.

        Raises MsrRefusedError for the first one that cannot be written; those before it are set.
        """
        for part in _parts(list(values.items())):
            self._msrs(VcpuIoctl.KVM_SET_MSRS, part)

    def _msrs(self, request: Ioctl, values: list[tuple[int, int]]) -> Any:
        """Make an MSR request; both stop at the first refusal and return how many they did."""
        table = flexible(kvm_msrs, len(values))(nmsrs=len(values))
        for entry, (index, value) in zip(table.entries, values, strict=True):
            entry.index, entry.data = index, value
        done = self._ioctl(request, ctypes.byref(table))
        if done < len(values):
            index = values[done][0]
            raise MsrRefusedError(
                f"{request.name} on {self.kind} fd {self._fd}: MSR {index:#x} refused", index
            )
        return table

    def translate(self, linear_address: int) -> Translation:
        """Walk the guest's page tables for an address."""
        request = kvm_translation(linear_address=linear_address)
        self._ioctl(VcpuIoctl.KVM_TRANSLATE, ctypes.byref(request))
        return Translation(
            request.physical_address,
            bool(request.valid),
            bool(request.writeable),
            bool(request.usermode),
        )

    def set_guest_debug(self, control: int, debugreg: Sequence[int] = ()) -> None:
        """Ask for single steps or breakpoints: KVM_GUESTDBG_*, 0 for none of it.

        ``debugreg`` are DR0 to DR7 for hardware breakpoints. Call it after ``set_regs``: in the
        other order the step is lost on SVM and VMX.
        """
        request = kvm_guest_debug(control=control)
        for position, value in enumerate(debugreg):
            request.arch.debugreg[position] = value
        self._ioctl(VcpuIoctl.KVM_SET_GUEST_DEBUG, ctypes.byref(request))

    def interrupt(self, vector: int) -> None:
        """Queue an interrupt.

        Only without in-kernel interrupt chips (ENXIO with them). One that is still queued is
        replaced: the kernel keeps one.
        """
        self._ioctl(VcpuIoctl.KVM_INTERRUPT, ctypes.byref(kvm_interrupt(vector)))

    def nmi(self) -> None:
        """Queue a non-maskable interrupt."""
        self._ioctl(VcpuIoctl.KVM_NMI)

    def enable_cap(self, capability: int, *args: int, flags: int = 0) -> None:
        """Turn on a capability of this vCPU."""
        request = kvm_enable_cap(cap=capability, flags=flags)
        for position, value in enumerate(args):
            request.args[position] = value
        self._ioctl(VcpuIoctl.KVM_ENABLE_CAP, ctypes.byref(request))

    def _get(self, request: Ioctl, into: _S) -> _S:
        self._ioctl(request, ctypes.byref(into))
        return into


def _parts(pairs: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    return [pairs[i : i + _MSRS_PER_CALL] for i in range(0, len(pairs), _MSRS_PER_CALL)]
