"""What the lanes need of the host, as programs and files, and the Debian packages that have them.

`python -m vmm.nested.packages [--missing] [npt] [ept]` prints the packages' names, one per line:
all of them, or those that this host lacks.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from vmm.errors import HostError


@dataclasses.dataclass(frozen=True, slots=True)
class Need:
    """A program on PATH, or a file by its absolute path, and the package it comes in."""

    what: str
    package: str

    def met(self) -> bool:
        """Whether it is there."""
        if self.what.startswith("/"):
            return Path(self.what).exists()
        return find_program(self.what) is not None


BUSYBOX = "/bin/busybox"
ISOLINUX = "/usr/lib/ISOLINUX/isolinux.bin"
LDLINUX = "/usr/lib/syslinux/modules/bios/ldlinux.c32"
BOCHS_BIOS = "/usr/share/bochs/BIOS-bochs-latest"
BOCHS_VGA = "/usr/share/bochs/VGABIOS-lgpl-latest"

# The shared busybox needs libraries that an initramfs does not have: the package's name matters.
_COMMON = (
    Need("/usr/share/doc/busybox-static", "busybox-static"),
    Need(BUSYBOX, "busybox-static"),
    Need("dpkg", "dpkg"),
    Need("mkfs.ext4", "e2fsprogs"),
    Need("lz4", "lz4"),
)
NEEDS = {
    "npt": (
        *_COMMON,
        Need("qemu-system-x86_64", "qemu-system-x86"),
        Need("/usr/share/seabios", "seabios"),
    ),
    "ept": (
        *_COMMON,
        Need("bochs", "bochs"),
        Need("/usr/share/doc/bochs-term", "bochs-term"),
        Need(BOCHS_BIOS, "bochsbios"),
        Need(BOCHS_VGA, "vgabios"),
        Need(ISOLINUX, "isolinux"),
        Need(LDLINUX, "syslinux-common"),
        Need("genisoimage", "genisoimage"),
    ),
}
REQUIRED = {lane: sorted({need.package for need in needs}) for lane, needs in NEEDS.items()}


def find_program(name: str) -> str | None:
    """Return a program's path; those for administrators count, also where PATH lacks them."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def missing(lane: str) -> list[str]:
    """Return the packages that a lane needs and this host lacks."""
    return sorted({need.package for need in NEEDS[lane] if not need.met()})


def check(lane: str) -> None:
    """Raise HostError, with the command that helps, if this host cannot build or run a lane."""
    if find_program("apt-get") is None:
        raise HostError(
            f"the lane {lane} is made of Debian's packages, and this host has no apt-get",
            "use a Debian or Ubuntu machine, or a container of one",
        )
    if lacking := missing(lane):
        raise HostError(
            f"the lane {lane} needs packages that are not installed ({', '.join(lacking)})",
            f"sudo apt-get install --no-install-recommends {' '.join(lacking)}",
        )


def main(words: Iterable[str]) -> None:
    """Print the packages that the lanes need, or lack; all lanes, if none is named."""
    names = [word for word in words if word != "--missing"]
    if unknown := [name for name in names if name not in REQUIRED]:
        sys.exit(f"no such lane: {unknown[0]}: there are {', '.join(REQUIRED)}")
    listed = missing if len(names) < len(list(words)) else REQUIRED.__getitem__
    for package in sorted({package for name in names or REQUIRED for package in listed(name)}):
        print(package)


if __name__ == "__main__":
    main(sys.argv[1:])
