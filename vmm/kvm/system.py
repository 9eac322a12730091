"""/dev/kvm itself: what the host's KVM can do, and new VMs."""

import ctypes
import errno
import os
from typing import Self

from . import cpuid
from .cpuid import CpuidEntry
from .descriptor import Descriptor
from .structs import flexible, kvm_msr_list
from .uapi import Ioctl, SystemIoctl
from .vm import Vm

_FIRST_CPUID_ENTRIES = 128
_MAX_CPUID_ENTRIES = 4096  # sixteen times the kernel's own limit: ends the search for a size


class Kvm(Descriptor):
    """The host's KVM. Thread-safe. Closing it leaves the VMs it created usable."""

    kind = "kvm"

    _mmap_size = 0  # of a vCPU, once it has been asked for

    @classmethod
    def open(cls, path: str | os.PathLike[str] = "/dev/kvm") -> Self:
        """Open ``path`` for reading and writing. Raises OSError: no such file, no permission.

        Nothing is asked of it yet: check ``api_version()`` before anything else.
        """
        kvm = cls()
        kvm._take(os.open, path, os.O_RDWR | os.O_CLOEXEC)
        return kvm

    def __enter__(self) -> Self:
        self.fileno()
        return self

    def api_version(self) -> int:
        """Return the interface's version. A program should refuse any but KVM_API_VERSION, 12.

        Raises OSError: ENOTTY if this is no KVM.
        """
        return self._ioctl(SystemIoctl.KVM_GET_API_VERSION)

    def check_extension(self, capability: int) -> int:
        """Return what the host says about a KVM_CAP_*: 0 if unknown."""
        return self._ioctl(SystemIoctl.KVM_CHECK_EXTENSION, capability)

    def vcpu_mmap_size(self) -> int:
        """Return the bytes a vCPU shares with its monitor."""
        return self._ioctl(SystemIoctl.KVM_GET_VCPU_MMAP_SIZE)

    def supported_cpuid(self) -> list[CpuidEntry]:
        """Return the CPUID leaves that host and KVM both support."""
        count = _FIRST_CPUID_ENTRIES
        while True:
            table = cpuid.empty(count)
            try:
                self._ioctl(SystemIoctl.KVM_GET_SUPPORTED_CPUID, ctypes.byref(table))
                return cpuid.unpack(table)
            except OSError as error:
                if error.errno != errno.E2BIG or count >= _MAX_CPUID_ENTRIES:
                    raise
            count *= 2

    def msr_index_list(self) -> list[int]:
        """Return the numbers of the MSRs a guest has."""
        return self._msr_list(SystemIoctl.KVM_GET_MSR_INDEX_LIST)

    def msr_feature_index_list(self) -> list[int]:
        """Return the numbers of the MSRs that describe features."""
        return self._msr_list(SystemIoctl.KVM_GET_MSR_FEATURE_INDEX_LIST)

    def _msr_list(self, request: Ioctl) -> list[int]:
        count = 0
        while True:
            table = flexible(kvm_msr_list, count)(nmsrs=count)
            try:
                self._ioctl(request, ctypes.byref(table))
                return list(table.indices[: table.nmsrs])
            except OSError as error:
                # The kernel writes the size it wants next to E2BIG.
                if error.errno != errno.E2BIG or table.nmsrs <= count:
                    raise
            count = table.nmsrs

    def create_vm(self, type: int = 0) -> Vm:
        """Create a VM with no memory and no vCPU. Raises OSError.

        ``type`` is the machine type, 0 for an ordinary one.
        """
        if not self._mmap_size:
            self._mmap_size = self.vcpu_mmap_size()
        vm = Vm(vcpu_mmap_size=self._mmap_size)
        self._create(vm, SystemIoctl.KVM_CREATE_VM, type)
        return vm
