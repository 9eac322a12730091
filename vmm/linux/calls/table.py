"""Which function serves which system call, and how its arguments are read: in one place.

A family's functions are called `sys_` and the call's name, take the process and then the call's
arguments, and return its result or raise SysError. What kind of number an argument is says its
annotation. A function that has to wait raises Park, and is called again with the same arguments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
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


def _int(process: Process, value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


def _word(process: Process, value: int) -> int:
    return value & 0xFFFFFFFF


def _long(process: Process, value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _size(process: Process, value: int) -> int:
    return value


def _path(process: Process, value: int) -> bytes:
    return process.memory.text(value, PATH_MAX)


_KINDS: dict[str, Callable[[Process, int], Any]] = {
    "Int": _int,
    "Fd": _int,
    "Word": _word,
    "Long": _long,
    "Size": _size,
    "Address": _size,
    "PathName": _path,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """One system call: its name, what serves it, and what its arguments are, by name."""

    name: str
    serve: Callable[..., int]
    arguments: tuple[tuple[str, str], ...]
    decoders: tuple[Callable[[Process, int], Any], ...]
    paths: tuple[int, ...]  # which of the arguments are some

    def shown(self, words: Sequence[int], arguments: Sequence[Any]) -> tuple[int | bytes, ...]:
        """Return the arguments as they are told of: paths, where there are pointers to them."""
        return tuple(arguments[at] if at in self.paths else word for at, word in enumerate(words))


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
    decoders = tuple(_KINDS[kind] for _, kind in kinds)
    paths = tuple(at for at, (_, kind) in enumerate(kinds) if kind == "PathName")
    CALLS[NUMBERS[name]] = Call(name, function, tuple(kinds), decoders, paths)
    return function
