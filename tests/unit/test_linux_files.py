"""The files of a Linux program: what it finds, what it may write, and what that costs."""

from __future__ import annotations

import errno
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from unit.linux_files_scene import MIB, entries, listing, make, opened, put, refuses

from vmm.errors import ArgumentTypeError, ConfigError, ResourceError
from vmm.linux.errors import SysError
from vmm.linux.files import special
from vmm.linux.files.data import CHUNK
from vmm.linux.files.nodes import Directory
from vmm.linux.files.system import AT_FDCWD, FileSystem

WRITE = os.O_RDWR | os.O_CREAT


# What is offered.


def test_bytes_and_files_of_the_hosts_are_read_where_they_were_offered(tmp_path: Path) -> None:
    (tmp_path / "big.iso").write_bytes(b"0123456789")
    files = make({"/in/db": b"hello", "/in/deep/er/x": tmp_path / "big.iso"})
    assert opened(files, b"/in/db").read(100) == b"hello"
    file = opened(files, b"/in/deep/er/x")
    assert file.pread(3, 4) == b"3456"
    assert file.stat().size == 10
    assert file.stat().mtime == (tmp_path / "big.iso").stat().st_mtime_ns
    files.close()


def test_what_becomes_of_an_offered_file_does_not_change_its_size(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    files = make({"/f": path})
    file = opened(files, b"/f")
    path.write_bytes(b"y" * 10)
    assert file.read(1000) == b"y" * 10 + bytes(90)
    path.write_bytes(b"z" * 1000)
    assert file.pread(0, 1000) == b"z" * 100
    path.unlink()
    assert file.pread(90, 100) == b"z" * 10
    files.close()
    with refuses(errno.EIO):
        file.pread(0, 1)


def test_an_offered_file_cannot_be_changed_in_any_way() -> None:
    files = make({"/in/a": b"a"})
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_TRUNC, os.O_RDWR | os.O_CREAT):
        with refuses(errno.EROFS):
            files.open(None, b"/in/a", flags)
    file = opened(files, b"/in/a")
    for call in (
        lambda: files.truncate(None, b"/in/a", 0),
        lambda: files.chmod(None, b"/in/a", 0o777),
        lambda: files.chown(None, b"/in/a", 1, 1),
        lambda: files.utimens(None, b"/in/a", 1, 1),
        lambda: files.unlink(None, b"/in/a"),
        lambda: files.rename(None, b"/in/a", None, b"/in/b"),
        lambda: files.access(None, b"/in/a", os.W_OK),
        lambda: files.change_mode(file.node, 0o777),
    ):
        with refuses(errno.EROFS):
            call()
    put(files, b"/out/b", b"b")
    with refuses(errno.EROFS):
        files.rename(None, b"/out/b", None, b"/in/a")
    with refuses(errno.EXDEV):
        files.link(None, b"/in/a", None, b"/out/a")
    assert [*files.written] == ["/out/b"]


@pytest.mark.parametrize("name", ["in/db", "", "/", "/a/../b", "/a//b", "/a/", "/./a", "/a\0b"])
def test_what_is_no_path_cannot_be_offered_at(name: str) -> None:
    with pytest.raises(ConfigError, match="no path to offer"):
        make({name: b""})


def test_what_cannot_be_offered_is_said_and_nothing_stays_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    (tmp_path / "there").write_bytes(b"")
    os.mkfifo(tmp_path / "fifo")
    for wrong, why in (
        (tmp_path / "missing", "No such file"),
        (tmp_path, "not a regular file"),
        (tmp_path / "fifo", "not a regular file"),
    ):
        with pytest.raises(ConfigError, match=why):
            make({"/a": tmp_path / "there", "/b": wrong})
    with pytest.raises(ConfigError, match="Not a directory"):
        make({"/a": tmp_path / "there", "/a/b": b""})
    with pytest.raises(ConfigError, match="Is a directory"):
        make({"/a/b": b"", "/a": tmp_path / "there"})
    with pytest.raises(ConfigError, match="too long"):
        make({"/" + "n" * 256: b""})
    with pytest.raises(ArgumentTypeError, match="Path, bytes or a Buffer, not str"):
        make({"/a": tmp_path / "there", "/b": "text"})  # type: ignore[dict-item]
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


class Failing:
    """A content that cannot be read any more."""

    size = 10

    def pread(self, offset: int, length: int, /) -> bytes:
        raise OSError(errno.EACCES, "/secret/path")


def test_a_content_that_fails_is_an_input_output_error() -> None:
    files = make({"/x": Failing()})
    with refuses(errno.EIO):
        opened(files, b"/x").read(1)


# What is there.


def test_devices_do_what_they_do() -> None:
    files = make()
    null, zero, full = (opened(files, b"/dev/" + name, os.O_RDWR) for name in _DEVICES)
    assert (null.read(10), null.write(b"abc"), null.seek(5, 0)) == (b"", 3, 0)
    assert (zero.read(3), zero.write(b"abc"), zero.pread(7, 2)) == (bytes(3), 3, bytes(2))
    assert full.read(3) == bytes(3)
    with refuses(errno.ENOSPC):
        full.write(b"x")
    assert opened(files, b"/dev/urandom").read(2) == b"\x04\x04"
    assert zero.stat().rdev == os.makedev(1, 5)
    assert stat.S_ISCHR(zero.stat().mode)
    assert len(zero.read(1 << 40)) <= 4 * MIB
    with refuses(errno.ENXIO):
        files.open(None, b"/dev/tty", os.O_RDWR)
    with refuses(errno.EBADF):
        opened(files, b"/dev/null").write(b"")


_DEVICES = (b"null", b"zero", b"full")


def test_proc_leads_to_what_is_open_and_to_the_executable() -> None:
    files = make({"/in/a": b"abc"})
    assert files.readlink(None, b"/proc/self/exe") == b"/bin/prog"
    assert opened(files, b"/proc/self/exe").read(9) == b"\x7fELF"
    with refuses(errno.EROFS):
        files.open(None, b"/proc/self/exe", os.O_RDWR)
    opened(files, b"/in/a").read(1)
    assert files.readlink(None, b"/proc/self/fd/1") == b"/in/a"
    assert files.stat(None, b"/dev/fd/1").size == 3
    assert opened(files, b"/proc/self/fd/1").read(9) == b"abc"
    directory = opened(files, b"/proc/self/fd")
    assert listing(directory, 40) == [b".", b"..", b"0", b"1", b"2", b"3"]
    for name in (b"9", b"01", b"x", b"-1"):
        with refuses(errno.ENOENT):
            files.stat(None, b"/proc/self/fd/" + name)
    with refuses(errno.EROFS):
        files.mkdir(None, b"/proc/x", 0o755)
    with refuses(errno.EROFS):
        files.unlink(None, b"/proc/self/fd/1")


def test_what_was_unlinked_can_be_opened_by_its_descriptor() -> None:
    files = make()
    put(files, b"/tmp/a", b"abc")
    opened(files, b"/tmp/a")
    files.unlink(None, b"/tmp/a")
    files.changes.commit()
    assert files.readlink(None, b"/proc/self/fd/0") == b"/tmp/a (deleted)"
    assert opened(files, b"/dev/fd/0").read(9) == b"abc"


def test_a_fresh_program_has_directories_to_write_to() -> None:
    files = make()
    for path in (b"/tmp", b"/out", b"/root", b"/"):
        assert stat.S_ISDIR(files.stat(None, path).mode)
    assert files.stat(None, b"/").nlink == 2 + 5
    with refuses(errno.ENOENT):
        files.stat(None, b"/etc")


def test_directories_are_listed_in_the_order_in_which_things_were_made() -> None:
    files = make()
    for name in (b"c", b"a", b"b"):
        put(files, b"/out/" + name, b"")
    assert listing(opened(files, b"/out")) == [b".", b"..", b"c", b"a", b"b"]


def test_a_listing_has_each_that_stays_once_whatever_is_changed_meanwhile() -> None:
    files = make()
    names = [b"%03d" % number for number in range(200)]
    for name in names:
        put(files, b"/out/" + name, b"")
    directory = opened(files, b"/out")
    found: list[bytes] = []
    while data := directory.getdents(64):
        for name, _, _ in entries(data):
            found.append(name)
            if name[-1:] in (b"1", b"3", b"5", b"7", b"9"):
                files.unlink(None, b"/out/" + name)  # so much that its order is made anew
    assert found == [b".", b"..", *names]
    assert listing(directory) == [b".", b"..", *names[::2]]


def test_a_listing_goes_on_where_an_entry_said() -> None:
    files = make()
    for name in (b"a", b"b", b"c"):
        put(files, b"/out/" + name, b"")
    directory = opened(files, b"/out")
    for name, offset, _ in entries(directory.getdents(1000)):
        directory.seek(offset, os.SEEK_SET)
        rest = [found for found, _, _ in entries(directory.getdents(1000))]
        assert rest == [b".", b"..", b"a", b"b", b"c"][len(rest) * -1 :] if rest else name == b"c"
    with refuses(errno.EINVAL):
        directory.seek(0, os.SEEK_SET)
        directory.getdents(23)


def test_the_current_directory_goes_where_it_is_moved_and_is_lost_with_it() -> None:
    files = make()
    files.mkdir(None, b"/tmp/a", 0o755)
    files.chdir(None, b"/tmp/a")
    files.mkdir(None, b"b", 0o755)
    files.rename(None, b"/tmp/a", None, b"/out/z")
    assert files.getcwd() == b"/out/z"
    files.chdir(None, b"b")
    files.rmdir(None, b"/out/z/b")
    with refuses(errno.ENOENT):
        files.getcwd()
    with refuses(errno.ENOENT):
        files.open(None, b"x", WRITE)
    assert files.resolve(None, b"..") is files.resolve(None, b"/out/z")
    with refuses(errno.ENOTDIR):
        files.chdir(None, b"/dev/null")


def test_where_a_path_begins_is_a_directory_that_is_open() -> None:
    files = make({"/in/a": b"abc"})
    opened(files, b"/in")
    opened(files, b"/in/a")
    assert files.open(files.start(0, b"a"), b"a", 0).read(9) == b"abc"
    assert files.start(77, b"/in") is files.start(AT_FDCWD, b"in") is None
    with refuses(errno.EBADF):
        files.start(77, b"in")
    with refuses(errno.ENOTDIR):
        files.start(1, b"in")
    assert files.start(1, b"") is files.resolve(None, b"/in/a")  # AT_EMPTY_PATH


def test_links_without_end_are_refused() -> None:
    files = make()
    files.symlink(b"loop", None, b"/tmp/loop")
    for path in (b"/tmp/loop", b"/tmp/loop/x"):
        with refuses(errno.ELOOP):
            files.stat(None, path)
    put(files, b"/tmp/0", b"end")
    for number in range(41):
        files.symlink(b"%d" % number, None, b"/tmp/%d" % (number + 1))
    assert files.stat(None, b"/tmp/40").size == 3
    with refuses(errno.ELOOP):
        files.stat(None, b"/tmp/41")
    # Each link is followed to many components, over and over again.
    files.symlink(b"/tmp/" + b"./" * 2000 + b"0", None, b"/tmp/long")
    assert files.stat(None, b"/tmp/long").size == 3


def test_long_paths_are_refused() -> None:
    files = make()
    with refuses(errno.ENAMETOOLONG):
        files.stat(None, b"/" * 4096)
    assert files.stat(None, b"/" * 4095).ino == files.root.ino
    with refuses(errno.ENAMETOOLONG):
        files.symlink(b"x" * 4096, None, b"/tmp/l")
    with refuses(errno.ENOENT):
        files.stat(None, b"")


# What it costs.


def test_holes_cost_nothing_and_read_as_zeros() -> None:
    files = make(limit=MIB)
    file = opened(files, b"/out/sparse", WRITE)
    end = 1 << 50
    file.pwrite(end, b"end")
    file.pwrite(10 * CHUNK, b"x" * CHUNK)
    assert file.stat().size == end + 3
    assert file.stat().blocks * 512 == CHUNK + 4096
    assert file.pread(end - 3, 9) == bytes(3) + b"end"
    assert file.pread(10 * CHUNK - 2, 4) == b"\0\0xx"
    assert file.seek(0, os.SEEK_DATA) == 10 * CHUNK
    assert file.seek(10 * CHUNK, os.SEEK_HOLE) == 11 * CHUNK
    assert file.seek(11 * CHUNK, os.SEEK_DATA) == end
    assert file.seek(end, os.SEEK_HOLE) == end + 3
    with refuses(errno.ENXIO):
        file.seek(end + 3, os.SEEK_DATA)
    file.truncate(10 * CHUNK + 1)
    file.truncate(11 * CHUNK)
    assert file.pread(10 * CHUNK, CHUNK) == b"x" + bytes(CHUNK - 1)
    assert file.stat().blocks * 512 == 4096


def test_no_file_is_larger_than_any_can_be() -> None:
    file = opened(make(), b"/out/a", WRITE)
    with refuses(errno.EFBIG):
        file.pwrite((1 << 63) - 1, b"x")
    file.truncate((1 << 63) - 1)
    with refuses(errno.EINVAL):
        file.truncate(1 << 63)
    assert file.pread((1 << 63) - 3, 100) == bytes(2)
    assert file.stat().blocks == 0


def test_contents_beyond_the_limit_are_refused_and_what_was_there_stays() -> None:
    files = make(limit=MIB)
    file = opened(files, b"/out/a", WRITE)
    used = files.space.used
    with pytest.raises(SysError) as refused, files.changes:
        for _ in range(1000):
            file.write(b"x" * 5000)
    assert refused.value.number == errno.ENOSPC
    assert (files.space.used, file.stat().size, file.stat().blocks) == (used, 0, 0)
    with files.changes:
        while files.space.free > 2 * CHUNK:
            file.write(b"x" * CHUNK)
    assert files.statfs().bfree < 33
    files.unlink(None, b"/out/a")
    assert files.statfs().bfree < 33  # it is open
    files.descriptors.close(0)
    assert files.statfs().bfree == MIB // 4096
    with refuses(errno.ENOSPC):
        opened(files, b"/out/b", WRITE).fallocate(0, 0, 2 * MIB)


def test_names_beyond_the_limit_are_refused_and_those_taken_away_are_free_again() -> None:
    files = make(limit=MIB)
    before = files.space.used
    made = 0
    with refuses(errno.ENOSPC):
        for made in range(100_000):
            files.mkdir(None, b"/tmp/%d" % made, 0o755)
    assert 500 < made < 2000
    with refuses(errno.ENOSPC):
        files.symlink(b"x" * 4000, None, b"/tmp/link")
    for number in range(made):
        files.rmdir(None, b"/tmp/%d" % number)
    assert files.space.used == before
    for number in range(3000):  # and so is the order in which they were
        files.mkdir(None, b"/tmp/%d" % number, 0o755)
        files.rmdir(None, b"/tmp/%d" % number)
    assert files.space.used == before
    assert len(files.directory(None, b"/tmp").order) < 40


def test_hard_links_are_one_file_until_the_last_is_gone() -> None:
    files = make()
    put(files, b"/tmp/a", b"abc")
    before = files.space.used
    files.link(None, b"/tmp/a", None, b"/out/b")
    assert files.stat(None, b"/tmp/a") == files.stat(None, b"/out/b")
    assert files.stat(None, b"/out/b").nlink == 2
    files.unlink(None, b"/tmp/a")
    assert files.contents("/out/b") == b"abc"
    assert files.space.used == before
    with refuses(errno.EPERM):
        files.link(None, b"/tmp", None, b"/out/tmp")


# What Python sees of it.


def test_python_sees_what_was_written_and_nothing_else() -> None:
    files = make({"/in/a": b"a"})
    put(files, b"/out/result.csv", b"1,2\n")
    with files.changes:
        files.mkdir(None, b"/out/d", 0o755)
    put(files, b"/out/d/\xff", b"x" * 3 * CHUNK)
    files.symlink(b"result.csv", None, b"/out/link")
    assert {*files.written} == {"/out/result.csv", "/out/d/\udcff"}
    assert len(files.written) == 2
    assert files.written["/out/result.csv"] == files.written["/out/link"] == b"1,2\n"
    assert files.written["/out/d/\udcff"] == b"x" * 3 * CHUNK
    assert files.contents(b"/in/a") == b"a"
    assert "/out/none" not in files.written
    assert "/out" not in files.written
    with refuses(errno.EISDIR):
        files.contents("/out")


def test_a_file_of_holes_is_not_read_into_python_beyond_what_may_be_written() -> None:
    files = make(limit=2 * MIB)
    for name, size in ((b"/out/fits", MIB), (b"/out/holes", 1 << 50)):
        with files.changes:
            opened(files, name, WRITE).truncate(size)
    assert files.written["/out/fits"] == bytes(MIB)
    assert "/out/holes" in files.written
    with pytest.raises(ResourceError, match=r"^/out/holes has holes, and is larger than .* disk"):
        files.written["/out/holes"]


def test_a_directory_that_is_too_deep_to_be_named_is_no_trouble() -> None:
    files = make()
    files.chdir(None, b"/tmp")
    for _ in range(1500):
        files.mkdir(None, b"ddd", 0o755)
        files.chdir(None, b"ddd")
    files.open(None, b"x", WRITE)
    with refuses(errno.ENAMETOOLONG):
        files.getcwd()
    assert len(files.written) == 0


def test_modes_are_masked() -> None:
    files = make()
    with files.changes:
        assert files.umask(0o077) == 0o022
        assert files.umask(0o1027) == 0o077
        files.open(None, b"/tmp/a", WRITE, 0o4777)
        files.mkdir(None, b"/tmp/b", 0o7777)
    assert files.stat(None, b"/tmp/a").mode == stat.S_IFREG | 0o4750
    assert files.stat(None, b"/tmp/b").mode == stat.S_IFDIR | 0o1750


def test_what_is_in_dev_is_made_when_it_is_first_looked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[None] = []

    def devices(files: FileSystem) -> Any:
        made.append(None)
        return original(files)

    original = special.devices
    monkeypatch.setattr(special, "devices", devices)
    files = make({"/in/a": b"a"})
    used = files.space.used
    assert opened(files, b"/in/a").read(9) == b"a"
    assert not made
    for _ in range(3):
        assert opened(files, b"/dev/zero").read(2) == bytes(2)
        assert b"null" in listing(files.open(None, b"/dev", os.O_RDONLY | os.O_DIRECTORY))
    assert len(made) == 1
    assert files.space.used == used


def test_threads_that_look_into_dev_at_the_same_time_find_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    together = threading.Barrier(2)

    def devices(files: FileSystem) -> Any:
        together.wait(10)  # both have found that nothing is there yet
        return original(files)

    original = special.devices
    monkeypatch.setattr(special, "devices", devices)
    files = make()
    dev = files.resolve(files.root, b"/dev")
    assert isinstance(dev, Directory)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: files.lookup(dev, b"null"), range(2))
    assert one is other is files.lookup(dev, b"null")
