"""The facts the monitor decides by, found once per process."""

from __future__ import annotations

import dataclasses
import enum
import functools
import os
from pathlib import Path

from vmm.errors import HostError
from vmm.guest.abi import Doorbell
from vmm.host.canary import Song, sing
from vmm.host.device import DEVICE, open_kvm
from vmm.kvm import Kvm, uapi

DEFAULT_MOVER = "memfd"


# From the one we like least: a store is emulated, a hypercall carries an operation in registers.
_ORDER = (Doorbell.MMIO, Doorbell.PIO)
DOORBELLS = ("hypercall", "pio", "mmio")


def doorbell_name(doorbell: Doorbell) -> str:
    """Return a doorbell's name: "hypercall" for either vendor's instruction, "pio" or "mmio"."""
    return doorbell.name.lower() if doorbell in (Doorbell.PIO, Doorbell.MMIO) else "hypercall"


class Backend(enum.Enum):
    """How the host maps guest-physical memory."""

    EPT = "ept"
    NPT = "npt"
    SHADOW = "shadow"


@dataclasses.dataclass(frozen=True, slots=True)
class Host:
    """What was found.

    ring      where guests run natively, and by default: 0, or 3 where ring 0 is emulated
    songs     by ring and doorbell: what became of the canary
    """

    backend: Backend
    ring: int
    songs: dict[tuple[int, Doorbell], Song]

    @property
    def mover(self) -> str:
        """The mover to use: the one that needs the fewest system calls for a message."""
        return DEFAULT_MOVER

    def doorbells(self, ring: int) -> list[Doorbell]:
        """Return the doorbells that work in a ring, the one to use first."""
        return [
            bell for (where, bell), song in self.songs.items() if where == ring and song.exit_us
        ]

    def native(self, ring: int) -> bool:
        """Return whether guests run natively in a ring, not instruction by instruction."""
        return any(song.native for (where, _), song in self.songs.items() if where == ring)

    def doorbell(self, ring: int) -> Doorbell:
        """Return the doorbell to use in a ring. Raises HostError if guests cannot run there."""
        found = self.doorbells(ring)
        if not found:
            why = next(song.why for (where, _), song in self.songs.items() if where == ring)
            raise HostError(
                f"guests cannot run in ring {ring} on this host (the canary: {why})",
                f"leave --ring out, or use --ring {self.ring}",
            )
        return found[0]


def enabled(module: str, parameter: str) -> bool:
    """Return whether a kernel module has a boolean parameter switched on."""
    try:
        text = Path(f"/sys/module/{module}/parameters/{parameter}").read_text().strip()
    except OSError:
        return False
    return text in ("Y", "1")


def backend() -> Backend:
    """Return what the loaded KVM module maps guests with."""
    if enabled("kvm_intel", "ept"):
        return Backend.EPT
    return Backend.NPT if enabled("kvm_amd", "npt") else Backend.SHADOW


@functools.lru_cache(maxsize=4)
def inspect(device: str = DEVICE) -> Host:
    """Find the facts out, once per process: tens of milliseconds. Raises HostError."""
    with open_kvm(device) as kvm:
        songs = {(ring, bell): sing(kvm, ring, bell) for ring in (3, 0) for bell in _ORDER}
        best = _hypercall(kvm)
        if best is not None:
            songs[0, best] = _sing_by_hypercall(kvm, best, songs)
    host = Host(backend(), 0, dict(reversed(songs.items())))  # the best doorbell first
    for ring in (0, 3):
        if host.native(ring):
            return dataclasses.replace(host, ring=ring)
    raise HostError(
        "no guest comes back, neither from ring 0 nor from ring 3", "see the kernel's log (dmesg)"
    )


def _sing_by_hypercall(
    kvm: Kvm, doorbell: Doorbell, songs: dict[tuple[int, Doorbell], Song]
) -> Song:
    """Let a canary sing by hypercall, in ring 0, if that is native.

    Where it is emulated, a hypercall may be executed again for ever, and the canary would only cost
    its deadlines.
    """
    if not any(song.native for (ring, _), song in songs.items() if ring == 0):
        return Song(None, False, "not tried: ring 0 is emulated")
    return sing(kvm, 0, doorbell)


def _hypercall(kvm: Kvm) -> Doorbell | None:
    """Return the hypercall instruction of this CPU, if the kernel hands hypercalls on at all."""
    if not kvm.check_extension(uapi.KVM_CAP_EXIT_HYPERCALL) >> uapi.KVM_HC_MAP_GPA_RANGE & 1:
        return None
    leaf = next(entry for entry in kvm.supported_cpuid() if entry.function == 0)
    vendor = b"".join(word.to_bytes(4, "little") for word in (leaf.ebx, leaf.edx, leaf.ecx))
    amd = vendor in (b"AuthenticAMD", b"HygonGenuine")
    return Doorbell.VMMCALL if amd else Doorbell.VMCALL


def total_memory() -> int:
    """Return the bytes of memory that this host has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def memory_available() -> int:
    """Return the bytes of memory that the kernel could hand out now."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return total_memory()
