"""System calls as text: what was asked for, with which arguments, and what was answered."""

from __future__ import annotations

import errno

from vmm.guest.text import decoded
from vmm.linux.calls import CALLS
from vmm.linux.numbers import name_of

Record = tuple[int, tuple[int | bytes, ...], int | None]
"""A call: its number, its six arguments, and the answer; None if it had none. A path is there in
the place of the pointer to it, as far as it could be read.
"""

_SIGNED = {"Int", "Fd"}
_MOST_PATH = 120  # characters of it that are shown
_AT_FDCWD = -100


def described(record: Record) -> str:
    """Return a call as strace(1) would have it, but for what pointers to others than paths point
    to.
    """
    number, words, answer = record
    call = CALLS.get(number)
    if call is None:
        return f"{name_of(number)}({', '.join(map(_plain, words[:6]))}) = {_result(answer)}"
    parts = [_argument(kind, word) for (_, kind), word in zip(call.arguments, words, strict=False)]
    return f"{call.name}({', '.join(parts)}) = {_result(answer)}"


def _plain(word: int | bytes) -> str:
    return _quoted(word) if isinstance(word, bytes) else hex(word)


def _quoted(path: bytes) -> str:
    text = decoded(path, _MOST_PATH).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _argument(kind: str, word: int | bytes) -> str:
    if isinstance(word, bytes):
        return _quoted(word)
    if kind in _SIGNED:
        word &= 0xFFFFFFFF
        number = word - (1 << 32) if word >> 31 else word
        return "AT_FDCWD" if kind == "Fd" and number == _AT_FDCWD else str(number)
    if kind == "Long":
        return str(word - (1 << 64) if word >> 63 else word)
    if kind in ("Address", "PathName"):
        return hex(word) if word else "NULL"
    return str(word) if word < 1 << 16 else hex(word)


def _result(answer: int | None) -> str:
    if answer is None:
        return "?"
    if -4096 < answer < 0:
        name = errno.errorcode.get(-answer, str(answer))
        return f"-1 {name}"
    return str(answer) if answer < 1 << 16 else hex(answer)
