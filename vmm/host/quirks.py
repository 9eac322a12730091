"""What some hosts do differently: where, with the evidence, and what pageferry does about it.

Each quirk has a condition on what was probed; nothing is known by a host's name. `python -m
vmm.host.quirks` prints the table of docs/hosts.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from vmm.guest.abi import Doorbell
from vmm.host.choice import DOORBELLS, doorbell_name
from vmm.host.facts import Host
from vmm.host.hugepages import HugePages


class Probed(NamedTuple):
    """What a quirk's condition is about.

    fault_info    whether the kernel says which memory an EFAULT was about
    parameters    of KVM's modules, by "module.parameter"
    """

    host: Host
    huge_pages: HugePages
    fault_info: bool
    parameters: Mapping[str, str | None]

    @property
    def emulated(self) -> bool:
        """Whether ring 0 is emulated while ring 3 is native."""
        return self.host.native(3) and not self.host.native(0)

    def silent(self, ring: int, bell: Doorbell) -> bool:
        """Return whether a canary was tried with a doorbell, and it did not ring."""
        song = self.host.songs.get((ring, bell))
        return song is not None and song.exit_us is None

    def promised(self) -> bool:
        """Return whether the kernel says that it hands hypercalls to user space."""
        return any(doorbell_name(bell) == DOORBELLS[0] for _, bell in self.host.songs)


class Quirk(NamedTuple):
    """Something to know about some hosts.

    name      a word for it
    where     which hosts, for people
    what      what they do
    evidence  how it shows to somebody who tries
    answer    what pageferry does about it
    applies   the same as `where`, for what was probed
    """

    name: str
    where: str
    what: str
    evidence: str
    answer: str
    applies: Callable[[Probed], bool]

    def as_json(self) -> dict[str, str]:
        """Return what there is to read of it."""
        return {name: getattr(self, name) for name in self._fields if name != "applies"}


def _always(probed: Probed) -> bool:
    return True


def applying(probed: Probed) -> tuple[Quirk, ...]:
    """Return the quirks of a host."""
    return tuple(quirk for quirk in QUIRKS if quirk.applies(probed))


QUIRKS = (
    Quirk(
        "emulated-ring",
        "the canary is not whole in ring 0, and is in ring 3 (no EPT, no NPT, no vmx or svm)",
        "ring 0 is emulated instruction by instruction",
        "a loop's round takes hundreds of ns, and SSE ends in KVM_EXIT_INTERNAL_ERROR",
        "guests run in ring 3, which is native there",
        lambda probed: probed.emulated,
    ),
    Quirk(
        "lost-iopl",
        "the canary's port I/O in ring 3 does not ring (seen where ring 0 is emulated)",
        "IOPL is lost: port I/O in ring 3 is a #GP, unless the TSS has an I/O permission bitmap",
        "the canary with the PIO doorbell stops in its #GP stub",
        "the doorbell is a store to an unbacked page",
        lambda probed: probed.silent(3, Doorbell.PIO),
    ),
    Quirk(
        "hypercall-livelock",
        "KVM_CAP_EXIT_HYPERCALL has bit 12, and ring 0 is emulated",
        "vmcall and vmmcall in ring 0 are patched and executed again for ever",
        "KVM_RUN does not come back by itself, and rip has not moved",
        "the hypercall doorbell is used only where the canary has used it, and not tried there",
        lambda probed: probed.emulated and probed.promised(),
    ),
    Quirk(
        "ring-3-hypercall",
        "every host",
        "hypercalls from ring 3 are refused with -EPERM before user space sees them",
        "vmcall (AMD: vmmcall) leaves -1 in rax without an exit: KVM checks the CPL first",
        "the hypercall doorbell is for ring 0",
        _always,
    ),
    Quirk(
        "hidden-memory",
        "every host",
        "a guest's access to memory that its process has hidden is reported in several ways",
        "EFAULT with or without KVM_EXIT_MEMORY_FAULT, an MMIO exit, or an emulation failure",
        "the access is repeated with page tables that lack the window: a page fault tells all",
        _always,
    ),
    Quirk(
        "no-fault-address",
        "KVM_CAP_MEMORY_FAULT_INFO is 0 (Linux before 6.8)",
        "an EFAULT of KVM_RUN never says which memory it was about",
        "exit_reason is not KVM_EXIT_MEMORY_FAULT after an access to hidden memory",
        "the same repetition; the address of an access is never missing",
        lambda probed: not probed.fault_info,
    ),
    Quirk(
        "stale-exit-reason",
        "Linux before 6.8",
        "a failed KVM_RUN leaves the previous exit_reason",
        "EFAULT after an MMIO exit reads as another MMIO exit",
        "exit_reason is cleared before each run, and errno is looked at first",
        lambda probed: probed.host.kernel < (6, 8),
    ),
    Quirk(
        "pending-instruction",
        "every host",
        "the instruction of an IO, MMIO or hypercall exit is completed by the next KVM_RUN",
        "after the exit rip may still be the instruction's; one run with immediate_exit moves it",
        "registers are never set after such an exit",
        _always,
    ),
    Quirk(
        "recovery-task",
        "Linux 6.13 and newer, unless kvm.nx_huge_pages is never",
        "a VM that has run adds an idle task to the process",
        "kvm-nx-lpage-recovery in /proc/self/task",
        "none needed: it is the kernel's, and goes with the VM",
        lambda probed: (
            probed.host.kernel >= (6, 13) and probed.parameters.get("kvm.nx_huge_pages") != "never"
        ),
    ),
    Quirk(
        "small-memfd",
        "a memfd was mapped, advised and touched, and got no huge page (shmem_enabled=never)",
        "memfds get no huge pages",
        "ShmemPmdMapped stays 0 in /proc/self/smaps",
        "large extents are anonymous memory (the remap mover) until they are shared",
        lambda probed: not probed.huge_pages.memfd,
    ),
)


def table() -> str:
    """Return the quirks as a table in Markdown."""
    rows = [
        "| quirk | where | what | how it shows | what pageferry does |",
        "|---|---|---|---|---|",
    ]
    for quirk in QUIRKS:
        cells = (f"`{quirk.name}`", quirk.where, quirk.what, quirk.evidence, quirk.answer)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
