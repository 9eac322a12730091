"""What the kernel gives and wants back, descriptors and mappings: none is lost, whatever is raised.

A signal's handler (Ctrl-C's) comes between two instructions of Python's: also between a call's
return and the store of what it returned, or between taking a number out of its place and giving it
back. Here C code does both, with no instruction in between: `list.extend` stores what `map` calls.

So what the kernel has given is always known to a Given. Who makes something of several notes them
as they are made, and can give all of it back if it does not come to an end:

    made: list[Given] = []
    try:
        with noted(made):
            ...
    except BaseException:
        give_back(made)
        raise
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import repeat, starmap
from typing import Any

_libc: Any = ctypes.CDLL(None, use_errno=True)
libc_mmap = _libc.mmap
libc_mmap.restype = ctypes.c_void_p
libc_mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
libc_munmap = _libc.munmap
libc_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
MAP_FAILED: int = ctypes.c_void_p(-1).value or 0


class Given(ABC):
    """Holds what one call gives, or nothing. For one thread at a time."""

    __slots__ = ("_held",)

    failed: int
    """What a call returns that has given nothing."""

    def __init__(self, *held: int) -> None:
        self._held = list(held)
        if _making.made is not None:
            _making.made.append(self)

    def _take(self, call: Callable[..., int], *arguments: object) -> int:
        if not self._held:  # or what was cut off before it had seen what it was given
            self._held.extend(starmap(call, (arguments,)))
        result = self._held[-1]
        if result == self.failed:
            self._held.clear()
        return result

    @property
    def held(self) -> bool:
        """Whether there is anything to be given back."""
        if self.failed in self._held:
            self._held.clear()
        return bool(self._held)

    @abstractmethod
    def give_back(self) -> None:
        """Give it back to the kernel. Further calls do nothing."""


class GivenDescriptor(Given):
    """A file descriptor."""

    __slots__ = ()

    failed = -1

    def take(self, call: Callable[..., int], *arguments: object) -> int:
        """Return the descriptor that a function of C's returns, or -1; raises what it raises."""
        return self._take(call, *arguments)

    def give_back(self) -> None:
        """Close it. Raises OSError."""
        if self.held:
            _ = [*map(os.close, map(self._held.pop, repeat(-1, len(self._held))))]


class GivenMapping(Given):
    """A mapping of `size` bytes, which may be set to what is to be unmapped."""

    __slots__ = ("size",)

    failed = MAP_FAILED

    def __init__(self, *held: int, size: int = 0) -> None:
        super().__init__(*held)
        self.size = size

    @property
    def address(self) -> int | None:
        """Where it is, if it is."""
        return self._held[-1] if self.held else None

    def take(self, address: int, size: int, *how: int) -> int:
        """Map memory as mmap(2) does, and return what it returns."""
        self.size = size
        return self._take(libc_mmap, address, size, *how)

    def forget(self) -> None:
        """It is somebody else's."""
        self._held.clear()

    def give_back(self) -> None:
        """Unmap it. Raises OSError."""
        if self.held and self.size:
            held = self._held
            refused = [*map(libc_munmap, map(held.pop, repeat(-1, len(held))), repeat(self.size))]
            if any(refused):
                code = ctypes.get_errno()
                raise OSError(code, f"munmap of {self.size} bytes: {os.strerror(code)}")


class _Making(threading.local):
    made: list[Given] | None = None


_making = _Making()


def noting() -> bool:
    """Whether what the calling thread is given is noted at present."""
    return _making.made is not None


class noted:
    """Notes what the calling thread is given in a `with` block: by whatever is made there."""

    def __init__(self, made: list[Given]) -> None:
        self._made = made
        self._before = _making.made

    def __enter__(self) -> None:
        _making.made = self._made

    def __exit__(self, *exception: object) -> None:
        _making.made = self._before


def give_back(made: list[Given]) -> None:
    """Give all of it back, the last first, as far as that has not been done. Twice is as once."""
    if _making.made is made:  # the block was cut off as it ended
        _making.made = None
    while made:
        with contextlib.suppress(OSError):
            made[-1].give_back()
        made.pop()


def opened(call: Callable[..., int], *arguments: object) -> io.FileIO:
    """Return a file of the descriptor that a function of C's returns, for a `with` around it.

    Wherever it is lost, the interpreter closes it.
    """
    return next(map(io.FileIO, starmap(call, (arguments,))))
