"""Files that are written at the end of something long, and known to be writable at its beginning.

Each is there as a whole, or as it was.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from vmm.command.options import check_output
from vmm.errors import ConfigError

_IN_PLACE = (stat.S_ISCHR, stat.S_ISFIFO, stat.S_ISSOCK)  # /dev/null, /dev/stdout: not replaced


class Output:
    """A file to be written once. `output` opens it."""

    def __init__(self, path: Path, draft: Path | None) -> None:
        self._path, self._draft = path, draft

    def write(self, data: bytes) -> None:
        """Write all of the file."""
        if self._draft is None:
            self._path.write_bytes(data)
        else:
            self._draft.write_bytes(data)
            self._draft.replace(self._path)


@contextlib.contextmanager
def output(path: Path, others: Iterable[Path] = ()) -> Iterator[Output]:
    """Open a file to be written, and leave nothing of it if it is not.

    Raises ConfigError if it is one of the `others`, which must not be overwritten, or a directory;
    OSError, with its name, if it cannot be written.
    """
    check_output(path, others)
    target = Path(os.path.realpath(path))  # what a link leads to is replaced, not the link
    if target.is_dir():
        raise ConfigError(f"{path}: is a directory: name a file to write")
    if target.exists() and any(special(target.stat().st_mode) for special in _IN_PLACE):
        yield Output(target, None)
        return
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        try:
            draft.touch(exist_ok=False)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        yield Output(target, draft)
    finally:
        with contextlib.suppress(OSError):  # there is none, or not even a directory to have it
            draft.unlink()
