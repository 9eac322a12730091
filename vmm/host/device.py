"""/dev/kvm: opened and checked, or an error that says what to do."""

from __future__ import annotations

import errno
import os
import platform
import sys
from typing import NamedTuple

from vmm.errors import HostError
from vmm.host.advice import Problem, cannot_open, not_kvm
from vmm.host.node import look
from vmm.host.system import read_system
from vmm.kvm import Kvm, uapi

DEVICE = "/dev/kvm"
API_VERSION = 12


class Capability(NamedTuple):
    """A KVM capability, and what pageferry wants it for."""

    name: str
    number: int
    purpose: str


NEEDED = (
    Capability("KVM_CAP_USER_MEMORY", uapi.KVM_CAP_USER_MEMORY, "memory for guests"),
    Capability("KVM_CAP_EXT_CPUID", uapi.KVM_CAP_EXT_CPUID, "telling guests what the CPU has"),
    Capability("KVM_CAP_SYNC_MMU", uapi.KVM_CAP_SYNC_MMU, "mappings that change behind a memslot"),
    Capability("KVM_CAP_IMMEDIATE_EXIT", uapi.KVM_CAP_IMMEDIATE_EXIT, "completing an access"),
    Capability("KVM_CAP_VCPU_EVENTS", uapi.KVM_CAP_VCPU_EVENTS, "finding out what a fault was"),
)
USED = (
    Capability(
        "KVM_CAP_NR_MEMSLOTS",
        uapi.KVM_CAP_NR_MEMSLOTS,
        "extents in a window at once, with the slots mover",
    ),
    Capability(
        "KVM_CAP_EXIT_HYPERCALL",
        uapi.KVM_CAP_EXIT_HYPERCALL,
        "the hypercall doorbell: bit 12 promises it, a canary proves it",
    ),
    Capability(
        "KVM_CAP_MEMORY_FAULT_INFO",
        uapi.KVM_CAP_MEMORY_FAULT_INFO,
        "addresses of faults; without it, the access is repeated to find out",
    ),
)


def open_kvm(device: str = DEVICE) -> Kvm:
    """Open the device and check that we can use it. Raises HostError saying what to do."""
    if not sys.platform.startswith("linux"):
        raise HostError(
            f"KVM needs Linux, this is {platform.system()}",
            "run it in a Linux VM with nested virtualization",
        )
    if os.uname().machine != "x86_64":
        raise HostError(
            f"guests are x86-64, this host is {os.uname().machine}", "use an x86-64 host"
        )
    try:
        kvm = Kvm.open(device)
    except OSError as error:
        raise _unavailable(device, error) from error
    try:
        _check(kvm, device)
    except BaseException:
        kvm.close()
        raise
    return kvm


def _unavailable(device: str, error: OSError) -> HostError:
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        raise error  # this process's trouble, not the host's
    return _host_error(cannot_open(look(device), read_system(), error))


def _host_error(problem: Problem) -> HostError:
    return HostError(problem.what, problem.fix)


def _check(kvm: Kvm, device: str) -> None:
    try:
        version = kvm.api_version()
    except OSError as error:
        reason = os.strerror(error.errno or errno.EIO)
        raise _host_error(not_kvm(look(device), reason)) from error
    if version != API_VERSION:
        raise HostError(
            f"{device} has KVM API version {version}, not {API_VERSION}",
            "use a kernel newer than 2.6.22",
        )
    missing = [c.name for c in NEEDED if kvm.check_extension(c.number) <= 0]
    if missing:
        raise HostError(f"this kernel's KVM lacks {', '.join(missing)}", "use Linux 4.13 or newer")
