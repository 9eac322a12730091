"""Sizes as people write them, and pages; whole numbers as Python programs pass them."""

from __future__ import annotations

import functools
import operator
import re
from fractions import Fraction
from typing import SupportsIndex

from vmm.errors import ArgumentTypeError, ConfigError
from vmm.guest.abi import PAGE_SIZE

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_MAX = (1 << 63) - 1  # the kernel's sizes and offsets are signed; ctypes would cut a larger one off
_NO_SIZE = "is not a size: give bytes, or for example 64K, 16M, 1G"


def integer(
    value: SupportsIndex, what: str, low: int | None = None, high: int | None = None
) -> int:
    """Return a whole number: an int, or anything else that has `__index__`, as NumPy's have.

    Raises ArgumentTypeError for all else, bool included, and ConfigError for what is not within
    `low`..`high`; both name `what`.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise ArgumentTypeError(f"{what} must be an int, not {type(value).__name__}") from None
    if low is not None and number < low:
        wrong = "not a positive number" if low == 1 else f"less than {low}"
        raise ConfigError(f"{what} {shown(number)} is {wrong}")
    if high is not None and number > high:
        raise ConfigError(f"{what} {shown(number)} is more than {shown(high)}, which is the limit")
    return number


def shown(number: int, form: str = "d") -> str:
    """Return a whole number for people, in a form of `format`'s; of a very long one, its length."""
    return format(number, form) if number.bit_length() <= 256 else f"of {number.bit_length()} bits"


def parse_size(size: SupportsIndex | str, what: str = "size") -> int:
    """Return a size in bytes from an int or from text such as "64K", "16M", "1.5G" (powers of
    1024).

    Raises ConfigError, naming `what`, for anything that is not a positive whole number of bytes:
    ArgumentTypeError if it is neither an int nor text.
    """
    return _parse(size, what, 1)


def parse_limit(size: SupportsIndex | str, what: str = "size") -> int:
    """Return a size as `parse_size` does, or 0. Raises ConfigError."""
    return _parse(size, what, 0)


def _parse(size: SupportsIndex | str, what: str, least: int) -> int:
    if isinstance(size, str):
        return _parse_text(size, what, least)
    try:
        number = integer(size, what)
    except ArgumentTypeError:
        raise ArgumentTypeError(f"{what} of type {type(size).__name__} {_NO_SIZE}") from None
    return _checked(Fraction(number), f"{what} {shown(number)}", least)


@functools.lru_cache(maxsize=256)
def _parse_text(size: str, what: str, least: int) -> int:
    # ASCII: to ignore case is else to take the Kelvin sign for a K.
    match = re.fullmatch(
        r"\s*(\d{1,20}(?:\.\d{1,20})?)\s*([KMGT]?)(?:i?B)?\s*", size, re.IGNORECASE | re.ASCII
    )
    if match is None:
        raise ConfigError(f"{what} {size!r} {_NO_SIZE}")
    value = Fraction(match[1]) * _UNITS[match[2].upper()]
    return _checked(value, f"{what} {size!r}", least)


def _checked(value: Fraction, named: str, least: int) -> int:
    if value < least or value.denominator != 1:
        raise ConfigError(f"{named} is not a positive whole number of bytes")
    if value > _MAX:
        raise ConfigError(f"{named} is more than any address space holds")
    return int(value)


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
