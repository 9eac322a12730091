"""What a name stands for: a file, a directory, a symbolic link, a device."""

from __future__ import annotations

import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from vmm.linux.files.data import Data

if TYPE_CHECKING:
    from vmm.linux.files.open_files import OpenFile

MEMORY = (4095 << 8) | 1  # the device number of what is in memory: 4095:1, which no host has
PERMISSIONS = 0o7777


class Stat(NamedTuple):
    """What stat(2) tells; times in ns."""

    dev: int
    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blksize: int
    blocks: int  # of 512 bytes
    atime: int
    mtime: int
    ctime: int


class Node:
    """What a name stands for.

    home      for what is on the host: the directory that it is in, and its name there
    pinned    whether it is known of for as long as it is there: not so for what is on the host and
              has not been changed
    charged   bytes of the space that it takes, beside a file's data
    opens     how often it is open
    fixed     whether it must not be changed (EROFS)
    """

    __slots__ = (
        *("__weakref__", "atime", "charged", "ctime", "dev", "fixed", "gid", "home", "ino"),
        *("mode", "mtime", "nlink", "opens", "pinned", "uid"),
    )

    def __init__(self, ino: int, mode: int, now: int) -> None:
        self.dev = MEMORY
        self.ino = ino
        self.mode = mode
        self.nlink = 1
        self.uid = self.gid = 0
        self.atime = self.mtime = self.ctime = now
        self.home: tuple[Directory, bytes] | None = None
        self.pinned = True
        self.fixed = False
        self.charged = 0
        self.opens = 0

    @property
    def size(self) -> int:
        """In bytes."""
        return 0

    @property
    def blocks(self) -> int:
        """Of 512 bytes."""
        return 0

    @property
    def rdev(self) -> int:
        """A device's number."""
        return 0

    def stat(self) -> Stat:
        """Return what stat(2) tells."""
        return Stat(
            self.dev,
            self.ino,
            self.mode,
            self.nlink,
            self.uid,
            self.gid,
            self.rdev,
            self.size,
            4096,
            self.blocks,
            self.atime,
            self.mtime,
            self.ctime,
        )


class File(Node):
    """A regular file."""

    __slots__ = ("data",)

    def __init__(self, ino: int, permissions: int, now: int, data: Data) -> None:
        super().__init__(ino, stat.S_IFREG | permissions, now)
        self.data = data

    @property
    def size(self) -> int:
        """In bytes."""
        return self.data.size

    @property
    def blocks(self) -> int:
        """Of 512 bytes."""
        return self.data.blocks


class Symlink(Node):
    """A symbolic link."""

    __slots__ = ("target",)

    def __init__(self, ino: int, target: bytes, now: int) -> None:
        super().__init__(ino, stat.S_IFLNK | 0o777, now)
        self.target = target

    @property
    def size(self) -> int:
        """Of the target."""
        return len(self.target)


class MagicLink(Symlink):
    """A link that leads to what it stands for, whatever its text says (/proc/self/exe).

    text    returns what readlink(2) tells
    jump    returns what it leads to
    """

    __slots__ = ("jump", "text")

    def __init__(
        self, ino: int, now: int, text: Callable[[], bytes], jump: Callable[[], Node]
    ) -> None:
        super().__init__(ino, b"", now)
        self.text = text
        self.jump = jump


class Special(Node):
    """What is neither file, directory nor link: a device, a pipe, a standard stream.

    opened    returns an open file for the flags of open(2); None: it cannot be opened (ENXIO)
    """

    __slots__ = ("number", "opened")

    def __init__(
        self,
        ino: int,
        mode: int,
        now: int,
        opened: Callable[[Node, int], OpenFile] | None = None,
        number: int = 0,
    ) -> None:
        super().__init__(ino, mode, now)
        self.opened = opened
        self.number = number

    @property
    def rdev(self) -> int:
        """A device's number."""
        return self.number


class Entry(NamedTuple):
    """What a directory has under a name.

    node      None: nothing, although the host's directory has something of this name
    cookie    its place when the directory is listed; 0: that of the host's
    hides     whether the host's directory has something of this name
    """

    node: Node | None
    cookie: int
    hides: bool


class Directory(Node):
    """A directory.

    parent    that which it is in; the root is in itself
    name      its name there
    entries   what it has in memory, by name
    order     the cookies in order, with their names; stale ones, too: `stale` of them
    lower     the host's directory that is below it, relative to the host's root, or None
    """

    __slots__ = ("cookie", "entries", "lower", "name", "order", "parent", "stale")

    def __init__(self, ino: int, permissions: int, now: int) -> None:
        super().__init__(ino, stat.S_IFDIR | permissions, now)
        self.nlink = 2
        self.parent = self
        self.name = b""
        self.entries: dict[bytes, Entry] = {}
        self.order: list[tuple[int, bytes]] = []
        self.stale = 0
        self.cookie = FIRST_COOKIE
        self.lower: bytes | None = None

    @property
    def size(self) -> int:
        """As a small one of most file systems."""
        return 4096

    @property
    def removed(self) -> bool:
        """Whether it has no name any more."""
        return self.nlink == 0

    def find(self, name: bytes) -> Node | None:
        """Return what it has under a name that is not in `entries`, nor on the host."""
        return None

    def listed(self) -> list[tuple[bytes, Node]] | None:
        """Return all there is, if it is made up when it is asked for."""
        return None


FIRST_COOKIE = 1 << 32  # after all that a directory of the host's can have
