"""Extended attributes: no file has any, nor can one be given."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from vmm.linux.calls.table import Address, Fd, Int, PathName, Size, call
from vmm.linux.errors import SysError

if TYPE_CHECKING:
    from vmm.linux.process import Process

_NAME_MAX = 256  # with its NUL
_SIZE_MAX = 65536
_CREATE, _REPLACE = 1, 2


def _check(process: Process, name: int) -> int:
    """Refuse an attribute: a file system without any knows no name."""
    try:
        text = process.memory.text(name, _NAME_MAX)
    except SysError as error:
        raise SysError(
            errno.ERANGE if error.number == errno.ENAMETOOLONG else error.number
        ) from None
    if not text:
        raise SysError(errno.ERANGE)
    raise SysError(errno.EOPNOTSUPP)


def _check_set(process: Process, name: int, size: int, flags: int) -> int:
    if flags & ~(_CREATE | _REPLACE):
        raise SysError(errno.EINVAL)
    if size > _SIZE_MAX:
        raise SysError(errno.E2BIG)
    return _check(process, name)


@call
def sys_getxattr(
    process: Process, path: PathName, name: Address, value: Address, size: Size
) -> int:
    process.files.resolve(None, path)
    return _check(process, name)


@call
def sys_lgetxattr(
    process: Process, path: PathName, name: Address, value: Address, size: Size
) -> int:
    process.files.resolve(None, path, follow=False)
    return _check(process, name)


@call
def sys_fgetxattr(process: Process, fd: Fd, name: Address, value: Address, size: Size) -> int:
    process.descriptors.opened(fd)
    return _check(process, name)


@call
def sys_setxattr(
    process: Process, path: PathName, name: Address, value: Address, size: Size, flags: Int
) -> int:
    process.files.resolve(None, path)
    return _check_set(process, name, size, flags)


@call
def sys_lsetxattr(
    process: Process, path: PathName, name: Address, value: Address, size: Size, flags: Int
) -> int:
    process.files.resolve(None, path, follow=False)
    return _check_set(process, name, size, flags)


@call
def sys_fsetxattr(
    process: Process, fd: Fd, name: Address, value: Address, size: Size, flags: Int
) -> int:
    process.descriptors.opened(fd)
    return _check_set(process, name, size, flags)


@call
def sys_removexattr(process: Process, path: PathName, name: Address) -> int:
    process.files.resolve(None, path)
    return _check(process, name)


@call
def sys_lremovexattr(process: Process, path: PathName, name: Address) -> int:
    process.files.resolve(None, path, follow=False)
    return _check(process, name)


@call
def sys_fremovexattr(process: Process, fd: Fd, name: Address) -> int:
    process.descriptors.opened(fd)
    return _check(process, name)


@call
def sys_listxattr(process: Process, path: PathName, names: Address, size: Size) -> int:
    process.files.resolve(None, path)
    return 0


@call
def sys_llistxattr(process: Process, path: PathName, names: Address, size: Size) -> int:
    process.files.resolve(None, path, follow=False)
    return 0


@call
def sys_flistxattr(process: Process, fd: Fd, names: Address, size: Size) -> int:
    process.descriptors.opened(fd)
    return 0
