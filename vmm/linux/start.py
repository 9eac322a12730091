"""What a program finds on its stack when it starts (System V ABI, AMD64 supplement, 3.4.1).

Pure: what it is, not where it goes.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from typing import NamedTuple

from vmm.errors import ConfigError
from vmm.guest.executable import PAGE
from vmm.linux.loader import Program
from vmm.sizes import format_size

_MOST_STRING = 128 << 10  # bytes of one argument, its zero included, as in Linux (MAX_ARG_STRLEN)
_PART = 4  # arguments may fill this part of the stack, as in Linux
_PLATFORM = b"x86_64\0"
_HEADER = 56  # bytes of a program header


class Auxiliary(enum.IntEnum):
    """The types of the auxiliary vector's entries, as Linux has them."""

    NULL = 0
    PHDR = 3
    PHENT = 4
    PHNUM = 5
    PAGESZ = 6
    BASE = 7
    FLAGS = 8
    ENTRY = 9
    UID = 11
    EUID = 12
    GID = 13
    EGID = 14
    PLATFORM = 15
    HWCAP = 16
    CLKTCK = 17
    SECURE = 23
    RANDOM = 25
    HWCAP2 = 26
    EXECFN = 31


class Start(NamedTuple):
    """The stack pointer to enter with, and what lies from there up to the stack's top."""

    rsp: int
    data: bytes


def start_stack(
    top: int,
    size: int,
    program: Program,
    argv: Sequence[bytes],
    envp: Sequence[bytes],
    *,
    random: bytes,
    path: bytes,
    hwcap: int,
    hwcap2: int = 0,
    interpreter: Program | None = None,
) -> Start:
    """Lay out a stack that ends at `top`, a multiple of 16, and is `size` bytes large.

    argv, envp     each without its zero
    random         16 bytes
    path           of the program's file, as it shall know it (AT_EXECFN)
    hwcap          CPUID's leaf 1, EDX, as the machine sees it; hwcap2 Linux's own word
    interpreter    what is entered in the program's place, if it is dynamic

    Raises ConfigError if the arguments are more than Linux would take.
    """
    _check(argv, envp, path, size)
    strings = _Strings(top - 8)  # Linux leaves a word of zeros at the very top
    name = strings.put(path + b"\0")
    environment = [strings.put(text + b"\0") for text in reversed(envp)][::-1]
    arguments = [strings.put(text + b"\0") for text in reversed(argv)][::-1]
    platform = strings.put(_PLATFORM)
    seed = strings.put(random)
    who = Auxiliary.UID, 0, Auxiliary.EUID, 0, Auxiliary.GID, 0, Auxiliary.EGID, 0
    vector = (
        *(Auxiliary.HWCAP, hwcap, Auxiliary.PAGESZ, PAGE, Auxiliary.CLKTCK, 100),
        *(Auxiliary.PHDR, program.headers, Auxiliary.PHENT, _HEADER),
        *(Auxiliary.PHNUM, program.header_count),
        *(Auxiliary.BASE, 0 if interpreter is None else interpreter.base),
        *(Auxiliary.FLAGS, 0, Auxiliary.ENTRY, program.entry, *who, Auxiliary.SECURE, 0),
        *(Auxiliary.RANDOM, seed, Auxiliary.HWCAP2, hwcap2, Auxiliary.EXECFN, name),
        *(Auxiliary.PLATFORM, platform, Auxiliary.NULL, 0),
    )
    words = (len(arguments), *arguments, 0, *environment, 0, *vector)
    rsp = (strings.at - 8 * len(words)) // 16 * 16
    table = struct.pack(f"<{len(words)}Q", *words)
    return Start(rsp, table.ljust(strings.at - rsp, b"\0") + strings.data() + bytes(8))


class _Strings:
    """Bytes that are put below each other, from `at` down."""

    def __init__(self, at: int) -> None:
        self.at = at
        self._parts: list[bytes] = []

    def put(self, data: bytes) -> int:
        """Put bytes; return their address."""
        self._parts.append(data)
        self.at -= len(data)
        return self.at

    def data(self) -> bytes:
        """Return all of it, from `at` up."""
        return b"".join(reversed(self._parts))


def _check(argv: Sequence[bytes], envp: Sequence[bytes], path: bytes, size: int) -> None:
    for what, texts in (("path", (path,)), ("argument", argv), ("environment variable", envp)):
        for text in texts:
            if b"\0" in text:
                raise ConfigError(
                    f"{what} {text[:40]!r} has a zero byte in it: no program could see it"
                )
            if len(text) >= _MOST_STRING:
                raise ConfigError(
                    f"{what} {text[:40]!r}... is {len(text)} bytes: one may be {_MOST_STRING - 1}"
                )
    # With the zero and the pointer of each.
    total = sum(map(len, (path, *argv, *envp))) + 9 * (1 + len(argv) + len(envp))
    if total > size // _PART:
        raise ConfigError(
            f"the arguments and the environment take {format_size(total)}: they may take a quarter "
            f"of the stack, {format_size(size // _PART)}: give fewer, or a larger stack "
            "(stack=, --stack)"
        )
