"""How much memory there is, and how much is left: of the host, and of what its cgroups allow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from vmm.host.cgroup import Bound, memory_bounds
from vmm.host.system import read_text

_LEAST = 2 << 20  # bytes of a pool, however little there is
_SPARED = 32 << 20  # bytes at least for what is in no pool: private memory, page tables, programs


class Available(NamedTuple):
    """Bytes that can be had now, and what else than the host bounds them: a file's path, or ""."""

    bytes: int
    bound: str


def total_memory() -> int:
    """Return the bytes of memory that this process may have: the host's, or its cgroup's."""
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([host, *(bound.limit for bound in memory_bounds())])


def memory_available() -> int:
    """Return the bytes of memory that the kernel could hand out to this process now."""
    return available().bytes


def pool_memory() -> int:
    """Return the bytes that guests may fill of what is available, without this process being killed
    for it: half, or all but a 16th where that leaves enough for everything else.
    """
    there = memory_available()
    return max(there - max(_SPARED, there // 16), there // 2, _LEAST)


def available() -> Available:
    """Return the bytes of memory that could be had now, and what bounds them."""
    return least(_of_the_host(), memory_bounds())


def least(host: int, bounds: Sequence[Bound]) -> Available:
    """Return the least of what the host has, and of what is left within the bounds."""
    tightest = min(bounds, key=lambda bound: bound.left, default=None)
    if tightest is None or tightest.left >= host:
        return Available(host, "")
    return Available(tightest.left, tightest.path)


def _of_the_host() -> int:
    for line in (read_text("/proc/meminfo") or "").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
