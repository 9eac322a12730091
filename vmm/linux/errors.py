"""How a system call is refused."""

from __future__ import annotations

import errno


class SysError(Exception):
    """What a system call answers instead of a result: an error number of Linux (errno(3)).

    Raised by whatever serves calls, before anything has been changed.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        return errno.errorcode.get(self.number, str(self.number))
