"""Path calls that change what has which name. Errors, and their order, are Linux's."""

from __future__ import annotations

import errno

from vmm.linux.errors import SysError
from vmm.linux.files.nodes import Directory, MagicLink, Node, Symlink
from vmm.linux.files.tree import NODE
from vmm.linux.files.walk import LONGEST_PATH, Last, Walk

RENAME_NOREPLACE = 1


class Names(Walk):
    """Names given and taken. Every method raises SysError, and changes nothing then."""

    mask: int

    def mkdir(self, at: Node | None, path: bytes, mode: int) -> None:
        """Make a directory: mkdirat(2)."""
        last = self._vacant(at, path, directory=True)
        made = self.new_directory(mode & 0o1777 & ~self.mask)
        self.attach(last.directory, last.name, made)

    def symlink(self, target: bytes, at: Node | None, path: bytes) -> None:
        """Make a symbolic link: symlinkat(2)."""
        if not target:
            raise SysError(errno.ENOENT)
        if len(target) > LONGEST_PATH:
            raise SysError(errno.ENAMETOOLONG)
        last = self._vacant(at, path)
        made = Symlink(self.new_ino(), target, self.now())
        self.attach(last.directory, last.name, self.charged(made, NODE + len(target)))

    def link(
        self,
        at: Node | None,
        path: bytes,
        new_at: Node | None,
        new_path: bytes,
        *,
        follow: bool = False,
    ) -> None:
        """Give what is there another name: linkat(2)."""
        node = self.resolve(at, path, follow=follow)
        last = self._vacant(new_at, new_path)
        if node.fixed or isinstance(node, MagicLink):
            raise SysError(errno.EXDEV)
        if isinstance(node, Directory):
            raise SysError(errno.EPERM)
        if not node.nlink:
            raise SysError(errno.ENOENT)
        self.change(node)
        self.attach(last.directory, last.name, node)
        self.count(node, 1)

    def _vacant(self, at: Node | None, path: bytes, *, directory: bool = False) -> Last:
        """Return a place for something new. Raises EEXIST."""
        last = self.last(at, path)
        if not last.plain or self.at_last(last) is not None:
            raise SysError(errno.EEXIST)
        if (last.slash and not directory) or last.directory.removed:
            raise SysError(errno.ENOENT)
        return last

    def unlink(self, at: Node | None, path: bytes) -> None:
        """Take a name from what is not a directory: unlinkat(2)."""
        last = self.last(at, path)
        if not last.plain:
            raise SysError(errno.EISDIR)
        node = self._there(last)
        if isinstance(node, Directory):
            raise SysError(errno.EISDIR)
        if last.slash:
            raise SysError(errno.ENOTDIR)
        self._take(last, node)

    def rmdir(self, at: Node | None, path: bytes) -> None:
        """Remove an empty directory: unlinkat(2) with AT_REMOVEDIR."""
        last = self.last(at, path)
        if not last.plain:
            wrong = {b"": errno.EBUSY, b".": errno.EINVAL, b"..": errno.ENOTEMPTY}
            raise SysError(wrong[last.name])
        node = self._there(last)
        if not isinstance(node, Directory):
            raise SysError(errno.ENOTDIR)
        if not self.empty(node):
            raise SysError(errno.ENOTEMPTY)
        self._take(last, node)

    def _there(self, last: Last) -> Node:
        node = self.at_last(last)
        if node is None:
            raise SysError(errno.ENOENT)
        return node

    def _take(self, last: Last, node: Node) -> None:
        self._own(node)
        self.detach(last.directory, last.name, node)
        self.count(node, -node.nlink if isinstance(node, Directory) else -1)

    def _own(self, node: Node) -> None:
        """Raise EROFS for what was offered."""
        if node.fixed or isinstance(node, MagicLink):
            raise SysError(errno.EROFS)

    def rename(
        self, at: Node | None, path: bytes, new_at: Node | None, new_path: bytes, flags: int = 0
    ) -> None:
        """Give what is there another name, instead of its old one: renameat2(2).

        flags   0 or RENAME_NOREPLACE; all else is EINVAL

        A directory that is on the host is EXDEV: what is in it would have to be copied.
        """
        if flags & ~RENAME_NOREPLACE:
            raise SysError(errno.EINVAL)
        old, new = self.last(at, path), self.last(new_at, new_path)
        if not old.plain:
            raise SysError(errno.EBUSY)
        if not new.plain:
            raise SysError(errno.EEXIST if flags else errno.EBUSY)
        node, target = self._there(old), self.at_last(new)
        if flags and target is not None:
            raise SysError(errno.EEXIST)
        if (old.slash or new.slash) and not isinstance(node, Directory):
            raise SysError(errno.ENOTDIR)
        if isinstance(node, Directory) and _within(new.directory, node):
            raise SysError(errno.EINVAL)
        if isinstance(target, Directory) and _within(old.directory, target):
            raise SysError(errno.ENOTEMPTY)
        # By its number: what is on the host may be another object each time that it is looked up.
        if target is None or target.stat()[:2] != node.stat()[:2]:
            self._move(old, new, node, target)

    def _move(self, old: Last, new: Last, node: Node, target: Node | None) -> None:
        if new.directory.removed:
            raise SysError(errno.ENOENT)
        if target is not None:
            self._check_replaced(node, target)
        self._own(node)
        if isinstance(node, Directory) and node.lower is not None:
            raise SysError(errno.EXDEV)
        if target is not None:
            self._take(new, target)
        self.detach(old.directory, old.name, node)
        self.attach(new.directory, new.name, node)
        self.changes.set(node, "ctime", self.now())

    def _check_replaced(self, node: Node, target: Node) -> None:
        if isinstance(node, Directory) != isinstance(target, Directory):
            raise SysError(errno.EISDIR if isinstance(target, Directory) else errno.ENOTDIR)
        if isinstance(target, Directory) and not self.empty(target):
            raise SysError(errno.ENOTEMPTY)
        self._own(target)


def _within(directory: Directory, other: Directory) -> bool:
    """Whether a directory is another one, or somewhere in it."""
    while directory is not other:
        if directory.parent is directory:
            return False
        directory = directory.parent
    return True
