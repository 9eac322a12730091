"""A program's memory as others read and write it, from any thread, while it does not run.

Only what is its own: pages of its window, and what shows them, are others' to look at. Whatever is
not all there, with the right that it takes, is EFAULT (SysError), and then nothing has been done.
Raises ClosedError when all has been unmapped.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TypeVar

from vmm.errors import ClosedError
from vmm.guest.abi import PAGE_SIZE
from vmm.linux.errors import SysError
from vmm.linux.memory import Memory

T = TypeVar("T")


def read(memory: Memory, address: int, size: int) -> bytes:
    """Return a copy of `size` bytes."""
    return _do(memory, lambda: bytes(_view(memory, address, size, write=False)))


def write(memory: Memory, address: int, data: bytes | memoryview) -> None:
    """Write `data`, of single bytes."""

    def act() -> None:
        _view(memory, address, len(data), write=True)[:] = data

    _do(memory, act)


def text(memory: Memory, address: int, limit: int) -> bytes:
    """Return the bytes before the first NUL. ENAMETOOLONG if it is not among `limit` bytes."""
    found = b""
    while len(found) < limit:
        part = read(memory, address, min(PAGE_SIZE - address % PAGE_SIZE, limit - len(found)))
        end = part.find(0)
        if end >= 0:
            return found + part[:end]
        found, address = found + part, address + len(part)
    raise SysError(errno.ENAMETOOLONG)


def _do(memory: Memory, act: Callable[[], T]) -> T:
    """Do something before another thread unmaps it, or after that."""
    guard = memory._guard
    try:
        with guard:
            return act()
    finally:  # a debugger may raise as the block ends, which leaves the lock held then
        while guard._is_owned():
            guard.release()


def _view(memory: Memory, address: int, size: int, *, write: bool) -> memoryview:
    if memory._closed:
        raise ClosedError("the machine has been closed")
    view = memory.view(address, size, write=write)
    if view is None:
        raise SysError(errno.EFAULT)
    return view
