"""Ranges of guest-physical addresses, and the one place where bounds are checked."""

from __future__ import annotations

import dataclasses

from vmm.guest.abi import PAGE_SIZE


class OutOfBounds(IndexError):
    """An address range that does not lie wholly inside the region it should lie in."""


@dataclasses.dataclass(frozen=True, slots=True)
class Region:
    """A run of guest-physical addresses.

    base   its first address
    size   its length in bytes
    """

    base: int
    size: int

    @property
    def end(self) -> int:
        """The first address after the region."""
        return self.base + self.size

    @property
    def pages(self) -> int:
        """The region's whole pages."""
        return self.size // PAGE_SIZE

    def offset(self, gpa: int, length: int) -> int:
        """Return `gpa` as an offset into the region, if `length` bytes from there lie inside it.

        The arithmetic is Python's, so nothing wraps: a range whose end overflows 64 bits is simply
        outside. A length of zero is inside as long as its address is, the end included. Raises
        OutOfBounds.
        """
        start = gpa - self.base
        if start < 0 or length < 0 or start + length > self.size:
            raise OutOfBounds(
                f"{length} bytes at {gpa:#x} are not within {self.base:#x}..{self.end:#x}"
            )
        return start

    def page(self, gpa: int, pages: int) -> int:
        """Return the index in the region of the page at `gpa`, if `pages` pages from there lie
        inside it.

        `gpa` must be page-aligned. Raises OutOfBounds, also if `pages` is zero.
        """
        if pages < 1:
            raise OutOfBounds(f"no pages at {gpa:#x}")
        return self.offset(gpa, pages * PAGE_SIZE) // PAGE_SIZE
