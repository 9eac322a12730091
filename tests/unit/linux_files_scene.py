"""The files of a Linux program, for tests: alone, and beside the host's own."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vmm.linux.errors import SysError
from vmm.linux.files.contents import Given
from vmm.linux.files.nodes import Directory
from vmm.linux.files.offering import Offered
from vmm.linux.files.open_files import OpenFile
from vmm.linux.files.system import FileSystem

MIB = 1 << 20
DEPTH = 48  # more than symbolic links that are followed: nobody gets out of it by ".."


def make(
    files: Mapping[str, Offered] | None = None, *, root: Path | None = None, limit: int = 8 * MIB
) -> FileSystem:
    """Return a file system whose clock ticks at each look."""
    return FileSystem(
        files or {},
        root=root,
        limit=limit,
        executable=Given(b"\x7fELF"),
        now=itertools.count(10**18).__next__,
        random=lambda size: b"\x04" * size,
        executable_path=b"/bin/prog",
    )


def opened(files: FileSystem, path: bytes, flags: int = os.O_RDONLY, mode: int = 0o644) -> OpenFile:
    """Open a file by a descriptor of its own; what was done before is done."""
    files.changes.commit()
    with files.changes:
        file = files.open(None, path, flags, mode)
        files.descriptors.install(file)
    return file


def put(files: FileSystem, path: bytes, data: bytes) -> None:
    """Write a whole file; what was done before is done."""
    files.changes.commit()
    with files.changes:
        file = files.open(None, path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        number = files.descriptors.install(file)
        file.write(data)
        files.descriptors.close(number)


@contextlib.contextmanager
def refuses(number: int) -> Iterator[None]:
    """Expect an error number."""
    try:
        yield
    except SysError as error:
        assert error.number == number, f"{error} instead of {errno.errorcode[number]}"
    else:
        raise AssertionError(f"{errno.errorcode[number]} was expected")


def entries(data: bytes) -> list[tuple[bytes, int, int]]:
    """Return name, offset and type of each struct linux_dirent64."""
    found = []
    while data:
        size = int.from_bytes(data[16:18], "little")
        name = data[19:size].split(b"\0", 1)[0]
        found.append((name, int.from_bytes(data[8:16], "little"), data[18]))
        data = data[size:]
    return found


def listing(file: OpenFile, room: int = 1 << 16) -> list[bytes]:
    """Return all names from the beginning on."""
    file.seek(0, os.SEEK_SET)
    return [name for data in iter(lambda: file.getdents(room), b"") for name, _, _ in entries(data)]


_libc = ctypes.CDLL(None, use_errno=True)


def renameat2(directory: int, old: bytes, new: bytes, flags: int) -> None:
    """Call renameat2(2)."""
    if _libc.renameat2(directory, old, directory, new, flags) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


_DEEP = b"/".join([b"d"] * DEPTH)


def deep_in(base: Path) -> Path:
    """Return a directory that is deep in another one."""
    deep = base / os.fsdecode(_DEEP)
    deep.mkdir(parents=True)
    return deep


class Both:
    """The same calls to a program's files, and to the kernel's in a directory of the host's.

    Relative paths begin deep enough that no `..` leads out of it (`deep_in`).
    """

    def __init__(self, files: FileSystem, base: Path) -> None:
        self.files = files
        with files.changes:
            for end in range(1, 2 * DEPTH, 2):
                with contextlib.suppress(SysError):
                    files.mkdir(None, b"/" + _DEEP[:end], 0o755)
        node = files.resolve(None, b"/" + _DEEP)
        assert isinstance(node, Directory)
        self.at = node
        self.path = os.fsencode(base)
        self.fd = os.open(self.path, os.O_PATH)
        self.open: list[tuple[OpenFile, int, int]] = []  # ours, our number, the host's
        self.counts_subdirectories = base.stat().st_nlink == 3

    def close(self) -> None:
        for _, _, fd in self.open:
            os.close(fd)
        os.close(self.fd)
        self.files.close()

    def ours(self, call: Callable[[], Any]) -> Any:
        """Return what a call says, or the error's name; an error changes nothing."""
        changes = self.files.changes
        try:
            with changes:
                return call()
        except SysError as error:
            return errno.errorcode[error.number]

    @staticmethod
    def host(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except OSError as error:
            assert error.errno is not None
            return errno.errorcode[error.errno]

    def told(self, found: Any) -> Any:
        """Return of a Stat, or a stat_result, what must be the same."""
        if isinstance(found, str):
            return found
        mode, nlink, size = found[2], found[3], found[7]
        if hasattr(found, "st_mode"):
            mode, nlink, size = found.st_mode, found.st_nlink, found.st_size
        if stat.S_ISDIR(mode):
            return mode, nlink if self.counts_subdirectories else 0
        return mode, nlink, size

    def dump(self) -> None:
        """Compare all there is."""
        self._dump(self.at, self.path)

    def _dump(self, directory: Directory, path: bytes) -> None:
        files = self.files
        with files.changes:
            names = {*listing(files.open(directory, b".", os.O_RDONLY))} - {b".", b".."}
        assert names == {entry.name for entry in os.scandir(path)}
        for name in names:
            below, node = path + b"/" + name, files.lookup(directory, name)
            assert node is not None
            assert self.told(node.stat()) == self.told(os.lstat(below)), below
            if isinstance(node, Directory):
                self._dump(node, below)
            elif stat.S_ISLNK(node.mode):
                assert files.readlink(directory, name) == os.readlink(below, dir_fd=self.fd)
            else:
                with files.changes:
                    file = files.open(directory, name, os.O_RDONLY)
                    assert file.pread(0, MIB) == Path(os.fsdecode(below)).read_bytes()
