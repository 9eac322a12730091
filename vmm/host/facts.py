"""The facts the monitor decides by, found once per process."""

from __future__ import annotations

import dataclasses
import functools

from vmm.guest.abi import Doorbell
from vmm.host import choice, copying
from vmm.host.canary import Song, sing
from vmm.host.choice import Choice
from vmm.host.device import DEVICE, open_kvm
from vmm.host.hugepages import HugePages, huge_pages
from vmm.host.module import Backend, backend, read_parameters
from vmm.host.system import kernel_version, read_system, read_text
from vmm.kvm import Kvm, uapi

_FORMER_MEMSLOTS = 32  # as many as there were before KVM could say how many there are
_DEFAULT_MAPPINGS = 65530  # where /proc/sys is not mounted
_NONE = HugePages(anonymous=False, memfd=False)
_TRIED = (Doorbell.PIO, Doorbell.MMIO)


@dataclasses.dataclass(frozen=True, slots=True)
class Host:
    """What was found.

    ring      where guests run natively, and by default: 0, or 3 where ring 0 is emulated
    songs     by ring and doorbell: what became of the canary
    memslots  how many a VM may have
    kernel    its version and patch level: (6, 8)
    pages     which memory gets huge pages
    strict    whether the kernel counts address space as memory
    """

    backend: Backend
    ring: int
    songs: dict[tuple[int, Doorbell], Song]
    memslots: int = 32
    kernel: tuple[int, int] = (0, 0)
    pages: HugePages = _NONE
    strict: bool = False

    @property
    def mover(self) -> str:
        """The mover to use."""
        return self._mover.value

    @property
    def _mover(self) -> Choice[str]:
        return choice.mover(self.memslots, self.pages, strict=self.strict)

    def native(self, ring: int) -> bool:
        """Return whether guests run natively in a ring, not instruction by instruction."""
        return choice.native(self.songs, ring)

    def doorbells(self, ring: int) -> list[Doorbell]:
        """Return the doorbells that work in a ring, the one to use first."""
        return choice.doorbells(self.songs, ring)

    def doorbell(self, ring: int, name: str | None = None) -> Doorbell:
        """Return the doorbell to use in a ring, or there by that name.

        Raises HostError if guests cannot run there, or not with that doorbell.
        """
        if name is None:
            return choice.doorbell(self.songs, ring).value
        return choice.named_doorbell(self.songs, ring, name)

    @property
    def copy_below(self) -> int:
        """Of how many bytes an exchange is moved, smaller ones being copied.

        Measured when it is first asked for on a host: 30 ms at most.
        """
        return choice.copy_below(copying.costs()).value

    def why(self) -> dict[str, str]:
        """Return the reasons for the "ring", the "doorbell", the "mover" and "copy_below"."""
        choices: dict[str, Choice[int] | Choice[Doorbell] | Choice[str]] = {
            "ring": choice.ring(self.songs),
            "doorbell": choice.doorbell(self.songs, self.ring),
            "mover": self._mover,
            "copy_below": choice.copy_below(copying.costs()),
        }
        return {name: chosen.why for name, chosen in choices.items()}


def inspect(device: str = DEVICE) -> Host:
    """Find the facts out, once per process: tens of milliseconds. Raises HostError."""
    return _inspected(device)


@functools.lru_cache(maxsize=4)
def _inspected(device: str) -> Host:
    system = read_system()
    with open_kvm(device) as kvm:
        songs = {(ring, bell): sing(kvm, ring, bell) for ring in (0, 3) for bell in _TRIED}
        best = _hypercall(kvm)
        if best is not None:
            songs = {(0, best): _sing_by_hypercall(kvm, best, songs), **songs}
        memslots = kvm.check_extension(uapi.KVM_CAP_NR_MEMSLOTS) or _FORMER_MEMSLOTS
    return Host(
        backend=backend(system.module, read_parameters(system)),
        ring=choice.ring(songs).value,
        songs=songs,
        memslots=memslots,
        kernel=kernel_version(system.release),
        pages=huge_pages(),
        strict=(read_text("/proc/sys/vm/overcommit_memory") or "").strip() == "2",
    )


def _sing_by_hypercall(
    kvm: Kvm, doorbell: Doorbell, songs: dict[tuple[int, Doorbell], Song]
) -> Song:
    """Let a canary sing by hypercall, in ring 0, if that is native.

    Where it is emulated, a hypercall may be executed again for ever, and the canary would only cost
    its deadlines.
    """
    if not choice.native(songs, 0):
        return Song(None, False, choice.NOT_TRIED)
    return sing(kvm, 0, doorbell)


def _hypercall(kvm: Kvm) -> Doorbell | None:
    """Return the hypercall instruction of this CPU, if the kernel hands hypercalls on at all."""
    if not kvm.check_extension(uapi.KVM_CAP_EXIT_HYPERCALL) >> uapi.KVM_HC_MAP_GPA_RANGE & 1:
        return None
    leaf = next(entry for entry in kvm.supported_cpuid() if entry.function == 0)
    vendor = b"".join(word.to_bytes(4, "little") for word in (leaf.ebx, leaf.edx, leaf.ecx))
    amd = vendor in (b"AuthenticAMD", b"HygonGenuine")
    return Doorbell.VMMCALL if amd else Doorbell.VMCALL


def mapping_limit() -> int:
    """Return how many mappings this process may have (sysctl vm.max_map_count)."""
    return int(read_text("/proc/sys/vm/max_map_count") or _DEFAULT_MAPPINGS)
