"""One VM: its memory slots, its interrupt hardware, its vCPUs."""

import ctypes
from typing import Self

from .descriptor import Descriptor
from .structs import (
    kvm_clock_data,
    kvm_dirty_log,
    kvm_enable_cap,
    kvm_ioeventfd,
    kvm_irq_level,
    kvm_irqfd,
    kvm_pit_config,
    kvm_userspace_memory_region,
)
from .uapi import (
    KVM_IOEVENTFD_FLAG_DATAMATCH,
    KVM_IOEVENTFD_FLAG_DEASSIGN,
    KVM_IOEVENTFD_FLAG_PIO,
    KVM_IRQFD_FLAG_DEASSIGN,
    KVM_IRQFD_FLAG_RESAMPLE,
    VmIoctl,
)
from .vcpu import Vcpu


class Vm(Descriptor):
    """A virtual machine, made by ``Kvm.create_vm``.

    Thread-safe: the kernel serializes the requests. Must be used by the process that created it.
    The kernel frees the VM when it and all its vCPUs are closed, in any order.
    """

    kind = "vm"

    def __init__(self, fd: int = -1, vcpu_mmap_size: int = 0) -> None:
        super().__init__(fd)
        self._vcpu_mmap_size = vcpu_mmap_size
        self._slot_bytes: dict[int, int] = {}  # for get_dirty_log's bounds check

    def __enter__(self) -> Self:
        self.fileno()
        return self

    def check_extension(self, capability: int) -> int:
        """Return what this VM has of a KVM_CAP_*: 0 if nothing."""
        return self._ioctl(VmIoctl.KVM_CHECK_EXTENSION, capability)

    def enable_cap(self, capability: int, *args: int, flags: int = 0) -> None:
        """Turn on a capability, with up to four arguments.

        Raises OSError: EINVAL if this VM cannot turn it on.
        """
        request = kvm_enable_cap(cap=capability, flags=flags)
        for position, value in enumerate(args):
            request.args[position] = value
        self._ioctl(VmIoctl.KVM_ENABLE_CAP, ctypes.byref(request))

    def create_vcpu(self, vcpu_id: int = 0) -> Vcpu:
        """Create a vCPU in its reset state. Raises OSError: EEXIST."""
        vcpu = Vcpu()
        self._create(vcpu, VmIoctl.KVM_CREATE_VCPU, vcpu_id)
        try:
            vcpu.map_page(self._vcpu_mmap_size)
        except BaseException:
            vcpu.close()
            raise
        return vcpu

    def set_user_memory_region(
        self, slot: int, guest_phys_addr: int, memory_size: int, userspace_addr: int, flags: int = 0
    ) -> None:
        """Put host memory behind a guest-physical range, or with ``memory_size`` 0 take it away.

        Addresses and size are in bytes and page-aligned; ``flags`` are KVM_MEM_*. The host range
        must stay mapped for as long as the slot lives. Raises OSError: EEXIST if the range
        overlaps another slot, EINVAL.
        """
        region = kvm_userspace_memory_region(
            slot, flags, guest_phys_addr, memory_size, userspace_addr
        )
        self._ioctl(VmIoctl.KVM_SET_USER_MEMORY_REGION, ctypes.byref(region))
        self._slot_bytes[slot] = memory_size

    def get_dirty_log(self, slot: int, pages: int) -> bytes:
        """Return and clear the bitmap of pages written in ``slot``; bit 0 of byte 0 is page 0.

        ``pages`` is the slot's size in 4 KiB pages; less than that is a ValueError. The result
        is a multiple of 8 bytes. Some hosts report more pages than were written. Raises OSError:
        ENOENT if the slot has no KVM_MEM_LOG_DIRTY_PAGES.
        """
        # The kernel writes as many bits as the slot has pages, whatever the buffer's size.
        if pages * 4096 < self._slot_bytes.get(slot, 0):
            raise ValueError(f"slot {slot} has more than {pages} pages")
        bitmap = (ctypes.c_uint64 * ((pages + 63) // 64))()
        request = kvm_dirty_log(slot=slot, dirty_bitmap=ctypes.addressof(bitmap))
        self._ioctl(VmIoctl.KVM_GET_DIRTY_LOG, ctypes.byref(request))
        return bytes(bitmap)

    def set_tss_addr(self, guest_phys_addr: int) -> None:
        """Give VMX without unrestricted guests three pages for real mode."""
        self._ioctl(VmIoctl.KVM_SET_TSS_ADDR, guest_phys_addr)

    def set_identity_map_addr(self, guest_phys_addr: int) -> None:
        """Give VMX without unrestricted guests a page table page.

        Before the first vCPU only: EINVAL afterwards.
        """
        address = ctypes.c_uint64(guest_phys_addr)
        self._ioctl(VmIoctl.KVM_SET_IDENTITY_MAP_ADDR, ctypes.byref(address))

    def create_irqchip(self) -> None:
        """Put PICs, IOAPIC and local APICs in the kernel. Before the first vCPU.

        With them, HLT waits inside KVM_RUN instead of leaving it.
        """
        self._ioctl(VmIoctl.KVM_CREATE_IRQCHIP)

    def create_pit2(self, flags: int = 0) -> None:
        """Put a timer in the kernel, next to its interrupt chips."""
        self._ioctl(VmIoctl.KVM_CREATE_PIT2, ctypes.byref(kvm_pit_config(flags=flags)))

    def irq_line(self, irq: int, level: bool) -> None:
        """Set an interrupt line of the in-kernel chips."""
        self._ioctl(VmIoctl.KVM_IRQ_LINE, ctypes.byref(kvm_irq_level(irq, int(level))))

    def ioeventfd(
        self,
        fd: int,
        address: int,
        length: int = 0,
        *,
        datamatch: int | None = None,
        pio: bool = False,
        deassign: bool = False,
    ) -> None:
        """Turn guest writes to an address into signals on the eventfd ``fd``, without an exit.

        ``length`` is the width of the access in bytes, 0 for any; with ``datamatch`` only that
        value counts. ``deassign`` undoes a call with the same arguments.
        """
        request = kvm_ioeventfd(datamatch=datamatch or 0, addr=address, len=length, fd=fd)
        request.flags = (
            (KVM_IOEVENTFD_FLAG_DATAMATCH if datamatch is not None else 0)
            | (KVM_IOEVENTFD_FLAG_PIO if pio else 0)
            | (KVM_IOEVENTFD_FLAG_DEASSIGN if deassign else 0)
        )
        self._ioctl(VmIoctl.KVM_IOEVENTFD, ctypes.byref(request))

    def irqfd(
        self, fd: int, gsi: int, *, resample_fd: int | None = None, deassign: bool = False
    ) -> None:
        """Let the eventfd ``fd`` raise interrupt ``gsi``. Needs the in-kernel chips.

        With ``resample_fd`` the interrupt is level-triggered.
        """
        request = kvm_irqfd(fd=fd, gsi=gsi, resamplefd=resample_fd or 0)
        request.flags = (KVM_IRQFD_FLAG_RESAMPLE if resample_fd is not None else 0) | (
            KVM_IRQFD_FLAG_DEASSIGN if deassign else 0
        )
        self._ioctl(VmIoctl.KVM_IRQFD, ctypes.byref(request))

    def get_clock(self) -> int:
        """Return the guest's paravirtual clock in nanoseconds."""
        clock = kvm_clock_data()
        self._ioctl(VmIoctl.KVM_GET_CLOCK, ctypes.byref(clock))
        return clock.clock

    def set_clock(self, nanoseconds: int) -> None:
        """Set the guest's paravirtual clock."""
        self._ioctl(VmIoctl.KVM_SET_CLOCK, ctypes.byref(kvm_clock_data(clock=nanoseconds)))
