"""Physical frame numbers of this process's pages, for those who may know them."""

from __future__ import annotations

import os
import struct

from vmm.guest.abi import PAGE_SIZE
from vmm.kvm.given import opened
from vmm.memory.mapping import touch

_PRESENT = 1 << 63
_FRAME_MASK = (1 << 55) - 1


def frame_number(address: int) -> int | None:
    """Return the physical frame behind an address of this process, or None without the privilege.

    Raises OSError if it cannot be read.

    The page is touched first, so that it is present. Anonymous memory that nobody has written to is
    the kernel's one page of zeros, wherever it is. Source: the kernel's admin-guide/mm/pagemap,
    which shows frame numbers as zero to callers without CAP_SYS_ADMIN.
    """
    touch(address)
    try:
        file = opened(os.open, "/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    with file:
        (entry,) = struct.unpack("<Q", os.pread(file.fileno(), 8, address // PAGE_SIZE * 8))
    return entry & _FRAME_MASK or None if entry & _PRESENT else None
