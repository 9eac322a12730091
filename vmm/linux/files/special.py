"""/dev and /proc: what programs look for there, and no more."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from vmm.linux.files.devices import devices
from vmm.linux.files.nodes import Directory, Entry, File, MagicLink, Node, Special, Symlink
from vmm.linux.files.tree import ENTRY

if TYPE_CHECKING:
    from vmm.linux.files.system import FileSystem


def populate(files: FileSystem, executable: File, path: bytes) -> None:
    """Make /dev and /proc, instead of whatever the host has there.

    executable   what /proc/self/exe is
    path         what it says it is
    """
    dev, proc = _made(files, b"dev"), _made(files, b"proc")
    for name, (opened, number) in devices(files).items():
        node = Special(files.new_ino(), stat.S_IFCHR | 0o666, files.now(), opened, number)
        _lay(files, dev, name, node)
    links = {b"fd": b"", b"stdin": b"/0", b"stdout": b"/1", b"stderr": b"/2"}
    for name, which in links.items():
        target = b"/proc/self/fd" + which
        _lay(files, dev, name, Symlink(files.new_ino(), target, files.now()))
    own = Directory(files.new_ino(), 0o555, files.now())
    files.attach(proc, b"self", own)
    files.attach(own, b"fd", _Descriptors(files))
    exe = MagicLink(files.new_ino(), files.now(), lambda: path, lambda: executable)
    _lay(files, own, b"exe", exe)
    proc.fixed = own.fixed = True


def _lay(files: FileSystem, directory: Directory, name: bytes, node: Node) -> None:
    """Give a node that is no directory a name in a new one: as `attach` does, in a tenth of its
    time, since nothing of it is ever undone.
    """
    files.space.used += ENTRY + len(name)
    directory.order.append((directory.cookie, name))
    directory.entries[name] = Entry(node, directory.cookie, hides=False)
    directory.cookie += 1


def _made(files: FileSystem, name: bytes) -> Directory:
    directory = Directory(files.new_ino(), 0o755, files.now())
    there = files.lookup(files.root, name)
    if there is not None:
        files.detach(files.root, name, there)
    files.attach(files.root, name, directory)
    return directory


class _Descriptors(Directory):
    """/proc/self/fd."""

    __slots__ = ("files",)

    def __init__(self, files: FileSystem) -> None:
        super().__init__(files.new_ino(), 0o500, files.now())
        self.fixed = True
        self.files = files

    def find(self, name: bytes) -> Node | None:
        if not name.isdigit() or str(int(name)).encode() != name:
            return None
        number = int(name)
        return self._link(number) if number in self.files.descriptors.numbers() else None

    def listed(self) -> list[tuple[bytes, Node]]:
        numbers = self.files.descriptors.numbers()
        return [(b"%d" % number, self._link(number)) for number in numbers]

    def _link(self, number: int) -> MagicLink:
        file = self.files.descriptors.get(number)
        return MagicLink(file.node.ino, self.ctime, file.path, lambda: file.node)
