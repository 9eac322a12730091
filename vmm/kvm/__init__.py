"""Bindings to the Linux kernel's KVM interface, x86-64. No dependency but the standard library.

Three classes, one per kind of descriptor, each made by the one before::

    with Kvm.open() as kvm, kvm.create_vm() as vm, vm.create_vcpu() as vcpu:
        vm.set_user_memory_region(0, 0, size, address)
        match vcpu.run():
            case IoOut(port=0x3F8, data=data): ...

``run()`` returns an exit: a frozen value, one class for each kind. A refusal by the kernel is
an OSError whose message names the request and the descriptor. Constants are in ``uapi``,
structures in ``structs``, both under the kernel's own names. Each method stands for the request
of its name, which the kernel's Documentation/virt/kvm/api.rst ("KVM API") describes.
"""

from . import structs, uapi
from .cpuid import CpuidEntry, CpuidTable
from .descriptor import ClosedDescriptorError, Descriptor
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
from .structs import (
    kvm_dtable,
    kvm_fpu,
    kvm_regs,
    kvm_segment,
    kvm_sregs,
    kvm_sync_regs,
    kvm_vcpu_events,
)
from .system import Kvm
from .uapi import KVM_MEM_LOG_DIRTY_PAGES as MEM_LOG_DIRTY_PAGES
from .uapi import KVM_MEM_READONLY as MEM_READONLY
from .vcpu import Vcpu
from .vcpu_state import MsrRefusedError, Translation
from .vm import Vm

__all__ = [
    "MEM_LOG_DIRTY_PAGES",
    "MEM_READONLY",
    "ClosedDescriptorError",
    "CpuidEntry",
    "CpuidTable",
    "Debug",
    "Descriptor",
    "Exit",
    "FailEntry",
    "Hlt",
    "Hypercall",
    "InternalError",
    "Intr",
    "IoIn",
    "IoOut",
    "IrqWindowOpen",
    "Kvm",
    "MemoryFault",
    "MmioRead",
    "MmioWrite",
    "MsrAccess",
    "MsrRefusedError",
    "Shutdown",
    "SystemEvent",
    "Translation",
    "Unknown",
    "Vcpu",
    "Vm",
    "kvm_dtable",
    "kvm_fpu",
    "kvm_regs",
    "kvm_segment",
    "kvm_sregs",
    "kvm_sync_regs",
    "kvm_vcpu_events",
    "structs",
    "uapi",
]
