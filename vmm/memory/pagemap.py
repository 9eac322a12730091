"""What the kernel says of this process's pages: whether they are there, and their physical frame
numbers, for those who may know them.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from vmm.guest.abi import PAGE_SIZE
from vmm.kvm.given import opened
from vmm.memory.mapping import touch

_vmsplice = ctypes.CDLL(None, use_errno=True).vmsplice
_vmsplice.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint)
_vmsplice.restype = ctypes.c_ssize_t

_PRESENT = 1 << 63
_GUARD_BYTE = 1 << 58 - 56  # in an entry's last byte
_STEP = 65536  # entries read at once
_FRAME_MASK = (1 << 55) - 1
_STEP = 65536  # entries read at once


def populated(address: int, size: int) -> bool:
    """Whether any page of private anonymous memory is there, in memory or swapped out.

    Source: the kernel's admin-guide/mm/pagemap, bits 63 and 62.
    """
    pages = size // PAGE_SIZE
    with Path("/proc/self/pagemap").open("rb", buffering=0) as file:
        for first in range(0, pages, _STEP):
            count = min(_STEP, pages - first)
            file.seek((address // PAGE_SIZE + first) * 8)
            if any(byte & 0xC0 for byte in file.read(count * 8)[7::8]):
                return True
    return False


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


def guarded(address: int, pages: int) -> list[bool]:
    """Return for each page of a range whether it is guarded (mapping.guard): bit 58, which there is
    since Linux 6.15. Raises OSError.
    """
    found: list[bool] = []
    with opened(os.open, "/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC) as file:
        while len(found) < pages:
            at, count = address // PAGE_SIZE + len(found), min(_STEP, pages - len(found))
            entries = os.pread(file.fileno(), 8 * count, 8 * at)
            found += [bool(byte & _GUARD_BYTE) for byte in entries[7::8]]
    return found


@contextlib.contextmanager
def kept_in_place(address: int, pages: int = 1) -> Iterator[None]:
    """Let pages of this process keep their physical frames for the time of the block, wherever they
    are mapped then; but where the kernel does not let them have a place in a pipe.

    The kernel gives pages other frames whenever it makes a huge page of many, or room for one
    (khugepaged, compaction). It leaves alone those that somebody else refers to, as a pipe does to
    what is spliced into it. Source: vmsplice(2).
    """
    ends: tuple[int, ...] = ()
    with contextlib.suppress(OSError):
        ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, pages * PAGE_SIZE)
    if ends:
        _vmsplice(ends[1], struct.pack("=QQ", address, pages * PAGE_SIZE), 1, 0)
    try:
        yield
    finally:
        for end in ends:
            os.close(end)
