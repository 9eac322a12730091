"""Files that the command writes: replaced as a whole, unless they are no files, or cannot be."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command import Ended, one_line, pageferry

from vmm.command.output import open_in_place, output
from vmm.errors import ConfigError

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a device is made")
NEW = b"what is new"


def write(path: Path, data: bytes = NEW, mode: int = 0o666) -> None:
    with output(path) as file:
        file.write(data, mode)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def nothing_is_left(tmp_path: Path) -> Callable[..., None]:
    """Check that these are all the files there are."""

    def check(*names: str) -> None:
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)

    return check


@pytest.fixture
def not_root(tmp_path: Path) -> Iterator[None]:
    """Be somebody who may not write to everything, with a folder of his own."""
    if os.geteuid() != 0:
        yield
        return
    for path in tmp_path.parents[:2]:  # pytest's own
        path.chmod(0o755)
    os.chown(tmp_path, 65534, 65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


# ---- Regular files ----


def test_a_new_file_has_the_mode_that_is_asked_for_less_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write(tmp_path / "data")
        write(tmp_path / "program", mode=0o777)
    finally:
        os.umask(before)
    assert (mode(tmp_path / "data"), mode(tmp_path / "program")) == (0o640, 0o750)


def test_a_file_is_replaced_in_one_step_and_keeps_its_mode(
    tmp_path: Path, nothing_is_left: Callable[..., None]
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"what was there before, and is longer")
    path.chmod(0o4604)
    with path.open("rb") as old:
        write(path, mode=0o777)
        assert old.read() == b"what was there before, and is longer"  # another file by now
    assert (path.read_bytes(), mode(path)) == (NEW, 0o604)
    nothing_is_left("file")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: only root may give files away")
def test_a_file_stays_its_owners(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    os.chown(path, 1234, 1235)
    write(path)
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 1235)


def test_what_is_not_written_leaves_all_as_it_was(
    tmp_path: Path, nothing_is_left: Callable[..., None]
) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with output(tmp_path / "file"), output(tmp_path / "other"):
        pass
    with pytest.raises(ZeroDivisionError), output(tmp_path / "file"):
        _ = 1 / 0
    assert (tmp_path / "file").read_bytes() == b"old"
    nothing_is_left("file")


def test_directories_are_made_on_request_and_gone_again_if_nothing_is_in_them(
    tmp_path: Path, nothing_is_left: Callable[..., None]
) -> None:
    path = tmp_path / "a" / "b" / "file"
    with pytest.raises(FileNotFoundError, match=str(path)), output(path):
        pass
    with output(path, parents=True):
        assert path.parent.is_dir()
    nothing_is_left()
    with output(path, parents=True) as file:
        file.write(NEW)
    assert path.read_bytes() == NEW


@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_is_followed_and_stays(
    tmp_path: Path, dangling: bool, nothing_is_left: Callable[..., None]
) -> None:
    (tmp_path / "folder").mkdir()
    link, file = tmp_path / "link", tmp_path / "folder" / "file"
    link.symlink_to("folder/file")
    if not dangling:
        file.write_bytes(b"old")
    write(link)
    assert (link.is_symlink(), file.read_bytes()) == (True, NEW)
    nothing_is_left("folder", "link")


def test_a_name_may_be_as_long_as_names_are(tmp_path: Path) -> None:
    write(tmp_path / ("x" * 255))
    assert (tmp_path / ("x" * 255)).read_bytes() == NEW


@pytest.mark.usefixtures("not_root")
def test_a_file_that_may_not_be_written_is_not_replaced_either(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "file").chmod(0o444)
    with pytest.raises(PermissionError, match="file"), output(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_bytes() == b"old"


@pytest.mark.usefixtures("not_root")
def test_a_file_in_a_directory_that_may_not_be_written_is_written_into(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old and longer than the new one")
    tmp_path.chmod(0o555)
    try:
        write(tmp_path / "file")
        assert (tmp_path / "file").read_bytes() == NEW
    finally:
        tmp_path.chmod(0o755)


def test_a_file_that_cannot_be_replaced_is_written_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_is_left: Callable[..., None]
) -> None:
    # As where a container has a single file mounted.
    def busy(self: Path, target: Path) -> Path:
        raise OSError(16, "Device or resource busy", str(self))

    (tmp_path / "file").write_bytes(b"old and longer than the new one")
    monkeypatch.setattr(Path, "replace", busy)
    write(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == NEW
    nothing_is_left("file")


def test_a_file_of_the_kernels_is_written_into() -> None:
    settings = Path("/proc/self/comm")
    before = settings.read_bytes()
    try:
        write(settings, b"ferry")
        assert settings.read_bytes() == b"ferry\n"
    finally:
        settings.write_bytes(before)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.mkdir(), "is a directory: name a file to write"),
        (lambda path: path.symlink_to(path.parent), "is a directory: name a file to write"),
        (lambda path: path.symlink_to(path), "symbolic links"),
    ],
)
def test_what_cannot_be_written_is_an_error_with_its_name(
    tmp_path: Path, make: Callable[[Path], None], words: str
) -> None:
    path = tmp_path / "thing"
    make(path)
    with pytest.raises((OSError, ConfigError), match=words) as caught, output(path):
        pass
    assert str(path) in str(caught.value)


def test_what_is_read_is_not_overwritten_by_whatever_name(tmp_path: Path) -> None:
    source, link, hard = (tmp_path / name for name in ("source", "link", "hard"))
    source.write_bytes(b"old")
    link.symlink_to(source)
    hard.hardlink_to(source)
    for path in (source, link, hard, tmp_path / "." / "source"):
        with pytest.raises(ConfigError, match="would be overwritten"), output(path, [source]):
            pass
    assert source.read_bytes() == b"old"


# ---- What is no file ----


def read_fifo(path: Path, into: list[bytes]) -> threading.Thread:
    thread = threading.Thread(target=lambda: into.append(path.read_bytes()))
    thread.start()
    return thread


def test_a_fifo_is_written_into(tmp_path: Path) -> None:
    fifo, read = tmp_path / "fifo", list[bytes]()
    os.mkfifo(fifo)
    for put in (write, lambda path: os.close(written(open_in_place(path)))):
        reader = read_fifo(fifo, read)
        put(fifo)
        reader.join(10)
    assert read == [NEW, NEW]
    assert stat.S_ISFIFO(fifo.stat().st_mode)


def written(descriptor: int) -> int:
    os.write(descriptor, NEW)
    return descriptor


def test_a_descriptors_name_is_written_to_where_it_stands(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with (tmp_path / "file").open("wb", buffering=0) as file, os.fdopen(reader, "rb") as pipe:
        for name in ("/dev/fd", "/proc/self/fd", f"/proc/{os.getpid()}/fd", "/proc/thread-self/fd"):
            file.write(b"before ")
            write(Path(name, str(file.fileno())))
            write(Path(name, str(writer)))
        link = tmp_path / "link"
        link.symlink_to(f"/dev/fd/{file.fileno()}")
        write(link)
        file.write(b" after")
        os.close(writer)
        assert pipe.read() == NEW * 4
    assert (tmp_path / "file").read_bytes() == (b"before " + NEW) * 4 + NEW + b" after"


@root_only
def test_a_device_is_written_into_and_stays(tmp_path: Path) -> None:
    source, null = tmp_path / "guest.c", tmp_path / "null"
    source.write_text("int main(void) { return 0; }\n")
    os.mknod(null, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    assert pageferry("build", source, "-o", null) == Ended(0, f"{null}\n", "")
    os.close(written(open_in_place(null)))
    assert (stat.S_ISCHR(null.stat().st_mode), null.stat().st_rdev) == (True, os.makedev(1, 3))


def test_a_full_device_is_one_line_with_its_name(tmp_path: Path) -> None:
    source = tmp_path / "guest.c"
    source.write_text("int main(void) { return 0; }\n")
    ended = pageferry("build", source, "-o", "/dev/full")
    said = "/dev/full: No space left on device: free some space, or write elsewhere"
    assert (ended.code, one_line(ended.err)) == (1, said)
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


def test_a_guest_replaces_a_guest_and_a_failed_one_replaces_nothing(tmp_path: Path) -> None:
    source, elf = tmp_path / "guest.c", tmp_path / "new" / "guest.elf"
    source.write_text("int main(void) { return nothing; }\n")
    assert pageferry("build", source, "-o", elf).code == 1
    assert list(tmp_path.iterdir()) == [source]
    source.write_text("int main(void) { return 0; }\n")
    assert pageferry("build", source, "-o", elf).code == 0
    umask = os.umask(0o077)
    os.umask(umask)
    assert mode(elf) == 0o777 & ~umask
    assert list(elf.parent.iterdir()) == [elf]
