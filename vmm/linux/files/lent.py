"""Files that are pages of the machine's window: buffers of the host's, lent to it."""

from __future__ import annotations

import errno
import os

from vmm.linux.errors import SysError
from vmm.linux.files.changes import Changes, Space
from vmm.linux.files.data import Data
from vmm.linux.window import ProgramWindow

_PIECE = 1 << 20  # bytes that are copied in one turn


class Loan:
    """A buffer as a content. Nothing is there before it has been bound, nor once it has gone back.

    size       in bytes
    writable   whether the program may write to it
    address    where it lies in the window
    """

    __slots__ = ("_window", "address", "size", "writable")

    def __init__(self, size: int, *, writable: bool) -> None:
        self.size = size
        self.writable = writable
        self.address = 0
        self._window: ProgramWindow | None = None

    def bind(self, window: ProgramWindow, address: int) -> None:
        """Say where it has been lent to."""
        self._window, self.address = window, address

    def pread(self, offset: int, length: int, /) -> bytes:
        """Return a part, 1 MiB at most. Raises OSError if it is not there."""
        size = max(min(length, self.size - offset, _PIECE), 0)
        if not size:
            return b""
        window = self._window
        found = None if window is None else window.read(self.address + offset, size)
        if found is None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return found

    def pwrite(self, offset: int, data: bytes) -> bool:
        """Write a part. False if it is not there, or not any more: some may have been written."""
        window = self._window
        return window is not None and all(
            window.write(self.address + offset + at, data[at : at + _PIECE])
            for at in range(0, len(data), _PIECE)
        )


class LentData(Data):
    """The bytes of such a file: written in place, and always as many."""

    __slots__ = ("loan",)

    def __init__(self, loan: Loan) -> None:
        super().__init__(loan)
        self.loan = loan

    def fitting(self, offset: int, length: int) -> int:
        if length and offset >= self.size:
            raise SysError(errno.ENOSPC)
        return min(length, self.size - offset)

    def write(self, changes: Changes, space: Space, offset: int, data: bytes) -> None:
        """Write in place, all of it. Raises EIO, and has written nothing then, if there are still
        the pages to undo it in.
        """
        before = self.read(offset, len(data))
        # If the call is cut off it is served again, and may be given what it has written here.
        changes.call(self.loan.pwrite, offset, before)
        if not self.loan.pwrite(offset, data):
            raise SysError(errno.EIO)

    def truncate(self, changes: Changes, space: Space, size: int) -> None:
        """Leave it as large as it is. EPERM, as of a sealed memfd, if it is to be another size."""
        if size != self.size:
            raise SysError(errno.EPERM)
