"""The cache of what the lanes are built from: directories named after what they were made of.

A stage is built in a directory of another name and renamed when it is whole, so that an interrupted
build is never taken for a finished one; a lock per stage keeps two builds of it apart.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from vmm.errors import HostError
from vmm.sizes import format_size

NEEDED_BYTES = 700 << 20  # what a first build writes, with what it unpacks on the way
_UNUSED_SECONDS = 30 * 24 * 3600.0
_PARTIAL = ".partial"

Build = Callable[[Path], None]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, waiting for whoever holds it.

    The kernel lets go of it if we die.
    """
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Cache:
    """The directories below `root`, which is made if need be. Raises HostError if it cannot be.

    Processes may use one cache at the same time; an instance belongs to one thread.
    """

    def __init__(self, root: Path, say: Callable[[str], None]) -> None:
        self.root = root
        self._say = say
        with disk_errors(root):
            try:
                root.mkdir(parents=True, exist_ok=True)
            except FileExistsError as error:
                raise NotADirectoryError(errno.ENOTDIR, "it is no directory") from error
            except FileNotFoundError as error:  # in /proc, say
                raise PermissionError(errno.EACCES, "it cannot be made there") from error

    def stage(self, name: str, key: str, what: str, build: Build) -> Path:
        """Return the directory of a stage, built by `build(directory)` if it is not there yet.

        what  said to the user when it has to be built
        """
        final = self.root / f"{name}-{key}"
        if not _whole(final):
            with locked(self.root / f".{name}.lock"):
                if not _whole(final):
                    self._build(final, what, build)
                    self._prune(name, final)
        os.utime(final)
        return final

    def _build(self, final: Path, what: str, build: Build) -> None:
        free = shutil.disk_usage(self.root).free
        if free < NEEDED_BYTES:
            raise _disk_short(self.root, f"only {format_size(free)} free")
        self._say(f"building {what}")
        partial = final.with_name(final.name + _PARTIAL)
        # Left by a build that was killed: we hold the lock.
        shutil.rmtree(partial, ignore_errors=True)
        try:
            with disk_errors(self.root):
                partial.mkdir()
                build(partial)
                os.sync()  # the name must not outlive a power cut that the contents do not
                partial.rename(final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def _prune(self, name: str, keep: Path) -> None:
        """Remove this stage's builds that nobody has used for a month, and unfinished ones."""
        for path in self.root.glob(f"{name}-*"):
            old = path.stat().st_mtime < time.time() - _UNUSED_SECONDS
            if path != keep and (old or path.name.endswith(_PARTIAL)):
                shutil.rmtree(path, ignore_errors=True)

    def directory(self, name: str) -> Path:
        """Return a directory of small files that can be made again.

        Those unused for a month are removed.
        """
        path = self.root / name
        with disk_errors(self.root):
            path.mkdir(exist_ok=True)
        for file in path.iterdir():
            with contextlib.suppress(OSError):
                if file.stat().st_mtime < time.time() - _UNUSED_SECONDS:
                    file.unlink()
        return path

    def forget(self) -> None:
        """Remove every stage, so that all is built anew from the packages of today."""
        for path in self.root.glob("*-*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)

    @contextlib.contextmanager
    def run_directory(self) -> Iterator[Path]:
        """A directory for one run, removed when it ends.

        Also removes those of runs that were killed.
        """
        runs = self.root / "run"
        with disk_errors(self.root):
            runs.mkdir(exist_ok=True)
            _sweep(runs)
            path = Path(tempfile.mkdtemp(prefix="run", dir=runs))
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH)
            yield path
        finally:
            os.close(handle)
            shutil.rmtree(path, ignore_errors=True)


def _whole(path: Path) -> bool:
    return path.is_dir()


def _sweep(runs: Path) -> None:
    """Remove the directories of runs that are over.

    Nobody holds their lock, and they are not just made.
    """
    for path in runs.iterdir():
        with contextlib.suppress(OSError):
            if path.stat().st_mtime > time.time() - 60:
                continue
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(handle)


def _disk_short(root: Path, how: str) -> HostError:
    return HostError(
        f"{root}: the disk is short: {how}, and the lanes need {format_size(NEEDED_BYTES)}",
        "free some, or name a directory on another disk in $PAGEFERRY_CACHE",
    )


@contextlib.contextmanager
def disk_errors(root: Path) -> Iterator[None]:
    """Turn errors of writing to the cache into HostErrors that say where it is."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_short(root, str(error.strerror)) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise HostError(
                f"{root}: the cache cannot be written ({error.strerror})",
                "name a directory of yours in $PAGEFERRY_CACHE",
            ) from error
        raise
