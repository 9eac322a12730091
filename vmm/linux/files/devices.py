"""The devices that a program finds in /dev."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from vmm.linux.errors import SysError
from vmm.linux.files.attributes import Attributes
from vmm.linux.files.nodes import Node
from vmm.linux.files.open_files import MOST, OpenFile, check_offset, path_of


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
    """/dev/random, /dev/urandom. random: returns as many bytes."""

    def __init__(
        self, files: Attributes, node: Node, flags: int, *, random: Callable[[int], bytes]
    ) -> None:
        super().__init__(files, node, flags)
        self._random = random

    def made(self, length: int) -> bytes:
        return self._random(length)


class Device(NamedTuple):
    """What opens a device, None if nothing does (ENXIO), and its number."""

    opened: Callable[[Node, int], OpenFile] | None
    number: int


def devices(files: Attributes, random: Callable[[int], bytes]) -> dict[bytes, Device]:
    """Return what there is in /dev, by name."""
    chance = partial(OpenRandom, files, random=random)
    return {
        b"null": Device(partial(OpenNull, files), os.makedev(1, 3)),
        b"zero": Device(partial(OpenZero, files), os.makedev(1, 5)),
        b"full": Device(partial(OpenFull, files), os.makedev(1, 7)),
        b"random": Device(chance, os.makedev(1, 8)),
        b"urandom": Device(chance, os.makedev(1, 9)),
        b"tty": Device(None, os.makedev(5, 0)),  # there is no terminal
    }
