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
    now, new_ino = files.now(), files.new_ino
    names: dict[bytes, Node] = {
        name: Special(new_ino(), stat.S_IFCHR | 0o666, now, opened, number)
        for name, (opened, number) in devices(files).items()
    }
    for name, target in _LINKS.items():
        names[name] = Symlink(new_ino(), target, now)
    dev, proc, own = (Directory(new_ino(), mode, now) for mode in (0o755, 0o755, 0o555))
    for name, there in ((b"dev", dev), (b"proc", proc)):
        if files.lower is not None and (old := files.lookup(files.root, name)) is not None:
            files.detach(files.root, name, old)
            files.attach(files.root, name, there)
        else:
            lay(files, files.root, {name: there})
    exe = MagicLink(new_ino(), now, lambda: path, lambda: executable)
    lay(files, dev, names)
    lay(files, proc, {b"self": own})
    lay(files, own, {b"fd": _Descriptors(files), b"exe": exe})
    proc.fixed = own.fixed = True


def lay(files: FileSystem, directory: Directory, nodes: dict[bytes, Node]) -> None:
    """Give nodes names that a directory does not have: as `attach` does, in a tenth of its time,
    since nothing of it is ever undone.
    """
    cookie = directory.cookie
    for name, node in nodes.items():
        directory.order.append((cookie, name))
        directory.entries[name] = Entry(node, cookie, hides=False)
        if isinstance(node, Directory):
            node.parent, node.name = directory, name
            directory.nlink += 1
        cookie += 1
    directory.cookie = cookie
    files.space.used += ENTRY * len(nodes) + sum(map(len, nodes))


_LINKS = {
    b"fd": b"/proc/self/fd",
    **{name: b"/proc/self/fd/%d" % at for at, name in enumerate((b"stdin", b"stdout", b"stderr"))},
}


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
