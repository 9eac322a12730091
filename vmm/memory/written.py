"""Which pages of this process's private memory have been written: those that are its own by now.

Of a private mapping of a file a page is the file's until it is written; anonymous memory is not
there until it is touched. Both are seen without a fault, a mapping call or a write-protection, so
what CPUs and KVM know of the pages stays. What has been written once is found until it is given
back, and so is what was only read of anonymous memory: more than was written, never less.

Sources: the kernel's admin-guide/mm/pagemap, PAGEMAP_SCAN (Linux 6.7) and bits 61 to 63.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Callable
from typing import Any

from vmm.kvm import forks
from vmm.kvm.given import GivenDescriptor

_PAGE = mmap.PAGESIZE
_FILE, _PRESENT, _SWAPPED = 1 << 2, 1 << 3, 1 << 4  # PAGE_IS_*
_REGIONS = 128  # that one call finds; more than 512, and Linux 6.18 finds some of them twice
_STEP = 1 << 16  # entries of the pagemap that are read at once
# Of an entry's last byte: bit 63 (present) or 62 (swapped), and not 61 (a file's).
_OWN = bytes(byte & 0xC0 != 0 and not byte & 0x20 for byte in range(256))

_ioctl: Any = ctypes.CDLL(None, use_errno=True).ioctl


class _Scan(ctypes.Structure):
    """struct pm_scan_arg."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            *("size", "flags", "start", "end", "walk_end", "vec", "vec_len", "max_pages"),
            *("category_inverted", "category_mask", "category_anyof_mask", "return_mask"),
        )
    )


_PAGEMAP_SCAN = 3 << 30 | ctypes.sizeof(_Scan) << 16 | ord("f") << 8 | 16  # _IOWR('f', 16, …)


def _request() -> tuple[_Scan, memoryview]:
    """Return a request for pages that are the process's own, and the words that it puts there."""
    found = (ctypes.c_uint64 * (3 * _REGIONS))()
    request = _Scan(
        size=ctypes.sizeof(_Scan),
        vec=ctypes.addressof(found),
        vec_len=_REGIONS,
        category_inverted=_FILE,
        category_mask=_FILE,
        category_anyof_mask=_PRESENT | _SWAPPED,
        return_mask=_PRESENT,
    )
    return request, memoryview(found).cast("B").cast("Q")


class Written:
    """Finds them. Not thread-safe: one search at a time.

    scans   whether the kernel finds them itself; else the whole pagemap of a range is read
    """

    def __init__(self) -> None:
        """Open this process's pagemap. Raises OSError."""
        self._given = GivenDescriptor()
        self._fd = self._given.take(os.open, "/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        forks.hold(self)
        self.scans = True
        self._request, self._words = _request()

    def find(self, address: int, size: int) -> list[int]:
        """Return where they are in a range, whole pages: start, end, start, end …, in order.

        Raises OSError.
        """
        if self.scans:
            try:
                return self._scan(address, address + size)
            except OSError as error:
                if error.errno not in (errno.ENOTTY, errno.EINVAL):
                    raise
                self.scans = False  # before Linux 6.7
        return self._read(address, size)

    def _scan(self, start: int, end: int) -> list[int]:
        request, found = self._request, list[int]()
        request.end = end
        while start < end:
            request.start, request.walk_end = start, 0
            count = _ioctl(self._fd, ctypes.c_ulong(_PAGEMAP_SCAN), ctypes.byref(request))
            if count < 0:
                code = ctypes.get_errno()
                raise OSError(code, f"ioctl(PAGEMAP_SCAN): {os.strerror(code)}")
            bounds = self._words[: 3 * count].tolist()
            del bounds[2::3]  # what kind of pages they are
            found = found + bounds if found else bounds
            start = request.walk_end
        return found

    def _read(self, address: int, size: int) -> list[int]:
        found, first, pages = list[int](), address // _PAGE, size // _PAGE
        inside = False
        for done in range(0, pages, _STEP):
            count = min(_STEP, pages - done)
            entries = os.pread(self._fd, 8 * count, 8 * (first + done))
            own = entries[7::8].translate(_OWN)
            at = own.find(not inside)
            while at >= 0:
                found.append((first + done + at) * _PAGE)
                inside = not inside
                at = own.find(not inside, at + 1)
        if inside:
            found.append(address + size)
        return found

    def again(self, address: int, size: int) -> Callable[[], list[int]]:
        """Return what finds those of one range, at half the price, as often as it is called. As
        long as they are the same ones it returns the same list, which is not to be changed.
        """
        return _Again(self, address, size).find

    def let_go(self) -> None:
        """Close it in a process that was forked: it tells of the parent's memory."""
        self.close()

    def close(self) -> None:
        """Close the pagemap. Further calls do nothing."""
        self._fd = -1
        self._given.give_back()


class _Again:
    """The search of one range, prepared; and what it has found last."""

    __slots__ = (
        *("_address", "_bounds", "_number", "_pointer", "_raw", "_request", "_size"),
        *("_words", "_written"),
    )

    def __init__(self, written: Written, address: int, size: int) -> None:
        self._written, self._address, self._size = written, address, size
        self._request, words = _request()
        self._request.start, self._request.end = address, address + size
        self._words = words.cast("B")
        self._pointer = ctypes.byref(self._request)
        self._number = ctypes.c_ulong(_PAGEMAP_SCAN)
        self._raw = b""
        self._bounds: list[int] = []

    def find(self) -> list[int]:
        """As `Written.find`."""
        written, request = self._written, self._request
        if written.scans:
            count = _ioctl(written._fd, self._number, self._pointer)
            if count >= 0 and request.walk_end == request.end:
                raw = self._words[: 24 * count].tobytes()
                if raw != self._raw:
                    bounds = self._words[: 24 * count].cast("Q").tolist()
                    del bounds[2::3]  # what kind of pages they are
                    self._bounds, self._raw = bounds, raw
                return self._bounds
        # More than fits, or the kernel cannot; and what is wrong is said there.
        return written.find(self._address, self._size)
