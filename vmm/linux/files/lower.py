"""What the host has below a directory, made into nodes."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from weakref import WeakValueDictionary

from vmm.linux.files.beneath import Beneath, Found, Listed, Shown
from vmm.linux.files.data import Data
from vmm.linux.files.nodes import PERMISSIONS, Directory, File, Node, Special, Symlink


class Lower:
    """The host's directory that is shown below everything.

    A node is the same one for as long as anybody holds it; what nobody has changed costs nothing.
    """

    def __init__(self, root: Path) -> None:
        self.beneath = Beneath(root)
        self._nodes: WeakValueDictionary[bytes, Node] = WeakValueDictionary()

    def close(self) -> None:
        """Let go of all of it: what has not been copied cannot be read any more."""
        self.beneath.close()

    def under(self, directory: Directory, name: bytes) -> Node | None:
        """Return what the host has in a directory that has a `lower`, or None. Raises SysError."""
        path = _joined(directory, name)
        found = self.beneath.find(path)
        if found is None:
            return None
        node = self._nodes.get(path)
        if node is None or node.pinned or not _same(node, found.status):
            node = self._made(path, found)
            node.pinned = False
            node.home = directory, name
            if isinstance(node, Directory):
                node.parent, node.name = directory, name
            self._nodes[path] = node
        _tell(node, found.status)
        if isinstance(node, File) and node.data.size != found.status.st_size and not node.opens:
            node.data = Data(Shown(self.beneath, path, found.status))
        return node

    def names(self, directory: Directory) -> list[Listed]:
        """Return what the host has in a directory. Raises SysError."""
        return [] if directory.lower is None else self.beneath.names(directory.lower)

    def has(self, directory: Directory, name: bytes) -> bool:
        """Whether the host has something of this name in a directory. Raises SysError."""
        if directory.lower is None:
            return False
        return self.beneath.find(_joined(directory, name)) is not None

    def _made(self, path: bytes, found: Found) -> Node:
        status = found.status
        mode = status.st_mode
        if stat.S_ISREG(mode) and not found.sealed:
            return File(0, 0, 0, Data(Shown(self.beneath, path, status)))
        if stat.S_ISDIR(mode):
            directory = Directory(0, 0, 0)
            directory.lower = None if found.sealed else path
            return directory
        if stat.S_ISLNK(mode):
            return Symlink(0, found.target, 0)
        return Special(0, 0, 0, number=status.st_rdev)


def _joined(directory: Directory, name: bytes) -> bytes:
    return directory.lower + b"/" + name if directory.lower else name


def _same(node: Node, status: os.stat_result) -> bool:
    """Whether it is what it was; a link is looked at again each time."""
    if (node.dev, node.ino) != (status.st_dev, status.st_ino):
        return False
    kept = stat.S_IFMT(node.mode) == stat.S_IFMT(status.st_mode)
    return kept and not isinstance(node, Symlink)


def _tell(node: Node, status: os.stat_result) -> None:
    """Let a node say what the host does."""
    node.dev, node.ino = status.st_dev, status.st_ino
    node.mode = stat.S_IFMT(status.st_mode) | status.st_mode & PERMISSIONS
    node.nlink = status.st_nlink
    node.uid, node.gid = status.st_uid, status.st_gid
    node.atime, node.mtime = status.st_atime_ns, status.st_mtime_ns
    node.ctime = status.st_ctime_ns
