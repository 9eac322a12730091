"""A machine's private memory: image, stack, page tables, control structure.

It is never transferred.
"""

from __future__ import annotations

from typing import Protocol

from vmm.errors import ClosedError
from vmm.memory import mapping
from vmm.memory.mapping import Mapping
from vmm.memory.region import Region


class Beginning(Protocol):
    """What private memory begins with: a Template, or what stands for one."""

    @property
    def given(self) -> tuple[tuple[int, int], ...]: ...

    def map(self, size: int, *, aligned: bool = False) -> Mapping: ...


class PrivateMemory:
    """Memory at guest-physical address 0, read and written with bounds checked.

    It begins as a copy of a template, made page by page where it is written, and with zeros
    elsewhere: what is not in `given`, as start and end, in order.

    Thread-safety: reads and writes are plain memory copies; the guest may be running on the same
    bytes.
    """

    __slots__ = ("_bytes", "_mapping", "given", "region")

    def __init__(self, region: Region, template: Beginning, *, aligned: bool = False) -> None:
        """Map the memory.

        region    starts at 0, and is no smaller than the template
        aligned   whether there may be huge pages
        """
        self.region = region
        self.given = template.given
        self._mapping = template.map(region.size, aligned=aligned)
        self._bytes = self._mapping.view()

    def _check_open(self) -> None:
        if not self._mapping.size:
            raise ClosedError("the machine has been closed, and its memory with it")

    @property
    def address(self) -> int:
        """The host address of guest-physical address 0. Raises ClosedError."""
        self._check_open()
        return self._mapping.address

    def read(self, gpa: int, length: int) -> bytes:
        """Return a copy of `length` bytes at `gpa`. Raises OutOfBounds, ClosedError."""
        self._check_open()
        start = self.region.offset(gpa, length)
        return bytes(self._bytes[start : start + length])

    def write(self, gpa: int, data: bytes) -> None:
        """Write `data` at `gpa`. Raises OutOfBounds, ClosedError."""
        self._check_open()
        start = self.region.offset(gpa, len(data))
        self._bytes[start : start + len(data)] = data

    def view(self, gpa: int, length: int) -> memoryview:
        """Return `length` writable bytes at `gpa`, to be released before close().

        Raises OutOfBounds, ClosedError.
        """
        self._check_open()
        start = self.region.offset(gpa, length)
        return self._bytes[start : start + length]

    def own(self, gpa: int, length: int) -> None:
        """Copy pages of the template's that are going to be written, as far as the host lets it.

        Raises OutOfBounds, ClosedError.
        """
        self._check_open()
        mapping.own(self._mapping.address + self.region.offset(gpa, length), length)

    def close(self) -> None:
        """Unmap the memory. What view() gave out must have been released by then."""
        self._bytes.release()
        self._mapping.close()
