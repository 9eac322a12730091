"""A directory that is open, and listed: once each what is there all the time."""

from __future__ import annotations

import bisect
import errno
import os
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from vmm.linux.errors import SysError
from vmm.linux.files.beneath import Listed
from vmm.linux.files.data import LARGEST
from vmm.linux.files.nodes import FIRST_COOKIE, Directory
from vmm.linux.files.open_files import OpenFile, check_offset, path_of
from vmm.linux.files.tree import current

if TYPE_CHECKING:
    from vmm.linux.files.system import FileSystem

_HEAD = struct.Struct("<QqHB")  # struct linux_dirent64, but for the name
_KEPT = 64  # bytes that a name of the host's takes of the space while it is listed
_MOST = 1 << 20  # bytes of one answer
_DOTS = 2  # "." and ".." come first


class _Dirent(NamedTuple):
    name: bytes
    ino: int
    kind: int
    after: int  # where what comes next begins


class OpenDirectory(OpenFile):
    """A directory.

    Its position is 0, or what the last entry said: that of the host's names in the order in which
    they were when the listing began, then the cookies of what is in memory.
    """

    node: Directory

    def __init__(self, files: FileSystem, node: Directory, flags: int) -> None:
        super().__init__(files, node, flags)
        self.position = 0
        self.listed: tuple[Listed, ...] | None = None
        self._charged = 0

    def path(self) -> bytes:
        return path_of(self)

    def read(self, length: int) -> bytes:
        raise SysError(errno.EISDIR)

    def pread(self, offset: int, length: int) -> bytes:
        check_offset(offset)
        raise SysError(errno.EISDIR)

    def pwrite(self, offset: int, data: bytes) -> int:
        check_offset(offset)
        raise SysError(errno.EBADF)

    def seek(self, offset: int, whence: int) -> int:
        if whence not in (os.SEEK_SET, os.SEEK_CUR):
            raise SysError(errno.EINVAL)
        position = offset + (self.position if whence == os.SEEK_CUR else 0)
        if not 0 <= position <= LARGEST:
            raise SysError(errno.EINVAL)
        if position == 0:
            self._forget()
        self.files.changes.set(self, "position", position)
        return position

    def closed(self) -> None:
        self._forget()

    def _forget(self) -> None:
        """Look at the host's directory again when it is listed next."""
        changes = self.files.changes
        self.files.space.take(changes, -self._charged)
        changes.set(self, "_charged", 0)
        changes.set(self, "listed", None)

    def getdents(self, room: int) -> bytes:
        if self.node.removed:
            raise SysError(errno.ENOENT)
        room = min(room, _MOST)
        packed: list[bytes] = []
        position = self.position
        for entry in self._from(position):
            record = _packed(entry)
            room -= len(record)
            if room < 0:
                break
            packed.append(record)
            position = entry.after
        if room < 0 and not packed:
            raise SysError(errno.EINVAL)
        self.files.changes.set(self, "position", position)
        return b"".join(packed)

    def _from(self, position: int) -> Iterator[_Dirent]:
        node = self.node
        if position < 1:
            yield _Dirent(b".", node.ino, 4, 1)
        if position < _DOTS:
            yield _Dirent(b"..", node.parent.ino, 4, _DOTS)
        made_up = node.listed()
        if made_up is not None:
            for number, (name, found) in enumerate(made_up):
                if _DOTS + number >= position:
                    yield _Dirent(name, found.ino, found.mode >> 12, _DOTS + number + 1)
            return
        yield from self._of_host(position)
        yield from self._in_memory(position)

    def _of_host(self, position: int) -> Iterator[_Dirent]:
        if position >= FIRST_COOKIE or self.node.lower is None:
            return
        listed = self._names()
        for index in range(max(position - _DOTS, 0), len(listed)):
            found = listed[index]
            entry = self.node.entries.get(found.name)
            if entry is None:
                yield _Dirent(*found, _DOTS + index + 1)
            elif entry.node is not None and not entry.cookie:
                node = entry.node
                yield _Dirent(found.name, node.ino, node.mode >> 12, _DOTS + index + 1)

    def _names(self) -> tuple[Listed, ...]:
        if self.listed is None:
            lower = self.files.lower
            names = () if lower is None else tuple(lower.names(self.node))
            size = sum(_KEPT + len(listed.name) for listed in names)
            self.files.space.take(self.files.changes, size)
            self.files.changes.set(self, "_charged", size)
            self.files.changes.set(self, "listed", names)
            return names
        return self.listed

    def _in_memory(self, position: int) -> Iterator[_Dirent]:
        order = self.node.order
        # A cookie is a position: what begins there is it, or the next one that is left.
        for index in range(bisect.bisect_left(order, (position, b"")), len(order)):
            cookie, name = order[index]
            entry = self.node.entries.get(name)
            if entry is not None and entry.node is not None and current(self.node, cookie, name):
                yield _Dirent(name, entry.node.ino, entry.node.mode >> 12, cookie + 1)


def _packed(entry: _Dirent) -> bytes:
    size = -(-(_HEAD.size + len(entry.name) + 1) // 8) * 8
    head = _HEAD.pack(entry.ino, entry.after, size, entry.kind)
    return (head + entry.name).ljust(size, b"\0")
