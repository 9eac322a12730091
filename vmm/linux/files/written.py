"""What a program has written, for Python."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from vmm.errors import ResourceError
from vmm.linux.errors import SysError
from vmm.linux.files.lent import LentData
from vmm.linux.files.nodes import Directory, Entry, File
from vmm.linux.files.walk import LONGEST_PATH
from vmm.sizes import format_size

if TYPE_CHECKING:
    from vmm.linux.files.system import FileSystem


class Written(Mapping[str, bytes]):
    """The regular files that a program has made or changed, by their paths: a view.

    Each look is at what there is then, and gives a copy: a file that is being written may be seen
    in part, as by another process. Any thread may look. Names that are no UTF-8 are as
    `os.fsdecode` has them. One that is larger than all that may be written, since there are holes
    in it, is a ResourceError.
    """

    def __init__(self, files: FileSystem) -> None:
        self._files = files

    def __getitem__(self, path: str) -> bytes:
        limit = self._files.space.limit
        try:
            return self._files.contents(path, limit)
        except SysError as error:
            if error.number != errno.EFBIG:
                raise KeyError(path) from None
        raise ResourceError(
            f"{path} has holes, and is larger than the program's disk, {format_size(limit)}: "
            "to read it here, give a larger one"
        )

    def __contains__(self, path: object) -> bool:
        try:
            return super().__contains__(path)
        except ResourceError:
            return True

    def __iter__(self) -> Iterator[str]:
        left = [(self._files.root, b"")]
        while left:
            directory, path = left.pop()
            for name, entry in [*directory.entries.items()]:
                below = path + b"/" + name
                node = entry.node
                if len(below) > LONGEST_PATH:
                    continue
                if isinstance(node, Directory):
                    left.append((node, below))
                elif isinstance(node, File) and _written(node, entry):
                    yield os.fsdecode(below)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"<Written {[*self]}>"


def _written(file: File, entry: Entry) -> bool:
    """Whether a file is the program's: not one that was offered, nor the host's as it was."""
    if isinstance(file.data, LentData):  # its bytes are the buffer's
        return False
    return not file.fixed and (bool(entry.cookie) or file.data.changed)
