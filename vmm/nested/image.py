"""Disks for the lanes: a directory tree as a file system in a file. Needs no root."""

from __future__ import annotations

from pathlib import Path

from vmm.errors import HostError
from vmm.nested import apt
from vmm.nested.packages import find_program

# Bochs takes a disk of whole cylinders only: 16 heads, 63 sectors.
DISK_UNIT = 16 * 63 * 512

_BLOCK = 4096
_INODE = 256
_SPARE = 4 << 20  # for the file system's own tables
_OPTIONS = ("-q", "-F", "-m0", "-b", str(_BLOCK), "-I", str(_INODE))


def disk_size(size: int) -> int:
    """Return the size of the smallest disk that holds `size` bytes."""
    return -(-size // DISK_UNIT) * DISK_UNIT


def make(tree: Path, image: Path) -> None:
    """Make an ext4 file system of a tree. Raises LaneError if it cannot be made."""
    paths = list(tree.rglob("*"))
    contents = sum(-(-path.lstat().st_size // _BLOCK) * _BLOCK for path in paths)
    # An eighth more, for the tables that grow with it: block maps and directories.
    size = (contents + len(paths) * _INODE * 2) * 9 // 8 + _SPARE
    with image.open("wb") as file:
        file.truncate(disk_size(size))
    program = find_program("mkfs.ext4")
    if program is None:
        raise HostError("mkfs.ext4 is not there", "sudo apt-get install e2fsprogs")
    features = ["-O", "^has_journal,^resize_inode", "-N", str(len(paths) + 64)]
    options = ["-E", "root_owner=0:0,lazy_itable_init=1"]
    apt.run([program, *_OPTIONS, *features, *options, "-d", tree, image])
