"""The doctor: names the host, says what will be used and why, and for every problem what to do.

It looks, measures and runs canaries, and changes nothing; it never needs root.
"""

from __future__ import annotations

import dataclasses
import os
import platform
from pathlib import Path
from typing import Any

from vmm.errors import HostError
from vmm.guest.abi import Doorbell
from vmm.host import DEVICE, Host, inspect, open_kvm
from vmm.host.device import NEEDED, USED
from vmm.host.facts import DOORBELLS, doorbell_name
from vmm.host.hugepages import HugePages, huge_pages
from vmm.host.quirks import QUIRKS, Quirk
from vmm.kvm import uapi


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """Something that keeps the host from its best, or from working, and what to do about it."""

    what: str
    fix: str


@dataclasses.dataclass(frozen=True, slots=True)
class Examination:
    """What the doctor found. `verdict` is "ok", "degraded" or "unusable".

    host          the facts the monitor decides by; None if KVM cannot be used
    capabilities  by name: what the kernel says, and what it is for
    """

    verdict: str
    device: str
    kernel: str
    module: str | None
    nested: bool
    api_version: int | None
    memslots: int | None
    capabilities: dict[str, tuple[int, str]]
    host: Host | None
    huge_pages: HugePages
    quirks: tuple[Quirk, ...]
    problems: tuple[Problem, ...]

    @property
    def ring0(self) -> str:
        """What ring 0 is here: "native", "emulated", or "absent" if no guest runs at all."""
        if self.host is None:
            return "absent"
        return "native" if self.host.ring == 0 else "emulated"

    def doorbells(self) -> dict[str, bool]:
        """Return which doorbells a canary could use, in the ring that will be used."""
        host = self.host
        working = {doorbell_name(bell) for bell in host.doorbells(host.ring)} if host else set()
        return {name: name in working for name in DOORBELLS}

    def exit_us(self) -> dict[str, float]:
        """Return the microseconds of an exit and re-entry, by "ring 3 mmio" and the like."""
        songs = self.host.songs if self.host else {}
        return {
            f"ring {ring} {doorbell_name(bell)}": song.exit_us
            for (ring, bell), song in songs.items()
            if song.exit_us is not None
        }

    def as_json(self) -> dict[str, Any]:
        """Return the object that `pageferry doctor --json` prints."""
        host = self.host
        return {
            "verdict": self.verdict,
            "device": self.device,
            "kernel": self.kernel,
            "module": self.module,
            "backend": host.backend.value if host else None,
            "nested": self.nested,
            "api_version": self.api_version,
            "ring0": self.ring0,
            "doorbells": self.doorbells(),
            "exit_us": self.exit_us(),
            "huge_pages": self.huge_pages._asdict(),
            "memslots": self.memslots,
            "capabilities": {name: value for name, (value, _) in self.capabilities.items()},
            "mover": host.mover if host else None,
            "ring": host.ring if host else None,
            "doorbell": doorbell_name(host.doorbell(host.ring)) if host else None,
            "quirks": [quirk._asdict() for quirk in self.quirks],
            "problems": [dataclasses.asdict(problem) for problem in self.problems],
        }


def examine(device: str = DEVICE) -> Examination:
    """Examine the host. Raises nothing that the host is to blame for: that is what is reported."""
    pages = huge_pages()
    problems: list[Problem] = []
    host: Host | None = None
    version = memslots = None
    capabilities: dict[str, tuple[int, str]] = {}
    try:
        with open_kvm(device) as kvm:
            version = kvm.api_version()
            memslots = kvm.check_extension(uapi.KVM_CAP_NR_MEMSLOTS)
            for known in (*NEEDED, *USED):
                capabilities[known.name] = (kvm.check_extension(known.number), known.purpose)
        host = inspect(device)
    except HostError as error:
        problems.append(Problem(error.what, error.fix))
    except OSError as error:
        problems.append(Problem(str(error), "see the kernel's log (dmesg)"))
    if host is not None:
        problems += _shortcomings(host, pages)
    verdict = "unusable" if host is None else "degraded" if problems else "ok"
    return Examination(
        verdict=verdict,
        device=device,
        kernel=f"{platform.system()} {platform.release()} {platform.machine()}",
        module=_module(),
        nested=_in_a_vm(),
        api_version=version,
        memslots=memslots,
        capabilities=capabilities,
        host=host,
        huge_pages=pages,
        quirks=tuple(quirk for quirk in QUIRKS if host is not None and _applies(quirk, host)),
        problems=tuple(problems),
    )


def _shortcomings(host: Host, pages: HugePages) -> list[Problem]:
    """Return what works, but could work better."""
    found = []
    if host.ring != 0:
        found.append(
            Problem(
                "ring 0 is emulated: guests run in ring 3, and doorbells cost more",
                "use a host with EPT or NPT; in a VM, let the outer hypervisor pass nested "
                "virtualization on (kvm_intel nested=1, kvm_amd nested=1, CPU model host)",
            )
        )
    elif Doorbell.VMCALL not in host.doorbells(0) and Doorbell.VMMCALL not in host.doorbells(0):
        found.append(
            Problem("hypercalls do not reach user space", "use Linux 5.13 or newer (6.12 best)")
        )
    if not pages.anonymous:
        found.append(
            Problem(
                "anonymous memory gets no huge pages",
                "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
            )
        )
    if not pages.memfd:
        found.append(
            Problem(
                "memfds get no huge pages: each page that a receiver touches is a fault",
                "echo advise | sudo tee /sys/kernel/mm/transparent_hugepage/shmem_enabled",
            )
        )
    return found


def _applies(quirk: Quirk, host: Host) -> bool:
    return host.ring != 0 or "no EPT and no NPT" not in quirk.where


def _module() -> str | None:
    """Return the vendor module behind KVM, if one is loaded as a module."""
    names = (entry.name for entry in Path("/sys/module").iterdir()) if _sysfs() else iter(())
    return next((name for name in sorted(names) if name.startswith("kvm_")), None)


def _sysfs() -> bool:
    return os.access("/sys/module", os.R_OK)


def _in_a_vm() -> bool:
    """Return whether this host is itself a VM: its CPU says so (CPUID leaf 1, ECX bit 31)."""
    try:
        return " hypervisor" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
