"""What descriptors are for, besides reading and writing: duplicates, pipes, flags, locks, sizes."""

from __future__ import annotations

import errno
import os
import stat
import struct
from typing import TYPE_CHECKING

from vmm.linux.calls.identity import PID
from vmm.linux.calls.table import Address, Fd, Int, Long, Size, Word, call
from vmm.linux.errors import SysError
from vmm.linux.files.pipes import CAPACITY, OpenPipe

if TYPE_CHECKING:
    from vmm.linux.process import Process

_F_DUPFD, _F_GETFD, _F_SETFD, _F_GETFL, _F_SETFL = 0, 1, 2, 3, 4
_F_GETLK, _F_SETLK, _F_SETLKW, _F_SETOWN, _F_GETOWN = 5, 6, 7, 8, 9
_F_DUPFD_CLOEXEC, _F_SETPIPE_SZ, _F_GETPIPE_SZ = 1030, 1031, 1032
_F_OFD_GETLK = 36
_OFD_LOCKS = (_F_OFD_GETLK, 37, 38)  # and F_OFD_SETLK, F_OFD_SETLKW
_LOCKS = (_F_GETLK, _F_SETLK, _F_SETLKW, *_OFD_LOCKS)
_LOCK_NB, _FLOCKS = 4, (1, 2, 8)  # LOCK_SH, LOCK_EX, LOCK_UN
_F_UNLCK, _FD_CLOEXEC = 2, 1
_FIOCLEX, _FIONCLEX, _FIONBIO, _FIONREAD = 0x5451, 0x5450, 0x5421, 0x541B


@call
def sys_close(process: Process, fd: Fd) -> int:
    process.descriptors.close(fd)
    return 0


@call
def sys_close_range(process: Process, first: Word, last: Word, flags: Word) -> int:
    process.descriptors.close_range(first, last, flags)
    return 0


@call
def sys_dup(process: Process, fd: Fd) -> int:
    return process.descriptors.dup(fd)


@call
def sys_dup2(process: Process, old: Fd, new: Fd) -> int:
    return process.descriptors.dup2(old, new)


@call
def sys_dup3(process: Process, old: Fd, new: Fd, flags: Int) -> int:
    return process.descriptors.dup3(old, new, flags)


@call
def sys_pipe(process: Process, ends: Address) -> int:
    return sys_pipe2(process, ends, 0)


@call
def sys_pipe2(process: Process, ends: Address, flags: Int) -> int:
    process.descriptors.free()
    if process.memory.room(ends, 8, write=True) < 8:
        raise SysError(errno.EFAULT)
    cloexec = bool(flags & os.O_CLOEXEC)
    made = process.files.pipe(flags)
    numbers = [process.descriptors.install(end, cloexec=cloexec) for end in made]
    process.memory.write(ends, struct.pack("<ii", *numbers))
    return 0


@call
def sys_fcntl(process: Process, fd: Fd, command: Int, argument: Size) -> int:
    descriptors = process.descriptors
    file = descriptors.get(fd)
    number = argument & 0xFFFFFFFF
    if command in (_F_DUPFD, _F_DUPFD_CLOEXEC):
        return descriptors.duplicate(fd, number, cloexec=command == _F_DUPFD_CLOEXEC)
    if command == _F_GETFD:
        return descriptors.cloexec(fd) * _FD_CLOEXEC
    if command == _F_SETFD:
        descriptors.set_cloexec(fd, on=bool(number & _FD_CLOEXEC))
    elif command == _F_GETFL:
        return file.flags
    elif command == _F_SETFL:
        file.set_flags(number)
    elif command in _LOCKS:
        _lock(process, command, argument)
    elif command == _F_GETOWN:
        return PID
    elif command in (_F_GETPIPE_SZ, _F_SETPIPE_SZ):
        if not isinstance(file, OpenPipe):
            raise SysError(errno.EBADF)
        return CAPACITY
    elif command != _F_SETOWN:
        raise SysError(errno.EINVAL)
    return 0


def _lock(process: Process, command: int, argument: int) -> None:
    """Nobody else locks anything: every lock can be had."""
    lock = bytearray(process.memory.read(argument, 32))
    kind, whence, _, _, pid = struct.unpack_from("<hhxxxxqqi", lock)
    if not 0 <= kind <= _F_UNLCK or not 0 <= whence <= os.SEEK_END:
        raise SysError(errno.EINVAL)
    if command in _OFD_LOCKS and pid:
        raise SysError(errno.EINVAL)
    if command in (_F_GETLK, _F_OFD_GETLK):
        struct.pack_into("<h", lock, 0, _F_UNLCK)
        process.memory.write(argument, lock)


@call
def sys_flock(process: Process, fd: Fd, operation: Int) -> int:
    process.descriptors.opened(fd)
    if operation & ~_LOCK_NB not in _FLOCKS:
        raise SysError(errno.EINVAL)
    return 0


@call
def sys_ioctl(process: Process, fd: Fd, request: Word, argument: Size) -> int:
    """Answer what is asked of every file. None is a terminal, nor any other device with more."""
    file = process.descriptors.opened(fd)
    if request in (_FIOCLEX, _FIONCLEX):
        process.descriptors.set_cloexec(fd, on=request == _FIOCLEX)
    elif request == _FIONBIO:
        (value,) = struct.unpack("<i", process.memory.read(argument, 4))
        flags = file.flags & ~os.O_NONBLOCK | (os.O_NONBLOCK if value else 0)
        file.set_flags(flags)
    elif request == _FIONREAD:
        process.memory.write(argument, struct.pack("<i", min(file.unread(), (1 << 31) - 1)))
    else:
        raise SysError(errno.ENOTTY)
    return 0


@call
def sys_ftruncate(process: Process, fd: Fd, size: Long) -> int:
    process.descriptors.get(fd).truncate(size)
    return 0


@call
def sys_fallocate(process: Process, fd: Fd, mode: Int, offset: Long, length: Long) -> int:
    process.descriptors.get(fd).fallocate(mode, offset, length)
    return 0


@call
def sys_fsync(process: Process, fd: Fd) -> int:
    process.descriptors.opened(fd)
    return 0


@call
def sys_fdatasync(process: Process, fd: Fd) -> int:
    process.descriptors.opened(fd)
    return 0


@call
def sys_sync(process: Process) -> int:
    return 0


@call
def sys_fadvise64(process: Process, fd: Fd, offset: Long, length: Long, advice: Int) -> int:
    if stat.S_ISFIFO(process.descriptors.opened(fd).node.stat().mode):
        raise SysError(errno.ESPIPE)
    if length < 0 or not 0 <= advice <= 5:
        raise SysError(errno.EINVAL)
    return 0


@call
def sys_sync_file_range(process: Process, fd: Fd, offset: Long, size: Long, flags: Word) -> int:
    process.descriptors.opened(fd)
    if flags & ~7 or offset < 0 or size < 0:
        raise SysError(errno.EINVAL)
    return 0


@call
def sys_syncfs(process: Process, fd: Fd) -> int:
    process.descriptors.opened(fd)
    return 0


@call
def sys_readahead(process: Process, fd: Fd, offset: Long, length: Size) -> int:
    process.descriptors.opened(fd)
    return 0
