"""The initramfs of a lane: busybox, the modules and `init.sh`, in a cpio archive."""

from __future__ import annotations

import dataclasses
import gzip
from collections.abc import Iterable
from pathlib import Path

from vmm.nested.kernel import MODULES, load_order
from vmm.nested.packages import BUSYBOX

INIT = Path(__file__).with_name("init.sh")
FILE, DIRECTORY = 0o100000, 0o040000


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """A file or directory of a cpio archive.

    Its path without a leading slash, its type and permissions.
    """

    name: str
    mode: int
    data: bytes = b""


def cpio(entries: Iterable[Entry]) -> bytes:
    """Return a cpio archive in the "newc" format; all in it belongs to root.

    The kernel's format: Documentation/driver-api/early-userspace/buffer-format.rst
    """
    parts = []
    for number, entry in enumerate([*entries, Entry("TRAILER!!!", 0)], 1):
        name = entry.name.encode() + b"\0"
        links, nothing = 2 if entry.mode & DIRECTORY else 1, (0, 0, 0, 0)
        fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), *nothing, len(name), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        parts += [_padded(header + name), _padded(entry.data)]
    return b"".join(parts)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def contents(modules: dict[str, bytes], disks: Iterable[str]) -> list[Entry]:
    """Return what is in a lane's initramfs.

    modules  by name, in the order in which they are loaded
    disks    the lane's names for its disks: root, payload, output
    """
    order = "".join(f"{name}.ko\n" for name in modules)
    return [
        *(Entry(name, DIRECTORY | 0o755) for name in ("bin", "modules")),
        Entry("bin/busybox", FILE | 0o755, Path(BUSYBOX).read_bytes()),
        Entry("init", FILE | 0o755, INIT.read_bytes()),
        Entry("disks", FILE | 0o644, " ".join(disks).encode()),
        Entry("modules/order", FILE | 0o644, order.encode()),
        *(Entry(f"modules/{name}.ko", FILE | 0o644, data) for name, data in modules.items()),
    ]


def build(kernel: Path, modules: Iterable[str], disks: Iterable[str], *, packed: bool) -> bytes:
    """Return the initramfs of a lane: packed for a slow disk, or plain for a slow processor."""
    archive = cpio(contents(load_order(kernel / MODULES, list(modules)), disks))
    return gzip.compress(archive, 6, mtime=0) if packed else archive
