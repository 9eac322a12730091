"""What is in a file that was offered: bytes, a file of the host's, or anything with `pread`."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Protocol, runtime_checkable

from vmm.errors import ConfigError, LimitError, PageferryError
from vmm.kvm.descriptor import Descriptor
from vmm.linux.errors import SysError

_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


@runtime_checkable
class Content(Protocol):
    """Bytes that are read when they are asked for, by one thread at a time or several.

    `pread` may raise OSError or PageferryError: to the program that is EIO.
    """

    @property
    def size(self) -> int:
        """In bytes. It does not change."""

    def pread(self, offset: int, length: int, /) -> bytes:
        """Return at most `length` bytes, all within `size`; fewer where there are no more."""


class Given:
    """Bytes as a content."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.data)

    def pread(self, offset: int, length: int, /) -> bytes:
        """Return a part."""
        return self.data[offset : offset + length]

    def pread_into(self, view: memoryview, offset: int) -> int:
        """Copy a part to where it is wanted. Returns how many bytes that were."""
        with memoryview(self.data)[offset : offset + len(view)] as part:
            view[: len(part)] = part
            return len(part)


class HostFile(Descriptor):
    """A regular file of the host's, open for reading: as large as it was then, whatever becomes of
    it.

    size    in bytes, when it was opened
    mtime   when it was last written, in ns
    """

    kind = "offered file"

    def __init__(self) -> None:
        super().__init__()
        self.size = self.mtime = 0

    @classmethod
    def open(cls, path: Path) -> HostFile:
        """Open a file. Raises ConfigError if it cannot be, or is no regular one; LimitError."""
        file = cls()
        try:
            file._take(os.open, path, _FLAGS)
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise ConfigError(f"{path} cannot be offered: it is not a regular file")
            file.size, file.mtime = found.st_size, found.st_mtime_ns
        except OSError as error:
            file.close()
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise LimitError(
                    f"{path}: too many open files: offer fewer, or raise the limit (ulimit -n)",
                    error.errno,
                ) from error
            raise ConfigError(f"{path} cannot be offered: {error.strerror}") from error
        except BaseException:
            file.close()
            raise
        return file

    def pread(self, offset: int, length: int, /) -> bytes:
        """Read a part. Raises OSError."""
        return os.pread(self.fileno(), length, offset)

    def pread_into(self, view: memoryview, offset: int) -> int:
        """Read a part to where it is wanted. Returns how many bytes that were. Raises OSError."""
        return os.preadv(self._fd, (view,), offset)


def part(content: Content, offset: int, length: int) -> bytes:
    """Return exactly `length` bytes; what is no longer there is zeros. Raises EIO."""
    found = b""
    try:
        while len(found) < length:
            more = bytes(content.pread(offset + len(found), length - len(found)))
            if not more:
                break
            found = found + more if found else more
    except (OSError, PageferryError, ValueError):
        raise SysError(errno.EIO) from None
    return found if len(found) == length else found[:length].ljust(length, b"\0")


def whole(content: Content, step: int = 1 << 20) -> bytes:
    """Return all of a content. Raises EIO."""
    size = content.size
    return b"".join(part(content, at, min(step, size - at)) for at in range(0, size, step))
