"""The file system of one Linux program."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from vmm.linux.errors import SysError
from vmm.linux.files import pipes
from vmm.linux.files.attributes import Attributes
from vmm.linux.files.beneath import Shown
from vmm.linux.files.contents import Content, HostFile
from vmm.linux.files.data import LARGEST
from vmm.linux.files.descriptors import Descriptors
from vmm.linux.files.lent import LentData
from vmm.linux.files.names import Names
from vmm.linux.files.nodes import PERMISSIONS, Directory, File, Node, Special, Symlink
from vmm.linux.files.offering import Offered, offer
from vmm.linux.files.open_directory import OpenDirectory
from vmm.linux.files.open_files import OpenFile, OpenPath, OpenRegular
from vmm.linux.files.streams import Input, Stream, input_node, output_node
from vmm.linux.files.walk import Last
from vmm.linux.files.written import Written

AT_FDCWD = -100
_PATH_FLAGS = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_PATH | os.O_CLOEXEC
_TMPFILE = os.O_TMPFILE & ~os.O_DIRECTORY
_EXCLUSIVE = os.O_CREAT | os.O_EXCL
_PIECE = 1 << 20


class FileSystem(Names, Attributes):
    """Files offered, files of the host's `root` below them, and whatever the program makes of it.

    Every call is made by one thread at a time, and committed by the caller (`Changes`); `written`
    and `contents` may be asked by any thread. Paths are bytes; `at`, where relative ones begin, is
    the node of an open file (`start`), or None for the current directory.

    descriptors   the program's
    written       what it has written
    """

    def __init__(
        self,
        files: Mapping[str, Offered],
        *,
        root: Path | None,
        limit: int,
        executable: Content,
        now: Callable[[], int],
        random: Callable[[int], bytes],
        executable_path: bytes = b"/program",
    ) -> None:
        """Open what is offered.

        files        what there is to be read, by absolute path
        root         the host's directory that is below everything, or None
        limit        bytes of memory that may be written, names and the like included
        executable   what /proc/self/exe is, closed with this; executable_path is what it says
        now          returns the time in ns
        random       returns as many random bytes

        Raises ConfigError for what cannot be offered, LimitError for too many files.
        """
        super().__init__(root, 1 << 62, now)
        self.random = random
        self.mask = 0o022
        self.cwd = self.root
        self.descriptors = Descriptors(self.changes)
        self.written = Written(self)
        self._host_files = [executable] if isinstance(executable, HostFile) else []
        try:
            self._host_files += offer(self, files, executable, executable_path)
        except BaseException:
            self.close()
            raise
        self.changes.commit()
        self.space.limit = limit + self.space.used  # what was offered is not the program's to pay

    def close(self) -> None:
        """Let go of the host's files. What the program wrote can still be read. Idempotent."""
        while self._host_files:
            self._host_files.pop().close()
        if self.lower is not None:
            self.lower.close()

    def standard(self, stdin: Input, stdout: Stream, stderr: Stream) -> None:
        """Let descriptors 0, 1 and 2 be these."""
        reader, *writers = (
            input_node(self, stdin),
            output_node(self, stdout),
            output_node(self, stderr),
        )
        ends = (opened(self, node, os.O_WRONLY) for node in writers)
        self.descriptors.begin(opened(self, reader, os.O_RDONLY), *ends)
        self.changes.commit()

    # What the program asks.

    def start(self, dirfd: int, path: bytes) -> Node | None:
        """Return where a path begins (`at`), for a call's dirfd. Raises EBADF, ENOTDIR."""
        if dirfd == AT_FDCWD or path[:1] == b"/":
            return None
        node = self.descriptors.get(dirfd).node
        if path and not isinstance(node, Directory):
            raise SysError(errno.ENOTDIR)
        return node

    def open(self, at: Node | None, path: bytes, flags: int, mode: int = 0) -> OpenFile:
        """Open what is there, or make it: openat(2). It has no descriptor yet.

        Raises what open(2) does; ENXIO for what is on the host and neither file nor directory.
        """
        if flags & os.O_PATH:
            flags &= _PATH_FLAGS
        _check_flags(flags)
        if flags & os.O_CREAT and path[-1:] == b"/" and self.last(at, path).plain:
            raise SysError(errno.EISDIR)
        exclusive = flags & _EXCLUSIVE == _EXCLUSIVE
        follow = not (flags & os.O_NOFOLLOW or exclusive)
        last, node = self.ends(at, path, follow=follow)
        if node is not None and exclusive:
            raise SysError(errno.EEXIST)
        if flags & os.O_CREAT and (last.slash or not last.plain):
            raise SysError(errno.EISDIR)
        if node is None:
            return self._create(last, flags, mode)
        return self._existing(last, node, flags)

    def _create(self, last: Last, flags: int, mode: int) -> OpenFile:
        if not flags & os.O_CREAT or last.directory.removed:
            raise SysError(errno.ENOENT)
        node = self.new_file(mode & PERMISSIONS & ~self.mask)
        self.attach(last.directory, last.name, node)
        file = OpenRegular(self, node, flags)
        file.place = last.directory, last.name
        return file

    def _existing(self, last: Last, node: Node, flags: int) -> OpenFile:
        if isinstance(node, Directory):
            if flags & os.O_CREAT:
                raise SysError(errno.EISDIR)
        elif flags & os.O_DIRECTORY or last.slash:
            raise SysError(errno.ENOTDIR)
        file = opened(self, node, flags)
        file.place = last.directory, last.name
        return file

    def pipe(self, flags: int) -> tuple[OpenFile, OpenFile]:
        """Make a pipe; return the end to read and the end to write: pipe2(2). Raises EINVAL."""
        return pipes.pipe(self, flags)

    def chdir(self, at: Node | None, path: bytes) -> None:
        """Make a directory the current one: chdir(2)."""
        self.changes.set(self, "cwd", self.directory(at, path))

    def fchdir(self, file: OpenFile) -> None:
        """Make a directory the current one: fchdir(2)."""
        if not isinstance(file.node, Directory):
            raise SysError(errno.ENOTDIR)
        self.changes.set(self, "cwd", file.node)

    def getcwd(self) -> bytes:
        """Return the current directory's path. Raises ENOENT if it has none, ENAMETOOLONG."""
        path = self.path_of(self.cwd)
        if path is None:
            raise SysError(errno.ENOENT if self.cwd.removed else errno.ENAMETOOLONG)
        return path

    def umask(self, mask: int) -> int:
        """Set which permissions new files do not get; return those of before: umask(2)."""
        before = self.mask
        self.changes.set(self, "mask", mask & 0o777)
        return before

    # What Python asks.

    def contents(self, path: str | bytes | os.PathLike[str], most: int = LARGEST) -> bytes:
        """Return what is in a file, by its absolute path. May be called from any thread.

        Raises SysError: ENOENT, EISDIR and so on; EFBIG, if it is larger than `most`.
        """
        node = self.resolve(self.root, os.fsencode(path))
        if not isinstance(node, File):
            raise SysError(errno.EISDIR if isinstance(node, Directory) else errno.EINVAL)
        pieces: list[bytes] = []
        length = 0
        while piece := node.data.read(length, _PIECE):
            if node.data.size > most:  # holes take no memory there, but here
                raise SysError(errno.EFBIG)
            pieces.append(piece)
            length += len(piece)
        return b"".join(pieces)


def opened(files: FileSystem, node: Node, flags: int) -> OpenFile:
    """Open a node. Raises EISDIR, ELOOP, ENXIO, EROFS, EACCES."""
    if flags & os.O_PATH:
        return OpenPath(files, node, flags)
    if isinstance(node, Symlink):
        raise SysError(errno.ELOOP)
    writing = flags & (os.O_ACCMODE | os.O_TRUNC)
    if isinstance(node, Directory):
        if writing:
            raise SysError(errno.EISDIR)
        return OpenDirectory(files, node, flags)
    if isinstance(node, Special):
        if node.opened is None:
            raise SysError(errno.ENXIO)
        return node.opened(node, flags)
    assert isinstance(node, File)
    if writing:
        files.change(node)
    if isinstance(node.data, LentData):
        pass  # as large as it is: O_TRUNC has no effect, as on a device
    elif flags & os.O_TRUNC:
        files.resize(node, 0)
    elif isinstance(node.data.base, Shown):
        node.data.base.open()
    return OpenRegular(files, node, flags)


def _check_flags(flags: int) -> None:
    """Raise what open(2) does for flags that cannot be meant together, or are not served."""
    if flags & (os.O_CREAT | os.O_DIRECTORY) == os.O_CREAT | os.O_DIRECTORY:
        raise SysError(errno.EINVAL)
    if flags & _TMPFILE:
        if not flags & os.O_DIRECTORY or not flags & os.O_ACCMODE:
            raise SysError(errno.EINVAL)
        raise SysError(errno.EOPNOTSUPP)
