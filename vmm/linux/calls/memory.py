"""The address space: mmap and its relatives."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from vmm.guest.abi import PAGE_SIZE
from vmm.linux.areas import MAP_ANONYMOUS, MAP_PRIVATE, MAP_TYPE, PROT_WRITE, Lent
from vmm.linux.calls.table import Address, Fd, Int, Size, Word, call
from vmm.linux.errors import SysError
from vmm.linux.files.devices import OpenZero
from vmm.linux.files.lent import LentData
from vmm.linux.files.nodes import File
from vmm.linux.files.open_files import OpenFile

if TYPE_CHECKING:
    from vmm.linux.process import Process

_PIECE = 1 << 20


@call
def sys_mmap(
    process: Process, address: Address, length: Size, prot: Size, flags: Size, fd: Fd, offset: Size
) -> int:
    """Map zeros, a copy of a file, or pages that are lent. What else is shared is only so for
    reading.
    """
    if flags & MAP_ANONYMOUS:
        return process.memory.mmap(address, length, prot, flags)
    if offset % PAGE_SIZE:
        raise SysError(errno.EINVAL)
    file = process.descriptors.get(fd)
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
    if shared and prot & PROT_WRITE:
        raise SysError(errno.ENODEV)
    if not stat.S_ISREG(file.node.stat().mode):
        raise SysError(errno.ENODEV)
    start = process.memory.mmap(address, length, prot, flags)
    try:
        done = 0
        while done < length:
            data = file.pread(offset + done, min(length - done, _PIECE))
            if not data:
                break
            process.memory.fill(start + done, data)
            done += len(data)
    except SysError:
        process.memory.munmap(start, length)
        raise
    return start


def _lent(file: OpenFile, offset: int, *, write: bool) -> Lent | None:
    """Return the pages of a file that is a buffer of the host's, from `offset` on."""
    node = file.node
    if not isinstance(node, File) or not isinstance(node.data, LentData):
        return None
    loan = node.data.loan
    return Lent(loan.address + offset, max(loan.size - offset, 0), write)


@call
def sys_munmap(process: Process, address: Address, length: Size) -> int:
    return process.memory.munmap(address, length)


@call
def sys_mprotect(process: Process, address: Address, length: Size, prot: Size) -> int:
    return process.memory.mprotect(address, length, prot)


@call
def sys_mremap(
    process: Process, old: Address, old_size: Size, new_size: Size, flags: Size, new: Address
) -> int:
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
    """Nothing is to be written back: what is shared is read-only, or the file's own pages."""
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
