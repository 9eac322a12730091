"""Calls that change what paths lead to: made, removed, renamed, and what is known of files."""

from __future__ import annotations

import errno
import os
import stat
import struct
from typing import TYPE_CHECKING

from vmm.linux.calls.paths import AT_EMPTY_PATH, AT_NOFOLLOW, named
from vmm.linux.calls.table import PATH_MAX, Address, Fd, Int, Long, PathName, Word, call
from vmm.linux.errors import SysError
from vmm.linux.files.system import AT_FDCWD

if TYPE_CHECKING:
    from vmm.linux.process import Process

_AT_REMOVEDIR, _AT_FOLLOW = 0x200, 0x400
_UTIME_NOW, _UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2


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
    if flags & ~(_AT_FOLLOW | AT_EMPTY_PATH):
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
    node = named(process, dirfd, path, flags, AT_NOFOLLOW | AT_EMPTY_PATH)
    process.files.change_owner(node, uid, gid)
    return 0


@call
def sys_chown(process: Process, path: PathName, uid: Word, gid: Word) -> int:
    return sys_fchownat(process, AT_FDCWD, path, uid, gid, 0)


@call
def sys_lchown(process: Process, path: PathName, uid: Word, gid: Word) -> int:
    return sys_fchownat(process, AT_FDCWD, path, uid, gid, AT_NOFOLLOW)


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
        node = named(process, dirfd, name, flags, AT_NOFOLLOW | AT_EMPTY_PATH)
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
    process.files.change_times(named(process, dirfd, path, 0, 0), *wanted)
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
    process.files.change_times(named(process, AT_FDCWD, path, 0, 0), *wanted)
    return 0
