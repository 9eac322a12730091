"""System calls as text: what was asked for, with which arguments, and what was answered."""

from __future__ import annotations

import errno

from vmm.linux.calls import CALLS
from vmm.linux.numbers import name_of

Record = tuple[int, tuple[int, ...], int | None]
"""A call: its number, its six arguments, and the answer; None if it had none."""

_SIGNED = {"Int", "Fd"}


def described(record: Record) -> str:
    """Return a call as strace(1) would have it, but for what pointers point to."""
    number, words, answer = record
    call = CALLS.get(number)
    if call is None:
        return f"{name_of(number)}({', '.join(map(hex, words[:6]))}) = {_result(answer)}"
    parts = [_argument(kind, word) for (_, kind), word in zip(call.arguments, words, strict=False)]
    return f"{call.name}({', '.join(parts)}) = {_result(answer)}"


def _argument(kind: str, word: int) -> str:
    if kind in _SIGNED:
        word &= 0xFFFFFFFF
        return str(word - (1 << 32) if word >> 31 else word)
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
