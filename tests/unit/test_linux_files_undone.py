"""A call on a program's files that is cut off at any line is done, or undone: all of it."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from unit.linux_files_scene import make, opened, put, refuses

import vmm.linux.files
from vmm.linux.files.nodes import Directory, File, Node, Symlink
from vmm.linux.files.system import FileSystem

PACKAGE = str(Path(vmm.linux.files.__file__).parent)


class Scene:
    """Files of every kind, and the answer of a call."""

    def __init__(self, lower: Path) -> None:
        files = self.files = make({"/in/a": b"abc"}, root=lower)
        put(files, b"/out/a", b"a" * 100_000)
        put(files, b"/out/b", b"b")
        with files.changes:
            files.mkdir(None, b"/out/d", 0o755)
            files.mkdir(None, b"/out/e", 0o755)
            files.symlink(b"../out/a", None, b"/tmp/link")
            files.link(None, b"/out/a", None, b"/out/hard")
        self.file = opened(files, b"/out/a", os.O_RDWR | os.O_APPEND)
        self.other = opened(files, b"/out/b", os.O_RDWR)
        self.directory = opened(files, b"/host")
        with files.changes:
            reader, writer = files.pipe(0)
            files.descriptors.install(reader)
            files.descriptors.install(writer)
            writer.write(b"in the pipe")
            self.reader, self.writer = reader, writer
        files.resolve(None, b"/host/sub/file")
        self.answer: object = None

    def state(self) -> object:
        """Return all there is, as values."""
        files = self.files
        seen: dict[int, object] = {}
        return (
            _described(files.root, seen),
            files.space.used,
            [(number, *files.descriptors._slot(number)) for number in files.descriptors.numbers()],
            [
                (file.references, file.flags, getattr(file, "position", 0), file.node.opens)
                for file in (self.file, self.other, self.directory, self.reader, self.writer)
            ],
            self.reader.node.data,  # type: ignore[attr-defined]
            (self.reader.node.readers, self.reader.node.writers),  # type: ignore[attr-defined]
            files.path_of(files.cwd),
            files.mask,
            self.answer,
        )


def _described(node: Node, seen: dict[int, object]) -> object:
    if id(node) in seen:
        return None
    seen[id(node)] = node
    # What is on the host is as the host has it until it is pinned.
    own = (node.nlink, node.mode, node.opens, node.charged, node.mtime, node.ctime, node.pinned)
    if isinstance(node, Directory):
        names = sorted(node.entries)
        below = [
            (name, entry.cookie, entry.hides, entry.node and _described(entry.node, seen))
            for name in names
            for entry in [node.entries[name]]
        ]
        return (*own, id(node.parent), node.name, [*node.order], node.stale, node.cookie, below)
    if isinstance(node, File):
        data = node.data
        return (*own, data.size, data.base_size, data.allocated, {**data.chunks})
    return (*own, node.target) if isinstance(node, Symlink) else own


CALLS: dict[str, Callable[[Scene], Any]] = {
    "create": lambda s: s.files.descriptors.install(
        s.files.open(None, b"/out/new", os.O_RDWR | os.O_CREAT, 0o644), cloexec=True
    ),
    "truncate": lambda s: s.files.open(None, b"/out/a", os.O_RDWR | os.O_TRUNC),
    "append": lambda s: s.file.write(b"x" * 70_000),
    "write": lambda s: s.other.write(b"x" * 70_000),
    "read": lambda s: s.other.read(1),
    "shrink": lambda s: s.file.truncate(1000),
    "rename": lambda s: s.files.rename(None, b"/out/a", None, b"/tmp/z"),
    "rename over": lambda s: s.files.rename(None, b"/out/a", None, b"/out/b"),
    "rename directory": lambda s: s.files.rename(None, b"/out/d", None, b"/out/e"),
    "link": lambda s: s.files.link(None, b"/out/b", None, b"/tmp/b"),
    "symlink": lambda s: s.files.symlink(b"x", None, b"/tmp/x"),
    "mkdir": lambda s: s.files.mkdir(None, b"/tmp/new", 0o755),
    "rmdir": lambda s: s.files.rmdir(None, b"/out/d"),
    "unlink": lambda s: s.files.unlink(None, b"/out/b"),
    "chmod": lambda s: s.files.chmod(None, b"/out/b", 0o600),
    "chdir": lambda s: s.files.chdir(None, b"/out/d"),
    "umask": lambda s: s.files.umask(0o77),
    "close": lambda s: s.files.descriptors.close(1),
    "dup2": lambda s: s.files.descriptors.dup2(0, 1),
    "close all": lambda s: s.files.descriptors.close_range(0, 99),
    "pipe": lambda s: s.files.pipe(0),
    "pipe write": lambda s: s.writer.write(b"more"),
    "pipe read": lambda s: s.reader.read(3),
    "list": lambda s: s.directory.getdents(50),
    "change what is the host's": lambda s: s.files.chmod(None, b"/host/sub/file", 0o600),
    "write to what is the host's": lambda s: s.files.open(None, b"/host/sub/file", os.O_RDWR).write(
        b"x"
    ),
    "unlink what is the host's": lambda s: s.files.unlink(None, b"/host/sub/file"),
    "rename what is the host's": lambda s: s.files.rename(
        None, b"/host/sub/file", None, b"/host/moved"
    ),
}


class CutOff(BaseException):
    """What a signal's handler raises."""


def cut_off(call: Callable[[], object], line: int) -> bool:
    """Make a call that is cut off before a line of its files' code; return whether it was."""
    left = line

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            left -= 1
            if left < 0:
                sys.settrace(None)
                raise CutOff
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except CutOff:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.fixture(scope="module")
def lower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lower = tmp_path_factory.mktemp("lower")
    (lower / "host" / "sub").mkdir(parents=True)
    (lower / "host" / "sub" / "file").write_bytes(b"lower")
    return lower


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_is_cut_off_is_done_or_undone(name: str, lower: Path) -> None:
    call = CALLS[name]

    def served(scene: Scene) -> None:
        with scene.files.changes:
            scene.files.changes.set(scene, "answer", call(scene) or "done")

    done = undone = 0
    for line in range(10_000):
        scene = Scene(lower)
        try:
            before = scene.state()
            if not cut_off(lambda scene=scene: served(scene), line):  # type: ignore[misc]
                break
            scene.files.changes.undo()
            if scene.answer is None:
                assert scene.state() == before
                undone += 1
                served(scene)  # and it can be done again
            else:
                done += 1
            assert scene.answer is not None
        finally:
            scene.files.close()
    assert undone > 5
    assert done <= 2


def test_what_is_refused_in_its_midst_is_undone(lower: Path) -> None:
    scene = Scene(lower)
    files = scene.files
    files.space.limit = files.space.used  # a name more that hides one of the host's has no room
    before = scene.state()
    with refuses(errno.ENOSPC), files.changes:
        files.rename(None, b"/host/sub/file", None, b"/out/b")
    assert scene.state() == before
    files.close()


def test_what_was_cut_off_is_undone_when_the_next_call_begins(lower: Path) -> None:
    scene = Scene(lower)
    before = scene.state()
    scene.files.unlink(None, b"/out/a")
    assert scene.state() != before
    with scene.files.changes:
        assert scene.state() == before
    scene.files.close()


def test_an_undo_that_is_cut_off_is_done_again(lower: Path) -> None:
    scene = Scene(lower)
    before = scene.state()
    for line in range(100):
        scene.files.rename(None, b"/out/a", None, b"/out/b")
        finished = not cut_off(scene.files.changes.undo, line)
        scene.files.changes.undo()
        assert scene.state() == before
        if finished:
            break
    assert line > 0
    scene.files.close()


def test_nothing_of_it_is_kept_when_it_is_committed() -> None:
    files: FileSystem = make()
    put(files, b"/out/a", b"x")
    assert files.changes.log == []
