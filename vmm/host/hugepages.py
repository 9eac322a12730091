"""Whether memory gets huge pages here: tried, not read from the settings alone."""

from __future__ import annotations

import ctypes
import functools
import os
from typing import NamedTuple

from vmm.guest.abi import PAGE_SIZE
from vmm.kvm.given import opened
from vmm.memory import mapping
from vmm.memory.mapping import HUGE, Mapping


class HugePages(NamedTuple):
    """Whether 2 MiB pages were seen behind each kind of memory, after asking for them.

    Of anonymous memory they must move as well (mremap, Linux 5.7).
    """

    anonymous: bool
    memfd: bool


@functools.cache
def huge_pages() -> HugePages:
    """Map, touch a byte and look: less than a millisecond, mostly the zeroing of huge pages.

    False also where the kernel has none to spare just now.
    """
    return HugePages(_anonymous(), _memfd())


def _anonymous() -> bool:
    with Mapping.park(2 * HUGE) as memory:
        if not _becomes_huge(memory.address):
            return False
        try:
            mapping.move(memory.address, memory.address + HUGE, HUGE)
        except OSError:
            return False
        return _is_huge(memory.address + HUGE)


def _memfd() -> bool:
    with (
        opened(os.memfd_create, "pageferry-probe", os.MFD_CLOEXEC) as file,
        Mapping.reserve(HUGE) as memory,
    ):
        os.ftruncate(file.fileno(), HUGE)
        mapping.show(memory.address, HUGE, file.fileno(), 0)
        return _becomes_huge(memory.address)


def _becomes_huge(address: int) -> bool:
    mapping.advise_huge(address, HUGE)
    ctypes.memset(address, 1, 1)
    return _is_huge(address)


def _is_huge(address: int) -> bool:
    """Whether the last page is there, of 2 MiB of which only the first was touched."""
    return mapping.resident(address + HUGE - PAGE_SIZE)
