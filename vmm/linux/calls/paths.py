"""Files by their names: opening, telling of them, changing what there is."""

from __future__ import annotations

import errno
import os
import stat
import struct
from typing import TYPE_CHECKING

from vmm.linux.calls.table import PATH_MAX, Address, Fd, Int, Long, PathName, Size, Word, call
from vmm.linux.errors import SysError
from vmm.linux.files.nodes import Node, Stat
from vmm.linux.files.system import AT_FDCWD

if TYPE_CHECKING:
    from vmm.linux.process import Process

_AT_NOFOLLOW, _AT_REMOVEDIR, _AT_FOLLOW, _AT_EMPTY_PATH = 0x100, 0x200, 0x400, 0x1000
_AT_EACCESS, _AT_NO_AUTOMOUNT, _AT_STATX = 0x200, 0x800, 0x6000
_UTIME_NOW, _UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
_STATX_BASIC = 0x7FF

_STAT = struct.Struct("<QQQIIIIQqqqqqqqqq3q")
_STATX = struct.Struct("<IIQIIIHHQQQQ" + "qIi" * 4 + "IIIIQII12Q")


def _named(process: Process, dirfd: int, path: bytes, flags: int, known: int) -> Node:
    """Return what a call names by a descriptor and a path, which may be empty if so flagged."""
    if flags & ~known:
        raise SysError(errno.EINVAL)
    if not path and flags & _AT_EMPTY_PATH and dirfd != AT_FDCWD:
        return process.descriptors.get(dirfd).node
    if not path and flags & _AT_EMPTY_PATH:
        return process.files.cwd
    at = process.files.start(dirfd, path)
    return process.files.resolve(at, path, follow=not flags & _AT_NOFOLLOW)


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
    known = _AT_NOFOLLOW | _AT_NO_AUTOMOUNT | _AT_EMPTY_PATH
    process.memory.write(buffer, packed(_named(process, dirfd, path, flags, known).stat()))
    return 0


@call
def sys_statx(
    process: Process, dirfd: Fd, path: PathName, flags: Int, mask: Word, buffer: Address
) -> int:
    known = _AT_NOFOLLOW | _AT_NO_AUTOMOUNT | _AT_EMPTY_PATH | _AT_STATX
    if mask >> 31 or flags & _AT_STATX == _AT_STATX:
        raise SysError(errno.EINVAL)
    found = _named(process, dirfd, path, flags, known).stat()
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
    if flags & ~(_AT_NOFOLLOW | _AT_EACCESS | _AT_EMPTY_PATH):
        raise SysError(errno.EINVAL)
    if not path and flags & _AT_EMPTY_PATH:
        process.descriptors.get(dirfd)
        return 0
    at = process.files.start(dirfd, path)
    process.files.access(at, path, mode, follow=not flags & _AT_NOFOLLOW)
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


# ---- changing ----


@call
def sys_chdir(process: Process, path: PathName) -> int:
    process.files.chdir(None, path)
    return 0


@call
def sys_fchdir(process: Process, fd: Fd) -> int:
    process.files.fchdir(process.descriptors.get(fd))
    return 0


@call
def sys_mkdirat(process: Process, dirfd: Fd, path: PathName, mode: Word) -> int:
    process.files.mkdir(process.files.start(dirfd, path), path, mode)
    return 0


@call
def sys_mkdir(process: Process, path: PathName, mode: Word) -> int:
    return sys_mkdirat(process, AT_FDCWD, path, mode)


@call
def sys_rmdir(process: Process, path: PathName) -> int:
    process.files.rmdir(None, path)
    return 0


@call
def sys_mknodat(process: Process, dirfd: Fd, path: PathName, mode: Word, device: Word) -> int:
    """Make a regular file: nothing else has a name here but directories and links."""
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise SysError(errno.EPERM)
    files = process.files
    file = files.open(
        files.start(dirfd, path), path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode & 0o7777
    )
    file.refer(1)
    file.refer(-1)
    return 0


@call
def sys_mknod(process: Process, path: PathName, mode: Word, device: Word) -> int:
    return sys_mknodat(process, AT_FDCWD, path, mode, device)


@call
def sys_unlinkat(process: Process, dirfd: Fd, path: PathName, flags: Int) -> int:
    if flags & ~_AT_REMOVEDIR:
        raise SysError(errno.EINVAL)
    at = process.files.start(dirfd, path)
    (process.files.rmdir if flags else process.files.unlink)(at, path)
    return 0


@call
def sys_unlink(process: Process, path: PathName) -> int:
    return sys_unlinkat(process, AT_FDCWD, path, 0)


@call
def sys_renameat2(
    process: Process, dirfd: Fd, path: PathName, new_dirfd: Fd, new_path: PathName, flags: Word
) -> int:
    files = process.files
    files.rename(files.start(dirfd, path), path, files.start(new_dirfd, new_path), new_path, flags)
    return 0


@call
def sys_renameat(
    process: Process, dirfd: Fd, path: PathName, new_dirfd: Fd, new_path: PathName
) -> int:
    return sys_renameat2(process, dirfd, path, new_dirfd, new_path, 0)


@call
def sys_rename(process: Process, path: PathName, new_path: PathName) -> int:
    return sys_renameat2(process, AT_FDCWD, path, AT_FDCWD, new_path, 0)


@call
def sys_linkat(
    process: Process, dirfd: Fd, path: PathName, new_dirfd: Fd, new_path: PathName, flags: Int
) -> int:
    if flags & ~(_AT_FOLLOW | _AT_EMPTY_PATH):
        raise SysError(errno.EINVAL)
    files = process.files
    at, new_at = files.start(dirfd, path), files.start(new_dirfd, new_path)
    files.link(at, path, new_at, new_path, follow=bool(flags & _AT_FOLLOW))
    return 0


@call
def sys_link(process: Process, path: PathName, new_path: PathName) -> int:
    return sys_linkat(process, AT_FDCWD, path, AT_FDCWD, new_path, 0)


@call
def sys_symlinkat(process: Process, target: PathName, dirfd: Fd, path: PathName) -> int:
    process.files.symlink(target, process.files.start(dirfd, path), path)
    return 0


@call
def sys_symlink(process: Process, target: PathName, path: PathName) -> int:
    return sys_symlinkat(process, target, AT_FDCWD, path)


@call
def sys_fchmodat(process: Process, dirfd: Fd, path: PathName, mode: Word) -> int:
    process.files.chmod(process.files.start(dirfd, path), path, mode)
    return 0


@call
def sys_chmod(process: Process, path: PathName, mode: Word) -> int:
    return sys_fchmodat(process, AT_FDCWD, path, mode)


@call
def sys_fchmod(process: Process, fd: Fd, mode: Word) -> int:
    process.files.change_mode(process.descriptors.opened(fd).node, mode)
    return 0


@call
def sys_fchownat(
    process: Process, dirfd: Fd, path: PathName, uid: Word, gid: Word, flags: Int
) -> int:
    node = _named(process, dirfd, path, flags, _AT_NOFOLLOW | _AT_EMPTY_PATH)
    process.files.change_owner(node, uid, gid)
    return 0


@call
def sys_chown(process: Process, path: PathName, uid: Word, gid: Word) -> int:
    return sys_fchownat(process, AT_FDCWD, path, uid, gid, 0)


@call
def sys_lchown(process: Process, path: PathName, uid: Word, gid: Word) -> int:
    return sys_fchownat(process, AT_FDCWD, path, uid, gid, _AT_NOFOLLOW)


@call
def sys_fchown(process: Process, fd: Fd, uid: Word, gid: Word) -> int:
    process.files.change_owner(process.descriptors.opened(fd).node, uid, gid)
    return 0


@call
def sys_truncate(process: Process, path: PathName, size: Long) -> int:
    process.files.truncate(None, path, size)
    return 0


@call
def sys_utimensat(process: Process, dirfd: Fd, path: Address, times: Address, flags: Int) -> int:
    wanted: list[int | None] = [process.files.now()] * 2
    if times:
        wanted = [_time(process, times + 16 * index) for index in range(2)]
    if not path and dirfd != AT_FDCWD:
        if flags:
            raise SysError(errno.EINVAL)
        node = process.descriptors.opened(dirfd).node
    else:
        name = process.memory.text(path, PATH_MAX)
        node = _named(process, dirfd, name, flags, _AT_NOFOLLOW | _AT_EMPTY_PATH)
    process.files.change_times(node, *wanted)
    return 0


def _time(process: Process, address: int) -> int | None:
    seconds, ns = struct.unpack("<qq", process.memory.read(address, 16))
    if ns == _UTIME_OMIT:
        return None
    if ns == _UTIME_NOW:
        return process.files.now()
    if not 0 <= ns < 10**9:
        raise SysError(errno.EINVAL)
    return _bounded(seconds) * 10**9 + int(ns)


def _bounded(seconds: int) -> int:
    """Return a time that a file can have, in seconds since 1970: what ext4 has."""
    return min(max(seconds, -(1 << 31)), (1 << 34) - (1 << 31) - 1)


@call
def sys_futimesat(process: Process, dirfd: Fd, path: PathName, times: Address) -> int:
    wanted: list[int | None] = [process.files.now()] * 2
    if times:
        parts = struct.unpack("<4q", process.memory.read(times, 32))
        if not all(0 <= us < 10**6 for us in parts[1::2]):
            raise SysError(errno.EINVAL)
        wanted = [_bounded(parts[i]) * 10**9 + parts[i + 1] * 1000 for i in (0, 2)]
    process.files.change_times(_named(process, dirfd, path, 0, 0), *wanted)
    return 0


@call
def sys_utimes(process: Process, path: PathName, times: Address) -> int:
    return sys_futimesat(process, AT_FDCWD, path, times)


@call
def sys_utime(process: Process, path: PathName, times: Address) -> int:
    wanted: list[int | None] = [process.files.now()] * 2
    if times:
        seconds = struct.unpack("<2q", process.memory.read(times, 16))
        wanted = [_bounded(second) * 10**9 for second in seconds]
    process.files.change_times(_named(process, AT_FDCWD, path, 0, 0), *wanted)
    return 0
