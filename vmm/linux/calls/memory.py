"""The address space: mmap and its relatives."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vmm.guest.abi import PAGE_SIZE
from vmm.linux.calls.table import Address, Fd, Int, Size, Word, call
from vmm.linux.errors import SysError
from vmm.linux.files.devices import OpenZero
from vmm.linux.files.lent import LentData
from vmm.linux.files.live import Live, LiveData
from vmm.linux.files.nodes import File, Node
from vmm.linux.files.open_files import OpenFile
from vmm.linux.plans import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_PRIVATE,
    MAP_TYPE,
    MREMAP_FIXED,
    PROT_WRITE,
    Lent,
)

if TYPE_CHECKING:
    from vmm.linux.process import Process

_PIECE = 1 << 20


@call
def sys_mmap(
    process: Process, address: Address, length: Size, prot: Size, flags: Size, fd: Fd, offset: Size
) -> int:
    """Map zeros, a copy of a file, pages that are lent, or, shared and to be written, a file's own
    bytes. What else is shared is only so for reading.
    """
    if not flags & (MAP_FIXED | MAP_FIXED_NOREPLACE):
        return _mmap(process, address, length, prot, flags, fd, offset)
    with _replaced(process, address, length):
        return _mmap(process, address, length, prot, flags, fd, offset)


@contextlib.contextmanager
def _replaced(process: Process, *ranges: int) -> Iterator[None]:
    """Keep what a call unmaps of files that are mapped to be written: addresses, and lengths."""
    ends = [
        (start, start + _whole(length))
        for start, length in zip(ranges[::2], ranges[1::2], strict=True)
    ]
    for data in process.mapped:
        for start, end in ends:
            data.write_back(start, end)
    yield
    for data in process.mapped:
        for start, end in ends:
            data.unmap(process.files.changes, start, end)
    if process.mapped:
        left = tuple(data for data in process.mapped if data.live)
        process.files.changes.set(process, "mapped", left)


def _mmap(
    process: Process, address: int, length: int, prot: int, flags: int, fd: int, offset: int
) -> int:
    if flags & MAP_ANONYMOUS:
        return process.memory.mmap(address, length, prot, flags)
    if offset % PAGE_SIZE:
        raise SysError(errno.EINVAL)
    file = process.descriptors.opened(fd)
    if not file.readable:
        raise SysError(errno.EACCES)
    shared = flags & MAP_TYPE != MAP_PRIVATE
    if shared and prot & PROT_WRITE and not file.writable:
        raise SysError(errno.EACCES)
    if isinstance(file, OpenZero):
        return process.memory.mmap(address, length, prot, flags | MAP_ANONYMOUS)
    lent = _lent(file, offset, write=file.writable)
    if lent is not None and (shared or not prot & PROT_WRITE):
        return process.memory.mmap(address, length, prot, flags, lent)
    if not stat.S_ISREG(file.node.stat().mode):
        raise SysError(errno.ENODEV)
    kept = None
    if shared and prot & PROT_WRITE and length:
        kept = _live(process, file.node, offset, offset + _whole(length))
    live = 0 if kept is None else process.serial + 1
    start = process.memory.mmap(address, length, prot, flags, live=live)
    try:
        done = 0
        while done < length:
            data = file.pread(offset + done, min(length - done, _PIECE))
            if not data:
                break
            process.memory.fill(start + done, data)
            done += len(data)
        if kept is not None:
            piece = Live(start, start + _whole(length), offset, live)
            kept.map(process.files.changes, piece)
    except SysError:
        process.memory.munmap(start, length)
        raise
    return start


def _whole(length: int) -> int:
    return -(-length // PAGE_SIZE) * PAGE_SIZE


def _live(process: Process, node: Node, offset: int, end: int) -> LiveData:
    """Return the bytes of a file of which a part can be mapped to be written. ENODEV if it cannot:
    no part is mapped so twice.
    """
    if not isinstance(node, File):
        raise SysError(errno.ENODEV)
    files, data = process.files, node.data
    files.change(node)
    if not isinstance(data, LiveData):
        data = LiveData(data, process.memory)
        files.changes.set(node, "data", data)
    if data.overlaps(offset, end):
        raise SysError(errno.ENODEV)
    try:
        data.reserve(files.changes, files.space, offset, end)
    except SysError as error:  # mmap(2) knows no want of space
        raise SysError(errno.ENOMEM) from error
    if data not in process.mapped:
        files.changes.set(process, "mapped", (*process.mapped, data))
    return data


def _lent(file: OpenFile, offset: int, *, write: bool) -> Lent | None:
    """Return the pages of a file that is a buffer of the host's, from `offset` on."""
    node = file.node
    if not isinstance(node, File) or not isinstance(node.data, LentData):
        return None
    loan = node.data.loan
    return Lent(loan.address + offset, max(loan.size - offset, 0), write)


@call
def sys_munmap(process: Process, address: Address, length: Size) -> int:
    with _replaced(process, address, length):
        return process.memory.munmap(address, length)


@call
def sys_mprotect(process: Process, address: Address, length: Size, prot: Size) -> int:
    return process.memory.mprotect(address, length, prot)


@call
def sys_mremap(
    process: Process, old: Address, old_size: Size, new_size: Size, flags: Size, new: Address
) -> int:
    ranges = [old + _whole(new_size), max(_whole(old_size) - _whole(new_size), 0)]
    ranges += [new, new_size] if flags & MREMAP_FIXED else []
    with _replaced(process, *ranges):
        return process.memory.mremap(old, old_size, new_size, flags, new)


@call
def sys_brk(process: Process, address: Address) -> int:
    return process.memory.brk(address)


@call
def sys_madvise(process: Process, address: Address, length: Size, advice: Int) -> int:
    return process.memory.madvise(address, length, advice)


@call
def sys_mincore(process: Process, address: Address, length: Size, vector: Address) -> int:
    """Say that all there is is in memory."""
    if address % PAGE_SIZE:
        raise SysError(errno.EINVAL)
    pages = -(-length // PAGE_SIZE)
    _check_mapped(process, address, pages * PAGE_SIZE)
    process.memory.write(vector, b"\1" * pages)
    return 0


@call
def sys_msync(process: Process, address: Address, length: Size, flags: Int) -> int:
    """Nothing is to be written back: what is shared is read-only, or the file itself."""
    if address % PAGE_SIZE or flags & ~7 or flags & 5 == 5:
        raise SysError(errno.EINVAL)
    _check_mapped(process, address, -(-length // PAGE_SIZE) * PAGE_SIZE)
    return 0


def _check_mapped(process: Process, address: int, length: int) -> None:
    """Raise ENOMEM if not all of that is mapped, with whatever rights."""
    end, reached = address + length, address
    for area in process.memory.areas.spans.within(address, end):
        if area.start > reached:
            break
        reached = area.end
    if reached < end:
        raise SysError(errno.ENOMEM)


@call
def sys_mlock(process: Process, address: Address, length: Size) -> int:
    """All there is is in memory anyway."""
    start = address - address % PAGE_SIZE
    _check_mapped(process, start, -(-(address + length - start) // PAGE_SIZE) * PAGE_SIZE)
    return 0


@call
def sys_mlock2(process: Process, address: Address, length: Size, flags: Int) -> int:
    if flags & ~1:
        raise SysError(errno.EINVAL)
    return sys_mlock(process, address, length)


@call
def sys_munlock(process: Process, address: Address, length: Size) -> int:
    return sys_mlock(process, address, length)


@call
def sys_mlockall(process: Process, flags: Int) -> int:
    if flags & ~7 or flags in (0, 4):
        raise SysError(errno.EINVAL)
    return 0


@call
def sys_munlockall(process: Process) -> int:
    return 0


@call
def sys_memfd_create(process: Process, name: Address, flags: Word) -> int:
    """Make a file without a name. It cannot be sealed."""
    text = process.memory.text(name, 250)
    if flags & ~3:
        raise SysError(errno.EINVAL)
    process.descriptors.free()
    path = b"/tmp/.memfd-%d-" % process.serial + text.replace(b"/", b"_")
    file = process.files.open(None, path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    process.files.unlink(None, path)
    return process.descriptors.install(file, cloexec=bool(flags & 1))
