"""Files that are mapped to be written: while they are, their bytes are those that are mapped."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from vmm.linux.files.changes import Changes, Space
from vmm.linux.files.data import CHUNK, Data, chunks_of

_PIECE = 1 << 20


class Mapped(Protocol):
    """The memory that files are mapped in."""

    def peek(self, address: int, size: int) -> bytes | None:
        """Return what is there; None if there is no memory any more. From any thread."""

    def fill(self, address: int, data: bytes) -> None:
        """Write there."""

    def live(self, address: int) -> int:
        """Return the number of the mapping that is there, 0 if there is none."""


class Live(NamedTuple):
    """A part of a file that is mapped: from `offset` on, at start..end. `number` is the area's."""

    start: int
    end: int
    offset: int
    number: int

    @property
    def stop(self) -> int:
        """Where it ends in the file."""
        return self.offset + self.end - self.start

    def clip(self, start: int, end: int) -> Live:
        """Return the part of it that is mapped in start..end."""
        first = max(self.start, start)
        offset = self.offset + first - self.start
        return self._replace(start=first, end=min(self.end, end), offset=offset)


class LiveData(Data):
    """The bytes of such a file. What is mapped is also in chunks, as it was before, which take what
    space that needs: so it can always be written back, and is when it is unmapped.

    live    what is mapped; no part of the file twice
    """

    __slots__ = ("_memory", "live")

    def __init__(self, data: Data, memory: Mapped) -> None:
        super().__init__(data.base)
        self.base_size, self.size = data.base_size, data.size
        self.chunks, self.allocated = data.chunks, data.allocated
        self.live: tuple[Live, ...] = ()
        self._memory = memory

    def read(self, offset: int, length: int) -> bytes:
        found = super().read(offset, length)
        if not self.live:
            return found
        made = bytearray(found)
        for address, at, size in self._mapped(offset, offset + len(found)):
            there = self._memory.peek(address, size)
            if there is None:  # it has ended, and all has been written back before that
                return super().read(offset, length)
            made[at - offset : at - offset + size] = there
        return bytes(made)

    def write(self, changes: Changes, space: Space, offset: int, data: bytes) -> None:
        before = self.size
        super().write(changes, space, offset, data)
        self._resized(changes, space, before)
        self._store(changes, offset, data)

    def truncate(self, changes: Changes, space: Space, size: int) -> None:
        before = self.size
        super().truncate(changes, space, size)
        self._resized(changes, space, before)

    def release(self, changes: Changes, space: Space) -> None:
        changes.set(self, "live", ())
        super().release(changes, space)

    def overlaps(self, offset: int, end: int) -> bool:
        """Whether any of a part is mapped."""
        return any(piece.offset < end and offset < piece.stop for piece in self.live)

    def reserve(self, changes: Changes, space: Space, offset: int, end: int) -> None:
        """Have the space for a part that is to be mapped. Raises ENOSPC, EIO."""
        if changes.since is not None:  # `write_back` is no change: it is not undone with a call
            changes.since.table(self.chunks)
        fresh = {}
        for index, start in chunks_of(offset, min(end, self.size)):
            size, kept = min(CHUNK, self.size - start), self._kept(index)
            if index not in self.chunks or len(kept) < size:
                fresh[index] = kept.ljust(size, b"\0")
        self._replace(changes, space, fresh, [])

    def map(self, changes: Changes, piece: Live) -> None:
        """Let a part live where it has been mapped, and filled in; it has been reserved."""
        changes.set(self, "live", (*self.live, piece))

    def write_back(self, start: int, end: int) -> None:
        """Keep what is mapped in start..end. It stays mapped: that harms nobody."""
        for piece in [piece.clip(start, end) for piece in self.live]:
            stop = min(piece.stop, self.size)
            if piece.start >= piece.end or self._memory.live(piece.start) != piece.number:
                continue
            for index, base in chunks_of(piece.offset, stop):
                low, high = max(piece.offset, base), min(stop, base + CHUNK)
                there = self._memory.peek(piece.start + low - piece.offset, high - low)
                if there is not None:
                    chunk = self.chunks[index]
                    self.chunks[index] = chunk[: low - base] + there + chunk[high - base :]

    def unmap(self, changes: Changes, start: int, end: int) -> None:
        """Forget what is no longer mapped in start..end; it has been written back."""
        ranges = (0, start), (start, end), (end, 1 << 64)
        parts = [piece.clip(*ends) for piece in self.live for ends in ranges]
        left = [p for p in parts if p.start < p.end and self._memory.live(p.start) == p.number]
        changes.set(self, "live", tuple(left))

    # ---- what they are made of ----

    def _mapped(self, offset: int, end: int) -> list[tuple[int, int, int]]:
        """Return what is mapped of a part: addresses, where that is in the file, and bytes."""
        found = []
        for piece in self.live:
            low, high = max(offset, piece.offset), min(end, piece.stop)
            for at in range(low, high, _PIECE):
                found.append((piece.start + at - piece.offset, at, min(_PIECE, high - at)))
        return found

    def _store(self, changes: Changes, offset: int, data: bytes | None, end: int = 0) -> None:
        """Write, where that is mapped; zeros up to `end`, if there is no data."""
        for address, at, size in self._mapped(offset, end if data is None else offset + len(data)):
            before = self._memory.peek(address, size)
            changes.call(self._memory.fill, address, before)
            piece = bytes(size) if data is None else data[at - offset : at - offset + size]
            self._memory.fill(address, piece)

    def _resized(self, changes: Changes, space: Space, before: int) -> None:
        """Clear what has come, or gone."""
        if self.live and self.size != before:
            self._store(changes, min(self.size, before), None, max(self.size, before))
            for piece in self.live:
                self.reserve(changes, space, piece.offset, piece.stop)
