"""Constants and ioctl numbers of the kernel's KVM interface, x86-64. Data, no behaviour.

Names and values are those of ``<linux/kvm.h>``, ``<asm/kvm.h>`` and ``<linux/kvm_para.h>``. The
ioctl numbers are computed as C does it, from direction, number and the size of the argument.
The tests compare every one of them with the installed headers.
"""

import ctypes
from dataclasses import dataclass, field

from . import structs
from .structs import Struct

KVM_API_VERSION = 12

KVM_MEM_LOG_DIRTY_PAGES = 1 << 0
KVM_MEM_READONLY = 1 << 1

# ---- exits ----

KVM_EXIT_UNKNOWN = 0
KVM_EXIT_IO = 2
KVM_EXIT_HYPERCALL = 3
KVM_EXIT_DEBUG = 4
KVM_EXIT_HLT = 5
KVM_EXIT_MMIO = 6
KVM_EXIT_IRQ_WINDOW_OPEN = 7
KVM_EXIT_SHUTDOWN = 8
KVM_EXIT_FAIL_ENTRY = 9
KVM_EXIT_INTR = 10
KVM_EXIT_INTERNAL_ERROR = 17
KVM_EXIT_SYSTEM_EVENT = 24
KVM_EXIT_IOAPIC_EOI = 26
KVM_EXIT_X86_RDMSR = 29
KVM_EXIT_X86_WRMSR = 30
KVM_EXIT_DIRTY_RING_FULL = 31
KVM_EXIT_X86_BUS_LOCK = 33
KVM_EXIT_NOTIFY = 37
KVM_EXIT_MEMORY_FAULT = 39

KVM_EXIT_IO_IN = 0
KVM_EXIT_IO_OUT = 1

KVM_INTERNAL_ERROR_EMULATION = 1
KVM_INTERNAL_ERROR_SIMUL_EX = 2
KVM_INTERNAL_ERROR_DELIVERY_EV = 3
KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON = 4

KVM_MSR_EXIT_REASON_INVAL = 1 << 0
KVM_MSR_EXIT_REASON_UNKNOWN = 1 << 1
KVM_MSR_EXIT_REASON_FILTER = 1 << 2

KVM_SYSTEM_EVENT_SHUTDOWN = 1
KVM_SYSTEM_EVENT_RESET = 2
KVM_SYSTEM_EVENT_CRASH = 3

KVM_MEMORY_EXIT_FLAG_PRIVATE = 1 << 3

KVM_HC_MAP_GPA_RANGE = 12
"""The one hypercall that KVM hands to user space (KVM API, section "KVM_CAP_EXIT_HYPERCALL")."""
KVM_MAP_GPA_RANGE_ENCRYPTED = 1 << 4

# ---- vCPU state ----

KVM_SYNC_X86_REGS = 1 << 0
KVM_SYNC_X86_SREGS = 1 << 1
KVM_SYNC_X86_EVENTS = 1 << 2

KVM_GUESTDBG_ENABLE = 0x00000001
KVM_GUESTDBG_SINGLESTEP = 0x00000002
KVM_GUESTDBG_USE_SW_BP = 0x00010000
KVM_GUESTDBG_USE_HW_BP = 0x00020000
KVM_GUESTDBG_INJECT_DB = 0x00040000
KVM_GUESTDBG_INJECT_BP = 0x00080000
KVM_GUESTDBG_BLOCKIRQ = 0x00100000

KVM_MP_STATE_RUNNABLE = 0
KVM_MP_STATE_UNINITIALIZED = 1
KVM_MP_STATE_INIT_RECEIVED = 2
KVM_MP_STATE_HALTED = 3
KVM_MP_STATE_SIPI_RECEIVED = 4

KVM_VCPUEVENT_VALID_NMI_PENDING = 0x00000001
KVM_VCPUEVENT_VALID_SIPI_VECTOR = 0x00000002
KVM_VCPUEVENT_VALID_SHADOW = 0x00000004
KVM_VCPUEVENT_VALID_SMM = 0x00000008
KVM_VCPUEVENT_VALID_PAYLOAD = 0x00000010
KVM_VCPUEVENT_VALID_TRIPLE_FAULT = 0x00000020

KVM_CPUID_FLAG_SIGNIFCANT_INDEX = 1 << 0  # the kernel's spelling

# ---- eventfd and interrupts ----

KVM_IOEVENTFD_FLAG_DATAMATCH = 1 << 0
KVM_IOEVENTFD_FLAG_PIO = 1 << 1
KVM_IOEVENTFD_FLAG_DEASSIGN = 1 << 2

KVM_IRQFD_FLAG_DEASSIGN = 1 << 0
KVM_IRQFD_FLAG_RESAMPLE = 1 << 1

KVM_PIT_SPEAKER_DUMMY = 1

# ---- capabilities ----

KVM_CAP_IRQCHIP = 0
KVM_CAP_HLT = 1
KVM_CAP_USER_MEMORY = 3
KVM_CAP_SET_TSS_ADDR = 4
KVM_CAP_EXT_CPUID = 7
KVM_CAP_NR_VCPUS = 9
KVM_CAP_NR_MEMSLOTS = 10
KVM_CAP_MP_STATE = 14
KVM_CAP_COALESCED_MMIO = 15
KVM_CAP_SYNC_MMU = 16
KVM_CAP_DESTROY_MEMORY_REGION_WORKS = 21
KVM_CAP_USER_NMI = 22
KVM_CAP_SET_GUEST_DEBUG = 23
KVM_CAP_IRQFD = 32
KVM_CAP_PIT2 = 33
KVM_CAP_IOEVENTFD = 36
KVM_CAP_SET_IDENTITY_MAP_ADDR = 37
KVM_CAP_ADJUST_CLOCK = 39
KVM_CAP_INTERNAL_ERROR_DATA = 40
KVM_CAP_VCPU_EVENTS = 41
KVM_CAP_DEBUGREGS = 50
KVM_CAP_ENABLE_CAP = 54
KVM_CAP_XSAVE = 55
KVM_CAP_XCRS = 56
KVM_CAP_GET_TSC_KHZ = 61
KVM_CAP_MAX_VCPUS = 66
KVM_CAP_SYNC_REGS = 74
KVM_CAP_READONLY_MEM = 81
KVM_CAP_IRQFD_RESAMPLE = 82
KVM_CAP_ENABLE_CAP_VM = 98
KVM_CAP_CHECK_EXTENSION_VM = 105
KVM_CAP_MULTI_ADDRESS_SPACE = 118
KVM_CAP_SPLIT_IRQCHIP = 121
KVM_CAP_MAX_VCPU_ID = 128
KVM_CAP_IMMEDIATE_EXIT = 136
KVM_CAP_X86_DISABLE_EXITS = 143
KVM_CAP_GET_MSR_FEATURES = 153
KVM_CAP_COALESCED_PIO = 162
KVM_CAP_X86_USER_SPACE_MSR = 188
KVM_CAP_EXIT_HYPERCALL = 201
KVM_CAP_EXIT_ON_EMULATION_FAILURE = 204
KVM_CAP_VM_GPA_BITS = 207
KVM_CAP_DISABLE_QUIRKS2 = 213
KVM_CAP_USER_MEMORY2 = 231
KVM_CAP_MEMORY_FAULT_INFO = 232
KVM_CAP_MEMORY_ATTRIBUTES = 233
KVM_CAP_GUEST_MEMFD = 234
KVM_CAP_PRE_FAULT_MEMORY = 236

# For KVM_CAP_DISABLE_QUIRKS2: a memslot's deletion takes away all translations of the VM, not only
# those of the slot.
KVM_X86_QUIRK_SLOT_ZAP_ALL = 1 << 7

# ---- ioctls ----

KVMIO = 0xAE

_NONE, _WRITE, _READ = 0, 1, 2


@dataclass(slots=True)
class Ioctl:
    """One request: its C name, its number, and the capability that says the kernel has it.

    ``capability`` is None for what every KVM has.
    """

    request: int
    capability: int | None = None
    name: str = field(default="", init=False)

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name


def _ioctl(direction: int, number: int, size: int, capability: int | None) -> Ioctl:
    return Ioctl(direction << 30 | size << 16 | KVMIO << 8 | number, capability)


def _io(number: int, capability: int | None = None) -> Ioctl:
    return _ioctl(_NONE, number, 0, capability)


def _ior(number: int, argument: type[Struct], capability: int | None = None) -> Ioctl:
    return _ioctl(_READ, number, ctypes.sizeof(argument), capability)


def _iow(
    number: int, argument: type[Struct] | type[ctypes.c_uint64], capability: int | None = None
) -> Ioctl:
    return _ioctl(_WRITE, number, ctypes.sizeof(argument), capability)


def _iowr(number: int, argument: type[Struct], capability: int | None = None) -> Ioctl:
    return _ioctl(_READ | _WRITE, number, ctypes.sizeof(argument), capability)


class SystemIoctl:
    """Requests on /dev/kvm."""

    KVM_GET_API_VERSION = _io(0x00)
    KVM_CREATE_VM = _io(0x01)
    KVM_GET_MSR_INDEX_LIST = _iowr(0x02, structs.kvm_msr_list)
    KVM_CHECK_EXTENSION = _io(0x03)
    KVM_GET_VCPU_MMAP_SIZE = _io(0x04)
    KVM_GET_SUPPORTED_CPUID = _iowr(0x05, structs.kvm_cpuid2, KVM_CAP_EXT_CPUID)
    KVM_GET_MSR_FEATURE_INDEX_LIST = _iowr(0x0A, structs.kvm_msr_list, KVM_CAP_GET_MSR_FEATURES)


class VmIoctl:
    """Requests on a VM's descriptor."""

    KVM_CHECK_EXTENSION = _io(0x03, KVM_CAP_CHECK_EXTENSION_VM)
    KVM_CREATE_VCPU = _io(0x41)
    KVM_GET_DIRTY_LOG = _iow(0x42, structs.kvm_dirty_log)
    KVM_SET_USER_MEMORY_REGION = _iow(
        0x46, structs.kvm_userspace_memory_region, KVM_CAP_USER_MEMORY
    )
    KVM_SET_TSS_ADDR = _io(0x47, KVM_CAP_SET_TSS_ADDR)
    KVM_SET_IDENTITY_MAP_ADDR = _iow(0x48, ctypes.c_uint64, KVM_CAP_SET_IDENTITY_MAP_ADDR)
    KVM_CREATE_IRQCHIP = _io(0x60, KVM_CAP_IRQCHIP)
    KVM_IRQ_LINE = _iow(0x61, structs.kvm_irq_level, KVM_CAP_IRQCHIP)
    KVM_IRQFD = _iow(0x76, structs.kvm_irqfd, KVM_CAP_IRQFD)
    KVM_CREATE_PIT2 = _iow(0x77, structs.kvm_pit_config, KVM_CAP_PIT2)
    KVM_IOEVENTFD = _iow(0x79, structs.kvm_ioeventfd, KVM_CAP_IOEVENTFD)
    KVM_SET_CLOCK = _iow(0x7B, structs.kvm_clock_data, KVM_CAP_ADJUST_CLOCK)
    KVM_GET_CLOCK = _ior(0x7C, structs.kvm_clock_data, KVM_CAP_ADJUST_CLOCK)
    KVM_ENABLE_CAP = _iow(0xA3, structs.kvm_enable_cap, KVM_CAP_ENABLE_CAP_VM)


class VcpuIoctl:
    """Requests on a vCPU's descriptor."""

    KVM_RUN = _io(0x80)
    KVM_GET_REGS = _ior(0x81, structs.kvm_regs)
    KVM_SET_REGS = _iow(0x82, structs.kvm_regs)
    KVM_GET_SREGS = _ior(0x83, structs.kvm_sregs)
    KVM_SET_SREGS = _iow(0x84, structs.kvm_sregs)
    KVM_TRANSLATE = _iowr(0x85, structs.kvm_translation)
    KVM_INTERRUPT = _iow(0x86, structs.kvm_interrupt)
    KVM_GET_MSRS = _iowr(0x88, structs.kvm_msrs)
    KVM_SET_MSRS = _iow(0x89, structs.kvm_msrs)
    KVM_SET_SIGNAL_MASK = _iow(0x8B, structs.kvm_signal_mask)
    KVM_GET_FPU = _ior(0x8C, structs.kvm_fpu)
    KVM_SET_FPU = _iow(0x8D, structs.kvm_fpu)
    KVM_SET_CPUID2 = _iow(0x90, structs.kvm_cpuid2, KVM_CAP_EXT_CPUID)
    KVM_GET_CPUID2 = _iowr(0x91, structs.kvm_cpuid2, KVM_CAP_EXT_CPUID)
    KVM_GET_MP_STATE = _ior(0x98, structs.kvm_mp_state, KVM_CAP_MP_STATE)
    KVM_GET_TSC_KHZ = _io(0xA3, KVM_CAP_GET_TSC_KHZ)
    KVM_SET_MP_STATE = _iow(0x99, structs.kvm_mp_state, KVM_CAP_MP_STATE)
    KVM_NMI = _io(0x9A, KVM_CAP_USER_NMI)
    KVM_SET_GUEST_DEBUG = _iow(0x9B, structs.kvm_guest_debug, KVM_CAP_SET_GUEST_DEBUG)
    KVM_GET_VCPU_EVENTS = _ior(0x9F, structs.kvm_vcpu_events, KVM_CAP_VCPU_EVENTS)
    KVM_SET_VCPU_EVENTS = _iow(0xA0, structs.kvm_vcpu_events, KVM_CAP_VCPU_EVENTS)
    KVM_GET_DEBUGREGS = _ior(0xA1, structs.kvm_debugregs, KVM_CAP_DEBUGREGS)
    KVM_SET_DEBUGREGS = _iow(0xA2, structs.kvm_debugregs, KVM_CAP_DEBUGREGS)
    KVM_ENABLE_CAP = _iow(0xA3, structs.kvm_enable_cap, KVM_CAP_ENABLE_CAP)
    KVM_GET_XSAVE = _ior(0xA4, structs.kvm_xsave, KVM_CAP_XSAVE)
    KVM_SET_XSAVE = _iow(0xA5, structs.kvm_xsave, KVM_CAP_XSAVE)
    KVM_GET_XCRS = _ior(0xA6, structs.kvm_xcrs, KVM_CAP_XCRS)
    KVM_SET_XCRS = _iow(0xA7, structs.kvm_xcrs, KVM_CAP_XCRS)


IOCTLS: dict[str, tuple[Ioctl, ...]] = {
    section.__name__: tuple(v for v in vars(section).values() if isinstance(v, Ioctl))
    for section in (SystemIoctl, VmIoctl, VcpuIoctl)
}
"""Every request, by section."""

CAPABILITY_NAMES: dict[int, str] = {
    value: name for name, value in list(globals().items()) if name.startswith("KVM_CAP_")
}
"""Number of a capability -> its C name."""
