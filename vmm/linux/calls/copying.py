"""From one open file to another."""

from __future__ import annotations

import errno
import os
import stat
import struct
from typing import TYPE_CHECKING

from vmm.linux.calls.table import Address, Fd, Size, Word, call
from vmm.linux.errors import SysError
from vmm.linux.files.open_files import MOST, OpenFile

if TYPE_CHECKING:
    from vmm.linux.process import Process


def _offset(process: Process, pointer: int) -> int | None:
    """Return the offset that a pointer leads to; None, if it is the file's own that counts."""
    if not pointer:
        return None
    (offset,) = struct.unpack("<q", process.memory.read(pointer, 8))
    if offset < 0:
        raise SysError(errno.EINVAL)
    return int(offset)


def _moved(process: Process, file: OpenFile, pointer: int, offset: int) -> None:
    """Say where the next copy begins."""
    if pointer:
        process.memory.write(pointer, struct.pack("<q", offset))
    else:
        file.seek(offset, os.SEEK_SET)


@call
def sys_sendfile(process: Process, out: Fd, source: Fd, offset: Address, count: Size) -> int:
    writer, reader = process.descriptors.get(out), process.descriptors.get(source)
    reader.check_read()
    writer.check_write()
    start = _offset(process, offset)
    at = reader.seek(0, os.SEEK_CUR) if start is None else start
    data = reader.pread(at, min(count, MOST))
    try:
        taken = writer.write(data) if data else 0
    except SysError as error:
        if error.number == errno.EPIPE:
            return process.broken_pipe()
        raise
    _moved(process, reader, offset, at + taken)
    return taken


@call
def sys_copy_file_range(
    process: Process,
    source: Fd,
    source_offset: Address,
    out: Fd,
    out_offset: Address,
    count: Size,
    flags: Word,
) -> int:
    reader, writer = process.descriptors.get(source), process.descriptors.get(out)
    start, to = _offset(process, source_offset), _offset(process, out_offset)
    for file in (reader, writer):
        kind = stat.S_IFMT(file.node.stat().mode)
        if kind == stat.S_IFDIR:
            raise SysError(errno.EISDIR)
        if flags or kind != stat.S_IFREG:
            raise SysError(errno.EINVAL)
    if not reader.readable or not writer.writable or writer.flags & os.O_APPEND:
        raise SysError(errno.EBADF)
    at = reader.seek(0, os.SEEK_CUR) if start is None else start
    there = writer.seek(0, os.SEEK_CUR) if to is None else to
    length = min(count, MOST)
    if reader.node is writer.node and at < there + length and there < at + length:
        raise SysError(errno.EINVAL)
    data = reader.pread(at, length)
    taken = writer.pwrite(there, data) if data else 0
    _moved(process, reader, source_offset, at + taken)
    _moved(process, writer, out_offset, there + taken)
    return taken
