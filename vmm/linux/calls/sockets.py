"""Calls on sockets: none can be made (`socket` is not served), so no descriptor is one.

Programs ask what a descriptor is by these: bash takes any other error for a connection.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from vmm.linux.calls.table import Address, Fd, Int, Size, Word, call
from vmm.linux.errors import SysError

if TYPE_CHECKING:
    from vmm.linux.process import Process


def _refuse(process: Process, fd: int) -> int:
    process.descriptors.opened(fd)
    raise SysError(errno.ENOTSOCK)


@call
def sys_getpeername(process: Process, fd: Fd, address: Address, length: Address) -> int:
    return _refuse(process, fd)


@call
def sys_getsockname(process: Process, fd: Fd, address: Address, length: Address) -> int:
    return _refuse(process, fd)


@call
def sys_getsockopt(
    process: Process, fd: Fd, level: Int, option: Int, value: Address, length: Address
) -> int:
    return _refuse(process, fd)


@call
def sys_setsockopt(
    process: Process, fd: Fd, level: Int, option: Int, value: Address, length: Int
) -> int:
    return _refuse(process, fd)


@call
def sys_shutdown(process: Process, fd: Fd, how: Int) -> int:
    return _refuse(process, fd)


@call
def sys_sendto(
    process: Process, fd: Fd, buffer: Address, size: Size, flags: Word, to: Address, length: Int
) -> int:
    return _refuse(process, fd)


@call
def sys_recvfrom(
    process: Process, fd: Fd, buffer: Address, size: Size, flags: Word, of: Address, length: Address
) -> int:
    return _refuse(process, fd)
