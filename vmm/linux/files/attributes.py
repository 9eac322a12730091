"""Path calls that tell of what a path names, or change that, but no names."""

from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple

from vmm.linux.errors import SysError
from vmm.linux.files.data import LARGEST
from vmm.linux.files.nodes import PERMISSIONS, Directory, File, MagicLink, Node, Stat, Symlink
from vmm.linux.files.walk import Walk

_TMPFS_MAGIC = 0x01021994
_BLOCK = 4096


class StatFs(NamedTuple):
    """What statfs(2) tells; blocks of `bsize` bytes."""

    type: int
    bsize: int
    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    fsid: int
    namelen: int
    frsize: int
    flags: int


class Attributes(Walk):
    """What is known of files. Every method raises SysError, and changes nothing then."""

    def stat(self, at: Node | None, path: bytes, *, follow: bool = True) -> Stat:
        """Tell of what a path names: newfstatat(2)."""
        return self.resolve(at, path, follow=follow).stat()

    def readlink(self, at: Node | None, path: bytes) -> bytes:
        """Return a symbolic link's target, all of it: readlinkat(2)."""
        node = self.resolve(at, path, follow=False)
        if isinstance(node, MagicLink):
            return node.text()
        if not isinstance(node, Symlink):
            raise SysError(errno.EINVAL)
        return node.target

    def access(self, at: Node | None, path: bytes, mode: int, *, follow: bool = True) -> None:
        """Raise what would be raised if it was read, written or executed: faccessat2(2)."""
        if mode & ~(os.R_OK | os.W_OK | os.X_OK):
            raise SysError(errno.EINVAL)
        node = self.resolve(at, path, follow=follow)
        if mode & os.W_OK and node.fixed and isinstance(node, File | Directory):
            raise SysError(errno.EROFS)
        if mode & os.X_OK and not isinstance(node, Directory) and not node.mode & 0o111:
            raise SysError(errno.EACCES)

    def chmod(self, at: Node | None, path: bytes, mode: int, *, follow: bool = True) -> None:
        """Change permissions: fchmodat2(2)."""
        self.change_mode(self.resolve(at, path, follow=follow), mode)

    def change_mode(self, node: Node, mode: int) -> None:
        """Change permissions: fchmod(2)."""
        if isinstance(node, Symlink):
            raise SysError(errno.EOPNOTSUPP)
        self.change(node)
        self.changes.set(node, "mode", stat.S_IFMT(node.mode) | mode & PERMISSIONS)
        self.changes.set(node, "ctime", self.now())

    def chown(
        self, at: Node | None, path: bytes, uid: int, gid: int, *, follow: bool = True
    ) -> None:
        """Change the owner: fchownat(2). 2**32-1 and -1 leave it as it is."""
        self.change_owner(self.resolve(at, path, follow=follow), uid, gid)

    def change_owner(self, node: Node, uid: int, gid: int) -> None:
        """Change the owner: fchown(2)."""
        self.change(node)
        for name, number in (("uid", uid), ("gid", gid)):
            if number & _NOBODY != _NOBODY:
                self.changes.set(node, name, number & _NOBODY)
        if isinstance(node, File):
            mode = node.mode & ~stat.S_ISUID
            self.changes.set(node, "mode", mode & ~stat.S_ISGID if mode & 0o010 else mode)
        self.changes.set(node, "ctime", self.now())

    def utimens(
        self,
        at: Node | None,
        path: bytes,
        atime: int | None,
        mtime: int | None,
        *,
        follow: bool = True,
    ) -> None:
        """Change the times, in ns: utimensat(2). None is UTIME_OMIT."""
        self.change_times(self.resolve(at, path, follow=follow), atime, mtime)

    def change_times(self, node: Node, atime: int | None, mtime: int | None) -> None:
        """Change the times: futimens(3)."""
        if atime is None and mtime is None:
            return
        self.change(node)
        for name, when in (("atime", atime), ("mtime", mtime), ("ctime", self.now())):
            if when is not None:
                self.changes.set(node, name, when)

    def truncate(self, at: Node | None, path: bytes, size: int) -> None:
        """Make a file as large as that: truncate(2)."""
        if not 0 <= size <= LARGEST:
            raise SysError(errno.EINVAL)
        node = self.resolve(at, path)
        if isinstance(node, Directory):
            raise SysError(errno.EISDIR)
        if not isinstance(node, File):
            raise SysError(errno.EINVAL)
        self.resize(node, size)

    def resize(self, file: File, size: int) -> None:
        """Make a file as large as that."""
        self.change(file)
        file.data.truncate(self.changes, self.space, size)
        self.touched(file)

    def touched(self, file: File) -> None:
        """Note that a file's data was changed."""
        now = self.now()
        self.changes.set(file, "mtime", now)
        self.changes.set(file, "ctime", now)

    def statfs(self) -> StatFs:
        """Tell of the memory that files may take: statfs(2), of any path."""
        blocks, free = self.space.limit // _BLOCK, self.space.free // _BLOCK
        return StatFs(_TMPFS_MAGIC, _BLOCK, blocks, free, free, blocks, free, 0, 255, _BLOCK, 0)


_NOBODY = (1 << 32) - 1
