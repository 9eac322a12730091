"""What a program finds when it starts."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vmm.errors import ArgumentTypeError, ConfigError
from vmm.linux.errors import SysError
from vmm.linux.files.contents import Content, Given, HostFile
from vmm.linux.files.data import Data
from vmm.linux.files.lent import LentData, Loan
from vmm.linux.files.nodes import Directory, File
from vmm.linux.files.special import lay, populate
from vmm.linux.files.tree import LONGEST_NAME
from vmm.linux.files.walk import LONGEST_PATH

if TYPE_CHECKING:
    from vmm.linux.files.system import FileSystem

Offered = Path | bytes | Content
_STANDARD = (b"tmp", b"out", b"root")


def offer(
    files: FileSystem, offered: Mapping[str, Offered], executable: Content, executable_path: bytes
) -> list[HostFile]:
    """Make what there is when a program starts; return the host's files that are open for it.

    Raises ConfigError, LimitError; nothing stays open then.
    """
    opened: list[HostFile] = []
    try:
        populate(files, _file(files, executable, 0o555), executable_path)
        _make_standard(files)
        for name, what in offered.items():
            content = _content(name, what)
            if isinstance(content, HostFile) and content is not what:
                opened.append(content)
            try:
                _place(files, name, content)
            except SysError as error:
                raise ConfigError(
                    f"{name} cannot be offered: {os.strerror(error.number)}"
                ) from None
    except BaseException:
        for file in opened:
            file.close()
        raise
    return opened


def _make_standard(files: FileSystem) -> None:
    """Make the directories that every program finds."""
    if files.lower is not None:  # it may have them
        for name in _STANDARD:
            _make_directories(files, b"/" + name)
        return
    now = files.now()
    made = {name: Directory(files.new_ino(), 0o755, now) for name in _STANDARD}
    lay(files, files.root, made)


def _content(name: str, what: Offered) -> Content:
    if isinstance(what, bytes | bytearray | memoryview):
        return Given(bytes(what))
    if isinstance(what, os.PathLike):
        return HostFile.open(Path(what))
    if isinstance(what, Content):
        return what
    raise ArgumentTypeError(f"{name} must be a Path, bytes or a Buffer, not {type(what).__name__}")


def _file(files: FileSystem, content: Content, permissions: int) -> File:
    if isinstance(content, Loan):
        writable = 0o200 * content.writable
        node = File(files.new_ino(), permissions | writable, files.now(), LentData(content))
        node.fixed = not content.writable
        return node
    node = File(files.new_ino(), permissions, files.now(), Data(content))
    node.fixed = True
    if isinstance(content, HostFile):
        node.mtime = content.mtime
    return node


def _place(files: FileSystem, name: str, content: Content) -> None:
    path = os.fsencode(name)
    parts = path.split(b"/")[1:]
    if path[:1] != b"/" or b"\0" in path or {b"", b".", b".."} & {*parts}:
        raise ConfigError(f"{name!r} is no path to offer a file at: give one such as /in/data")
    if len(path) > LONGEST_PATH or max(map(len, parts)) > LONGEST_NAME:
        raise SysError(errno.ENAMETOOLONG)
    directory = _make_directories(files, b"/".join(path.split(b"/")[:-1]))
    there = files.lookup(directory, parts[-1])
    if there is not None:
        if isinstance(there, Directory):
            raise SysError(errno.EISDIR)
        if there.fixed:
            raise SysError(errno.EEXIST)
        files.detach(directory, parts[-1], there)
    files.attach(directory, parts[-1], _file(files, content, 0o444))


def _make_directories(files: FileSystem, path: bytes) -> Directory:
    """Return the directory of that path, made if it is not there. Raises ENOTDIR and so on."""
    directory = files.root
    for name in path.split(b"/")[1:]:
        last, node = files.ends(directory, name)
        if node is None:
            node = Directory(files.new_ino(), 0o755, files.now())
            files.attach(last.directory, last.name, node)
        if not isinstance(node, Directory):
            raise SysError(errno.ENOTDIR)
        directory = node
    return directory
