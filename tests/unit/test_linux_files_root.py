"""A directory of the host's below a program's files: seen, never changed, and never left."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from unit.linux_files_scene import MIB, entries, listing, make, opened, put, refuses

from vmm.errors import ConfigError
from vmm.linux.errors import SysError
from vmm.linux.files.data import CHUNK
from vmm.linux.files.system import FileSystem

WRITE = os.O_RDWR | os.O_CREAT


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """What must never be reached; the root is beside it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    return outside


@pytest.fixture
def root(tmp_path: Path, outside: Path) -> Path:
    root = tmp_path / "root"
    (root / "usr" / "lib").mkdir(parents=True)
    (root / "usr" / "lib" / "a").write_bytes(b"lib a")
    (root / "usr" / "lib" / "b").write_bytes(b"lib b")
    (root / "lib").symlink_to("usr/lib")
    (root / "etc").mkdir()
    (root / "etc" / "conf").write_bytes(b"conf")
    return root


@pytest.fixture
def files(root: Path) -> Iterator[FileSystem]:
    before = open_here()
    files = make(root=root)
    yield files
    files.close()
    assert open_here() == before


def open_here() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def all_reachable(files: FileSystem, path: bytes = b"") -> Iterator[bytes]:
    """Yield what is in every file."""
    for name in {*listing(files.open(None, path or b"/", 0))} - {b".", b".."}:
        below = path + b"/" + name
        with contextlib.suppress(SysError):
            mode = files.stat(None, below, follow=False).mode
            if stat.S_ISDIR(mode):
                yield from all_reachable(files, below)
            elif below[:5] not in (b"/dev/", b"/proc"):
                yield files.open(None, below, os.O_RDONLY).read(100)


# Nothing outside is reached.


def test_no_link_leads_out_of_the_root(root: Path, outside: Path) -> None:
    secret = outside / "secret"
    (root / "absolute").symlink_to(secret)
    (root / "relative").symlink_to("../outside/secret")
    (root / "usr" / "far").symlink_to("../" * 20 + str(secret))
    (root / "directory").symlink_to(outside)
    (root / "up").symlink_to("..")
    (root / "usr" / "self").symlink_to("/proc/self/root" + str(secret))
    files = make(root=root)
    put(files, b"/tmp/x", b"")
    for number, target in enumerate([b"/up", b"../up", b"/../..", b"/up/../up/..", b"../../.."]):
        with files.changes:
            files.symlink(target, None, b"/tmp/%d" % number)
    name = os.fsencode(secret)
    starts = [b"", b"/up", b"/tmp/0", b"/tmp/1", b"/tmp/2", b"/tmp/3", b"/tmp/4", b"/lib/.."]
    ends = [b"/outside/secret", b"/../outside/secret", b"/../" * 9 + b"outside/secret", name]
    paths = [start + end for start in starts for end in ends]
    paths += [b"/absolute", b"/relative", b"/usr/far", b"/directory/secret", b"/usr/self"]
    for path in paths:
        with refuses(errno.ENOENT):
            files.open(None, path, os.O_RDONLY)
    assert files.resolve(None, b"/up/../..") is files.root
    assert b"secret" not in {*all_reachable(files)}
    files.close()


def test_a_link_leads_to_what_is_there_in_the_programs_own_name_space(
    root: Path, outside: Path
) -> None:
    (root / "absolute").symlink_to("/tmp/mine")
    (root / "offered").symlink_to("/etc/offered")
    files = make({"/etc/offered": b"offered"}, root=root)
    put(files, b"/tmp/mine", b"mine")
    with files.changes:
        files.symlink(b"../../lib", None, b"/tmp/lib")
    assert opened(files, b"/absolute").read(9) == b"mine"
    assert opened(files, b"/offered").read(9) == b"offered"
    assert opened(files, b"/tmp/lib/a").read(9) == b"lib a"
    assert files.readlink(None, b"/absolute") == b"/tmp/mine"
    files.close()


@contextlib.contextmanager
def swapped(*ways: Callable[[], None]) -> Iterator[None]:
    """Have a thread do one after the other, over and over again."""
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for way in ways:
                way()

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def exchange(first: Path, second: Path) -> Callable[[], None]:
    third = first.with_name("third")

    def way() -> None:
        first.rename(third)
        second.rename(first)
        third.rename(second)

    return way


@pytest.mark.parametrize("what", ["directory", "file"])
def test_who_swaps_things_for_links_on_the_host_does_not_let_anybody_out(
    root: Path, outside: Path, what: str
) -> None:
    inside = root / "inside"
    inside.mkdir()
    (inside / "secret").write_bytes(b"inside")
    if what == "directory":
        (root / "link").symlink_to(outside)
        way, path = exchange(inside, root / "link"), b"/inside/secret"
    else:
        (inside / "link").symlink_to(outside / "secret")
        way, path = exchange(inside / "secret", inside / "link"), b"/inside/secret"
    files = make(root=root)
    found: dict[object, int] = {}
    with swapped(way):
        end = time.monotonic() + 2
        while time.monotonic() < end:
            try:
                seen: object = files.open(None, path, os.O_RDONLY).read(100)
                listing(files.open(None, b"/inside", os.O_RDONLY))
            except SysError as error:
                seen = error.number
            found[seen] = found.get(seen, 0) + 1
    files.close()
    assert found.keys() <= {b"inside", errno.ENOENT, errno.ENOTDIR, errno.EIO}
    assert found[b"inside"] > 0
    assert len(found) > 1


def test_who_swaps_a_file_for_a_pipe_does_not_stop_anybody(root: Path) -> None:
    os.mkfifo(root / "pipe")
    (root / "file").write_bytes(b"file")
    files = make(root=root)
    found = set()
    with swapped(exchange(root / "file", root / "pipe")):
        end = time.monotonic() + 1
        while time.monotonic() < end:
            try:
                found.add(files.open(None, b"/file", os.O_RDONLY).read(100))
            except SysError as error:
                found.add(error.number)  # type: ignore[arg-type]
    files.close()
    assert found <= {b"file", errno.ENXIO, errno.ENOENT, errno.EIO}
    assert b"file" in found


def test_the_kernels_own_file_systems_are_not_shown() -> None:
    files = make(root=Path("/"))
    assert listing(opened(files, b"/sys")) == [b".", b".."]
    for path in (b"/sys/kernel", b"/proc/1/mem", b"/proc/self/mem", b"/proc/self/maps"):
        with refuses(errno.ENOENT):
            files.open(None, path, os.O_RDONLY)
    assert {*listing(opened(files, b"/proc"))} == {b".", b"..", b"self"}
    assert b"sda" not in listing(opened(files, b"/dev"))
    files.close()
    for wrong in ("/proc", "/sys", "/proc/self"):
        with pytest.raises(ConfigError, match="no directory of files"):
            make(root=Path(wrong))


def test_only_files_directories_and_links_are_opened(root: Path, files: FileSystem) -> None:
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fsencode(root / "socket"))
    for name, kind in ((b"/fifo", stat.S_ISFIFO), (b"/socket", stat.S_ISSOCK)):
        assert kind(files.stat(None, name).mode)
        for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_NONBLOCK):
            with refuses(errno.ENXIO):
                files.open(None, name, flags)
        files.unlink(None, name)
        files.changes.commit()
    assert (root / "fifo").is_fifo()


def test_a_device_of_the_hosts_is_not_opened() -> None:
    files = make(root=Path("/dev"))
    assert stat.S_ISCHR(files.stat(None, b"/zero").mode)
    with refuses(errno.ENXIO):
        files.open(None, b"/zero", os.O_RDONLY)
    files.close()


def test_a_root_that_is_none_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for wrong, why in (("missing", "No such file"), ("file", "Not a directory")):
        with pytest.raises(ConfigError, match=why):
            make(root=tmp_path / wrong)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
def test_a_host_without_openat2_is_told_of(number: int, tmp_path: Path) -> None:
    script = Path(__file__).with_name("without_openat2.py")
    found = subprocess.run(
        [sys.executable, script, str(tmp_path), str(number)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert found.stdout.startswith(f"ConfigError root {tmp_path} cannot be shown: openat2 is")
    assert found.stdout.endswith("0 open\n"), found.stderr


def test_the_hosts_refusals_are_the_programs(root: Path) -> None:
    (root / "closed").write_bytes(b"")
    (root / "closed").chmod(0)
    with nobody(root):
        files = make(root=root)
        with refuses(errno.EACCES):
            files.open(None, b"/closed", os.O_RDONLY)
        files.close()


@contextlib.contextmanager
def nobody(root: Path) -> Iterator[None]:
    """Be somebody whom the kernel refuses things, if that is not so anyway."""
    if os.geteuid() != 0:
        yield
        return
    for path in root.parents:
        if stat.S_IMODE(path.stat().st_mode) & 0o711 == 0o700:
            path.chmod(0o711)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


# What is written stays in memory.


def snapshot(root: Path) -> list[object]:
    return sorted(
        (str(path), path.lstat().st_mtime_ns, path.lstat().st_mode)
        for path in [root, *root.rglob("*")]
    )


def test_what_is_written_over_the_hosts_files_stays_in_memory(
    root: Path, files: FileSystem
) -> None:
    before = snapshot(root)
    file = opened(files, b"/lib/a", os.O_RDWR)
    file.pwrite(4, b"XY")
    assert opened(files, b"/usr/lib/a").read(99) == b"lib XY"
    assert files.stat(None, b"/lib/a").size == 6
    files.chmod(None, b"/lib/b", 0o600)
    files.mkdir(None, b"/usr/lib/new", 0o755)
    files.truncate(None, b"/etc/conf", 1)
    files.rename(None, b"/lib/b", None, b"/etc/conf")
    files.utimens(None, b"/usr", 5, 5)
    files.changes.commit()
    assert files.contents("/etc/conf") == b"lib b"
    assert files.stat(None, b"/usr").mtime == 5
    assert {*listing(opened(files, b"/usr/lib"))} == {b".", b"..", b"a", b"new"}
    assert {*files.written} == {"/usr/lib/a", "/etc/conf"}
    assert snapshot(root) == before


def test_what_is_taken_away_is_gone_and_can_be_made_anew(root: Path, files: FileSystem) -> None:
    with refuses(errno.ENOTEMPTY):
        files.rmdir(None, b"/usr/lib")
    with files.changes:
        files.unlink(None, b"/usr/lib/a")
        files.unlink(None, b"/usr/lib/b")
        with refuses(errno.ENOENT):
            files.stat(None, b"/usr/lib/a")
        with refuses(errno.ENOENT):
            files.unlink(None, b"/usr/lib/a")
        files.rmdir(None, b"/usr/lib")
    with refuses(errno.ENOENT):
        files.stat(None, b"/lib/b")
    with files.changes:
        files.mkdir(None, b"/usr/lib", 0o755)
    assert listing(opened(files, b"/lib/")) == [b".", b".."]
    put(files, b"/lib/a", b"new")
    with files.changes:
        files.unlink(None, b"/lib/a")
    with refuses(errno.ENOENT):
        files.stat(None, b"/lib/a")
    assert (root / "usr" / "lib" / "a").read_bytes() == b"lib a"


def test_a_name_that_was_made_over_one_of_the_hosts_hides_it_for_good(
    root: Path, files: FileSystem
) -> None:
    for _ in range(3):
        with files.changes:
            files.unlink(None, b"/etc/conf")
        put(files, b"/etc/conf", b"mine")
        assert listing(opened(files, b"/etc")) == [b".", b"..", b"conf"]
    with files.changes:
        files.rename(None, b"/etc/conf", None, b"/etc/other")
    assert listing(opened(files, b"/etc")) == [b".", b"..", b"other"]
    assert (root / "etc" / "conf").read_bytes() == b"conf"


def test_a_directory_of_the_hosts_is_not_renamed(files: FileSystem) -> None:
    with refuses(errno.EXDEV):
        files.rename(None, b"/usr/lib", None, b"/tmp/lib")
    with files.changes:
        files.mkdir(None, b"/usr/mine", 0o755)
    files.rename(None, b"/usr/mine", None, b"/tmp/mine")


def test_a_listing_has_each_of_the_hosts_names_once_whatever_is_done_to_them(root: Path) -> None:
    names = {b"%03d" % number for number in range(100)}
    for name in names:
        (root / "etc" / os.fsdecode(name)).write_bytes(b"")
    files = make(root=root)
    directory = opened(files, b"/etc")
    used = files.space.used
    found: list[bytes] = []
    while data := directory.getdents(64):
        for name, _, kind in entries(data):
            found.append(name)
            if name in names:
                assert kind == stat.S_IFREG >> 12
                files.chmod(None, b"/etc/" + name, 0o600)
                if name[-1:] == b"7":
                    files.unlink(None, b"/etc/" + name)
        files.changes.commit()
    assert sorted(found) == sorted([*names, b"conf", b".", b".."])
    assert len(listing(directory)) == 93
    used = files.space.used
    files.descriptors.close(0)
    assert files.space.used < used  # what was remembered of the host's names
    files.close()


def test_little_of_a_large_file_is_copied_when_little_is_written(root: Path) -> None:
    size = 1 << 40
    with (root / "large").open("wb") as large:
        large.truncate(size)
        large.seek(size - 4)
        large.write(b"last")
    files = make(root=root, limit=MIB)
    file = opened(files, b"/large", os.O_RDWR)
    file.pwrite(size - 2, b"XX, and more")
    file.pwrite(0, b"first")
    assert file.pread(size - 5, 100) == b"\0laXX, and more"
    assert file.pread(0, 6) == b"first\0"
    assert file.stat().size == size + 10
    assert files.space.used < 3 * CHUNK + 100_000
    assert file.seek(0, os.SEEK_HOLE) >= size
    file.truncate(size - 3)
    assert file.pread(size - 5, 100) == b"\0l"
    files.close()


def test_what_the_host_changes_is_seen(root: Path, files: FileSystem) -> None:
    assert files.stat(None, b"/etc/conf").size == 4
    (root / "etc" / "conf").write_bytes(b"longer than before")
    (root / "etc" / "more").mkdir()
    assert opened(files, b"/etc/conf").read(99) == b"longer than before"
    assert stat.S_ISDIR(files.stat(None, b"/etc/more").mode)
    (root / "etc" / "more").rmdir()
    (root / "etc" / "more").symlink_to("conf")
    assert files.readlink(None, b"/etc/more") == b"conf"
    (root / "etc" / "conf").unlink()
    with refuses(errno.ENOENT):
        files.stat(None, b"/etc/more")


def test_a_file_that_is_open_stays_the_one_that_it_was_or_fails(
    root: Path, files: FileSystem
) -> None:
    file = opened(files, b"/etc/conf")
    (root / "etc" / "conf").rename(root / "etc" / "old")
    (root / "etc" / "conf").write_bytes(b"another")
    assert file.read(99) == b"conf"
    assert opened(files, b"/etc/conf").read(99) == b"another"
    for number in range(20):  # more than are kept open
        (root / str(number)).write_bytes(b"x")
        opened(files, b"/%d" % number).read(1)
    with refuses(errno.EIO):
        file.pread(0, 99)


def test_few_of_the_hosts_descriptors_are_used(root: Path, files: FileSystem) -> None:
    before = open_here()
    for number in range(100):
        (root / str(number)).write_bytes(b"%d" % number)
        (root / f"d{number}").mkdir()
    opens = [opened(files, b"/%d" % number) for number in range(100)]
    directories = [opened(files, b"/d%d" % number) for number in range(100)]
    assert all(listing(directory) == [b".", b".."] for directory in directories)
    assert [file.read(9) for file in opens] == [b"%d" % number for number in range(100)]
    assert open_here() <= before + 16


def test_what_is_offered_lies_over_the_root(root: Path) -> None:
    files = make({"/lib/a": b"offered", "/etc/deep/x": b"x"}, root=root)
    assert files.contents("/usr/lib/a") == b"offered"
    assert {*listing(opened(files, b"/usr/lib"))} == {b".", b"..", b"a", b"b"}
    assert {*listing(opened(files, b"/etc"))} == {b".", b"..", b"conf", b"deep"}
    with refuses(errno.EROFS):
        files.unlink(None, b"/lib/a")
    files.close()
    assert not (root / "etc" / "deep").exists()
    with refuses(errno.EIO):  # it is the host's, and that is closed
        files.contents("/usr/lib/b")
    assert files.contents("/etc/deep/x") == b"x"


def test_a_look_costs_no_memory_that_stays(files: FileSystem, root: Path) -> None:
    for number in range(200):
        (root / str(number)).write_bytes(b"")
        files.stat(None, b"/%d" % number)
    files.changes.commit()
    assert len(files.root.entries) < 10
    assert files.lower is not None
    assert len(files.lower._nodes) < 10


@pytest.mark.parametrize("new", [b"/lib/a", b"/usr/lib/a", b"/etc/again"])
def test_what_is_renamed_to_what_it_is_already_stays_the_same(
    root: Path, files: FileSystem, new: bytes
) -> None:
    (root / "etc" / "again").hardlink_to(root / "usr" / "lib" / "a")
    before = files.stat(None, b"/lib/a")
    files.rename(None, b"/lib/a", None, new)
    assert files.stat(None, b"/lib/a") == files.stat(None, b"/etc/again") == before
