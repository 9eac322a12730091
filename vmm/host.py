"""What this host's KVM can do.

Found out once, by looking and by running a canary, and asked here only.
"""

from __future__ import annotations

import dataclasses
import enum
import errno
import functools
import os
import platform
import sys
from pathlib import Path

from vmm.errors import HostError
from vmm.guest.abi import Bell, Doorbell
from vmm.guest.bundled import bundled_guest
from vmm.guest.guest import Guest, Shape
from vmm.guest.image import load_image
from vmm.kick import deadline
from vmm.kvm import Kvm

DEVICE = "/dev/kvm"
API_VERSION = 12
_CANARY_SECONDS = (
    0.1  # native: well under a millisecond; emulated: the loop alone takes longer than this
)
_CANARY_EXITS = 16
_NEEDED = {
    "KVM_CAP_USER_MEMORY": 3,
    "KVM_CAP_EXT_CPUID": 7,
    "KVM_CAP_SYNC_MMU": 16,
    "KVM_CAP_IMMEDIATE_EXIT": 136,
}


class Backend(enum.Enum):
    """How the host maps guest-physical memory."""

    EPT = "ept"
    NPT = "npt"
    SHADOW = "shadow"


@dataclasses.dataclass(frozen=True, slots=True)
class Host:
    """The facts the monitor decides by.

    ring      where guests run natively: 0, or 3 where ring 0 is emulated
    doorbells by ring: the quickest way to ring that works there, None if the ring is of no use at
    all
    """

    backend: Backend
    ring: int
    doorbells: dict[int, Doorbell | None]

    def doorbell(self, ring: int) -> Doorbell:
        """Return how to ring from a ring. Raises HostError if guests cannot run there."""
        found = self.doorbells[ring]
        if found is None:
            raise HostError(
                f"guests cannot run in ring {ring} on this host (its canary did not come back)",
                f"leave --ring out, or use --ring {self.ring}",
            )
        return found


def open_kvm(device: str = DEVICE) -> Kvm:
    """Open the device and check that it is one that we can use.

    Raises HostError saying what to do.
    """
    if not sys.platform.startswith("linux"):
        raise HostError(
            f"KVM needs Linux, this is {platform.system()}",
            "run it in a Linux VM with nested virtualization",
        )
    if platform.machine() not in ("x86_64", "AMD64"):
        raise HostError(
            f"guests are x86-64, this host is {platform.machine()}", "use an x86-64 host"
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
    if error.errno == errno.ENOENT:
        return HostError(
            f"{device} does not exist",
            "switch virtualization on in the firmware (or nested virtualization in the outer VM), "
            "then load the module: modprobe kvm_intel, or kvm_amd",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return HostError(
            f"no permission to open {device}",
            "add yourself to its group (usually: sudo usermod -aG kvm $USER) and log in again",
        )
    if error.errno in (errno.ENXIO, errno.ENODEV):
        return HostError(f"{device} has no driver behind it", "load kvm_intel or kvm_amd")
    return HostError(
        f"{device} cannot be opened ({error.strerror})", "see the kernel's log for KVM's messages"
    )


def _check(kvm: Kvm, device: str) -> None:
    try:
        version = kvm.api_version()
    except OSError as error:
        raise HostError(
            f"{device} is not KVM ({error.strerror})", "see what created this file"
        ) from error
    if version != API_VERSION:
        raise HostError(
            f"{device} has KVM API version {version}, not {API_VERSION}",
            "use a kernel of this century",
        )
    missing = [name for name, number in _NEEDED.items() if kvm.check_extension(number) <= 0]
    if missing:
        raise HostError(f"this kernel's KVM lacks {', '.join(missing)}", "use Linux 4.13 or newer")


def _enabled(module: str, parameter: str) -> bool:
    try:
        return Path(f"/sys/module/{module}/parameters/{parameter}").read_text().strip() in (
            "Y",
            "1",
        )
    except OSError:
        return False


def _backend() -> Backend:
    if _enabled("kvm_intel", "ept"):
        return Backend.EPT
    return Backend.NPT if _enabled("kvm_amd", "npt") else Backend.SHADOW


@functools.lru_cache(maxsize=4)
def inspect(device: str = DEVICE) -> Host:
    """Find the facts out, once per process: a few milliseconds where all is native.

    Raises HostError.
    """
    with open_kvm(device) as kvm:
        doorbells = {ring: _doorbell(kvm, ring) for ring in (0, 3)}
    if doorbells[0] is None and doorbells[3] is None:
        raise HostError(
            "no guest comes back, neither from ring 0 nor from ring 3",
            "see the kernel's log for KVM's messages",
        )
    return Host(_backend(), 3 if doorbells[0] is None else 0, doorbells)


def _doorbell(kvm: Kvm, ring: int) -> Doorbell | None:
    for doorbell in (Doorbell.PIO, Doorbell.MMIO):
        if _canary_sings(kvm, ring, doorbell):
            return doorbell
    return None


def _canary_sings(kvm: Kvm, ring: int, doorbell: Doorbell) -> bool:
    """Run the canary.

    SSE, a loop that emulation is too slow for, and the doorbell, before a deadline.
    """
    image = load_image(bundled_guest("canary"))
    guest = Guest(kvm, image, Shape(ring, doorbell, 4 << 20, 64 << 10, 2 << 20), 1, "canary")
    try:
        with deadline(_CANARY_SECONDS):
            return _listen(guest)
    finally:
        guest.close()


def _listen(guest: Guest) -> bool:
    for _ in range(_CANARY_EXITS):
        match guest.bell(guest.vcpu.run()):
            case Bell.EXIT:
                return guest.control.exit_code == 0
            case Bell.LOG:
                continue
        return False  # a fault, or the deadline
    return False


def memory_available() -> int:
    """Return the bytes of memory that the kernel could hand out now."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
