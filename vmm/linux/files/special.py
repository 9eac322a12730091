"""/dev and /proc: what programs look for there, and no more."""

from __future__ import annotations

import stat
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from vmm.linux.files.devices import DEVICES, devices
from vmm.linux.files.nodes import Directory, Entry, File, MagicLink, Node, Special, Symlink
from vmm.linux.files.tree import ENTRY

if TYPE_CHECKING:
    from vmm.linux.files.system import FileSystem


def populate(files: FileSystem, executable: File, path: bytes) -> None:
    """Make /dev and /proc, instead of whatever the host has there.

    executable   what /proc/self/exe is
    path         what it says it is
    """
    now = files.now()

    def in_dev(dev: Directory, ino: int) -> list[Node]:
        made: list[Node] = [
            Special(at, stat.S_IFCHR | 0o666, now, opened, number)
            for at, (opened, number) in enumerate(devices(files).values(), ino)
        ]
        targets = enumerate(_LINKS.values(), ino + len(made))
        return made + [Symlink(at, target, now) for at, target in targets]

    def in_proc(proc: Directory, ino: int) -> list[Node]:
        own = Directory(ino, 0o555, now)
        exe = MagicLink(ino + 2, now, lambda: path, lambda: executable)
        _enter(own, {b"fd": _Descriptors(files, ino + 1, now), b"exe": exe})
        own.parent, own.name, own.fixed = proc, b"self", True
        return [own]

    dev = _Prepared(files, now, (*DEVICES, *_LINKS), in_dev)
    proc = _Prepared(files, now, (b"self",), in_proc, directories=1, below=2)
    proc.fixed = True
    for name, there in ((b"dev", dev), (b"proc", proc)):
        if files.lower is not None and (old := files.lookup(files.root, name)) is not None:
            files.detach(files.root, name, old)
            files.attach(files.root, name, there)
        else:
            lay(files, files.root, {name: there})


class _Prepared(Directory):
    """A directory that is filled when it is first looked into: few programs do.

    All but `entries` is as if it had been. What is made then is made once, even if several threads
    look at the same time, or a signal's handler does.
    """

    __slots__ = ("_fill", "_filled", "_names")
    _fill: Callable[[], list[Node]]

    def __init__(
        self,
        files: FileSystem,
        now: int,
        names: Sequence[bytes],
        fill: Callable[[Directory, int], list[Node]],
        directories: int = 0,
        below: int = 0,
    ) -> None:
        """Say which `names` it has.

        fill          returns what these are: called with the directory and the first of the numbers
                      (Node.ino) that they may have
        directories   how many of them are directories; `below` nodes are in these
        """
        super().__init__(files.new_ino(), 0o755, now)
        first = files.new_ino(len(names) + below)
        self._names = tuple(enumerate(names, self.cookie))
        self.order = [*self._names]
        self.cookie += len(names)
        self.nlink += directories
        files.space.used += ENTRY * len(names) + sum(map(len, names))
        self._filled: dict[int, dict[bytes, Entry]] = {}
        self._fill = partial(fill, self, first)
        del self.entries

    def __getattr__(self, name: str) -> dict[bytes, Entry]:
        """Fill it: there is no `entries` yet."""
        if name != "entries":
            raise AttributeError(name)
        nodes = zip(self._names, self._fill(), strict=True)
        made = {name: Entry(node, cookie, hides=False) for (cookie, name), node in nodes}
        self.entries = self._filled.setdefault(0, made)
        return self.entries


def lay(files: FileSystem, directory: Directory, nodes: Mapping[bytes, Node]) -> None:
    """Give nodes names that a directory does not have: as `attach` does, in a tenth of its time,
    since nothing of it is ever undone.
    """
    _enter(directory, nodes)
    files.space.used += ENTRY * len(nodes) + sum(map(len, nodes))


def _enter(directory: Directory, nodes: Mapping[bytes, Node]) -> None:
    for cookie, (name, node) in enumerate(nodes.items(), directory.cookie):
        directory.order.append((cookie, name))
        directory.entries[name] = Entry(node, cookie, hides=False)
        if isinstance(node, Directory):
            node.parent, node.name = directory, name
            directory.nlink += 1
    directory.cookie += len(nodes)


_LINKS = {
    b"fd": b"/proc/self/fd",
    **{name: b"/proc/self/fd/%d" % at for at, name in enumerate((b"stdin", b"stdout", b"stderr"))},
}


class _Descriptors(Directory):
    """/proc/self/fd."""

    __slots__ = ("files",)

    def __init__(self, files: FileSystem, ino: int, now: int) -> None:
        super().__init__(ino, 0o500, now)
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
