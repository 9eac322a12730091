"""Structures that are followed by as many elements as they say: CPUID leaves, MSRs, lists."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

from vmm.kvm import uapi


class CpuidEntry(NamedTuple):
    """One CPUID leaf: what the guest reads for `function` (and `index`, if the flag says that it counts)."""

    function: int
    index: int
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int


def flexible(header: type[Any], element: type[Any], count: int) -> Any:
    """Return an instance of `header` followed by `count` elements, as `.header` and `.items`."""

    class Block(ctypes.Structure):
        _fields_ = (("header", header), ("items", element * count))

    return Block()


def pack_cpuid(entries: Sequence[CpuidEntry]) -> Any:
    """Return a kvm_cpuid2 block for entries."""
    block = flexible(uapi.Cpuid2, uapi.CpuidEntry2, len(entries))
    block.header.nent = len(entries)
    for item, entry in zip(block.items, entries, strict=True):
        for name, value in entry._asdict().items():
            setattr(item, name, value)
    return block


def unpack_cpuid(block: Any) -> list[CpuidEntry]:
    """Return the entries of a kvm_cpuid2 block."""
    return [
        CpuidEntry(*(getattr(item, name) for name in CpuidEntry._fields))
        for item in block.items[: block.header.nent]
    ]
