"""Unions of which clang passes only half: where it takes an SSE register to have a float, and
nothing after it, though another member has more there.

clang takes a union for one of its members: the first of the largest of those that are aligned most.
"""

from __future__ import annotations

from collections.abc import Callable

from vmm.sandbox.ctype import Array, CType, Float, Struct, possible, scalars


def is_halved(kind: Struct, low: int) -> bool:
    """Whether clang may lose the second half of the 8 bytes at an offset, which are in an SSE
    register. As nobody knows which structures are packed, it is so if it is with all, or with none.
    """
    used = any(at < low + 8 and at + part.size > low + 4 for at, part in scalars(kind))
    return used and (_ends(kind, low, max) or _ends(kind, low, min))


def _ends(kind: CType, low: int, which: Callable[[tuple[int, ...]], int]) -> bool:
    """Whether a type, as clang takes it, has a float at an offset, and none after it."""
    if isinstance(kind, Array):
        return 0 <= low < kind.size and _array_ends(kind, low, which)
    if not isinstance(kind, Struct):
        return isinstance(kind, Float) and kind.size == 4 and low == 0
    starts = [field.offset for field in kind.fields]
    if len(starts) > 1 and not any(starts):
        taken = max(
            (field.type for field in kind.fields),
            key=lambda each: (min(_natural(each), which(possible(each))), each.size),
        )
        return _ends(taken, low, which)
    # Members without a name are opened, and which fields were together is not known.
    floats = [at for at, part in scalars(kind) if isinstance(part, Float) and part.size == 4]
    alone = floats.count(low) > floats.count(low + 4)
    return alone and any(_ends(f.type, low - f.offset, which) for f in kind.fields)


def _array_ends(kind: Array, low: int, which: Callable[[tuple[int, ...]], int]) -> bool:
    index, within = divmod(low, kind.element.size)
    if isinstance(kind.element, Float):
        return kind.element.size == 4 and index + 1 == kind.count
    return _ends(kind.element, within, which)


def _natural(kind: CType) -> int:
    return max((part.align for _, part in scalars(kind)), default=1)
