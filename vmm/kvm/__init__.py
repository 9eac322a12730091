"""The kernel's KVM interface, by ctypes, usable on its own.

    from vmm.kvm import Kvm

    with Kvm.open() as kvm, kvm.create_vm() as vm, vm.create_vcpu() as vcpu:
        vm.set_user_memory_region(0, 0, size, address)
        ...
        match vcpu.run():
            case Hlt(): ...

One class per file descriptor, children made by their parents only: Kvm, Vm, Vcpu. Exits are frozen values;
what the kernel refuses is an `OSError` that names the ioctl and the object. `vmm.kvm.uapi` has the kernel's
structures and numbers. Source: the kernel's Documentation/virt/kvm/api.rst ("KVM API").
"""

from vmm.kvm.blocks import CpuidEntry
from vmm.kvm.descriptor import ClosedDescriptorError, Descriptor
from vmm.kvm.exits import (
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
from vmm.kvm.system import Kvm
from vmm.kvm.vcpu import Vcpu
from vmm.kvm.vm import Vm

__all__ = [
    "ClosedDescriptorError",
    "CpuidEntry",
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
    "Shutdown",
    "SystemEvent",
    "Unknown",
    "Vcpu",
    "Vm",
]
