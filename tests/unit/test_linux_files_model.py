"""A program's files against the kernel's: the same calls, the same results, the same errors."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from unit.linux_files_scene import DEPTH, MIB, Both, deep_in, listing, make, renameat2

from vmm.linux.files.open_directory import OpenDirectory
from vmm.linux.files.open_files import OpenFile

EXAMPLES = int(os.environ.get("PAGEFERRY_STEPS", "150"))

Call = Callable[[Both], None]

names = st.sampled_from(
    [*[b"a", b"b", b"c"] * 3, b"a", b"b", b".", b"..", b"n" * 255, b"n" * 256],
)


@st.composite
def paths(draw: st.DrawFn) -> bytes:
    parts = draw(st.lists(names, min_size=1, max_size=3))
    while parts.count(b"..") > 1:
        parts.remove(b"..")
    return b"/".join(parts) + draw(st.sampled_from([b"", b"", b"", b"/", b"//", b"/."]))


modes = st.sampled_from([0o644, 0o755, 0o700, 0o4755, 0o666])
sizes = st.sampled_from([0, 1, 3, 100, 4096, 65535, 65536, 65537, 200000])
offsets = st.one_of(sizes, st.sampled_from([-1, 1 << 41]))
data = st.builds(lambda size, byte: bytes([byte]) * size, sizes, st.integers(1, 255))
flags = st.builds(
    lambda access, more: access | sum(more),
    st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR, os.O_ACCMODE]),
    st.sets(
        st.sampled_from(
            [
                *(os.O_CREAT, os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND, os.O_DIRECTORY),
                *(os.O_NOFOLLOW, os.O_PATH, os.O_NONBLOCK),
            ]
        ),
        max_size=3,
    ),
)


def norm(both: Both, found: Any) -> Any:
    return both.told(found) if isinstance(found, tuple) else found


def alike(
    name: str,
    ours: Callable[..., Any],
    host: Callable[..., Any],
    *arguments: st.SearchStrategy[Any],
) -> st.SearchStrategy[Call]:
    """Return calls of both, which must say the same."""

    def made(*drawn: Any) -> Call:
        def call(both: Both) -> None:
            found = norm(both, both.ours(lambda: ours(both, *drawn)))
            if found != "EXDEV":  # a directory of the host's would have to be copied
                there = norm(both, both.host(lambda: host(both, *drawn)))
                assert found == there, f"{found} instead of {there} for {drawn}"

        return call

    made.__name__ = name
    return st.builds(made, *arguments)


def on_open(
    name: str,
    ours: Callable[..., Any],
    host: Callable[..., Any],
    *arguments: st.SearchStrategy[Any],
) -> st.SearchStrategy[Call]:
    """Return calls of both with a descriptor, if there is any."""

    def made(index: int, *drawn: Any) -> Call:
        def call(both: Both) -> None:
            if both.open:
                file, _, fd = both.open[index % len(both.open)]
                found = norm(both, both.ours(lambda: ours(both, file, *drawn)))
                there = norm(both, both.host(lambda: host(both, fd, *drawn)))
                assert found == there, f"{found} instead of {there} for {type(file)} {drawn}"

        return call

    made.__name__ = name
    return st.builds(made, st.integers(0, 9), *arguments)


def absolute(both: Both, path: bytes) -> bytes:
    return both.path + b"/" + path


def open_both(both: Both, path: bytes, flag: int, mode: int) -> None:
    def ours() -> tuple[Any, int]:
        file = both.files.open(both.at, path, flag, mode)
        return file, both.files.descriptors.install(file)

    found = both.ours(ours)
    there = both.host(lambda: os.open(path, flag, mode, dir_fd=both.fd))
    if isinstance(found, str) or isinstance(there, str):
        if not isinstance(there, str):
            os.close(there)
        assert found == there, f"open of {path!r} with {flag:#o}"
    else:
        both.open.append((*found, there))


def close_both(both: Both, index: int) -> None:
    if both.open:
        _, number, fd = both.open.pop(index % len(both.open))
        assert both.ours(lambda: both.files.descriptors.close(number)) is None
        os.close(fd)


def dup_both(both: Both, index: int) -> None:
    if both.open:
        file, number, fd = both.open[index % len(both.open)]
        found = both.ours(lambda: both.files.descriptors.dup(number))
        both.open.append((file, found, os.dup(fd)))


def listed(file: OpenFile) -> set[bytes] | None:
    return {*listing(file)} if isinstance(file, OpenDirectory) else None


def listed_by_host(fd: int) -> set[bytes] | None:
    if not is_directory(fd):
        return None
    os.lseek(fd, 0, os.SEEK_SET)
    return {os.fsencode(name) for name in os.listdir(fd)} | {b".", b".."}


def is_directory(fd: int) -> bool:
    path = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH
    return stat.S_ISDIR(os.fstat(fd).st_mode) and not path


def sought(file: OpenFile, offset: int, whence: int) -> int | None:
    return None if isinstance(file, OpenDirectory) else file.seek(offset, whence)


def sought_on_host(fd: int, offset: int, whence: int) -> int | None:
    if is_directory(fd):
        return None  # what a position says there is its file system's own business
    return os.lseek(fd, offset, whence)


_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)


def checked(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), "libc")


def opening(*drawn: Any) -> Call:
    return lambda both: open_both(both, *drawn)


def closing(index: int) -> Call:
    return lambda both: close_both(both, index)


def duping(index: int) -> Call:
    return lambda both: dup_both(both, index)


calls = st.one_of(
    st.builds(opening, paths(), flags, modes),
    st.builds(opening, paths(), flags, modes),
    st.builds(closing, st.integers(0, 9)),
    st.builds(duping, st.integers(0, 9)),
    alike(
        "mkdir",
        lambda both, *args: both.files.mkdir(both.at, *args),
        lambda both, *args: os.mkdir(*args, dir_fd=both.fd),
        paths(),
        modes.filter(lambda mode: mode < 0o1000),
    ),
    alike(
        "rmdir",
        lambda both, path: both.files.rmdir(both.at, path),
        lambda both, path: os.rmdir(path, dir_fd=both.fd),
        paths(),
    ),
    alike(
        "unlink",
        lambda both, path: both.files.unlink(both.at, path),
        lambda both, path: os.unlink(path, dir_fd=both.fd),
        paths(),
    ),
    alike(
        "symlink",
        lambda both, target, path: both.files.symlink(target, both.at, path),
        lambda both, target, path: os.symlink(target, path, dir_fd=both.fd),
        paths(),
        paths(),
    ),
    alike(
        "link",
        lambda both, old, new, follow: both.files.link(both.at, old, both.at, new, follow=follow),
        lambda both, old, new, follow: checked(
            _libc.linkat(both.fd, old, both.fd, new, 0x400 if follow else 0)
        ),
        paths(),
        paths(),
        st.booleans(),
    ),
    alike(
        "rename",
        lambda both, old, new, flag: both.files.rename(both.at, old, both.at, new, flag),
        lambda both, old, new, flag: renameat2(both.fd, old, new, flag),
        paths(),
        paths(),
        st.sampled_from([0, 0, 0, 1]),
    ),
    alike(
        "stat",
        lambda both, path, follow: both.files.stat(both.at, path, follow=follow),
        lambda both, path, follow: os.stat(path, dir_fd=both.fd, follow_symlinks=follow),
        paths(),
        st.booleans(),
    ),
    alike(
        "readlink",
        lambda both, path: both.files.readlink(both.at, path),
        lambda both, path: os.readlink(path, dir_fd=both.fd),
        paths(),
    ),
    alike(
        "chmod",
        lambda both, path, mode: both.files.chmod(both.at, path, mode),
        lambda both, path, mode: os.chmod(path, mode, dir_fd=both.fd),
        paths(),
        modes,
    ),
    alike(
        "truncate",
        lambda both, path, size: both.files.truncate(both.at, path, size),
        lambda both, path, size: os.truncate(absolute(both, path), size),
        paths(),
        offsets.filter(lambda size: size < MIB),
    ),
    alike(
        "access",
        lambda both, path, mode: both.files.access(both.at, path, mode),
        lambda both, path, mode: checked(_libc.faccessat(both.fd, path, mode, 0)),
        paths(),
        st.integers(0, 8),
    ),
    alike(
        "utimens",
        lambda both, path, when, follow: both.files.utimens(
            both.at, path, when, when, follow=follow
        ),
        lambda both, path, when, follow: os.utime(
            path, ns=(when, when), dir_fd=both.fd, follow_symlinks=follow
        ),
        paths(),
        st.integers(0, 10**18),
        st.booleans(),
    ),
    on_open(
        "read",
        lambda _, file, *args: file.read(*args),
        lambda _, fd, *args: os.read(fd, *args),
        sizes,
    ),
    on_open(
        "write",
        lambda _, file, *args: file.write(*args),
        lambda _, fd, *args: os.write(fd, *args),
        data,
    ),
    on_open(
        "pread",
        lambda _, file, *args: file.pread(*args),
        lambda _, fd, offset, length: os.pread(fd, length, offset),
        offsets,
        sizes,
    ),
    on_open(
        "pwrite",
        lambda _, file, *args: file.pwrite(*args),
        lambda _, fd, offset, data: os.pwrite(fd, data, offset),
        offsets.filter(lambda offset: offset < MIB),
        data,
    ),
    on_open(
        "seek",
        lambda _, file, *args: sought(file, *args),
        lambda _, fd, *args: sought_on_host(fd, *args),
        offsets.filter(lambda offset: offset < MIB),
        st.sampled_from([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END, 9]),
    ),
    on_open(
        "ftruncate",
        lambda _, file, *args: file.truncate(*args),
        lambda _, fd, *args: os.truncate(fd, *args),
        offsets.filter(lambda size: size < MIB),
    ),
    on_open(
        "fallocate",
        lambda _, file, *args: file.fallocate(0, *args),
        lambda _, fd, *args: checked(_libc.fallocate(fd, 0, *args)),
        offsets.filter(lambda size: size < MIB),
        offsets.filter(lambda size: size < MIB),
    ),
    on_open("fstat", lambda _, file: file.stat(), lambda _, fd: os.fstat(fd)),
    on_open("getfl", lambda _, file: file.flags, lambda _, fd: fcntl.fcntl(fd, fcntl.F_GETFL)),
    on_open("list", lambda _, file: listed(file), lambda _, fd: listed_by_host(fd)),
)


def run(both: Both, steps: list[Call]) -> None:
    mask = os.umask(0o022)
    try:
        for step in steps:
            step(both)
        both.dump()
        while both.open:
            close_both(both, 0)
    finally:
        os.umask(mask)
        both.close()
    assert both.files.descriptors.numbers() == []


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deep_in(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def lower(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What is on the host, and stays as it is whatever is done."""
    lower = tmp_path_factory.mktemp("lower")
    fill(deep_in(lower))
    before = state(lower)
    yield lower
    assert state(lower) == before


def fill(deep: Path) -> None:
    (deep / "a" / "b").mkdir(parents=True)
    (deep / "a" / "b" / "c").write_bytes(b"deep" * 20000)
    (deep / "a" / "c").write_bytes(b"shallow")
    (deep / "b").symlink_to("a/b")
    (deep / "c").write_bytes(b"x" * 70000)
    (deep / "a" / "a").symlink_to("../b/c")


def emptied(deep: Path) -> None:
    """Take away all but the directories that lead there."""
    kept = deep
    for path in (deep, *deep.parents[:DEPTH]):
        path.chmod(0o755)
        for found in path.iterdir():
            if found.is_symlink() or not found.is_dir():
                found.unlink()
            elif path == deep or found != kept:
                shutil.rmtree(found)
        kept = path


def state(base: Path) -> list[object]:
    """Return all there is in a directory of the host's."""
    return sorted(
        (
            str(path),
            (found := path.lstat()).st_mode,
            found.st_nlink,
            found.st_mtime_ns,
            found.st_ctime_ns,
            path.read_bytes() if path.is_file() and not path.is_symlink() else b"",
        )
        for path in base.rglob("*")
    )


@settings(max_examples=EXAMPLES, deadline=None)
@given(steps=st.lists(calls, max_size=40))
def test_files_in_memory_are_what_the_kernels_are(base: Path, steps: list[Call]) -> None:
    emptied(base)
    run(Both(make(), base), steps)


@settings(max_examples=EXAMPLES, deadline=None)
@given(steps=st.lists(calls, max_size=40))
def test_files_over_a_directory_of_the_hosts_are_what_the_kernels_are(
    base: Path, lower: Path, steps: list[Call]
) -> None:
    emptied(base)
    fill(base)
    run(Both(make(root=lower), base), steps)
