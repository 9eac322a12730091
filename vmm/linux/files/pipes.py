"""Pipes of a program with itself."""

from __future__ import annotations

import errno
import os
import select
import stat
from typing import TYPE_CHECKING

from vmm.linux.errors import SysError
from vmm.linux.files.nodes import Special
from vmm.linux.files.open_files import OpenFile

if TYPE_CHECKING:
    from vmm.linux.files.system import FileSystem

CAPACITY = 1 << 16
_ATOMIC = 4096  # PIPE_BUF


class Pipe(Special):
    """A pipe: what is in it, and how many ends are open."""

    __slots__ = ("data", "files", "readers", "writers")

    def __init__(self, files: FileSystem) -> None:
        super().__init__(files.new_ino(), stat.S_IFIFO | 0o600, files.now(), self._open)
        self.fixed = True
        self.files = files
        self.data = b""
        self.readers = self.writers = 0

    def _open(self, _node: object, flags: int) -> OpenFile:
        return OpenPipe(self.files, self, flags)


class OpenPipe(OpenFile):
    """An end of a pipe, or both.

    A read of an empty one, and a write to a full one, are EAGAIN, with O_NONBLOCK or without: the
    program would wait for itself. Who writes when nobody reads gets EPIPE; the signal is the
    caller's business.
    """

    node: Pipe

    def __init__(self, files: FileSystem, node: Pipe, flags: int) -> None:
        super().__init__(files, node, flags)
        self._count(1)

    def _count(self, number: int) -> None:
        changes, pipe = self.files.changes, self.node
        changes.set(pipe, "readers", pipe.readers + number * self.readable)
        changes.set(pipe, "writers", pipe.writers + number * self.writable)

    def closed(self) -> None:
        self._count(-1)

    def path(self) -> bytes:
        return b"pipe:[%d]" % self.node.ino

    def events(self) -> int:
        pipe, found = self.node, 0
        if self.readable:
            found |= select.POLLIN if pipe.data else 0
            found |= 0 if pipe.writers else select.POLLHUP
        if self.writable:
            found |= select.POLLOUT if len(pipe.data) <= CAPACITY - _ATOMIC else 0
            found |= 0 if pipe.readers else select.POLLERR
        return found

    def unread(self) -> int:
        return len(self.node.data)

    def read(self, length: int) -> bytes:
        self.check_read()
        pipe = self.node
        if not length:
            return b""
        if not pipe.data and pipe.writers:
            raise SysError(errno.EAGAIN)
        data = pipe.data[:length]
        self.files.changes.set(pipe, "data", pipe.data[length:])
        return data

    def write(self, data: bytes) -> int:
        self.check_write()
        pipe = self.node
        if not data:
            return 0
        if not pipe.readers:
            raise SysError(errno.EPIPE)
        room = CAPACITY - len(pipe.data)
        if not room or room < len(data) <= _ATOMIC:
            raise SysError(errno.EAGAIN)
        self.files.changes.set(pipe, "data", pipe.data + data[:room])
        return min(len(data), room)


def pipe(files: FileSystem, flags: int) -> tuple[OpenPipe, OpenPipe]:
    """Make a pipe; return the end to read and the end to write: pipe2(2). Raises EINVAL."""
    if flags & ~(os.O_CLOEXEC | os.O_NONBLOCK):
        raise SysError(errno.EINVAL)
    made = Pipe(files)
    kept = flags & os.O_NONBLOCK
    reader = OpenPipe(files, made, os.O_RDONLY | kept)
    return reader, OpenPipe(files, made, os.O_WRONLY | kept)
