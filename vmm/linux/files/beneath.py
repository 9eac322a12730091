"""A directory of the host's, seen through the kernel alone: nothing outside is ever reached.

Every look-up is one openat2(2) from the directory itself, with a path of plain names. The kernel
refuses what leaves it, and every symbolic link on the way: links are read, and followed by whoever
asks, in a name space of their own.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vmm.errors import ConfigError
from vmm.kvm.descriptor import Descriptor
from vmm.linux.errors import SysError

_OPENAT2 = 437
# openat2.h: no way out, no symbolic link, none of /proc's that lead anywhere.
_BENEATH = 0x08 | 0x04 | 0x02
_PLACE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_LONGEST = 4095  # bytes of a path
_OPEN = 16  # files that are kept open

# File systems that are views of the kernel's, or of its processes': magic.h. What is read there may
# be this process's own memory.
_KERNELS_OWN = {
    *(0x9FA0, 0x9FA1, 0x9FA2, 0x62656572, 0x64626720, 0x74726163, 0x73636673),  # proc, sys, debug
    *(0x27E0EB, 0x63677270, 0x07655821, 0xCAFE4A11, 0x6E736673, 0x50494446),  # cgroup, bpf, ns
    *(0x1CD1, 0x6C6F6F70, 0xABBA1974, 0x19800202, 0x42494E4D, 0x65735543),  # devpts, mqueue, binfmt
    *(0xF97CFF8C, 0x43415D53, 0x5A3C69F0, 0x62656570, 0xDE5E81E4, 0x6165676C),  # selinux, efivars
    0x0187,  # autofs: a look is enough to mount something
}

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = (
    ctypes.c_long,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_void_p,
    ctypes.c_size_t,
)
_fstatfs: Any = _libc.fstatfs
_fstatfs.argtypes = (ctypes.c_int, ctypes.c_void_p)

# What a program may be told of the host's refusals; what is not here is EIO.
_TOLD = {
    **{number: number for number in (errno.ENOENT, errno.ENOTDIR, errno.EACCES)},
    **{number: number for number in (errno.ENAMETOOLONG, errno.ENOMEM, errno.ENXIO)},
    errno.EPERM: errno.EACCES,
    errno.EMFILE: errno.ENFILE,
    errno.ENFILE: errno.ENFILE,
    # What was a directory a moment ago is a link by now, or has been moved away.
    errno.ELOOP: errno.ENOENT,
    errno.EXDEV: errno.ENOENT,
    errno.ESTALE: errno.ENOENT,
}


class _How(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


class Found(NamedTuple):
    """What the host has under a name.

    target    a symbolic link's
    sealed    whether it is of a file system whose contents are nobody's business
    """

    status: os.stat_result
    target: bytes
    sealed: bool


class Listed(NamedTuple):
    """A name in a directory of the host's. kind: d_type of getdents(2), 0 if it is not known."""

    name: bytes
    ino: int
    kind: int


class _Opened:
    """A file that is open for reading until nobody reads it any more."""

    __slots__ = ("fd", "identity")

    def __init__(self, fd: int, identity: tuple[int, int]) -> None:
        self.fd = fd
        self.identity = identity

    def __del__(self) -> None:
        fd, self.fd = getattr(self, "fd", -1), -1  # it has none if __init__ was cut off
        if fd >= 0:
            os.close(fd)


def refused(number: int) -> SysError:
    """Return what a program is told of an error of the host's."""
    return SysError(_TOLD.get(number, errno.EIO))


class Beneath(Descriptor):
    """A directory of the host's. Paths in it are names joined by slashes; b"" is itself.

    Every method raises SysError. Thread-safe, but for `close`.
    """

    kind = "root directory"

    def __init__(self, root: Path) -> None:
        """Raise ConfigError if there is no such directory, or the kernel has no openat2."""
        try:
            fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(f"root {root} cannot be shown: {error.strerror}") from error
        super().__init__(fd)
        self._opened: dict[bytes, _Opened] = {}
        self._device = -1
        try:
            os.close(self._openat2(b".", _PLACE | os.O_DIRECTORY))
            status = os.fstat(fd)
            if self._sealed(fd, status):
                raise ConfigError(f"root {root} cannot be shown: it is no directory of files")
            self._device = status.st_dev
        except OSError as error:
            self.close()
            raise ConfigError(
                f"root {root} cannot be shown: openat2 is refused ({error.strerror}); "
                "it needs Linux 5.6, and a sandbox that allows it"
            ) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the directory, and of all files in it."""
        self._opened = {}
        super().close()

    def _openat2(self, path: bytes, flags: int) -> int:
        how = _How(flags, 0, _BENEATH)
        while True:
            fd: int = _syscall(_OPENAT2, self.fileno(), path, ctypes.byref(how), ctypes.sizeof(how))
            if fd >= 0:
                return fd
            number = ctypes.get_errno()
            if number not in (errno.EINTR, errno.EAGAIN):
                raise OSError(number, os.strerror(number))

    @contextlib.contextmanager
    def _at(self, path: bytes, flags: int = _PLACE) -> Iterator[int]:
        """Open what is there, for a moment. What is raised meanwhile is told as a refusal."""
        if len(path) > _LONGEST:
            raise SysError(errno.ENAMETOOLONG)
        try:
            fd = self._openat2(path or b".", flags)
            try:
                yield fd
            finally:
                os.close(fd)
        except OSError as error:
            raise refused(error.errno or errno.EIO) from None
        except ValueError:  # it has been closed
            raise SysError(errno.EIO) from None

    def find(self, path: bytes) -> Found | None:
        """Return what is there, or None."""
        try:
            with self._at(path) as fd:
                status = os.fstat(fd)
                sealed = self._sealed(fd, status)
                link = stat.S_ISLNK(status.st_mode) and not sealed
                target = os.readlink(b"", dir_fd=fd) if link else b""
        except SysError as error:
            if error.number in (errno.ENOENT, errno.ENOTDIR):
                return None
            raise
        return Found(status, target, sealed)

    def _sealed(self, fd: int, status: os.stat_result) -> bool:
        if status.st_dev == self._device:
            return False
        found = ctypes.create_string_buffer(256)  # struct statfs, with room to spare
        if _fstatfs(fd, found) != 0:
            return True
        return int.from_bytes(found.raw[:8], "little") in _KERNELS_OWN

    def names(self, path: bytes) -> list[Listed]:
        """Return what is in a directory; nothing, if it is not there any more."""
        try:
            with self._at(path, _READ | os.O_DIRECTORY | os.O_NOFOLLOW) as fd:
                if self._sealed(fd, os.fstat(fd)):
                    return []
                with os.scandir(fd) as entries:
                    return [_listed(entry) for entry in entries]
        except SysError as error:
            if error.number in (errno.ENOENT, errno.ENOTDIR):
                return []
            raise

    def read(self, path: bytes, identity: tuple[int, int], offset: int, length: int) -> bytes:
        """Return a part of a regular file. EIO: it is another one by now (device and inode)."""
        file = self.open(path, identity)
        try:
            return os.pread(file.fd, length, offset)
        except OSError as error:
            raise refused(error.errno or errno.EIO) from None

    def open(self, path: bytes, identity: tuple[int, int]) -> _Opened:
        """Open a regular file for reading, or return it as it was opened before, for a while.

        Raises EACCES, EIO, ENFILE.
        """
        file = self._opened.get(path)
        if file is None or file.identity != identity:
            file = self._open(path, identity)
        return file

    def _open(self, path: bytes, identity: tuple[int, int]) -> _Opened:
        with self._at(path) as place:
            status = os.fstat(place)
            same = (status.st_dev, status.st_ino) == identity
            if not same or not stat.S_ISREG(status.st_mode) or self._sealed(place, status):
                raise SysError(errno.EIO)
            # Not by its path again: that may be a device by now.
            file = _Opened(os.open(f"/proc/self/fd/{place}", _READ), identity)
        kept = [*self._opened.items()][1 - _OPEN :]
        self._opened = {**dict(kept), path: file}
        return file


class Shown:
    """A file beneath the root, as a content.

    path       where it is
    identity   device and inode
    size       when it was looked up
    """

    __slots__ = ("identity", "path", "root", "size")

    def __init__(self, root: Beneath, path: bytes, status: os.stat_result) -> None:
        self.root = root
        self.path = path
        self.identity = (status.st_dev, status.st_ino)
        self.size = status.st_size

    def open(self) -> None:
        """See whether it can be read. Raises EACCES, EIO, ENFILE."""
        self.root.open(self.path, self.identity)

    def pread(self, offset: int, length: int, /) -> bytes:
        """Read a part. Raises EIO, EACCES, ENFILE."""
        return self.root.read(self.path, self.identity, offset, length)


def _listed(entry: os.DirEntry[str]) -> Listed:
    kind = 0
    if entry.is_symlink():
        kind = stat.S_IFLNK >> 12
    elif entry.is_dir(follow_symlinks=False):
        kind = stat.S_IFDIR >> 12
    elif entry.is_file(follow_symlinks=False):
        kind = stat.S_IFREG >> 12
    return Listed(os.fsencode(entry.name), entry.inode(), kind)
