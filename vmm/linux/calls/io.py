"""Reading and writing open files, whole or in pieces."""

from __future__ import annotations

import errno
import select
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from vmm.linux.calls.table import Address, Fd, Int, Long, Park, Size, Word, call
from vmm.linux.errors import SysError
from vmm.linux.files.open_files import MOST, OpenFile
from vmm.linux.files.streams import OpenInput

if TYPE_CHECKING:
    from vmm.linux.process import Process

_IOV_MAX = 1024
_MAX_RW = 0x7FFFF000
PATIENCE_NS = 10_000_000  # between two looks at a standard input that has nothing yet


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
    if not arrived(process):
        raise Park(process.now() + PATIENCE_NS / 1e9)
    file.input.fill()


def arrived(process: Process) -> bool:
    """Whether standard input has something, be it its end; also where nothing tells."""
    if process.input_fd is None:
        return True
    look = select.poll()  # which takes descriptors of any number
    look.register(process.input_fd, select.POLLIN)
    return bool(look.poll(0))


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


def _at(process: Process, fd: Fd, offset: Long) -> OpenFile:
    """Return the file that is to be read or written at an offset. Raises EINVAL, EBADF."""
    if offset < 0:
        raise SysError(errno.EINVAL)
    return process.descriptors.get(fd)


@call
def sys_pread64(process: Process, fd: Fd, buffer: Address, size: Size, offset: Long) -> int:
    file = _at(process, fd, offset)
    return read_into(process, file, [(buffer, min(size, _MAX_RW))], _reader(file, offset))


@call
def sys_pwrite64(process: Process, fd: Fd, buffer: Address, size: Size, offset: Long) -> int:
    file = _at(process, fd, offset)
    return write_from(process, file, [(buffer, min(size, _MAX_RW))], _writer(file, offset))


@call
def sys_preadv(process: Process, fd: Fd, vector: Address, count: Int, offset: Long) -> int:
    file = _at(process, fd, offset)
    return read_into(process, file, list(pieces(process, vector, count)), _reader(file, offset))


@call
def sys_pwritev(process: Process, fd: Fd, vector: Address, count: Int, offset: Long) -> int:
    file = _at(process, fd, offset)
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
