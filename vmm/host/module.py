"""KVM's modules, and what they say of themselves: which back end it is, and how it is set."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from pathlib import Path

from vmm.host.system import System, read_text

# Those that tell how guests run, of KVM's and of its vendors' modules, as far as there are any.
_TELLING = {
    "kvm": ("tdp_mmu", "nx_huge_pages"),
    "kvm_intel": ("ept", "vpid", "unrestricted_guest", "nested"),
    "kvm_amd": ("npt", "nrips", "avic", "nested"),
}


class Backend(enum.Enum):
    """How the host maps guest-physical memory."""

    EPT = "ept"
    NPT = "npt"
    SHADOW = "shadow"


def backend(module: str | None, parameters: Mapping[str, str | None]) -> Backend:
    """Return what a vendor module with these parameters maps guests with."""
    for name, switch, kind in (
        ("kvm_intel", "kvm_intel.ept", Backend.EPT),
        ("kvm_amd", "kvm_amd.npt", Backend.NPT),
    ):
        if module == name and parameters.get(switch) in ("Y", "1"):
            return kind
    return Backend.SHADOW


def read_parameters(system: System) -> dict[str, str | None]:
    """Return the telling parameters by "module.parameter"; None for one that is not for us."""
    return {
        f"{module}.{name}": read_text(path)
        for module in ("kvm", system.module or "kvm")
        for name in _TELLING.get(module, ())
        if (path := Path(f"/sys/module/{module}/parameters/{name}")).exists()
    }


def read_version(system: System) -> str | None:
    """Return the version that the vendor module gives itself; the kernel's own have none."""
    folder = Path(f"/sys/module/{system.module}")
    return read_text(folder / "version") or read_text(folder / "srcversion")
