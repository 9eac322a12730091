"""CPUID leaves as values, and their way in and out of the kernel's list."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from .structs import flexible, kvm_cpuid2

_UNTOUCHED = 0xFFFFFFFF  # as flags: there are not that many


@dataclass(frozen=True, slots=True)
class CpuidEntry:
    """What CPUID answers for one leaf (``function``) and, where it counts, subleaf (``index``).

    ``flags`` has KVM_CPUID_FLAG_SIGNIFCANT_INDEX where the subleaf counts.
    """

    function: int
    index: int
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int


@dataclass(frozen=True, slots=True)
class CpuidTable:
    """Entries in the kernel's own form: made once, they can be set in any number of vCPUs."""

    structure: Any  # a kvm_cpuid2, with its entries; never changed

    @classmethod
    def of(cls, entries: Sequence[CpuidEntry]) -> Self:
        """Return a table of ``entries``."""
        return cls(pack(entries))


def pack(entries: Sequence[CpuidEntry]) -> Any:
    """Return a kvm_cpuid2 that holds ``entries``."""
    table = flexible(kvm_cpuid2, len(entries))(nent=len(entries))
    for slot, entry in zip(table.entries, entries, strict=True):
        slot.function, slot.index, slot.flags = entry.function, entry.index, entry.flags
        slot.eax, slot.ebx, slot.ecx, slot.edx = entry.eax, entry.ebx, entry.ecx, entry.edx
    return table


def unpack(table: Any) -> list[CpuidEntry]:
    """Return the entries that the kernel filled in."""
    return [
        CpuidEntry(e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx)
        for e in itertools.takewhile(_filled, table.entries[: table.nent])
    ]


def empty(count: int) -> Any:
    """Return a kvm_cpuid2 with room for ``count`` entries.

    Before Linux 6.3 KVM_GET_CPUID2 does not say how many it has filled in: each is marked, with
    flags that the kernel never gives.
    """
    table = flexible(kvm_cpuid2, count)(nent=count)
    for entry in table.entries:
        entry.flags = _UNTOUCHED
    return table


def _filled(entry: Any) -> bool:
    return bool(entry.flags != _UNTOUCHED)
