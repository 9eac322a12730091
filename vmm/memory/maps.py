"""What the kernel has mapped in this process: asked for addresses, or read from /proc/self/maps."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from typing import NamedTuple

from vmm.kvm.given import opened

# include/uapi/linux/fs.h, since Linux 6.11
_PROCMAP_QUERY = 0xC0686611
_READABLE, _WRITABLE, _EXECUTABLE, _SHARED, _OR_NEXT = 0x01, 0x02, 0x04, 0x08, 0x10


class _Query(ctypes.LittleEndianStructure):
    """struct procmap_query."""

    _fields_ = (
        *((name, ctypes.c_uint64) for name in ("size", "query_flags", "query_addr")),
        *((name, ctypes.c_uint64) for name in ("start", "end", "flags", "page_size", "offset")),
        ("inode", ctypes.c_uint64),
        *((name, ctypes.c_uint32) for name in ("major", "minor", "name_size", "build_id_size")),
        *((name, ctypes.c_uint64) for name in ("name_addr", "build_id_addr")),
    )


class Area(NamedTuple):
    """One mapping: adjacent addresses with the same memory behind them.

    access   of "rwx", what is allowed
    file     device and inode, None for anonymous memory; `offset` is where in it the area begins
    """

    start: int
    end: int
    access: str
    shared: bool
    file: tuple[int, int] | None
    offset: int


def identity(fd: int) -> tuple[int, int]:
    """Return an open file's device and inode, as an Area has them."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def areas(start: int, end: int) -> list[Area]:
    """Return what is mapped in start..end, in order, clipped to it. Raises OSError."""
    # No `try` within: before its first line Python 3.11 lets what is raised pass by the `with`.
    with opened(os.open, "/proc/self/maps", os.O_RDONLY | os.O_CLOEXEC) as file:
        found = _found(file.fileno(), start, end)
    return [_clip(area, start, end) for area in found]


def _found(fd: int, start: int, end: int) -> list[Area]:
    try:
        return list(_asked(fd, start, end))
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EINVAL):
            raise
        return list(read(fd, start, end))


def _asked(fd: int, start: int, end: int) -> Iterator[Area]:
    query = _Query(size=ctypes.sizeof(_Query), query_flags=_OR_NEXT)
    while start < end:
        query.query_addr = start
        try:
            fcntl.ioctl(fd, _PROCMAP_QUERY, query)
        except OSError as error:
            if error.errno == errno.ENOENT:  # nothing there, or above
                return
            raise
        if query.start >= end:
            return
        bits = ((_READABLE, "r"), (_WRITABLE, "w"), (_EXECUTABLE, "x"))
        access = "".join(letter for bit, letter in bits if query.flags & bit)
        device = os.makedev(query.major, query.minor)
        file = (device, query.inode) if query.inode else None
        shared = bool(query.flags & _SHARED)
        yield Area(query.start, query.end, access, shared, file, query.offset if file else 0)
        start = query.end


def read(fd: int, start: int, end: int) -> Iterator[Area]:
    """Yield what overlaps start..end, from an open /proc/self/maps (proc_pid_maps(5))."""
    with open(fd, closefd=False) as lines:
        for line in lines:
            bounds, flags, offset, device, inode = line.split(maxsplit=5)[:5]
            low, high = (int(bound, 16) for bound in bounds.split("-"))
            if high <= start or low >= end:
                continue
            file = None
            if inode != "0":
                file = os.makedev(*(int(part, 16) for part in device.split(":"))), int(inode)
            access = flags[:3].replace("-", "")
            yield Area(low, high, access, flags[3] == "s", file, int(offset, 16) if file else 0)


def _clip(area: Area, start: int, end: int) -> Area:
    first = max(area.start, start)
    offset = area.offset + (first - area.start if area.file else 0)
    return area._replace(start=first, end=min(area.end, end), offset=offset)
