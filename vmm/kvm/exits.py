"""Why a vCPU stopped, as values.

All exits are frozen and compare by type and content. Addresses are guest-physical, sizes in
bytes. Source: KVM API, section 5, "The kvm_run structure".
"""

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class IoIn:
    """The guest reads ``count`` items of ``size`` bytes from ``port``: answer, then run on."""

    port: int
    size: int
    count: int


@dataclass(frozen=True, slots=True)
class IoOut:
    """The guest wrote ``count`` items of ``size`` bytes to ``port``."""

    port: int
    size: int
    count: int
    data: bytes


@dataclass(frozen=True, slots=True)
class MmioRead:
    """The guest reads where no memory slot is: answer, then run on."""

    gpa: int
    size: int


@dataclass(frozen=True, slots=True)
class MmioWrite:
    """The guest wrote where no memory slot is, or to a read-only one."""

    gpa: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Hlt:
    """The guest executed HLT."""


@dataclass(frozen=True, slots=True)
class Hypercall:
    """The guest called hypercall ``nr``: answer with ``set_hypercall_result``, then run on."""

    nr: int
    args: tuple[int, int, int, int, int, int]
    longmode: bool


@dataclass(frozen=True, slots=True)
class Shutdown:
    """The guest met a triple fault, or something as final."""


@dataclass(frozen=True, slots=True)
class FailEntry:
    """The processor refused the guest's state. ``hardware_reason`` is the processor's number."""

    hardware_reason: int
    cpu: int


@dataclass(frozen=True, slots=True)
class InternalError:
    """KVM could not go on: ``suberror`` is a KVM_INTERNAL_ERROR_*, ``data`` its details."""

    suberror: int
    data: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MemoryFault:
    """The host memory behind a guest's access could not be had: KVM_RUN failed with EFAULT.

    ``gpa`` and ``size`` are None where the kernel did not say which memory it was. ``flags`` are
    KVM_MEMORY_EXIT_FLAG_*.
    """

    gpa: int | None
    size: int | None
    flags: int


@dataclass(frozen=True, slots=True)
class Intr:
    """A signal or ``immediate_exit`` ended the run."""


@dataclass(frozen=True, slots=True)
class Debug:
    """A breakpoint or a single step asked for by ``set_guest_debug``. ``pc`` is linear."""

    exception: int
    pc: int
    dr6: int
    dr7: int


@dataclass(frozen=True, slots=True)
class SystemEvent:
    """The guest asked for a shutdown, a reset or the like: KVM_SYSTEM_EVENT_*."""

    type: int
    data: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class IrqWindowOpen:
    """The guest can take an interrupt now, as asked for."""


@dataclass(frozen=True, slots=True)
class MsrAccess:
    """RDMSR (``data`` None) or WRMSR that the VM wants to see: answer with ``set_msr_result``.

    Comes after KVM_CAP_X86_USER_SPACE_MSR is enabled; ``reason`` is a KVM_MSR_EXIT_REASON_*.
    """

    index: int
    reason: int
    data: int | None


@dataclass(frozen=True, slots=True)
class Unknown:
    """An exit that this module does not decode; ``reason`` is a KVM_EXIT_*.

    ``hardware_reason`` counts for KVM_EXIT_UNKNOWN (0) only.
    """

    reason: int
    hardware_reason: int = 0


Exit: TypeAlias = (
    IoIn
    | IoOut
    | MmioRead
    | MmioWrite
    | Hlt
    | Hypercall
    | Shutdown
    | FailEntry
    | InternalError
    | MemoryFault
    | Intr
    | Debug
    | SystemEvent
    | IrqWindowOpen
    | MsrAccess
    | Unknown
)
