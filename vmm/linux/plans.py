"""What a call does to a program's address space: steps in order, and the map afterwards. Values.

They are made in `vmm.linux.areas`, and carried out in `vmm.linux.memory`.
"""

from __future__ import annotations

from typing import NamedTuple

from vmm.linux.spans import Spans

PROT_READ, PROT_WRITE, PROT_EXEC, PROT_SEM = 1, 2, 4, 8
PROT_GROWSDOWN, PROT_GROWSUP = 0x01000000, 0x02000000
MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE, MAP_TYPE = 1, 2, 3, 0xF
MAP_FIXED, MAP_ANONYMOUS, MAP_32BIT = 0x10, 0x20, 0x40
MAP_HUGETLB, MAP_FIXED_NOREPLACE = 0x40000, 0x100000

MREMAP_MAYMOVE, MREMAP_FIXED, MREMAP_DONTUNMAP = 1, 2, 4


class Drop(NamedTuple):
    """Addresses whose contents go: zeros from now on, and out of reach."""

    start: int
    end: int


class Rights(NamedTuple):
    """Addresses that get other rights; what is there stays.

    stale   whether there have been rights, which a CPU may remember
    delta   how much further on what they lead to is: see Area
    """

    start: int
    end: int
    prot: int
    stale: bool = False
    delta: int = 0


class Move(NamedTuple):
    """Contents that move, to where there are none. The rights do not."""

    source: int
    target: int
    size: int


class Lent(NamedTuple):
    """Pages of the window that are mapped: `size` bytes from `address` on.

    write   whether they may be written
    """

    address: int
    size: int
    write: bool


class Plan(NamedTuple):
    """What a call does: steps, in order, and then the map as it is to be.

    result   what the call answers; less than zero if, having done this, it fails with -result
    hidden   see `vmm.linux.areas.Areas`
    """

    result: int
    steps: tuple[Drop | Rights | Move, ...]
    spans: Spans
    hidden: Spans
    brk: int
