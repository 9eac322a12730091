"""What some hosts do differently, with the evidence: how it shows to somebody who tries."""

from __future__ import annotations

from typing import NamedTuple


class Quirk(NamedTuple):
    """Something to know about some hosts.

    where     which hosts
    what      what they do
    evidence  how it shows
    answer    what pageferry does about it
    """

    where: str
    what: str
    evidence: str
    answer: str


QUIRKS = (
    Quirk(
        "no EPT and no NPT (shadow paging)",
        "ring 0 is emulated instruction by instruction",
        "the canary's loop takes over 100 ms, and SSE ends in KVM_EXIT_INTERNAL_ERROR",
        "guests run in ring 3, which is native there",
    ),
    Quirk(
        "no EPT and no NPT",
        "IOPL is lost: port I/O in ring 3 is a #GP",
        "the canary with the PIO doorbell stops in its #GP stub",
        "the doorbell is a store to an unbacked page",
    ),
    Quirk(
        "no EPT and no NPT",
        "vmcall and vmmcall are patched and executed again for ever",
        "KVM_CAP_EXIT_HYPERCALL reads 0x1000, and yet KVM_RUN does not come back by itself",
        "the hypercall doorbell is used only where the canary has used it",
    ),
    Quirk(
        "every host, in ring 3",
        "hypercalls are refused with -EPERM before user space sees them",
        "KVM checks the CPL in kvm_emulate_hypercall",
        "the hypercall doorbell is for ring 0",
    ),
    Quirk(
        "every host",
        "an access to memory that this process has hidden is reported in several ways",
        "EFAULT with or without KVM_EXIT_MEMORY_FAULT, an MMIO exit, or an emulation failure",
        "the access is repeated with page tables that lack the window: a page fault tells all",
    ),
    Quirk(
        "Linux before 6.8",
        "a failed KVM_RUN leaves the previous exit_reason",
        "EFAULT after an MMIO exit reads as another MMIO exit",
        "exit_reason is cleared before each run, and errno is looked at first",
    ),
    Quirk(
        "every host",
        "the instruction of an IO, MMIO or hypercall exit is completed by the next KVM_RUN",
        "registers set in between are changed by the completion",
        "registers are never set after such an exit",
    ),
    Quirk(
        "Linux 6.13 and newer",
        "every VM adds an idle task to the process",
        "kvm-nx-lpage-recovery in /proc/self/task",
        "none needed: it is the kernel's, and goes with the VM",
    ),
    Quirk(
        "stock settings (shmem_enabled=never)",
        "memfds get no huge pages",
        "ShmemPmdMapped stays 0 in /proc/self/smaps",
        "each touched page of a moved extent costs the receiver a fault",
    ),
)
