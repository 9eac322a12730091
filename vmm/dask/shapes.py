"""Numbers that arrays' shapes give: of `uint8_t pixels[height][width]`, height and width. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from vmm.errors import ArgumentTypeError, ConfigError
from vmm.sandbox.lengths import Length

Bounds = tuple[str, ...]  # of one array, as C has them between its brackets


def parse(given: str | Iterable[str | int], what: str) -> Bounds:
    """Return an array's bounds as users give them: "height, width, 3", or a list of them."""
    parts = given.split(",") if isinstance(given, str) else list(given)
    found = tuple(str(part).strip() for part in parts)
    if not found:
        raise ConfigError(f"{what} has no bounds: give 'height, width'")
    for one in found:
        Length(one)  # or it says what is wrong
    return found


def named(bounds: Iterable[Bounds], parameters: Iterable[str]) -> set[str]:
    """Return the parameters that are bounds themselves."""
    return {bound for one in bounds for bound in one}.intersection(parameters)


def filled(
    function: str, bounds: Mapping[str, Bounds], given: Mapping[str, Sequence[int]]
) -> dict[str, int]:
    """Return what the shapes of arrays say that their bounds are, by name.

    One bound is the number of an array's items, whatever its shape is; of several each is one
    dimension's. Raises ConfigError for shapes that do not fit.
    """
    found: dict[str, int] = {}
    by: dict[str, str] = {}
    for name, shape in given.items():
        for bound, count in _pairs(function, name, bounds.get(name, ()), shape):
            if bound.isdigit() and int(bound) != count:
                raise ConfigError(f"{function}: {name} has {count} where it is to have {bound}")
            if not bound.isidentifier():
                continue
            if found.setdefault(bound, count) != count:
                before = f"{found[bound]} by {by[bound]}"
                raise ConfigError(f"{function}: {bound} is {before}, and {count} by {name}")
            by.setdefault(bound, name)
    return found


def _pairs(
    function: str, name: str, bounds: Bounds, shape: Sequence[int]
) -> Iterator[tuple[str, int]]:
    if not bounds:
        return iter(())
    if len(bounds) == 1:
        shape = (math.prod(shape),)
    if len(bounds) != len(shape):
        raise ConfigError(
            f"{function}: {name} has {len(shape)} dimensions, and is to have {len(bounds)}: "
            f"{', '.join(bounds)}"
        )
    return zip(bounds, shape, strict=True)


def made(function: str, name: str, bounds: Bounds, values: Mapping[str, object]) -> tuple[int, ...]:
    """Return the shape of an array that is to be made. Raises ArgumentTypeError."""
    shape = []
    for bound in bounds:
        count = Length(bound).of(values)
        if count is None or count < 0:
            raise ArgumentTypeError(f"{function}: nothing says how large {name} is: give {bound}")
        shape.append(count)
    return tuple(shape)
