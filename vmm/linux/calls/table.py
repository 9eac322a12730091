"""Which function serves which system call, and how its arguments are read: in one place.

A family's functions are called `sys_` and the call's name, take the process and then the call's
arguments, and return its result or raise SysError. What kind of number an argument is says its
annotation. A function that has to wait raises Park, and is called again with the same arguments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NewType

from vmm.linux.numbers import NUMBERS

if TYPE_CHECKING:
    from vmm.linux.process import Process

Int = NewType("Int", int)
"""32 bits, signed: flags, options."""
Fd = NewType("Fd", int)
"""A file descriptor, or AT_FDCWD: 32 bits, signed."""
Word = NewType("Word", int)
"""32 bits, unsigned."""
Long = NewType("Long", int)
"""64 bits, signed: offsets."""
Size = NewType("Size", int)
"""64 bits, unsigned: lengths."""
Address = NewType("Address", int)
"""A pointer, 0 for none."""
PathName = NewType("PathName", bytes)
"""A pointer to a path; what is given is the path."""

PATH_MAX = 4096


class Park(Exception):
    """A call has to wait: it is to be made again when `until` has come.

    until    on the clock of `Process.now`, in seconds; None for ever
    """

    def __init__(self, until: float | None) -> None:
        super().__init__(until)
        self.until = until


# How a register becomes a number: what is added before it is cut off, and taken away again. To
# calculate costs less than to call a function for each.
_SHAPES: dict[str, tuple[int, int]] = {
    "Int": (1 << 31, (1 << 32) - 1),
    "Fd": (1 << 31, (1 << 32) - 1),
    "Word": (0, (1 << 32) - 1),
    "Long": (1 << 63, (1 << 64) - 1),
    "Size": (0, (1 << 64) - 1),
    "Address": (0, (1 << 64) - 1),
    "PathName": (0, (1 << 64) - 1),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """One system call: its name, what serves it, and what its arguments are, by name.

    more, masks    see _SHAPES: of each argument
    paths          which of them are paths
    """

    name: str
    serve: Callable[..., int]
    arguments: tuple[tuple[str, str], ...]
    more: tuple[int, ...]
    masks: tuple[int, ...]
    paths: tuple[int, ...]

    def with_paths(self, process: Process, numbers: Iterable[int]) -> list[Any]:
        """Return the arguments that numbers stand for, some of them paths. Raises SysError."""
        values: list[Any] = list(numbers)
        for at in self.paths:
            values[at] = process.memory.text(values[at], PATH_MAX)
        return values

    def shown(self, words: Sequence[int], arguments: Sequence[Any]) -> tuple[int | bytes, ...]:
        """Return the arguments as they are told of: paths, where there are pointers to them."""
        shown: list[int | bytes] = [*words]
        for at in self.paths:
            shown[at] = arguments[at]
        return tuple(shown)


CALLS: dict[int, Call] = {}
"""What is served, by number."""


def call(function: Callable[..., int]) -> Callable[..., int]:
    """Let a function serve the call that it is named after."""
    name = function.__name__.removeprefix("sys_")
    kinds = [
        (argument, kind)
        for argument, kind in function.__annotations__.items()
        if argument not in ("process", "return")
    ]
    more, masks = zip(*(_SHAPES[kind] for _, kind in kinds), strict=True) if kinds else ((), ())
    paths = tuple(at for at, (_, kind) in enumerate(kinds) if kind == "PathName")
    CALLS[NUMBERS[name]] = Call(name, function, tuple(kinds), more, masks, paths)
    return function
