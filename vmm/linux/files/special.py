"""/dev and /proc: what programs look for there, and no more."""

from __future__ import annotations

import stat
from collections.abc import Callable

from vmm.linux.files.attributes import Attributes
from vmm.linux.files.descriptors import Descriptors
from vmm.linux.files.devices import devices
from vmm.linux.files.nodes import Directory, File, MagicLink, Node, Special, Symlink


def populate(
    files: Attributes,
    descriptors: Descriptors,
    random: Callable[[int], bytes],
    executable: File,
    path: bytes,
) -> None:
    """Make /dev and /proc, instead of whatever the host has there.

    descriptors  the program's
    random       returns as many random bytes
    executable   what /proc/self/exe is
    path         what it says it is
    """
    dev, proc = _made(files, b"dev"), _made(files, b"proc")
    for name, (opened, number) in devices(files, random).items():
        node = Special(files.new_ino(), stat.S_IFCHR | 0o666, files.now(), opened, number)
        files.attach(dev, name, node)
    links = {b"fd": b"", b"stdin": b"/0", b"stdout": b"/1", b"stderr": b"/2"}
    for name, which in links.items():
        target = b"/proc/self/fd" + which
        files.attach(dev, name, Symlink(files.new_ino(), target, files.now()))
    own = Directory(files.new_ino(), 0o555, files.now())
    files.attach(proc, b"self", own)
    files.attach(own, b"fd", _Descriptors(files, descriptors))
    files.attach(
        own, b"exe", MagicLink(files.new_ino(), files.now(), lambda: path, lambda: executable)
    )
    proc.fixed = own.fixed = True


def _made(files: Attributes, name: bytes) -> Directory:
    directory = Directory(files.new_ino(), 0o755, files.now())
    there = files.lookup(files.root, name)
    if there is not None:
        files.detach(files.root, name, there)
    files.attach(files.root, name, directory)
    return directory


class _Descriptors(Directory):
    """/proc/self/fd."""

    __slots__ = ("descriptors",)

    def __init__(self, files: Attributes, descriptors: Descriptors) -> None:
        super().__init__(files.new_ino(), 0o500, files.now())
        self.fixed = True
        self.descriptors = descriptors

    def find(self, name: bytes) -> Node | None:
        if not name.isdigit() or str(int(name)).encode() != name:
            return None
        number = int(name)
        return self._link(number) if number in self.descriptors.numbers() else None

    def listed(self) -> list[tuple[bytes, Node]]:
        numbers = self.descriptors.numbers()
        return [(b"%d" % number, self._link(number)) for number in numbers]

    def _link(self, number: int) -> MagicLink:
        file = self.descriptors.get(number)
        return MagicLink(file.node.ino, self.ctime, file.path, lambda: file.node)
