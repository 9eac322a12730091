"""What the kernel says of itself and of its CPU: readable by everybody, with or without a /dev/kvm.

`read_system` is the only function here that looks at the host; all others take text.
"""

from __future__ import annotations

import dataclasses
import os
import pwd
import re
from pathlib import Path

_AMD = ("AuthenticAMD", "HygonGenuine")


@dataclasses.dataclass(frozen=True, slots=True)
class System:
    """The kernel, its CPU and its KVM modules.

    release   the kernel's, as uname(2) has it
    vendor    the CPU's, "GenuineIntel" and the like; None if /proc/cpuinfo does not say
    flags     the CPU's, as the kernel shows them: vmx and svm only where it could use them
    maker     who made the machine, by its firmware: a hypervisor's name in a VM; None if unknown
    modules   the loaded or built-in modules whose names begin with kvm
    driver    whether KVM has registered its device; None if the kernel does not say
    user      the name of the user who runs this
    """

    release: str
    vendor: str | None = None
    flags: frozenset[str] = frozenset()
    maker: str | None = None
    modules: frozenset[str] = frozenset()
    driver: bool | None = None
    user: str = "$USER"

    @property
    def version(self) -> tuple[int, int]:
        """The kernel's version and patch level: (6, 8)."""
        return kernel_version(self.release)

    @property
    def virtualization(self) -> str | None:
        """The CPU's own support for virtual machines: "vmx" (Intel), "svm" (AMD), or None."""
        return next((flag for flag in ("vmx", "svm") if flag in self.flags), None)

    @property
    def in_a_vm(self) -> bool:
        """Whether this host is itself a VM: its CPU says so (CPUID leaf 1, ECX bit 31)."""
        return "hypervisor" in self.flags

    @property
    def vendor_module(self) -> str:
        """The module that drives this CPU's virtualization, loaded or not."""
        return "kvm_amd" if self.vendor in _AMD or "svm" in self.flags else "kvm_intel"

    @property
    def module(self) -> str | None:
        """The module that KVM runs guests with here, or None if there is none.

        One that is built in is there without its CPU too, so this CPU's own is preferred.
        """
        candidates = sorted(name for name in self.modules if name.startswith("kvm_"))
        if self.vendor_module in candidates and (self.virtualization or len(candidates) == 1):
            return self.vendor_module
        foreign = [name for name in candidates if name not in ("kvm_intel", "kvm_amd")]
        return next(iter(foreign or candidates), None)


def kernel_version(release: str) -> tuple[int, int]:
    """Return the version and patch level in a release's name; (0, 0) if it has none."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def parse_cpuinfo(text: str) -> tuple[str | None, frozenset[str]]:
    """Return the vendor and the flags of the first CPU in /proc/cpuinfo."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return fields.get("vendor_id"), frozenset(fields.get("flags", "").split())


def parse_misc(text: str | None) -> bool | None:
    """Return whether /proc/misc lists KVM's device; None if there was nothing to read."""
    return None if text is None else any(line.split()[1:] == ["kvm"] for line in text.splitlines())


def read_system() -> System:
    """Look at the host. What cannot be read is as if it were not there."""
    vendor, flags = parse_cpuinfo(read_text("/proc/cpuinfo") or "")
    return System(
        release=os.uname().release,
        vendor=vendor,
        flags=flags,
        maker=read_text("/sys/class/dmi/id/sys_vendor"),
        modules=frozenset(_modules()),
        driver=parse_misc(read_text("/proc/misc")),
        user=_user(),
    )


def read_text(path: str | Path) -> str | None:
    """Return a small file's text without white space around it, or None if it cannot be read."""
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return None


def _modules() -> list[str]:
    try:
        return [name for name in os.listdir("/sys/module") if name.startswith("kvm")]  # noqa: PTH208
    except OSError:
        return []


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"#{os.geteuid()}"
