"""The devices that a program finds in /dev."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from vmm.linux.errors import SysError
from vmm.linux.files.nodes import Node
from vmm.linux.files.open_files import MOST, OpenFile, check_offset, path_of

if TYPE_CHECKING:
    from vmm.linux.files.system import FileSystem


class OpenNull(OpenFile):
    """/dev/null: nothing in it, and room for everything."""

    def path(self) -> bytes:
        return path_of(self)

    def made(self, length: int) -> bytes:
        """Return what is read."""
        return b""

    def read(self, length: int) -> bytes:
        self.check_read()
        return self.made(min(length, MOST))

    def pread(self, offset: int, length: int) -> bytes:
        check_offset(offset)
        return self.read(length)

    def write(self, data: bytes) -> int:
        self.check_write()
        return len(data)

    def pwrite(self, offset: int, data: bytes) -> int:
        check_offset(offset)
        return self.write(data)

    def seek(self, offset: int, whence: int) -> int:
        return 0


class OpenZero(OpenNull):
    """/dev/zero: zeros."""

    def made(self, length: int) -> bytes:
        return bytes(length)


class OpenFull(OpenZero):
    """/dev/full: zeros, and no room."""

    def write(self, data: bytes) -> int:
        self.check_write()
        raise SysError(errno.ENOSPC)


class OpenRandom(OpenNull):
    """/dev/random, /dev/urandom."""

    def made(self, length: int) -> bytes:
        return self.files.random(length)


DEVICES: dict[bytes, tuple[type[OpenNull] | None, int, int]] = {
    b"null": (OpenNull, 1, 3),
    b"zero": (OpenZero, 1, 5),
    b"full": (OpenFull, 1, 7),
    b"random": (OpenRandom, 1, 8),
    b"urandom": (OpenRandom, 1, 9),
    b"tty": (None, 5, 0),  # there is no terminal: ENXIO
}


def devices(files: FileSystem) -> dict[bytes, tuple[OpenedBy | None, int]]:
    """Return what opens each device, by its name, and its number."""
    return {
        name: (None if kind is None else OpenedBy(files, kind), os.makedev(major, minor))
        for name, (kind, major, minor) in DEVICES.items()
    }


class OpenedBy:
    """Opens a device."""

    __slots__ = ("files", "kind")

    def __init__(self, files: FileSystem, kind: type[OpenNull]) -> None:
        self.files = files
        self.kind = kind

    def __call__(self, node: Node, flags: int) -> OpenFile:
        return self.kind(self.files, node, flags)
