"""What is in a file: chunks in memory over a content that is only read, or over nothing."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from vmm.linux.errors import SysError
from vmm.linux.files.changes import Changes, Space
from vmm.linux.files.contents import Content, part

CHUNK = 1 << 16  # bytes; a hole that is smaller takes memory
LARGEST = (1 << 63) - 1  # no file is larger, as on tmpfs
_BLOCK = 4096


def rounded(size: int) -> int:
    """Return a size as a multiple of a block's."""
    return -(-size // _BLOCK) * _BLOCK


class Data:
    """The bytes of one file. What was never written takes no memory, and reads as zeros.

    size        in bytes
    base        what is read where nothing has been written, up to `base_size`; or None
    chunks      CHUNK bytes of the file at most, by number: one that is shorter goes on with
                zeros. They are never changed, but replaced: so any thread may read them
    allocated   bytes of memory, in blocks
    """

    __slots__ = ("allocated", "base", "base_size", "chunks", "size")

    def __init__(self, base: Content | None = None) -> None:
        self.base = base
        self.base_size = self.size = 0 if base is None else base.size
        self.chunks: dict[int, bytes] = {}
        self.allocated = 0

    @property
    def changed(self) -> bool:
        """Whether it is not, or no longer, its base."""
        return self.base is None or bool(self.chunks) or self.base_size != self.base.size

    @property
    def blocks(self) -> int:
        """How much there is of it, in 512 bytes."""
        return (self.allocated + rounded(self.base_size)) // 512

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes, or those up to the end. Raises EIO."""
        end = min(offset + length, self.size)
        if offset >= end:
            return b""
        if not self.chunks:
            return self._below(offset, end - offset)
        return b"".join(
            self._of_chunk(index, max(offset, start) - start, min(end - start, CHUNK))
            for index, start in chunks_of(offset, end)
        )

    def _of_chunk(self, index: int, low: int, high: int) -> bytes:
        chunk = self.chunks.get(index)
        if chunk is None:
            return self._below(index * CHUNK + low, high - low)
        if low == 0 and high == len(chunk):
            return chunk
        return chunk[low:high].ljust(high - low, b"\0")

    def _below(self, offset: int, length: int) -> bytes:
        """Return what is to be read where there are no chunks."""
        there = min(length, self.base_size - offset)
        if self.base is None or there <= 0:
            return bytes(length)
        return part(self.base, offset, there).ljust(length, b"\0")

    def _kept(self, index: int) -> bytes:
        """Return a chunk as it is."""
        chunk = self.chunks.get(index)
        if chunk is not None:
            return chunk
        start = index * CHUNK
        return self._below(start, max(min(CHUNK, self.base_size - start), 0))

    def fitting(self, offset: int, length: int) -> int:
        """Return how many bytes of so many can be written at once. Raises ENOSPC if none can."""
        return length

    def write(self, changes: Changes, space: Space, offset: int, data: bytes) -> None:
        """Write, all of it. Raises EFBIG, ENOSPC, EIO."""
        end = offset + len(data)
        if end > LARGEST:
            raise SysError(errno.EFBIG)
        if not data:
            return
        fresh = {}
        for index, start in chunks_of(offset, end):
            low, high = max(offset - start, 0), min(end - start, CHUNK)
            piece = data[start + low - offset : start + high - offset]
            if high - low < CHUNK:
                old = self._kept(index)
                piece = old[:low].ljust(low, b"\0") + piece + old[high:]
            fresh[index] = piece
        self._replace(changes, space, fresh, [])
        if end > self.size:
            changes.set(self, "size", end)

    def truncate(self, changes: Changes, space: Space, size: int) -> None:
        """Cut it off, or go on with a hole. Raises EFBIG, EIO."""
        if size > LARGEST:
            raise SysError(errno.EFBIG)
        if size < self.size:
            index, there = divmod(size, CHUNK)
            gone = [number for number in self.chunks if number * CHUNK >= size]
            last = self.chunks.get(index, b"") if there else b""
            cut = {index: last[:there]} if len(last) > there else {}
            self._replace(changes, space, cut, gone)
            changes.set(self, "base_size", min(self.base_size, size))
        if size != self.size:
            changes.set(self, "size", size)

    def _replace(
        self, changes: Changes, space: Space, fresh: dict[int, bytes], gone: list[int]
    ) -> None:
        more = sum(map(rounded, map(len, fresh.values())))
        more -= sum(rounded(len(self.chunks.get(index, b""))) for index in (*fresh, *gone))
        space.take(changes, more)
        if more:
            changes.set(self, "allocated", self.allocated + more)
        for index, chunk in fresh.items():
            changes.put(self.chunks, index, chunk)
        for index in gone:
            changes.drop(self.chunks, index)

    def release(self, changes: Changes, space: Space) -> None:
        """Give its memory back."""
        space.take(changes, -self.allocated)
        changes.set(self, "allocated", 0)
        changes.set(self, "chunks", {})

    def next_data(self, offset: int) -> int | None:
        """Return where there is something from `offset` on: lseek(2)'s SEEK_DATA."""
        if offset >= self.size:
            return None
        if offset < self._end_of_data(offset):
            return offset
        later = min((number for number in self.chunks if number * CHUNK > offset), default=None)
        return None if later is None else later * CHUNK

    def next_hole(self, offset: int) -> int | None:
        """Return where there is nothing from `offset` on, the end at the latest: SEEK_HOLE."""
        if offset >= self.size:
            return None
        while offset < (end := self._end_of_data(offset)):
            offset = end
        return min(offset, self.size)

    def _end_of_data(self, offset: int) -> int:
        """Return how far data goes at an offset; no further than that, if there is none."""
        if offset < self.base_size:
            return self.base_size
        index = offset // CHUNK
        return index * CHUNK + rounded(len(self.chunks.get(index, b"")))


def chunks_of(offset: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield number and start of each chunk in a range."""
    for index in range(offset // CHUNK, -(-end // CHUNK)):
        yield index, index * CHUNK
