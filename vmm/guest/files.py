"""Files that images are read from: read whole or not at all, and once for as long as they stay as
they are.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from vmm.errors import GuestImageError
from vmm.guest.elf import Source
from vmm.kvm.given import opened

_MAX_BYTES = 256 << 20  # an image file over this is refused rather than read
_MOST_CACHED = 64  # images,
_MOST_CACHED_BYTES = 256 << 20  # and what they take together

_Key = tuple[str, tuple[int, ...]]


class _Held(Protocol):
    @property
    def held(self) -> int: ...


_T = TypeVar("_T", bound=_Held)


class ImageFiles(Generic[_T]):
    """What files have in them, the images used last kept.

    Thread-safety: any thread, and any signal handler, at any time.
    """

    def __init__(self) -> None:
        self._cache: collections.OrderedDict[_Key, _T] = (
            collections.OrderedDict()
        )  # last used, last

    def load(self, path: str | Path, parse: Callable[[Source, str], _T]) -> _T:
        """Return what `parse` makes of a file and its name.

        The same file gives the same object again, as long as it is kept. Raises GuestImageError,
        naming the file and what to do about it; OSError if no more files can be opened.
        """
        path = os.fspath(path)
        if "\0" in path:
            raise GuestImageError(f"{path!r}: no file has such a name: give the path of a guest")
        try:
            key = (path, _identity(path, os.stat(path)))  # noqa: PTH116 (a Path takes far longer)
            image = self._cache.get(key)
            if image is None:
                key, image = _read(path, parse)
                self._make_room(image)
                self._cache[key] = image
            else:
                with contextlib.suppress(KeyError):  # another thread has made room
                    self._cache.move_to_end(key)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):  # nothing is wrong with the file
                raise
            raise GuestImageError(f"{path}: cannot be read: {error.strerror}") from error
        return image

    def _make_room(self, image: _T) -> None:
        """Let go of cached images, those used longest ago first, as another is to be kept. Each
        step is one of the interpreter's, so that threads, and signal handlers, may do this at the
        same time.
        """
        kept = list(self._cache.items())
        total = sum(other.held for _, other in kept) + image.held
        for count, (key, other) in zip(range(len(kept), 0, -1), kept, strict=True):
            if count < _MOST_CACHED and total <= _MOST_CACHED_BYTES:
                break
            self._cache.pop(key, None)
            total -= other.held


def _identity(path: str, status: os.stat_result) -> tuple[int, ...]:
    """Return what changes when a file does. Raises GuestImageError if none like it is an image."""
    if not stat.S_ISREG(status.st_mode):
        what = " but a directory" if stat.S_ISDIR(status.st_mode) else ""
        raise GuestImageError(f"{path}: not a regular file{what}: give the path of a guest")
    if status.st_size > _MAX_BYTES:
        raise GuestImageError(f"{path}: {status.st_size} bytes is too large for a guest image")
    times = (status.st_mtime_ns, status.st_ctime_ns)
    return (status.st_dev, status.st_ino, status.st_size, *times)


def _read(path: str, parse: Callable[[Source, str], _T]) -> tuple[_Key, _T]:
    # No `try` within: before its first line Python 3.11 lets what is raised pass by the `with`.
    with opened(os.open, path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK) as file:
        return _parsed(file.fileno(), path, parse)


def _parsed(fd: int, path: str, parse: Callable[[Source, str], _T]) -> tuple[_Key, _T]:
    identity = _identity(path, os.fstat(fd))
    source = Source(identity[2], lambda length, offset: os.pread(fd, length, offset))
    try:
        image = parse(source, path)
    finally:
        if _identity(path, os.fstat(fd)) != identity:
            raise GuestImageError(f"{path}: was changed while it was read: try again")
    return (path, identity), image
