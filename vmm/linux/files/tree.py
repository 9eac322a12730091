"""All that has a name, and how that is changed: the part that path calls are made of."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from vmm.linux.errors import SysError
from vmm.linux.files.changes import Changes, Space
from vmm.linux.files.data import Data
from vmm.linux.files.lower import Lower
from vmm.linux.files.nodes import Directory, Entry, File, Node

_Node = TypeVar("_Node", bound=Node)

LONGEST_NAME = 255
NODE = 512  # bytes that a node takes of the space, and what an entry does, beside its name
ENTRY = 512


class Tree:
    """Directories and what is in them: in memory, over a directory of the host's if there is one.

    changes   the undo log of whatever is changed here
    space     what it may take
    root      where absolute paths begin
    last_ino  the last number that a node has got
    """

    def __init__(self, root: Path | None, limit: int, now: Callable[[], int]) -> None:
        self.now = now
        self.changes = Changes()
        self.space = Space(limit)
        self.last_ino = 0
        self.lower = None if root is None else Lower(root)
        self.root = Directory(self.new_ino(), 0o755, now())
        if self.lower is not None:
            self.root.lower = b""

    def new_ino(self, count: int = 1) -> int:
        """Return a number that no node had before; the first of `count`."""
        first = self.last_ino + 1
        self.last_ino += count
        return first

    def lookup(self, directory: Directory, name: bytes) -> Node | None:
        """Return what a directory has under a name that is not b"." or b"..", or None.

        Raises ENAMETOOLONG, and what the host refuses.
        """
        if len(name) > LONGEST_NAME:
            raise SysError(errno.ENAMETOOLONG)
        entry = directory.entries.get(name)
        if entry is not None:
            return entry.node
        if directory.removed:
            return None
        if directory.lower is None or self.lower is None:
            return directory.find(name)
        return self.lower.under(directory, name)

    def empty(self, directory: Directory) -> bool:
        """Whether there is nothing in a directory."""
        entries = directory.entries
        if any(entry.node is not None for entry in entries.values()):
            return False
        return self.lower is None or all(
            listed.name in entries for listed in self.lower.names(directory)
        )

    # What there is to be named.

    def new_file(self, permissions: int) -> File:
        """Return an empty file that has no name yet. Raises ENOSPC."""
        return self.charged(File(self.new_ino(), permissions, self.now(), Data()))

    def new_directory(self, permissions: int) -> Directory:
        """Return a directory that has no name yet. Raises ENOSPC."""
        return self.charged(Directory(self.new_ino(), permissions, self.now()))

    def charged(self, node: _Node, size: int = NODE) -> _Node:
        """Let a node take `size` bytes of the space for as long as it is there. Raises ENOSPC."""
        self.space.take(self.changes, size)
        self.changes.set(node, "charged", node.charged + size)
        return node

    def count(self, node: Node, number: int) -> None:
        """Count `number` names more, or less, of a node; the last one takes it away."""
        self.changes.set(node, "nlink", max(node.nlink + number, 0))
        self.changes.set(node, "ctime", self.now())
        self.release(node)

    def opened(self, node: Node, number: int) -> None:
        """Count `number` open files more, or less, of a node."""
        self.changes.set(node, "opens", node.opens + number)
        self.release(node)

    def release(self, node: Node) -> None:
        """Give back what a node has taken, if nothing leads to it any more."""
        if node.nlink or node.opens or not node.charged:
            return
        self.space.take(self.changes, -node.charged)
        self.changes.set(node, "charged", 0)
        if isinstance(node, File):
            node.data.release(self.changes, self.space)

    # Names.

    def attach(self, directory: Directory, name: bytes, node: Node) -> None:
        """Give a node a name that its directory does not have. Raises ENOENT, EROFS, ENOSPC."""
        if directory.removed:
            raise SysError(errno.ENOENT)
        self.change(directory)
        changes, entry = self.changes, directory.entries.get(name)
        if entry is None:
            self.space.take(changes, ENTRY + len(name))
        cookie = directory.cookie
        changes.set(directory, "cookie", cookie + 1)
        changes.push(directory.order, (cookie, name))
        changes.put(directory.entries, name, Entry(node, cookie, entry is not None))
        if isinstance(node, Directory):
            changes.set(node, "parent", directory)
            changes.set(node, "name", name)
            changes.set(directory, "nlink", directory.nlink + 1)
        self._touch(directory)

    def detach(self, directory: Directory, name: bytes, node: Node) -> None:
        """Take a name from a node. What is on the host stays hidden. Raises EROFS, ENOSPC."""
        self.change(directory)
        self.pin(node)
        changes, entry = self.changes, directory.entries[name]
        if entry.cookie:
            changes.set(directory, "stale", directory.stale + 1)
        if entry.hides:
            changes.put(directory.entries, name, _HIDDEN)
        else:
            changes.drop(directory.entries, name)
            self.space.take(changes, -ENTRY - len(name))
        if directory.stale > max(len(directory.order) // 2, 16):
            self._tidy(directory)
        if isinstance(node, Directory):
            changes.set(directory, "nlink", max(directory.nlink - 1, 2))
        self._touch(directory)

    def _tidy(self, directory: Directory) -> None:
        order = [item for item in directory.order if current(directory, *item)]
        self.changes.set(directory, "order", order)
        self.changes.set(directory, "stale", 0)

    def _touch(self, directory: Directory) -> None:
        now = self.now()
        self.changes.set(directory, "mtime", now)
        self.changes.set(directory, "ctime", now)

    def change(self, node: Node) -> None:
        """Make a node one that can be changed. Raises EROFS, ENOSPC."""
        if node.fixed:
            raise SysError(errno.EROFS)
        self.pin(node)

    def pin(self, node: Node) -> None:
        """Know of a node of the host's from now on, and of the directories that it is in.

        Raises ENOSPC.
        """
        chain = []
        while not node.pinned and node.home is not None:
            chain.append(node)
            node = node.home[0]
        for node in reversed(chain):
            self._pin(node)

    def _pin(self, node: Node) -> None:
        assert node.home is not None
        directory, name = node.home
        changes = self.changes
        self.charged(node)
        changes.set(node, "pinned", True)
        if directory.entries.get(name) is not None:  # it is something else's by now
            changes.set(node, "nlink", 0)
            return
        self.space.take(changes, ENTRY + len(name))
        changes.put(directory.entries, name, Entry(node, 0, hides=True))
        if not isinstance(node, Directory):
            changes.set(node, "nlink", 1)  # what else it is called there is not this one


def current(directory: Directory, cookie: int, name: bytes) -> bool:
    """Whether a name of a directory's `order` is still meant."""
    entry = directory.entries.get(name)
    return entry is not None and entry.cookie == cookie


_HIDDEN = Entry(None, 0, hides=True)
