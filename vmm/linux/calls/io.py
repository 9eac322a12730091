"""What is done with open files: reading, writing, and what descriptors are for."""

from __future__ import annotations

import errno
import os
import select
import stat
import struct
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from vmm.linux.calls.identity import PID
from vmm.linux.calls.table import Address, Fd, Int, Long, Park, Size, Word, call
from vmm.linux.calls.time import timespec
from vmm.linux.errors import SysError
from vmm.linux.files.open_files import MOST, OpenFile
from vmm.linux.files.pipes import CAPACITY, OpenPipe
from vmm.linux.files.streams import OpenInput

if TYPE_CHECKING:
    from vmm.linux.process import Process

_IOV_MAX = 1024
_MAX_RW = 0x7FFFF000
_PATIENCE_NS = 10_000_000  # between two looks at a standard input that has nothing yet

_F_DUPFD, _F_GETFD, _F_SETFD, _F_GETFL, _F_SETFL = 0, 1, 2, 3, 4
_F_GETLK, _F_SETLK, _F_SETLKW, _F_SETOWN, _F_GETOWN = 5, 6, 7, 8, 9
_F_DUPFD_CLOEXEC, _F_SETPIPE_SZ, _F_GETPIPE_SZ = 1030, 1031, 1032
_F_OFD_GETLK = 36
_OFD_LOCKS = (_F_OFD_GETLK, 37, 38)  # and F_OFD_SETLK, F_OFD_SETLKW
_LOCKS = (_F_GETLK, _F_SETLK, _F_SETLKW, *_OFD_LOCKS)
_LOCK_NB, _FLOCKS = 4, (1, 2, 8)  # LOCK_SH, LOCK_EX, LOCK_UN
_F_UNLCK, _FD_CLOEXEC = 2, 1
_FIOCLEX, _FIONCLEX, _FIONBIO, _FIONREAD = 0x5451, 0x5450, 0x5421, 0x541B

Piece = tuple[int, int]


def pieces(process: Process, vector: int, count: int) -> Iterator[Piece]:
    """Yield what a struct iovec array names, as (address, size). Raises EINVAL, EFAULT."""
    if not 0 <= count <= _IOV_MAX:
        raise SysError(errno.EINVAL)
    words = process.memory.words(vector, 2 * count) if count else ()
    if any(size >> 63 for size in words[1::2]):
        raise SysError(errno.EINVAL)
    left = _MAX_RW
    for address, size in zip(words[::2], words[1::2], strict=True):
        yield address, min(size, left)
        left -= min(size, left)


def read_into(
    process: Process, file: OpenFile, wanted: list[Piece], read: Callable[[int], bytes]
) -> int:
    """Read into several places, in order, until there is less than is wanted."""
    file.check_read()
    if isinstance(file, OpenInput) and not file.input.ready and any(s for _, s in wanted):
        wait_for_input(process, file)
    done = 0
    for address, size in wanted:
        size = min(size, MOST)
        room = process.memory.room(address, size, write=True) if size else 0
        if size and not room:
            if done:
                break
            raise SysError(errno.EFAULT)
        try:
            data = read(room)
        except SysError:
            if done:
                break
            raise
        process.memory.write(address, data)
        done += len(data)
        if len(data) < size:
            break
    return done


def write_from(
    process: Process, file: OpenFile, wanted: list[Piece], write: Callable[[bytes], int]
) -> int:
    """Write from several places, in order, until less is taken than is given."""
    file.check_write()
    done = 0
    for address, size in wanted:
        size = min(size, MOST)
        room = process.memory.room(address, size) if size else 0
        if size and not room:
            if done:
                break
            raise SysError(errno.EFAULT)
        try:
            taken = write(process.memory.read(address, room))
        except SysError as error:
            if done:
                break
            if error.number == errno.EPIPE:
                return process.broken_pipe()
            raise
        done += taken
        if taken < size:
            break
    return done


def wait_for_input(process: Process, file: OpenInput) -> None:
    """Come back later if nothing has arrived, so that no thread is held; else take it in."""
    fd = process.input_fd
    if fd is not None and not select.select([fd], [], [], 0)[0]:
        raise Park(process.now() + _PATIENCE_NS / 1e9)
    file.input.fill()


@call
def sys_read(process: Process, fd: Fd, buffer: Address, size: Size) -> int:
    file = process.descriptors.get(fd)
    if 0 < size <= MOST:
        try:
            view = process.memory.view(buffer, size, write=True)
        except SysError:  # it is not all there; what is, is read into
            view = None
        if view is not None:
            done = file.read_into(view)
            if done is not None:
                return done
    return read_into(process, file, [(buffer, min(size, _MAX_RW))], file.read)


@call
def sys_write(process: Process, fd: Fd, buffer: Address, size: Size) -> int:
    file = process.descriptors.get(fd)
    return write_from(process, file, [(buffer, min(size, _MAX_RW))], file.write)


@call
def sys_readv(process: Process, fd: Fd, vector: Address, count: Int) -> int:
    file = process.descriptors.get(fd)
    return read_into(process, file, list(pieces(process, vector, count)), file.read)


@call
def sys_writev(process: Process, fd: Fd, vector: Address, count: Int) -> int:
    file = process.descriptors.get(fd)
    return write_from(process, file, list(pieces(process, vector, count)), file.write)


def _reader(file: OpenFile, offset: int) -> Callable[[int], bytes]:
    def read(size: int) -> bytes:
        nonlocal offset
        data = file.pread(offset, size)
        offset += len(data)
        return data

    return read


def _writer(file: OpenFile, offset: int) -> Callable[[bytes], int]:
    def write(data: bytes) -> int:
        nonlocal offset
        taken = file.pwrite(offset, data)
        offset += taken
        return taken

    return write


@call
def sys_pread64(process: Process, fd: Fd, buffer: Address, size: Size, offset: Long) -> int:
    if offset < 0:
        raise SysError(errno.EINVAL)
    file = process.descriptors.get(fd)
    return read_into(process, file, [(buffer, min(size, _MAX_RW))], _reader(file, offset))


@call
def sys_pwrite64(process: Process, fd: Fd, buffer: Address, size: Size, offset: Long) -> int:
    if offset < 0:
        raise SysError(errno.EINVAL)
    file = process.descriptors.get(fd)
    return write_from(process, file, [(buffer, min(size, _MAX_RW))], _writer(file, offset))


@call
def sys_preadv(process: Process, fd: Fd, vector: Address, count: Int, offset: Long) -> int:
    if offset < 0:
        raise SysError(errno.EINVAL)
    file = process.descriptors.get(fd)
    return read_into(process, file, list(pieces(process, vector, count)), _reader(file, offset))


@call
def sys_pwritev(process: Process, fd: Fd, vector: Address, count: Int, offset: Long) -> int:
    if offset < 0:
        raise SysError(errno.EINVAL)
    file = process.descriptors.get(fd)
    return write_from(process, file, list(pieces(process, vector, count)), _writer(file, offset))


_RWF_HINTS = 7  # HIPRI, DSYNC, SYNC: nothing is slow here, or lost


@call
def sys_preadv2(
    process: Process, fd: Fd, vector: Address, count: Int, offset: Long, high: Size, flags: Word
) -> int:
    if flags & ~_RWF_HINTS:
        raise SysError(errno.EOPNOTSUPP)
    if offset == -1:
        return sys_readv(process, fd, vector, count)
    return sys_preadv(process, fd, vector, count, offset)


@call
def sys_pwritev2(
    process: Process, fd: Fd, vector: Address, count: Int, offset: Long, high: Size, flags: Word
) -> int:
    if flags & ~_RWF_HINTS:
        raise SysError(errno.EOPNOTSUPP)
    if offset == -1:
        return sys_writev(process, fd, vector, count)
    return sys_pwritev(process, fd, vector, count, offset)


@call
def sys_lseek(process: Process, fd: Fd, offset: Long, whence: Word) -> int:
    return process.descriptors.get(fd).seek(offset, whence)


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
    process.descriptors.get(fd)
    if operation & ~_LOCK_NB not in _FLOCKS:
        raise SysError(errno.EINVAL)
    return 0


@call
def sys_ioctl(process: Process, fd: Fd, request: Word, argument: Size) -> int:
    """Answer what is asked of every file. None is a terminal, nor any other device with more."""
    file = process.descriptors.get(fd)
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
    process.descriptors.get(fd)
    return 0


@call
def sys_fdatasync(process: Process, fd: Fd) -> int:
    process.descriptors.get(fd)
    return 0


@call
def sys_sync(process: Process) -> int:
    return 0


@call
def sys_fadvise64(process: Process, fd: Fd, offset: Long, length: Long, advice: Int) -> int:
    if stat.S_ISFIFO(process.descriptors.get(fd).node.stat().mode):
        raise SysError(errno.ESPIPE)
    if length < 0 or not 0 <= advice <= 5:
        raise SysError(errno.EINVAL)
    return 0


@call
def sys_sync_file_range(process: Process, fd: Fd, offset: Long, size: Long, flags: Word) -> int:
    process.descriptors.get(fd)
    if flags & ~7 or offset < 0 or size < 0:
        raise SysError(errno.EINVAL)
    return 0


@call
def sys_syncfs(process: Process, fd: Fd) -> int:
    process.descriptors.get(fd)
    return 0


@call
def sys_readahead(process: Process, fd: Fd, offset: Long, length: Size) -> int:
    process.descriptors.get(fd)
    return 0


# ---- waiting for files ----


def _deadline(process: Process, ns: int | None) -> float | None:
    """Return when a wait is over; the same each time a call is made again."""
    return process.deadline(ns)


def _look(process: Process, fd: int, wanted: int) -> int:
    try:
        file = process.descriptors.get(fd)
    except SysError:
        return select.POLLNVAL
    if isinstance(file, OpenInput) and not file.input.ready and wanted & select.POLLIN:
        source = process.input_fd
        if source is None or select.select([source], [], [], 0)[0]:
            file.input.fill()
    events = file.events()
    if isinstance(file, OpenInput) and not file.input.ready:
        events &= ~select.POLLIN
    return events & (wanted | select.POLLERR | select.POLLHUP | select.POLLNVAL)


def _wait(process: Process, ns: int | None) -> None:
    """Return if it is over; else come back then, or sooner if there may be something by then."""
    until = _deadline(process, ns)
    if process.clock.frozen and until is not None:
        process.sleep(ns or 0)
        return
    now = process.now()
    if until is not None and now >= until:
        return
    soon = now + _PATIENCE_NS / 1e9
    if process.input_fd is None:
        raise Park(until)
    raise Park(soon if until is None else min(soon, until))


@call
def sys_poll(process: Process, fds: Address, count: Word, timeout_ms: Int) -> int:
    return _poll(process, fds, count, None if timeout_ms < 0 else timeout_ms * 1_000_000)


@call
def sys_ppoll(
    process: Process, fds: Address, count: Word, timeout: Address, mask: Address, size: Size
) -> int:
    return _poll(process, fds, count, timespec(process, timeout) if timeout else None)


def _poll(process: Process, fds: int, count: int, ns: int | None) -> int:
    if count > process.descriptors.limit:
        raise SysError(errno.EINVAL)
    entries = list(struct.iter_unpack("<ihh", process.memory.read(fds, 8 * count)))
    found = [
        (fd, events, _look(process, fd, events & 0xFFFF) if fd >= 0 else 0)
        for fd, events, _ in entries
    ]
    ready = sum(bool(revents) for _, _, revents in found)
    if not ready:
        _wait(process, ns)
    process.memory.write(fds, b"".join(struct.pack("<iHH", f, e & 0xFFFF, r) for f, e, r in found))
    return ready


@call
def sys_select(
    process: Process, count: Int, reads: Address, writes: Address, rest: Address, timeout: Address
) -> int:
    ns = None
    if timeout:
        seconds, us = struct.unpack("<qq", process.memory.read(timeout, 16))
        if seconds < 0 or us < 0:
            raise SysError(errno.EINVAL)
        ns = min(seconds * 10**9 + us * 1000, (1 << 63) - 1)
    return _select(process, count, (reads, writes, rest), ns)


@call
def sys_pselect6(
    process: Process,
    count: Int,
    reads: Address,
    writes: Address,
    rest: Address,
    timeout: Address,
    mask: Address,
) -> int:
    ns = timespec(process, timeout) if timeout else None
    return _select(process, count, (reads, writes, rest), ns)


def _select(process: Process, count: int, sets: tuple[int, ...], ns: int | None) -> int:
    if count < 0:
        raise SysError(errno.EINVAL)
    count = min(count, process.descriptors.limit)
    size = -(-count // 64) * 8
    found, ready = [], 0
    for address, wanted in zip(sets, (select.POLLIN, select.POLLOUT, 0), strict=True):
        bits = int.from_bytes(process.memory.read(address, size), "little") if address else 0
        answer = 0
        for fd in range(count):
            if bits >> fd & 1:
                events = _look(process, fd, wanted)
                if events & select.POLLNVAL:
                    raise SysError(errno.EBADF)
                if wanted and events:
                    answer |= 1 << fd
                    ready += 1
        found.append((address, answer))
    if not ready:
        _wait(process, ns)
    for address, answer in found:
        if address:
            process.memory.write(address, answer.to_bytes(size, "little"))
    return ready
