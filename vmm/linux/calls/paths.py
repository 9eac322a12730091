"""Files by their names: opening, and telling of them."""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING

from vmm.linux.calls.table import Address, Fd, Int, PathName, Size, Word, call
from vmm.linux.errors import SysError
from vmm.linux.files.nodes import Node, Stat
from vmm.linux.files.system import AT_FDCWD

if TYPE_CHECKING:
    from vmm.linux.process import Process

AT_NOFOLLOW, AT_EMPTY_PATH = 0x100, 0x1000
_AT_EACCESS, _AT_NO_AUTOMOUNT, _AT_STATX = 0x200, 0x800, 0x6000
_STATX_BASIC = 0x7FF

_STAT = struct.Struct("<QQQIIIIQqqqqqqqqq3q")
_STATX = struct.Struct("<IIQIIIHHQQQQ" + "qIi" * 4 + "IIIIQII12Q")


def named(process: Process, dirfd: int, path: bytes, flags: int, known: int) -> Node:
    """Return what a call names by a descriptor and a path, which may be empty if so flagged."""
    if flags & ~known:
        raise SysError(errno.EINVAL)
    if not path and flags & AT_EMPTY_PATH and dirfd != AT_FDCWD:
        return process.descriptors.get(dirfd).node
    if not path and flags & AT_EMPTY_PATH:
        return process.files.cwd
    at = process.files.start(dirfd, path)
    return process.files.resolve(at, path, follow=not flags & AT_NOFOLLOW)


# ---- opening ----


@call
def sys_openat(process: Process, dirfd: Fd, path: PathName, flags: Int, mode: Word) -> int:
    process.descriptors.free()
    at = process.files.start(dirfd, path)
    file = process.files.open(at, path, flags, mode)
    return process.descriptors.install(file, cloexec=bool(flags & os.O_CLOEXEC))


@call
def sys_open(process: Process, path: PathName, flags: Int, mode: Word) -> int:
    return sys_openat(process, AT_FDCWD, path, flags, mode)


@call
def sys_creat(process: Process, path: PathName, mode: Word) -> int:
    return sys_openat(process, AT_FDCWD, path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, mode)


# ---- telling ----


def packed(found: Stat) -> bytes:
    """Return a struct stat."""
    times = [part for ns in (found.atime, found.mtime, found.ctime) for part in divmod(ns, 10**9)]
    return _STAT.pack(
        *(found.dev, found.ino, found.nlink, found.mode, found.uid, found.gid, 0, found.rdev),
        *(found.size, found.blksize, found.blocks, *times, 0, 0, 0),
    )


@call
def sys_fstat(process: Process, fd: Fd, buffer: Address) -> int:
    process.memory.write(buffer, packed(process.descriptors.get(fd).stat()))
    return 0


@call
def sys_stat(process: Process, path: PathName, buffer: Address) -> int:
    process.memory.write(buffer, packed(process.files.stat(None, path)))
    return 0


@call
def sys_lstat(process: Process, path: PathName, buffer: Address) -> int:
    process.memory.write(buffer, packed(process.files.stat(None, path, follow=False)))
    return 0


@call
def sys_newfstatat(process: Process, dirfd: Fd, path: PathName, buffer: Address, flags: Int) -> int:
    known = AT_NOFOLLOW | _AT_NO_AUTOMOUNT | AT_EMPTY_PATH
    process.memory.write(buffer, packed(named(process, dirfd, path, flags, known).stat()))
    return 0


@call
def sys_statx(
    process: Process, dirfd: Fd, path: PathName, flags: Int, mask: Word, buffer: Address
) -> int:
    known = AT_NOFOLLOW | _AT_NO_AUTOMOUNT | AT_EMPTY_PATH | _AT_STATX
    if mask >> 31 or flags & _AT_STATX == _AT_STATX:
        raise SysError(errno.EINVAL)
    found = named(process, dirfd, path, flags, known).stat()
    atime, mtime, ctime = (
        (*divmod(ns, 10**9), 0) for ns in (found.atime, found.mtime, found.ctime)
    )
    process.memory.write(
        buffer,
        _STATX.pack(
            *(_STATX_BASIC, found.blksize, 0, found.nlink, found.uid, found.gid, found.mode, 0),
            *(found.ino, found.size, found.blocks, 0, *atime, 0, 0, 0, *ctime, *mtime),
            *(os.major(found.rdev), os.minor(found.rdev)),
            *(os.major(found.dev), os.minor(found.dev), 0, 0, 0, *[0] * 12),
        ),
    )
    return 0


@call
def sys_access(process: Process, path: PathName, mode: Int) -> int:
    process.files.access(None, path, mode)
    return 0


@call
def sys_faccessat(process: Process, dirfd: Fd, path: PathName, mode: Int) -> int:
    process.files.access(process.files.start(dirfd, path), path, mode)
    return 0


@call
def sys_faccessat2(process: Process, dirfd: Fd, path: PathName, mode: Int, flags: Int) -> int:
    if flags & ~(AT_NOFOLLOW | _AT_EACCESS | AT_EMPTY_PATH):
        raise SysError(errno.EINVAL)
    if not path and flags & AT_EMPTY_PATH:
        process.descriptors.get(dirfd)
        return 0
    at = process.files.start(dirfd, path)
    process.files.access(at, path, mode, follow=not flags & AT_NOFOLLOW)
    return 0


@call
def sys_readlinkat(process: Process, dirfd: Fd, path: PathName, buffer: Address, size: Int) -> int:
    if size <= 0:
        raise SysError(errno.EINVAL)
    target = process.files.readlink(process.files.start(dirfd, path), path)[:size]
    process.memory.write(buffer, target)
    return len(target)


@call
def sys_readlink(process: Process, path: PathName, buffer: Address, size: Int) -> int:
    return sys_readlinkat(process, AT_FDCWD, path, buffer, size)


@call
def sys_getdents64(process: Process, fd: Fd, buffer: Address, size: Word) -> int:
    room = process.memory.room(buffer, min(size, 1 << 20), write=True)
    if size and not room:
        raise SysError(errno.EFAULT)
    listed = process.descriptors.get(fd).getdents(room)
    process.memory.write(buffer, listed)
    return len(listed)


@call
def sys_getcwd(process: Process, buffer: Address, size: Size) -> int:
    path = process.files.getcwd() + b"\0"
    if len(path) > size:
        raise SysError(errno.ERANGE)
    process.memory.write(buffer, path)
    return len(path)


def _statfs(process: Process) -> bytes:
    told = process.files.statfs()
    return struct.pack(
        "<qqQQQQQqqqq32x",
        *(told.type, told.bsize, told.blocks, told.bfree, told.bavail, told.files, told.ffree),
        *(told.fsid, told.namelen, told.frsize, told.flags),
    )


@call
def sys_statfs(process: Process, path: PathName, buffer: Address) -> int:
    process.files.resolve(None, path)
    process.memory.write(buffer, _statfs(process))
    return 0


@call
def sys_fstatfs(process: Process, fd: Fd, buffer: Address) -> int:
    process.descriptors.get(fd)
    process.memory.write(buffer, _statfs(process))
    return 0


@call
def sys_chdir(process: Process, path: PathName) -> int:
    process.files.chdir(None, path)
    return 0


@call
def sys_fchdir(process: Process, fd: Fd) -> int:
    process.files.fchdir(process.descriptors.get(fd))
    return 0
