"""Why KVM_RUN came back, as typed frozen values. No raw union leaves this package.

Source: KVM API, section 5, "The kvm_run structure".
"""

from __future__ import annotations

import dataclasses
from typing import TypeAlias

_value = dataclasses.dataclass(frozen=True, slots=True)


@_value
class IoIn:
    """The guest reads `count` times `size` bytes from a port; answer with `Vcpu.set_io_data`."""

    port: int
    size: int
    count: int


@_value
class IoOut:
    """The guest wrote `data`, `count` times `size` bytes, to a port."""

    port: int
    size: int
    count: int
    data: bytes


@_value
class MmioRead:
    """The guest reads `size` bytes where no memory is; answer with `Vcpu.set_mmio_data`."""

    gpa: int
    size: int


@_value
class MmioWrite:
    """The guest wrote `data` where no memory is. Its instruction pointer may be past the store already."""

    gpa: int
    data: bytes


@_value
class Hlt:
    """HLT, with no interrupt controller in the kernel."""


@_value
class Hypercall:
    """A hypercall that user space has asked for; answer with `Vcpu.set_hypercall_result`."""

    nr: int
    args: tuple[int, int, int, int, int, int]
    longmode: bool


@_value
class Shutdown:
    """A triple fault, or what the CPU treats like one."""


@_value
class FailEntry:
    """The CPU refused to enter the guest; `hardware_reason` is its own code."""

    hardware_reason: int
    cpu: int


@_value
class InternalError:
    """KVM could not go on; suberror 1 is an instruction its emulator does not know."""

    suberror: int
    data: tuple[int, ...]


@_value
class MemoryFault:
    """The guest reached memory that this process has made inaccessible (KVM_RUN failed with EFAULT).

    gpa       the guest-physical address, where the kernel tells it (Linux 6.8, some back ends), else None
    size      bytes around it, else None
    flags     KVM_MEMORY_EXIT_FLAG_*
    """

    gpa: int | None
    size: int | None
    flags: int


@_value
class Intr:
    """A signal, or immediate_exit, ended the run."""


@_value
class Debug:
    """A breakpoint or single step that KVM_SET_GUEST_DEBUG asked for."""

    exception: int
    pc: int
    dr6: int
    dr7: int


@_value
class SystemEvent:
    """Something for the whole machine, such as a crash that the guest reports."""

    type: int
    data: tuple[int, ...]


@_value
class IrqWindowOpen:
    """An interrupt can be injected now."""


@_value
class MsrAccess:
    """RDMSR (`data` None) or WRMSR that user space has asked for."""

    index: int
    reason: int
    data: int | None


@_value
class Unknown:
    """A reason this package does not decode."""

    reason: int
    hardware_reason: int


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
