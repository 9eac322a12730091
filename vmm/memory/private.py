"""A machine's private memory: image, stack, page tables, control structure.

It is never transferred.
"""

from __future__ import annotations

from vmm.memory.mapping import Mapping
from vmm.memory.region import Region


class PrivateMemory:
    """Zeroed anonymous memory at guest-physical address 0, read and written with bounds checked.

    Thread-safety: reads and writes are plain memory copies; the guest may be running on the same
    bytes.
    """

    def __init__(self, size: int) -> None:
        self.region = Region(0, size)
        self._mapping = Mapping.anonymous(size)
        self._bytes = self._mapping.view()

    @property
    def address(self) -> int:
        """The host address of guest-physical address 0."""
        return self._mapping.address

    def read(self, gpa: int, length: int) -> bytes:
        """Return a copy of `length` bytes at `gpa`. Raises OutOfBounds."""
        start = self.region.offset(gpa, length)
        return bytes(self._bytes[start : start + length])

    def write(self, gpa: int, data: bytes) -> None:
        """Write `data` at `gpa`. Raises OutOfBounds."""
        start = self.region.offset(gpa, len(data))
        self._bytes[start : start + len(data)] = data

    def view(self, gpa: int, length: int) -> memoryview:
        """Return `length` writable bytes at `gpa`, to be released before close().

        Raises OutOfBounds.
        """
        start = self.region.offset(gpa, length)
        return self._bytes[start : start + length]

    def close(self) -> None:
        """Unmap the memory. What view() gave out must have been released by then."""
        self._bytes.release()
        self._mapping.close()
