"""The standard streams: bytes in, bytes out."""

from __future__ import annotations

import errno
import io
import select
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from vmm.errors import ArgumentTypeError, ConfigError
from vmm.linux.errors import SysError
from vmm.linux.files.nodes import Node, Special
from vmm.linux.files.open_files import MOST, OpenFile

if TYPE_CHECKING:
    from vmm.linux.files.system import FileSystem

_PIECE = 1 << 16


class Stream(Protocol):
    """Where output goes. It may raise SysError."""

    def write(self, data: bytes, /) -> int:
        """Take bytes; return how many."""


class Source(Protocol):
    """Where input comes from: a binary file. None is returned where there is nothing yet."""

    def read(self, size: int, /) -> bytes | None:
        """Return at most `size` bytes; b"" at the end."""


class Input:
    """Standard input.

    Reading waits for the source. A caller who holds locks calls `fill` before, without them, while
    it is not `ready`: `read` does not wait then.
    """

    def __init__(self, source: bytes | Source) -> None:
        """Raise ConfigError for a file that is open as text."""
        self._pending = b""
        self._at = 0  # what has been read of it
        self._arrived: list[Any] = []
        if isinstance(source, bytes | bytearray | memoryview):
            self._arrived += [bytes(source), b""]
            self._read: Callable[[int], bytes | None] = lambda _size: b""
            return
        if isinstance(source, io.TextIOBase):
            source = getattr(source, "buffer", None)
            if source is None:
                raise ConfigError("stdin must be a binary file, not one that is open as text")
        # What has arrived is not waited for.
        read = getattr(source, "read1", None) or getattr(source, "read", None)
        if read is None:
            raise ArgumentTypeError(
                f"stdin must be bytes or a binary file, not {type(source).__name__}"
            )
        self._read = read

    @property
    def ready(self) -> bool:
        """Whether something can be read at once, be it the end."""
        return self._at < len(self._pending) or bool(self._arrived)

    @property
    def arrived(self) -> int:
        """Bytes that can be read at once, as far as it is known."""
        return len(self._pending) + sum(len(part or b"") for part in self._arrived)

    def fill(self) -> None:
        """Wait until something can be read. May be interrupted, and called again. Raises EIO."""
        if self.ready:
            return
        try:
            # No line between the read and the list: what a signal's handler raises loses nothing.
            self._arrived.extend(map(self._read, (_PIECE,)))
        except (OSError, ValueError):
            raise SysError(errno.EIO) from None

    def read(self, files: FileSystem, length: int) -> bytes:
        """Return what there is, at most `length` bytes; b"" at the end. Raises EAGAIN, EIO."""
        self.fill()
        changes = files.changes
        if self._at >= len(self._pending):
            first = self._arrived[0]
            if first is None:
                self._arrived = []
                raise SysError(errno.EAGAIN)
            if not isinstance(first, bytes):
                raise SysError(errno.EIO)
            if not first:  # the end, and it stays that
                return b""
            changes.set(self, "_arrived", self._arrived[1:])
            changes.set(self, "_pending", first)
            changes.set(self, "_at", 0)
        data = self._pending[self._at : self._at + length]
        changes.set(self, "_at", self._at + len(data))
        return data


class _OpenStream(OpenFile):
    def path(self) -> bytes:
        return b"pipe:[%d]" % self.node.ino


class OpenInput(_OpenStream):
    """Standard input, open."""

    def __init__(self, files: FileSystem, node: Node, flags: int, source: Input) -> None:
        super().__init__(files, node, flags)
        self.input = source

    def unread(self) -> int:
        return self.input.arrived

    def read(self, length: int) -> bytes:
        self.check_read()
        return self.input.read(self.files, min(length, MOST)) if length > 0 else b""

    def events(self) -> int:
        return select.POLLIN


class OpenOutput(_OpenStream):
    """Standard output, or error, open. What has been written cannot be undone."""

    def __init__(self, files: FileSystem, node: Node, flags: int, stream: Stream) -> None:
        super().__init__(files, node, flags)
        self.stream = stream

    def write(self, data: bytes) -> int:
        self.check_write()
        return self.stream.write(data)

    def events(self) -> int:
        return select.POLLOUT


def input_node(files: FileSystem, source: Input) -> Special:
    """Return what stands for standard input."""

    def opened(node: Node, flags: int) -> OpenFile:
        return OpenInput(files, node, flags, source)

    return _node(files, opened)


def output_node(files: FileSystem, stream: Stream) -> Special:
    """Return what stands for an output."""

    def opened(node: Node, flags: int) -> OpenFile:
        return OpenOutput(files, node, flags, stream)

    return _node(files, opened)


def _node(files: FileSystem, opened: Callable[[Node, int], OpenFile]) -> Special:
    # A pipe: C libraries write to it when their buffer is full, as they do in a pipeline.
    node = Special(files.new_ino(), stat.S_IFIFO | 0o600, files.now(), opened)
    node.fixed = True
    return node
