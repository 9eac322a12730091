"""Whether memory gets huge pages here: tried, not read from the settings alone."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import NamedTuple

from vmm.memory import mapping
from vmm.memory.mapping import Mapping

_HUGE = 2 << 20
_SIZE = 4 * _HUGE  # whatever its alignment, three whole huge pages fit


class HugePages(NamedTuple):
    """Whether 2 MiB pages were seen behind each kind of memory, after asking for them."""

    anonymous: bool
    memfd: bool


@functools.cache
def huge_pages() -> HugePages:
    """Map, touch and look. False also where the kernel has none to spare just now."""
    return HugePages(_anonymous(), _memfd())


def _anonymous() -> bool:
    with Mapping.anonymous(_SIZE) as memory:
        return _becomes_huge(memory, "AnonHugePages")


def _memfd() -> bool:
    fd = os.memfd_create("pageferry-probe", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, _SIZE)
        with Mapping.shared(_SIZE, fd) as memory:
            return _becomes_huge(memory, "ShmemPmdMapped")
    finally:
        os.close(fd)


def _becomes_huge(memory: Mapping, counter: str) -> bool:
    mapping.advise_huge(memory.address, memory.size)
    view = memory.view()
    for offset in range(0, _SIZE, 4096):
        view[offset] = 1
    view.release()
    return _smaps(memory.address, counter) > 0


def _smaps(address: int, counter: str) -> int:
    """Return a counter of the mapping that holds an address, in KiB (proc(5), smaps)."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif inside and line.startswith(f"{counter}:"):
            return int(line.split()[1])
    return 0
