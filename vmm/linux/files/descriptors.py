"""File descriptors: which number stands for which open file."""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from vmm.linux.errors import SysError
from vmm.linux.files.changes import Changes
from vmm.linux.files.open_files import OpenFile

LIMIT = 1024


class _Slot(NamedTuple):
    file: OpenFile
    cloexec: bool


class Descriptors:
    """One program's descriptors. Every method raises SysError, and changes nothing then.

    limit   numbers are less than that
    """

    def __init__(self, changes: Changes, limit: int = LIMIT) -> None:
        self.limit = limit
        self._changes = changes
        self._slots: dict[int, _Slot] = {}

    def numbers(self) -> list[int]:
        """Return those that are open, in order."""
        return sorted(self._slots)

    def get(self, number: int) -> OpenFile:
        """Return what is open. Raises EBADF."""
        slot = self._slots.get(number)
        if slot is None:
            raise SysError(errno.EBADF)
        return slot.file

    def opened(self, number: int) -> OpenFile:
        """The same of what is more than a place: EBADF also for what was opened with O_PATH."""
        file = self.get(number)
        if file.flags & os.O_PATH:
            raise SysError(errno.EBADF)
        return file

    def _slot(self, number: int) -> _Slot:
        slot = self._slots.get(number)
        if slot is None:
            raise SysError(errno.EBADF)
        return slot

    def free(self, least: int = 0) -> int:
        """Return the lowest number that is free, from `least` on. Raises EMFILE."""
        number = least
        while number in self._slots:
            number += 1
        if number >= self.limit:
            raise SysError(errno.EMFILE)
        return number

    def install(self, file: OpenFile, *, cloexec: bool = False, least: int = 0) -> int:
        """Give an open file the lowest number that is free. Raises EMFILE.

        Whoever opens one calls `free` before, as Linux does: EMFILE comes first.
        """
        number = self.free(least)
        self._place(number, file, cloexec)
        return number

    def begin(self, *files: OpenFile) -> None:
        """Let the lowest numbers be these: before anything is undone."""
        for number, file in enumerate(files):
            file.references = 1
            self._slots[number] = _Slot(file, cloexec=False)

    def _place(self, number: int, file: OpenFile, cloexec: bool) -> None:
        file.refer(1)
        self._changes.put(self._slots, number, _Slot(file, cloexec))

    def dup(self, number: int) -> int:
        """Give it another number: dup(2)."""
        return self.install(self.get(number))

    def duplicate(self, number: int, least: int, *, cloexec: bool = False) -> int:
        """Give it another number from `least` on: fcntl(2)'s F_DUPFD, F_DUPFD_CLOEXEC."""
        file = self.get(number)
        if not 0 <= least < self.limit:
            raise SysError(errno.EINVAL)
        return self.install(file, cloexec=cloexec, least=least)

    def dup2(self, old: int, new: int) -> int:
        """Let one number stand for what another does: dup2(2)."""
        file = self.get(old)
        if not 0 <= new < self.limit:
            raise SysError(errno.EBADF)
        if old != new:
            self._over(file, new, cloexec=False)
        return new

    def dup3(self, old: int, new: int, flags: int) -> int:
        """Let one number stand for what another does: dup3(2)."""
        if flags & ~os.O_CLOEXEC or old == new:
            raise SysError(errno.EINVAL)
        if not 0 <= new < self.limit:
            raise SysError(errno.EBADF)
        self._over(self.get(old), new, cloexec=bool(flags))
        return new

    def _over(self, file: OpenFile, number: int, *, cloexec: bool) -> None:
        replaced = self._slots.get(number)
        self._place(number, file, cloexec)
        if replaced is not None:
            replaced.file.refer(-1)

    def close(self, number: int) -> None:
        """Close it: close(2)."""
        file = self.get(number)
        self._changes.drop(self._slots, number)
        file.refer(-1)

    def close_range(self, first: int, last: int, flags: int = 0) -> None:
        """Close all from `first` to `last`, or set that they are: close_range(2)."""
        if flags & ~(_UNSHARE | _CLOEXEC) or first > last:
            raise SysError(errno.EINVAL)
        for number in [number for number in self._slots if first <= number <= last]:
            if flags & _CLOEXEC:
                self.set_cloexec(number, on=True)
            else:
                self.close(number)

    def cloexec(self, number: int) -> bool:
        """Whether it is closed by execve(2)."""
        return self._slot(number).cloexec

    def set_cloexec(self, number: int, *, on: bool) -> None:
        """Say whether it is closed by execve(2)."""
        self._changes.put(self._slots, number, self._slot(number)._replace(cloexec=on))


_UNSHARE, _CLOEXEC = 2, 4  # CLOSE_RANGE_UNSHARE, CLOSE_RANGE_CLOEXEC
