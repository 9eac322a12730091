"""Calls of functions that take and return numbers only: the message in one step, prepared.

What this says is what the general way says (`Prototype.bind`, `Layout.pack`, `request.asked`, and
back), a third as dear. It takes Python's own numbers that fit; all else, and whatever is wrong, it
leaves to the general way.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable, Sequence
from typing import Any

from vmm.sandbox import request
from vmm.sandbox.ctype import CType, Float, Int, Void
from vmm.sandbox.request import Words
from vmm.sandbox.sysv import SSE, Layout

_INTS = {1: "b", 2: "h", 4: "i", 8: "q"}  # in struct's words; unsigned ones are capitals
_FLOATS = {4: "f", 8: "d"}
_WHOLE = frozenset({int, bool})
_XMM0 = 16  # where it is in an answer


class Plain:
    """One function's calls. Thread-safety: a value.

    result    returns the Python value of an answer's payload
    """

    __slots__ = ("_bounds", "_count", "_head", "_order", "_pack", "result")

    def __init__(self, types: Sequence[Int | Float], result: CType, layout: Layout) -> None:
        """See `of`."""
        self._count = len(types)
        self._bounds = [
            (kind.lowest, kind.highest) if isinstance(kind, Int) else None for kind in types
        ]
        places = [passed.parts[0] for passed in layout.arguments]
        order = sorted(
            range(len(types)), key=lambda index: (places[index].register == SSE, places[index])
        )
        # Of fewer than two it would make no tuple; as a rule they are in order anyway.
        self._order = None if order == sorted(order) else operator.itemgetter(*order)
        words = Words(0, [0] * layout.general, [0] * layout.vectors, ())
        message = request.asked(words, request.laid_out(words, ())).payload
        self._head = message[8 : len(message) - 8 * len(types)]  # behind the function's address
        codes = "".join(_word(types[index]) for index in order)
        self._pack = struct.Struct(f"<Q{len(self._head)}s{codes}").pack
        self.result = _result(result)

    @classmethod
    def of(cls, types: Sequence[CType], result: CType, layout: Layout) -> Plain | None:
        """Prepare a function's calls. None if they are not plain: each argument is to be a number,
        in a register, and the result one, or nothing.
        """
        numbers = [kind for kind in types if _is_number(kind)]
        plain = len(numbers) == len(types) and not layout.stack
        if not plain or not (isinstance(result, Void) or _is_number(result)):
            return None
        return cls(numbers, result, layout)  # type: ignore[arg-type]

    def payload(self, function: int, args: Sequence[Any]) -> bytes | None:
        """Return what asks for a call of the function at an address of the machine's; None if the
        general way is to look at the arguments.
        """
        if len(args) != self._count:
            return None
        for value, known in zip(args, self._bounds):  # noqa: B905 (they are as many)
            if known is None:
                if type(value) is not float:
                    return None
            elif type(value) not in _WHOLE or not known[0] <= value <= known[1]:
                return None
        if self._order is not None:
            args = self._order(args)
        try:
            return self._pack(function, self._head, *args)
        except OverflowError:  # a double that is no float
            return None


def _is_number(kind: CType) -> bool:
    return (isinstance(kind, Int) and kind.size in _INTS) or (
        isinstance(kind, Float) and kind.size in _FLOATS
    )


def _word(kind: Int | Float) -> str:
    """Return how a number is in a register: whole ones as wide as that."""
    if isinstance(kind, Float):
        return f"{_FLOATS[kind.size]}{8 - kind.size}x"
    return "q" if kind.signed else "Q"


def _result(kind: CType) -> Callable[[bytes], Any]:
    if isinstance(kind, Void):
        return _nothing
    if isinstance(kind, Float):
        found = struct.Struct(f"<{_XMM0}x{_FLOATS[kind.size]}")
    elif isinstance(kind, Int) and kind.kind == "char":
        found = struct.Struct("<c")
    elif isinstance(kind, Int) and kind.kind == "bool" and kind.size == 1:
        found = struct.Struct("<?")
    else:
        assert isinstance(kind, Int)
        code = _INTS[kind.size]
        found = struct.Struct(f"<{code if kind.signed else code.upper()}")
    unpack = found.unpack_from

    def value(payload: bytes) -> Any:
        return unpack(payload)[0]

    return value


def _nothing(payload: bytes) -> None:
    return None
