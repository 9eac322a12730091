"""Paths, component by component, in the program's name space: as path_resolution(7) says."""

from __future__ import annotations

import errno
from typing import NamedTuple

from vmm.linux.errors import SysError
from vmm.linux.files.nodes import Directory, MagicLink, Node, Symlink
from vmm.linux.files.tree import Tree

LONGEST_PATH = 4095
_LINKS = 40  # symbolic links that are followed for one path
_STEPS = 1 << 14  # names that are looked up for one path: Linux has no limit, but it is faster
_DOTS = (b"", b".", b"..")


class Last(NamedTuple):
    """A path but for its last component.

    directory   which the component is looked up in
    name        the component; b"" for the root, which has none
    slash       whether something follows that only a directory can have
    """

    directory: Directory
    name: bytes
    slash: bool

    @property
    def plain(self) -> bool:
        """Whether it is a name that something can be given."""
        return self.name not in _DOTS


class _Walk:
    """What one path has cost so far."""

    __slots__ = ("links", "steps")

    def __init__(self) -> None:
        self.links = _LINKS
        self.steps = _STEPS

    def follow(self, link: Symlink) -> bytes:
        """Return a link's target. Raises ELOOP."""
        self.links -= 1
        if self.links < 0:
            raise SysError(errno.ELOOP)
        return link.target

    def step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise SysError(errno.ELOOP)


class Walk(Tree):
    """Paths looked up. `at` is where relative ones begin; None is the current directory."""

    cwd: Directory

    def last(self, at: Node | None, path: bytes) -> Last:
        """Return where a path leads, but for its last component: a link there is not followed.

        Raises ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG, and what the host refuses.
        """
        return self._last(self._start(at, path), path, _Walk())

    def _start(self, at: Node | None, path: bytes) -> Directory:
        if not path:
            raise SysError(errno.ENOENT)
        if len(path) > LONGEST_PATH:
            raise SysError(errno.ENAMETOOLONG)
        if path[:1] == b"/":
            return self.root
        if at is None:
            return self.cwd
        if not isinstance(at, Directory):
            raise SysError(errno.ENOTDIR)
        return at

    def _last(self, directory: Directory, path: bytes, walk: _Walk) -> Last:
        left = _components(path)
        while len(left) > 1:
            name = left.pop()
            node: Node | None
            if name in _DOTS:
                node = directory.parent if name == b".." else directory
            else:
                walk.step()
                node = self.lookup(directory, name)
            if isinstance(node, MagicLink):
                walk.follow(node)
                node = node.jump()
            elif isinstance(node, Symlink):
                target = walk.follow(node)
                left += _components(target)
                node = self.root if target[:1] == b"/" else directory
            if node is None:
                raise SysError(errno.ENOENT)
            if not isinstance(node, Directory):
                raise SysError(errno.ENOTDIR)
            directory = node
        slash = path[-1:] == b"/"
        return Last(directory, left[0], slash) if left else Last(self.root, b"", slash=False)

    def at_last(self, last: Last) -> Node | None:
        """Return what is there, or None. Raises ENAMETOOLONG, and what the host refuses."""
        if last.plain:
            return self.lookup(last.directory, last.name)
        return last.directory.parent if last.name == b".." else last.directory

    def ends(
        self, at: Node | None, path: bytes, *, follow: bool = True
    ) -> tuple[Last, Node | None]:
        """Return where a path leads, and what is there, if anything is.

        follow    whether a link in the last component is followed. With a slash behind it, it is

        Raises what `last` does.
        """
        walk = _Walk()
        last = self._last(self._start(at, path), path, walk)
        while True:
            node = self.at_last(last)
            if not isinstance(node, Symlink) or not (follow or last.slash):
                return last, node
            target = walk.follow(node)
            if isinstance(node, MagicLink):
                return last, node.jump()
            start = self.root if target[:1] == b"/" else last.directory
            after = self._last(start, target, walk)
            last = after._replace(slash=after.slash or last.slash)

    def resolve(self, at: Node | None, path: bytes, *, follow: bool = True) -> Node:
        """Return what a path leads to. Raises what `ends` does."""
        last, node = self.ends(at, path, follow=follow)
        if node is None:
            raise SysError(errno.ENOENT)
        if last.slash and not isinstance(node, Directory):
            raise SysError(errno.ENOTDIR)
        return node

    def directory(self, at: Node | None, path: bytes) -> Directory:
        """Return the directory that a path leads to. Raises what `ends` does."""
        node = self.resolve(at, path)
        if not isinstance(node, Directory):
            raise SysError(errno.ENOTDIR)
        return node

    def path_of(self, directory: Directory) -> bytes | None:
        """Return a directory's path; None if it has none any more, or none that can be said."""
        names: list[bytes] = []
        length = 0
        while directory is not self.root:
            length += len(directory.name) + 1
            if directory.removed or length > LONGEST_PATH:
                return None
            names.append(directory.name)
            directory = directory.parent
        return b"/" + b"/".join(reversed(names))


def _components(path: bytes) -> list[bytes]:
    """Return the components of a path, the last one first."""
    parts = [part for part in path.split(b"/") if part]
    parts.reverse()
    return parts
