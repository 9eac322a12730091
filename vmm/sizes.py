"""Sizes as people write them, and pages."""

from __future__ import annotations

import functools
import re
from fractions import Fraction

from vmm.errors import ConfigError
from vmm.guest.abi import PAGE_SIZE

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_MAX = (1 << 63) - 1  # the kernel's sizes and offsets are signed; ctypes would cut a larger one off


@functools.lru_cache(maxsize=256, typed=True)
def parse_size(size: int | str, what: str = "size") -> int:
    """Return a size in bytes from an int or from text such as "64K", "16M", "1.5G" (powers of
    1024).

    Raises ConfigError, naming `what`, for anything that is not a positive whole number of bytes.
    """
    if isinstance(size, int) and not isinstance(size, bool):
        value = Fraction(size)
    else:
        match = re.fullmatch(
            r"\s*(\d{1,20}(?:\.\d{1,20})?)\s*([KMGT]?)(?:i?B)?\s*", str(size), re.IGNORECASE
        )
        if match is None:
            raise ConfigError(
                f"{what} {size!r} is not a size: give bytes, or for example 64K, 16M, 1G"
            )
        value = Fraction(match[1]) * _UNITS[match[2].upper()]
    if value < 1 or value.denominator != 1:
        raise ConfigError(f"{what} {size!r} is not a positive whole number of bytes")
    if value > _MAX:
        raise ConfigError(f"{what} {size!r} is more than any address space holds")
    return int(value)


def parse_limit(size: int | str, what: str = "size") -> int:
    """Return a size as `parse_size` does, or 0. Raises ConfigError."""
    return 0 if size in (0, "0") and not isinstance(size, bool) else parse_size(size, what)


def format_size(size: int) -> str:
    """Return a size in bytes for people: "4096 B", "64 KiB", "1.5 GiB"."""
    if size < 10 << 10:
        return f"{size} B"
    value, unit = float(size), "B"
    for name in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, name
    return f"{value:.4g} {unit}"


def pages_for(size: int) -> int:
    """Return how many pages hold `size` bytes."""
    return -(-size // PAGE_SIZE)
