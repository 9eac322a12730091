"""The System V calling convention for x86-64: which register has what (psABI, chapter 3.2.3).

A function's types make a Layout, once; it packs each call's arguments, and unpacks the result.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from vmm.errors import ConfigError
from vmm.sandbox.ctype import (
    CType,
    Float,
    FunctionPointer,
    Int,
    Pointer,
    Struct,
    Void,
    declare,
    round_up,
    scalars,
)
from vmm.sandbox.halves import is_halved

GENERAL, SSE = "general", "sse"  # classes of an eightbyte; a value of neither is in memory
_REGISTERS = {GENERAL: 6, SSE: 8}
_STACK_ALIGN = 16  # what a stack is aligned to at a call
_MOST_ALIGN = 4096  # of a result
MOST_STACK = 1 << 16  # bytes of arguments, or of a result


class Part(NamedTuple):
    """Where up to 8 bytes of a value are: `number` is of a register, counted per class."""

    register: str
    number: int
    offset: int
    size: int
    signed: bool = False


class Passed(NamedTuple):
    """Where an argument is: in registers, or at a byte of the stack."""

    parts: tuple[Part, ...]
    stack: int | None
    size: int


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """Where a function's arguments and its result are.

    result   the result's parts, registers being rax and rdx, xmm0 and xmm1; none if it is in memory
    hidden   bytes of memory that the caller has to have for the result, and 0 for all others. It
             needs `align`; its address is the first argument, and comes back in rax
    stack    bytes of arguments on the stack
    general, vectors   how many registers of each kind have arguments
    """

    arguments: tuple[Passed, ...]
    result: tuple[Part, ...]
    result_size: int
    hidden: int
    align: int
    stack: int
    general: int
    vectors: int

    @classmethod
    def of(cls, parameters: Iterable[tuple[str, CType]], result: CType, name: str) -> Layout:
        """Lay out a function's parameters, which have names for errors, and its result.

        Raises ConfigError for what cannot be passed: `long double`, a type that is not defined.
        """
        used = dict.fromkeys(_REGISTERS, 0)
        returned = None if isinstance(result, Void) else _classes(result, f"{name}: the result")
        hidden = 0 if returned is not None or isinstance(result, Void) else result.size
        if hidden > MOST_STACK or result.align > _MOST_ALIGN:
            raise ConfigError(f"{name}: the result is too large, or aligned to more than a page")
        used[GENERAL] = 1 if hidden else 0
        stack, arguments = 0, []
        for label, kind in parameters:
            classes = _classes(kind, f"{name}: {label}")
            parts = _parts(kind, classes, used) if classes is not None else None
            if parts is not None:
                arguments.append(Passed(parts, None, kind.size))
                continue
            if kind.align > _STACK_ALIGN:
                raise ConfigError(f"{name}: {label} is aligned to {kind.align}: pass a pointer")
            stack = round_up(stack, max(kind.align, 8))
            arguments.append(Passed((), stack, kind.size))
            stack += round_up(kind.size, 8)
            if stack > MOST_STACK:
                raise ConfigError(f"{name}: {label} is too large for the stack: pass a pointer")
        fresh = dict.fromkeys(_REGISTERS, 0)
        back = _parts(result, returned, fresh) if returned else ()
        return cls(
            tuple(arguments),
            back or (),
            result.size,
            hidden,
            result.align,
            round_up(stack, _STACK_ALIGN),
            used[GENERAL],
            used[SSE],
        )

    def pack(
        self, values: Sequence[bytes | int], result: int = 0
    ) -> tuple[list[int], list[int], bytes]:
        """Return what is in the general registers that a call uses, in SSE's (the low 8 bytes; how
        many these are a variadic function wants in al), and on the stack.

        values    each argument's bytes, or an address; result the address of the hidden memory
        """
        general, sse = [0] * self.general, [0] * self.vectors
        if self.hidden:
            general[0] = result
        stack = bytearray(self.stack)
        for passed, value in zip(self.arguments, values, strict=True):
            data = value if isinstance(value, bytes) else value.to_bytes(8, "little")
            if passed.stack is not None:
                stack[passed.stack : passed.stack + len(data)] = data
            for register, number, offset, size, signed in passed.parts:
                part = int.from_bytes(data[offset : offset + size], "little", signed=signed)
                (general if register == GENERAL else sse)[number] = part & 0xFFFF_FFFF_FFFF_FFFF
        return general, sse, bytes(stack)

    def unpack(self, rax: int, rdx: int, xmm0: int, xmm1: int, memory: bytes = b"") -> bytes:
        """Return the result's bytes, from registers or from the hidden memory."""
        if self.hidden:
            return memory[: self.hidden]
        registers = {GENERAL: (rax, rdx), SSE: (xmm0, xmm1)}
        made = bytearray(self.result_size)
        for register, number, offset, size, _ in self.result:
            part = registers[register][number].to_bytes(8, "little")
            made[offset : offset + size] = part[:size]
        return bytes(made)


def _parts(kind: CType, classes: list[str | None], used: dict[str, int]) -> tuple[Part, ...] | None:
    """Return the registers of a value, None if there are too few left for all of it."""
    after = {name: used[name] + classes.count(name) for name in used}
    if any(after[name] > most for name, most in _REGISTERS.items()):
        return None
    signed, parts = isinstance(kind, Int) and kind.signed, []
    for index, name in enumerate(classes):
        if name is not None:
            size = min(8, kind.size - 8 * index)
            parts.append(Part(name, used[name], 8 * index, size, signed))
            used[name] += 1
    return tuple(parts)


def _classes(kind: CType, what: str) -> list[str | None] | None:
    """Return the class of each eightbyte of a value (None: nothing is in it), or None if it is
    passed in memory. Raises ConfigError if it cannot be passed.
    """
    if not isinstance(kind, Int | Float | Pointer | FunctionPointer | Struct):
        why = getattr(kind, "why", "is no value")
        raise ConfigError(f"{what}: {declare(kind)} {why}: it cannot be passed")
    if isinstance(kind, Struct) and kind.atomic:
        raise ConfigError(
            f"{what}: {declare(kind)} is atomic, or has atomic members: compilers differ on where"
            " it is passed: pass a pointer"
        )
    classes: list[str | None] = [None] * (round_up(kind.size, 8) // 8)
    in_memory = kind.size > 16
    for offset, part in _distinct(kind):
        if not isinstance(part, Int | Float | Pointer | FunctionPointer) or part.size > 8:
            raise ConfigError(f"{what}: {declare(part)} cannot be passed by value")
        if in_memory or offset % part.align:
            if not in_memory and isinstance(kind, Struct) and kind.loose:
                raise ConfigError(
                    f"{what}: {declare(kind)} has members that are aligned to less than their size:"
                    " compilers differ on where it is passed: pass a pointer"
                )
            in_memory = True
            continue
        index = offset // 8
        if isinstance(part, Float):
            classes[index] = classes[index] or SSE
        else:
            classes[index] = GENERAL
    if in_memory:
        return None
    if isinstance(kind, Struct) and any(
        name == SSE and is_halved(kind, 8 * index) for index, name in enumerate(classes)
    ):
        raise ConfigError(
            f"{what}: {declare(kind)} has a float where another member of a union has more:"
            " compilers differ on what is passed: pass a pointer"
        )
    return classes


def _distinct(kind: CType) -> Iterable[tuple[int, CType]]:
    return scalars(kind) if isinstance(kind, Struct) else ((0, kind),)
