"""Programs that have been built before: kept between runs, and used while all that they were built
from is the same.

An entry is a directory with the program and what is known of it, under a name that has what was
asked for in it: sources, options, compiler, environment. Headers and libraries are known once they
have been read: an entry lists them, and is used only if each has the same content. All of it is
this user's, and nobody else can write to it, or it is not used. Whatever goes wrong here, the
program is built.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from vmm.errors import ConfigError
from vmm.guest.compiler import Compiler
from vmm.host.cache import cache_root

T = TypeVar("T")

_FOLDER = "sandboxes"
_PROGRAM, _ABOUT = "program.elf", "about.json"
_MOST = 64  # entries
_STALE = 3600.0  # seconds after which what a process has left unfinished is removed
_FORMAT = 1
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # which waits for no pipe
# What compilers, assemblers and linkers look at.
_ENVIRONMENT = (
    *("PATH", "CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH", "LIBRARY_PATH", "COMPILER_PATH"),
    *("GCC_EXEC_PREFIX", "SOURCE_DATE_EPOCH", "LDEMULATION", "GNUTARGET", "CCC_OVERRIDE_OPTIONS"),
)
# Options that name files which no list of what was read has, or others than the usual compilers and
# linkers; or that mean something else on another host.
_ASTRAY = re.compile(
    r"@|--?specs|-fplugin|-fprofile|-wrapper|-B|-fuse-ld|-X|--config|-T|-W[lap],|-m\w+=native"
)
# What sources may say, so that the program is not made of them alone.
_ELSEWHERE = re.compile(
    rb"\bincbin\b|__DATE__|__TIME__|__TIMESTAMP__|#\s*embed|__has_(include|embed)|\.include\b"
)
_SYSTEM = "/usr/"  # whose files may: what they are about comes with them
_MARGIN = 20_000_000  # nanoseconds that a file's times may be behind
_THIN = b"!<thin>\n"
_SUFFIXES = 4  # the last parts of a header's path that an #include may have


class About(NamedTuple):
    """What is known of a program.

    said       what the compiler warned of
    archives   those that are linked
    """

    said: str
    archives: Sequence[str]


def key(
    compiler: Compiler, frame: Sequence[Path], sources: Sequence[Path], options: Sequence[object]
) -> str | None:
    """Return the name of what is asked for, None if it is nothing that can be kept.

    frame      directories, and files, that every program is built with
    sources    what is compiled and linked
    options    all else; text among them is an option of the compiler's
    """
    flags = [flag for flag in options if isinstance(flag, str)]
    if compiler.family not in ("gcc", "clang") or any(map(_ASTRAY.match, flags)):
        return None
    return _attempt(lambda: _key(compiler, frame, sources, options))


def _key(
    compiler: Compiler, frame: Sequence[Path], sources: Sequence[Path], options: Sequence[object]
) -> str | None:
    digest = hashlib.sha256()

    def add(*parts: object) -> None:
        for part in parts:
            data = part if isinstance(part, bytes) else os.fsencode(str(part))
            digest.update(len(data).to_bytes(8, "little") + data)

    add(_FORMAT, compiler.command, compiler.version, list(options), Path.cwd())
    add(*(os.environ.get(name, "\0") for name in _ENVIRONMENT))
    for tool in (compiler.command[0], shutil.which("as"), shutil.which("ld")):
        if tool is not None:
            real = Path(tool).resolve()
            add(real, real.stat().st_size, real.stat().st_mtime_ns)
    for path in frame:
        for file in sorted(path.rglob("*.[chS]")) if path.is_dir() else [path]:
            add(file, file.read_bytes())
    for path in sources:
        content = path.read_bytes()
        if content.startswith(_THIN):
            return None
        add(path.absolute(), content)
    return digest.hexdigest()


def load(name: str, into: Path, searched: Sequence[Path]) -> About | None:
    """Copy a program to a file, and return what is known of it; None if there is none that is as it
    would be built now.

    searched    directories in which what is included, or linked, is looked for
    """

    def act() -> About | None:
        entry = _folder() / name
        about = json.loads(_contents(entry, _ABOUT))
        if _shadows(about["files"], searched) != about["shadows"]:
            return None
        if not all(_same(path, *known) for path, known in about["files"].items()):
            return None
        program = _contents(entry, _PROGRAM)
        if hashlib.sha256(program).hexdigest() != about["program"]:
            return None
        into.write_bytes(program)
        os.utime(entry)  # it is used
        return About(about["said"], about["archives"])

    return _attempt(act)


def store(
    name: str,
    program: Path,
    about: About,
    read: Sequence[Path],
    searched: Sequence[Path],
    began: int,
) -> None:
    """Keep a program, and what compiler and linker have read for it.

    began    time.time_ns() before they did: what has changed since may not be what they have read
    """

    def act() -> None:
        files = {}
        for path in read:
            known = _known(path, began)
            if known is None:
                return
            files[str(path)] = known
        content = program.read_bytes()
        folder = _folder(make=True)
        made = Path(tempfile.mkdtemp(prefix=".", dir=folder))
        try:
            (made / _PROGRAM).write_bytes(content)
            record = {
                **about._asdict(),
                "program": hashlib.sha256(content).hexdigest(),
                "files": files,
                "shadows": _shadows(files, searched),
            }
            (made / _ABOUT).write_text(json.dumps(record))
            for file in made.iterdir():
                file.chmod(0o600)
            with contextlib.suppress(FileNotFoundError):
                (folder / name).rename(made / "before")
            made.rename(folder / name)  # refused, if another process has been faster
        finally:
            shutil.rmtree(made, ignore_errors=True)
            shutil.rmtree(folder / name / "before", ignore_errors=True)
        _prune(folder)

    _attempt(act)


def _attempt(act: Callable[[], T]) -> T | None:
    try:
        return act()
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ConfigError):
        return None


def _folder(make: bool = False) -> Path:
    """Return where they are kept. Raises PermissionError if it is not this user's alone."""
    folder = cache_root() / _FOLDER
    if make:
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.mkdir(exist_ok=True, mode=0o700)
    _check(folder.lstat(), stat.S_IFDIR)
    return folder


def _contents(entry: Path, name: str) -> bytes:
    """Return a file of an entry. Raises PermissionError if anybody else could have written it."""
    directory = os.open(entry, _FLAGS | os.O_DIRECTORY)
    try:
        _check(os.fstat(directory), stat.S_IFDIR)
        file = os.open(name, _FLAGS, dir_fd=directory)
    finally:
        os.close(directory)
    with os.fdopen(file, "rb") as opened:
        _check(os.fstat(opened.fileno()), stat.S_IFREG)
        return opened.read()


def _check(found: os.stat_result, kind: int) -> None:
    if stat.S_IFMT(found.st_mode) != kind or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise PermissionError


def _known(path: Path, began: int) -> list[Any] | None:
    """Return what tells a file's content from another; None if it has just been changed, or what is
    made of it depends on more.
    """
    found, content = path.stat(), path.read_bytes()
    ours = not os.path.realpath(path).startswith(_SYSTEM) and not _compiled(content)
    if content.startswith(_THIN) or (ours and _ELSEWHERE.search(content)):
        return None
    if max(found.st_mtime_ns, found.st_ctime_ns) > began - _MARGIN:
        return None
    return [*_signature(found), hashlib.sha256(content).hexdigest()]


def _compiled(content: bytes) -> bool:
    return content.startswith((b"!<arch>\n", b"\x7fELF"))


def _signature(found: os.stat_result) -> list[int]:
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _same(path: str, *known: Any) -> bool:
    *signature, digest = known
    found = Path(path).stat()
    if _signature(found) == signature:
        return True
    return bool(hashlib.sha256(Path(path).read_bytes()).hexdigest() == digest)


def _shadows(files: Iterable[str], searched: Sequence[Path]) -> list[str]:
    """Return what is there under the name of a file that was read, where it would be looked for
    before: what is not now may come to be read instead.
    """
    endings = {
        tuple(Path(file).parts[-count:]) for file in files for count in range(1, _SUFFIXES + 1)
    }
    places = {str(folder.joinpath(*ending)) for folder in searched for ending in endings}
    return sorted(place for place in places if os.path.lexists(place))


def _prune(folder: Path) -> None:
    """Remove what was used longest ago, and what nobody has finished."""
    entries: list[tuple[float, Path]] = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            entries.append((path.stat().st_mtime, path))
    unfinished = {path for _, path in entries if path.name.startswith(".")}
    whole = sorted(pair for pair in entries if pair[1] not in unfinished)
    gone = {path for _, path in whole[:-_MOST]}
    now = time.time()
    gone |= {path for at, path in entries if path in unfinished and now - at > _STALE}
    for path in gone:
        shutil.rmtree(path, ignore_errors=True)
