"""Files that the command writes: each is there as a whole, or as it was; what is no file stays.

A regular file is replaced in one step by one of the same mode and owner. A device, a fifo or a
descriptor's name (/dev/stdout, /dev/fd/3) is written into. A link is followed, and stays. A file
that cannot be replaced, since it is mounted or its directory may not be written, is written into,
too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from vmm.errors import ConfigError
from vmm.observe.writing import write_all

# A mount of its own, a directory that may not be written, a file of the kernel's.
_IRREPLACEABLE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.EXDEV),
    *(errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP),
)
_MODE = 0o666


class Output:
    """A file to be written once. `output` opens it."""

    def __init__(self, path: Path, target: Path, draft: Path | None) -> None:
        self._path, self._target, self._draft = path, target, draft

    def write(self, data: bytes, mode: int = _MODE) -> None:
        """Write all of the file, of this mode less the umask if it is a new one.

        Raises OSError, with the path's name.
        """
        with _named(self._path):
            if self._draft is None:
                _write_into(self._path, data)
                return
            _write_draft(self._draft, self._target, data, mode)
            try:
                self._draft.replace(self._target)
            except OSError as error:
                if error.errno not in _IRREPLACEABLE or not self._target.exists():
                    raise
                _write_into(self._path, data)


@contextlib.contextmanager
def output(path: Path, others: Iterable[Path] = (), *, parents: bool = False) -> Iterator[Output]:
    """Open a file to be written, and leave nothing of it if it is not.

    parents   make the directories that it is to be in, as well

    Raises ConfigError if it is one of the `others`, which must not be overwritten, or a directory;
    OSError, with its name, if it cannot be written.
    """
    check_output(path, others)
    if path.is_dir():
        raise ConfigError(f"{path}: is a directory: name a file to write")
    with contextlib.ExitStack() as undo:
        with _named(path):
            target = Path(os.path.realpath(path))  # what a link leads to is replaced, not the link
            if parents:
                _make_directories(target.parent, undo)
            draft = None if _is_written_into(path, target) else _draft(target)
        if draft is not None:
            undo.callback(_without_errors, draft.unlink)
        yield Output(path, target, draft)


def _make_directories(folder: Path, undo: contextlib.ExitStack) -> None:
    """Make a directory and those it is in; undone, they are gone again if nothing is in them."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for directory in reversed(missing):  # what was made last, goes first
        undo.callback(_without_errors, directory.rmdir)
    if missing:
        folder.mkdir(parents=True, exist_ok=True)


def _without_errors(function: Callable[[], None]) -> None:
    with contextlib.suppress(OSError):
        function()


def check_output(output: Path, inputs: Iterable[Path]) -> None:
    """Raise ConfigError if a file that is to be written is one that is to be read."""
    for path in inputs:
        with contextlib.suppress(OSError):  # one that is not there is another
            if output.samefile(path):
                raise ConfigError(f"{output}: would be overwritten: name another file to write to")


def _is_written_into(path: Path, target: Path) -> bool:
    """Whether what is there stays. Raises OSError if it may not be written."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    if _own_descriptor(path) is not None or not stat.S_ISREG(there.st_mode):
        return True
    os.close(os.open(path, os.O_WRONLY | os.O_CLOEXEC))  # a file that may not be written stays
    return not os.path.samestat(there, target.stat())


def _draft(target: Path) -> Path | None:
    """Make an empty file beside the target, or none if the target has to be written into."""
    draft = target.with_name(f".pageferry.{secrets.token_hex(4)}")  # fits, however long a name is
    try:
        draft.touch(0o600, exist_ok=False)  # what it replaces may be private
    except OSError as error:
        if error.errno not in _IRREPLACEABLE or not target.exists():
            raise
        return None
    return draft


def _write_draft(draft: Path, target: Path, data: bytes, mode: int) -> None:
    """Fill the draft, and make it look like what it will replace."""
    descriptor = os.open(draft, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        write_all(descriptor, data)
        try:
            old = target.stat()
        except FileNotFoundError:
            os.fchmod(descriptor, mode & ~_umask())
        else:
            with contextlib.suppress(OSError):  # somebody else's, which becomes ours
                os.fchown(descriptor, old.st_uid, old.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(old.st_mode) & 0o777)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _write_into(path: Path, data: bytes) -> None:
    descriptor = open_in_place(path)
    try:
        write_all(descriptor, data)
    finally:
        os.close(descriptor)


def open_in_place(path: Path) -> int:
    """Open a file to be written as things happen, whatever it is; return its descriptor.

    As a shell's redirection does: a regular file is emptied, a fifo waits for its reader. Raises
    OSError.
    """
    own = _own_descriptor(path)
    if own is not None:
        return os.dup(own)  # with its position: others write there, too
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOCTTY | os.O_CLOEXEC
    return os.open(path, flags, _MODE)


def _own_descriptor(path: Path) -> int | None:
    """Return the descriptor of ours that a path names, by whatever links; None if it is none."""
    for _ in range(40):  # as many links as the kernel follows
        folder = os.path.realpath(path.parent)
        if re.fullmatch(rf"/proc/{os.getpid()}(/task/\d+)?/fd", folder) and path.name.isdigit():
            return int(path.name)
        if not path.is_symlink():
            break
        path = Path(folder, os.readlink(path))  # noqa: PTH115 - it is joined as text
    return None


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Give every error the name of the file that was asked for."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
