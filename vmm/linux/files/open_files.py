"""Open file descriptions: what several descriptors may stand for."""

from __future__ import annotations

import errno
import os
import select
from typing import TYPE_CHECKING

from vmm.linux.errors import SysError
from vmm.linux.files.contents import Content, Given, HostFile
from vmm.linux.files.data import LARGEST
from vmm.linux.files.nodes import Directory, File, Node, Stat

if TYPE_CHECKING:
    from vmm.linux.files.system import FileSystem

MOST = 1 << 22  # bytes of one read: whoever wants more, asks again
_READABLE = (os.O_RDONLY, os.O_RDWR)
SETTABLE = os.O_APPEND | os.O_NONBLOCK | os.O_ASYNC | os.O_DIRECT | os.O_NOATIME
_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE
_O_LARGEFILE = 0o100000  # 0 in C libraries of 64 bits, but told all the same
_FORGOTTEN = os.O_CREAT | os.O_EXCL | os.O_NOCTTY | os.O_TRUNC | os.O_CLOEXEC


class OpenFile:
    """An open file description. Every method raises SysError, and changes nothing then.

    node        what it is of
    flags       as fcntl(2)'s F_GETFL tells them
    references  how many descriptors there are of it; at 0 it is closed
    place       for a file: the directory in which it was found, and its name there
    isatty      whether it is a terminal: never
    """

    isatty = False

    def __init__(self, files: FileSystem, node: Node, flags: int) -> None:
        self.files = files
        self.node = node
        self.flags = flags & ~_FORGOTTEN | (0 if flags & os.O_PATH else _O_LARGEFILE)
        self.references = 0
        self.place: tuple[Directory, bytes] | None = None
        files.opened(node, 1)

    @property
    def readable(self) -> bool:
        """Whether it was opened for reading."""
        return self.flags & os.O_ACCMODE in _READABLE

    @property
    def writable(self) -> bool:
        """Whether it was opened for writing."""
        return self.flags & os.O_ACCMODE in (os.O_WRONLY, os.O_RDWR)

    @property
    def content(self) -> Content | None:
        """That which was offered as this file, if it is nothing but that."""
        return None

    def path(self) -> bytes:
        """Return what /proc/self/fd tells of it."""
        return b"anon_inode:[file]"

    def refer(self, number: int) -> None:
        """Count `number` descriptors more, or less; the last one closes it."""
        changes = self.files.changes
        changes.set(self, "references", self.references + number)
        if not self.references:
            self.closed()
            self.files.opened(self.node, -1)

    def closed(self) -> None:
        """Do what else is to be done when nobody has it open any more."""

    def stat(self) -> Stat:
        """Tell of it: fstat(2)."""
        return self.node.stat()

    def set_flags(self, flags: int) -> None:
        """Set what can be set of the flags: fcntl(2)'s F_SETFL."""
        self.files.changes.set(self, "flags", self.flags & ~SETTABLE | flags & SETTABLE)

    def events(self) -> int:
        """Return what poll(2) would: POLLIN and POLLOUT and so on."""
        return select.POLLIN | select.POLLOUT

    def unread(self) -> int:
        """Return how many bytes can be read at once: ioctl(2)'s FIONREAD. Raises ENOTTY."""
        raise SysError(errno.ENOTTY)

    def read(self, length: int) -> bytes:
        """Read on: read(2). At most MOST bytes: it may be less than is wanted, and there."""
        self.check_read()
        raise SysError(errno.EINVAL)

    def read_into(self, view: memoryview) -> int | None:
        """Read on, to where it is wanted, and no copy between; None, and nothing is done, if that
        is for `read` to do.
        """
        return None

    def write(self, data: bytes) -> int:
        """Write on: write(2). Returns how many bytes that were."""
        self.check_write()
        raise SysError(errno.EINVAL)

    def pread(self, offset: int, length: int) -> bytes:
        """Read somewhere: pread64(2). At most MOST bytes."""
        check_offset(offset)
        raise SysError(errno.ESPIPE)

    def pwrite(self, offset: int, data: bytes) -> int:
        """Write somewhere: pwrite64(2); at the end, with O_APPEND."""
        check_offset(offset)
        raise SysError(errno.ESPIPE)

    def seek(self, offset: int, whence: int) -> int:
        """Go somewhere: lseek(2), SEEK_DATA and SEEK_HOLE included."""
        raise SysError(errno.ESPIPE)

    def truncate(self, size: int) -> None:
        """Make it as large as that: ftruncate(2)."""
        raise SysError(errno.EINVAL)

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        """Make room: fallocate(2), mode 0 and FALLOC_FL_KEEP_SIZE only."""
        if offset < 0 or length <= 0:
            raise SysError(errno.EINVAL)
        self.check_write()
        raise SysError(errno.ENODEV)

    def getdents(self, room: int) -> bytes:
        """List what is in a directory: getdents64(2)."""
        raise SysError(errno.ENOTDIR)

    def check_read(self) -> None:
        """Raise EBADF if it was not opened for reading."""
        if not self.readable:
            raise SysError(errno.EBADF)

    def check_write(self) -> None:
        """Raise EBADF if it was not opened for writing."""
        if not self.writable:
            raise SysError(errno.EBADF)


class OpenPath(OpenFile):
    """What was opened with O_PATH: a place, and no more."""

    @property
    def readable(self) -> bool:
        """It is not."""
        return False

    @property
    def writable(self) -> bool:
        """It is not."""
        return False

    def path(self) -> bytes:
        return path_of(self)

    def events(self) -> int:
        return select.POLLNVAL

    def set_flags(self, flags: int) -> None:
        raise SysError(errno.EBADF)

    def pread(self, offset: int, length: int) -> bytes:
        check_offset(offset)
        raise SysError(errno.EBADF)

    def pwrite(self, offset: int, data: bytes) -> int:
        check_offset(offset)
        raise SysError(errno.EBADF)

    def seek(self, offset: int, whence: int) -> int:
        raise SysError(errno.EBADF)

    def truncate(self, size: int) -> None:
        check_offset(size)
        raise SysError(errno.EBADF)

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        raise SysError(errno.EBADF)

    def getdents(self, room: int) -> bytes:
        raise SysError(errno.EBADF)


class OpenRegular(OpenFile):
    """A regular file."""

    node: File

    def __init__(self, files: FileSystem, node: File, flags: int) -> None:
        super().__init__(files, node, flags)
        self.position = 0

    @property
    def content(self) -> Content | None:
        """That which was offered as this file, if it is nothing but that."""
        data = self.node.data
        return None if data.changed else data.base

    def path(self) -> bytes:
        return path_of(self)

    def read(self, length: int) -> bytes:
        data = self.pread(self.position, length)
        if data:
            self.files.changes.set(self, "position", self.position + len(data))
        return data

    def pread(self, offset: int, length: int) -> bytes:
        check_offset(offset)
        self.check_read()
        return self.node.data.read(offset, min(length, MOST))

    def read_into(self, view: memoryview) -> int | None:
        data, position = self.node.data, self.position
        base = data.base
        direct = type(base) is HostFile or type(base) is Given
        if not direct or data.chunks or self.flags & os.O_ACCMODE not in _READABLE:
            return None
        end = position + len(view)
        if end > data.base_size:
            return None
        try:
            if base.pread_into(view, position) != len(view):  # type: ignore[union-attr]
                return None
        except OSError:
            return None
        self.files.changes.set(self, "position", end)
        return len(view)

    def write(self, data: bytes) -> int:
        written, end = self._write(self.position, data)
        if data:
            self.files.changes.set(self, "position", end)
        return written

    def pwrite(self, offset: int, data: bytes) -> int:
        check_offset(offset)
        return self._write(offset, data)[0]

    def _write(self, offset: int, data: bytes) -> tuple[int, int]:
        self.check_write()
        if self.flags & os.O_APPEND:
            offset = self.node.data.size
        if data:
            self.files.change(self.node)
            data = data[: self.node.data.fitting(offset, len(data))]
            self.node.data.write(self.files.changes, self.files.space, offset, data)
            self.files.touched(self.node)
        return len(data), offset + len(data)

    def seek(self, offset: int, whence: int) -> int:
        position = self._sought(offset, whence)
        if not 0 <= position <= LARGEST:
            raise SysError(errno.EINVAL)
        self.files.changes.set(self, "position", position)
        return position

    def _sought(self, offset: int, whence: int) -> int:
        data = self.node.data
        if whence in (os.SEEK_DATA, os.SEEK_HOLE):
            if offset < 0:
                raise SysError(errno.ENXIO)
            found = (data.next_data if whence == os.SEEK_DATA else data.next_hole)(offset)
            if found is None:
                raise SysError(errno.ENXIO)
            return found
        if whence not in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END):
            raise SysError(errno.EINVAL)
        return offset + (0, self.position, data.size)[whence]

    def unread(self) -> int:
        return self.node.data.size - self.position

    def truncate(self, size: int) -> None:
        if not 0 <= size <= LARGEST or not self.writable:
            raise SysError(errno.EINVAL)
        self.files.resize(self.node, size)

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        if offset < 0 or length <= 0:
            raise SysError(errno.EINVAL)
        if mode & ~_KEEP_SIZE:
            raise SysError(errno.EOPNOTSUPP)
        self.check_write()
        size = self.node.data.size
        if offset + length > LARGEST:
            raise SysError(errno.EFBIG)
        if offset + length - size > self.files.space.free:
            raise SysError(errno.ENOSPC)
        if offset + length > size and not mode:
            self.files.resize(self.node, offset + length)


def check_offset(offset: int) -> None:
    """Raise EINVAL for what is before the beginning: that comes first, whatever the file is."""
    if offset < 0:
        raise SysError(errno.EINVAL)


def path_of(file: OpenFile) -> bytes:
    """Return what a file was opened as: where its directory is by now."""
    if isinstance(file.node, Directory):
        return file.files.path_of(file.node) or b"(deleted)"
    if file.place is None:
        return b"(unknown)"
    directory, name = file.place
    where = file.files.path_of(directory)
    if where is None:
        return name + b" (deleted)"
    path = name if name[:1] == b"/" else where.rstrip(b"/") + b"/" + name
    return path if file.node.nlink else path + b" (deleted)"
