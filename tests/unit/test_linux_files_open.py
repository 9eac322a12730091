"""Descriptors, pipes and standard streams of a Linux program."""

from __future__ import annotations

import errno
import io
import os
import select
import stat
from pathlib import Path

import pytest
from unit.linux_files_scene import make, opened, put, refuses

from vmm.errors import ArgumentTypeError, ConfigError
from vmm.linux.errors import SysError
from vmm.linux.files.streams import Input
from vmm.linux.files.system import FileSystem


class Kept:
    """What is written, kept."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes, /) -> int:
        self.data += data
        return len(data)


def with_streams(source: Input | None = None) -> tuple[FileSystem, Kept, Kept]:
    files, out, err = make({"/in/a": b"abc"}), Kept(), Kept()
    files.standard(source or Input(b""), out, err)
    return files, out, err


# Descriptors.


def test_the_lowest_free_number_is_given() -> None:
    files, _, _ = with_streams()
    table = files.descriptors
    file = opened(files, b"/in/a")
    assert table.numbers() == [0, 1, 2, 3]
    table.close(1)
    assert table.dup(3) == 1
    assert table.duplicate(3, 10) == 10
    assert table.duplicate(3, 10, cloexec=True) == 11
    assert (table.cloexec(10), table.cloexec(11)) == (False, True)
    assert table.get(11) is file
    assert file.references == 4


def test_numbers_are_refused_as_the_kernel_refuses_them() -> None:
    files, _, _ = with_streams()
    table = files.descriptors
    for number in (3, -1, 1 << 31, 1 << 64, -(1 << 63)):
        with refuses(errno.EBADF):
            table.get(number)
        with refuses(errno.EBADF):
            table.close(number)
        with refuses(errno.EBADF):
            table.dup2(number, 1)
    for number in (-1, 1024, 1 << 40):
        with refuses(errno.EBADF):
            table.dup2(0, number)
        with refuses(errno.EBADF):
            table.dup3(0, number, 0)
        with refuses(errno.EINVAL):
            table.duplicate(0, number)
    with refuses(errno.EINVAL):
        table.dup3(0, 0, 0)
    with refuses(errno.EINVAL):
        table.dup3(0, 5, os.O_APPEND)
    assert table.dup2(0, 0) == 0
    assert table.numbers() == [0, 1, 2]


def test_there_are_1024_descriptors() -> None:
    files, _, _ = with_streams()
    for _ in range(1021):
        files.descriptors.dup(0)
    with refuses(errno.EMFILE):
        files.descriptors.dup(0)
    with refuses(errno.EMFILE):
        files.descriptors.free()
    assert files.descriptors.dup2(0, 1023) == 1023
    files.descriptors.close_range(3, (1 << 32) - 1)
    assert files.descriptors.numbers() == [0, 1, 2]


def test_what_dup2_replaces_is_closed() -> None:
    files, _, _ = with_streams()
    put(files, b"/tmp/a", b"abc")
    used = files.space.used
    opened(files, b"/tmp/a")
    files.unlink(None, b"/tmp/a")
    assert files.descriptors.dup2(0, 3) == 3
    assert files.space.used < used


def test_close_range_may_set_that_execve_closes() -> None:
    files, _, _ = with_streams()
    table = files.descriptors
    table.close_range(1, 9, 4)
    assert [table.cloexec(number) for number in (0, 1, 2)] == [False, True, True]
    for first, last, flags in ((3, 2, 0), (0, 1, 8)):
        with refuses(errno.EINVAL):
            table.close_range(first, last, flags)


def test_descriptors_of_one_file_share_its_position_and_its_flags() -> None:
    files, _, _ = with_streams()
    file = opened(files, b"/in/a")
    other = files.descriptors.get(files.descriptors.dup(3))
    assert (file.read(1), other.read(1), file.read(9)) == (b"a", b"b", b"c")
    other.set_flags(os.O_NONBLOCK | os.O_WRONLY | os.O_CREAT)
    assert file.flags & ~0o100000 == os.O_NONBLOCK


# Pipes.


def test_a_pipe_gives_what_was_put_in() -> None:
    files = make()
    reader, writer = files.pipe(os.O_CLOEXEC)
    for file in (reader, writer):
        files.descriptors.install(file)
    assert stat.S_ISFIFO(reader.stat().mode)
    assert (reader.events(), writer.events()) == (0, select.POLLOUT)
    with refuses(errno.EAGAIN):
        reader.read(1)
    assert writer.write(b"abcdef") == 6
    assert reader.events() == select.POLLIN
    assert (reader.read(2), reader.read(99)) == (b"ab", b"cdef")
    files.descriptors.close(1)
    assert (reader.read(9), reader.events()) == (b"", select.POLLHUP)
    for call in (lambda: reader.seek(0, 0), lambda: reader.pread(0, 1)):
        with refuses(errno.ESPIPE):
            call()
    with refuses(errno.EBADF):
        reader.write(b"x")


def test_a_full_pipe_takes_no_more_and_small_pieces_only_whole() -> None:
    files = make()
    reader, writer = files.pipe(os.O_NONBLOCK)
    assert writer.write(b"x" * 65000) == 65000
    with refuses(errno.EAGAIN):
        writer.write(b"y" * 4096)
    assert writer.write(b"z" * 5000) == 536
    with refuses(errno.EAGAIN):
        writer.write(b"y")
    assert writer.events() == 0
    assert len(reader.read(1 << 30)) == 65536


def test_who_writes_when_nobody_reads_is_told() -> None:
    files = make()
    for file in files.pipe(0):
        files.descriptors.install(file)
    writer = files.descriptors.get(1)
    files.descriptors.close(0)
    assert writer.events() & select.POLLERR
    with refuses(errno.EPIPE):
        writer.write(b"x")
    assert writer.write(b"") == 0
    with refuses(errno.EINVAL):
        files.pipe(os.O_APPEND)


def test_the_end_of_a_pipe_can_be_opened_again_by_its_descriptor() -> None:
    files = make()
    for file in files.pipe(0):
        files.descriptors.install(file)
    again = opened(files, b"/proc/self/fd/0", os.O_WRONLY)
    again.write(b"x")
    files.descriptors.close(1)
    assert files.descriptors.get(0).read(9) == b"x"
    with refuses(errno.EAGAIN):  # there is one writer left
        files.descriptors.get(0).read(9)


# Standard streams.


def test_the_standard_streams_are_pipes_to_python() -> None:
    files, out, err = with_streams(Input(b"line 1\nline 2\n"))
    stdin, stdout, stderr = map(files.descriptors.get, range(3))
    assert (stdin.read(6), stdin.read(99), stdin.read(9), stdin.read(9)) == (
        *(b"line 1", b"\nline 2\n", b"", b""),
    )
    assert (stdout.write(b"out"), stderr.write(b"err"), out.data, err.data) == (
        3,
        3,
        b"out",
        b"err",
    )
    assert stat.S_ISFIFO(stdout.stat().mode)
    assert not stdout.isatty
    with refuses(errno.ESPIPE):
        stdin.seek(0, 0)
    with refuses(errno.EBADF):
        stdin.write(b"x")
    with refuses(errno.EBADF):
        stdout.read(1)
    opened(files, b"/dev/stdout", os.O_WRONLY).write(b" again")
    assert out.data == b"out again"


def test_input_from_a_pipe_is_what_has_arrived() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as source, os.fdopen(writer, "wb", buffering=0) as sink:
        files, _, _ = with_streams(Input(source))
        sink.write(b"some")
        stdin = files.descriptors.get(0)
        assert (stdin.read(2), stdin.read(100)) == (b"so", b"me")
        sink.write(b"more")
        sink.close()
        assert (stdin.read(100), stdin.read(100)) == (b"more", b"")


def test_input_that_is_filled_before_is_read_without_waiting() -> None:
    source = Input(io.BytesIO(b"abc"))
    assert not source.ready
    source.fill()
    assert source.ready
    files, _, _ = with_streams(source)
    assert files.descriptors.get(0).read(1) == b"a"
    assert source.ready
    assert files.descriptors.get(0).read(9) == b"bc"
    assert not source.ready


def test_input_of_a_call_that_is_undone_is_read_again() -> None:
    files, _, _ = with_streams(Input(io.BytesIO(b"abc")))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), files.changes:
            assert files.descriptors.get(0).read(2) == b"ab"
            raise KeyboardInterrupt
    assert files.descriptors.get(0).read(9) == b"abc"


def test_long_input_is_not_copied_at_each_read() -> None:
    files, _, _ = with_streams(Input(b"x" * (32 << 20)))
    stdin = files.descriptors.get(0)
    assert sum(len(stdin.read(4096)) for _ in range(9000)) == 32 << 20


class NothingYet:
    def read(self, size: int, /) -> bytes | None:
        return None


class Broken:
    def read(self, size: int, /) -> bytes:
        raise OSError(errno.ENODEV, "/dev/secret")


def test_a_source_that_has_nothing_yet_or_fails_is_said_so() -> None:
    for source, number in ((NothingYet(), errno.EAGAIN), (Broken(), errno.EIO)):
        files, _, _ = with_streams(Input(source))
        for _ in range(2):
            with pytest.raises(SysError) as refused:
                files.descriptors.get(0).read(1)
            assert refused.value.number == number


def test_a_source_of_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text")
    with (tmp_path / "text").open() as text:
        files, _, _ = with_streams(Input(text))  # type: ignore[arg-type]
        assert files.descriptors.get(0).read(9) == b"text"
    with pytest.raises(ConfigError, match="binary"):
        Input(io.StringIO("text"))  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="not str"):
        Input("text")  # type: ignore[arg-type]
