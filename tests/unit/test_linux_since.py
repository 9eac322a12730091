"""A program's files put back, many calls later, to what they were."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from unit.linux_files_scene import make, opened, put

from vmm.linux.files.since import Since
from vmm.linux.files.system import FileSystem


def everything(files: FileSystem) -> object:
    """What a program can see."""
    numbers = files.descriptors.numbers()
    return (
        dict(files.written),
        files.getcwd(),
        files.mask,
        files.space.used,
        [(n, files.descriptors.get(n).path(), files.descriptors.cloexec(n)) for n in numbers],
        [sorted(node.entries) for node in (files.root, files.directory(None, b"/out"))],
        files.directory(None, b"/out").stat(),
    )


@pytest.fixture
def files(tmp_path: Path) -> Iterator[FileSystem]:
    (tmp_path / "below").write_bytes(b"the host's")
    made = make({"/in/a": b"abc"}, root=tmp_path)
    put(made, b"/out/a", b"a" * 100_000)
    put(made, b"/out/b", b"b")
    yield made
    made.close()


def change(files: FileSystem) -> None:
    """Do what a program may do, a call at a time."""
    with files.changes:
        file = files.open(None, b"/out/a", os.O_RDWR)
        number = files.descriptors.install(file, cloexec=True)
    with files.changes:
        file.pwrite(70_000, b"more")
    with files.changes:
        file.truncate(90_000)
    with files.changes:
        files.descriptors.dup2(number, 40)
    for at in range(100):  # so many that the directory is tidied
        put(files, b"/out/%d" % at, b"new")
        with files.changes:
            files.unlink(None, b"/out/%d" % at)
    with files.changes:
        files.rename(None, b"/out/b", None, b"/tmp/c")
    with files.changes:
        files.mkdir(None, b"/out/d", 0o700)
        files.chdir(None, b"/out/d")
        files.umask(0o77)
    put(files, b"/below", b"the program's")


def test_everything_is_what_it_was_however_much_has_happened(files: FileSystem) -> None:
    file = opened(files, b"/out/b", os.O_RDWR)
    before, position = everything(files), file.seek(0, os.SEEK_CUR)
    since = files.changes.since = Since(files)
    for _ in range(2):
        change(files)
        with files.changes:
            file.write(b"on")
        assert since.changed
        assert everything(files) != before
        since.put_back()
        assert not since.changed
        assert everything(files) == before
        assert file.seek(0, os.SEEK_CUR) == position
        assert files.contents(b"/below") == b"the host's"


def test_what_comes_and_goes_is_not_noted(files: FileSystem) -> None:
    since = files.changes.since = Since(files)
    change(files)
    sizes = len(since._attributes), len(since._tables), len(since._lists)
    for _ in range(20):
        since_again = everything(files)
        for at in range(50):
            put(files, b"/tmp/%d" % at, b"new")
            with files.changes:
                files.unlink(None, b"/tmp/%d" % at)
        assert everything(files)[0] == since_again[0]  # type: ignore[index]
    more = len(since._attributes), len(since._tables), len(since._lists)
    assert sum(more) <= sum(sizes) + 12  # /tmp's own
