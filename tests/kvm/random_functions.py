"""C functions with random prototypes, which say by their results what they were given."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

Kind = Any  # a type of ctypes'

NUMBERS: dict[str, Kind] = {
    **{
        f"{sign}int{bits}_t": getattr(ctypes, f"c_{sign}int{bits}")
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
    "float": ctypes.c_float,
    "double": ctypes.c_double,
    "_Bool": ctypes.c_bool,
}
FLOATS = (ctypes.c_float, ctypes.c_double)
HEAD = """#include <stdint.h>
static inline uint64_t mixed(uint64_t sum, uint64_t bits) { return (sum ^ bits) * 1099511628211u; }
static inline uint64_t bits(double value) { uint64_t n; __builtin_memcpy(&n, &value, 8); return n; }
"""


class Taken(NamedTuple):
    """A parameter: how C calls its type, and how many there are behind a pointer (0: a value)."""

    name: str
    kind: Kind
    count: int = 0
    const: bool = False

    def declared(self, index: int) -> str:
        if not self.count:
            return f"{self.name} a{index}"
        return f"{'const ' * self.const}{self.name} *a{index}"


class Made(NamedTuple):
    """A function. `result` is None for void."""

    name: str
    taken: list[Taken]
    result: Taken | None


class Library:
    """Random functions; `source` has them, and `caller` calls each by pointers to its arguments, as
    a C compiler does: what ctypes makes of unions is not C's.
    """

    def __init__(self, seed: int, count: int) -> None:
        self.random = random.Random(seed)
        self._types, self._code, self._calls = list[str](), list[str](), list[str]()
        self._kinds: dict[str, Kind] = {}
        for number in range(10):
            self._structure(f"S{number}")
        self.functions = [self._function(f"f{number}") for number in range(count)]

    @property
    def source(self) -> str:
        return HEAD + "\n".join([*self._types, *self._code, ""])

    @property
    def caller(self) -> str:
        return HEAD + "\n".join([*self._types, *self._calls, ""])

    def _structure(self, name: str) -> None:
        choose, fields, lines = self.random, list[tuple[str, Kind]](), list[str]()
        for number in range(choose.randint(1, 5)):
            known = self._kinds if self._kinds and choose.random() < 0.2 else NUMBERS
            inner, kind = choose.choice([*known.items()])
            count = choose.randint(1, 3) if choose.random() < 0.2 else 0
            fields.append((f"m{number}", kind * count if count else kind))
            lines.append(f"{inner} m{number}{f'[{count}]' if count else ''};")
        packed, union = choose.random() < 0.15, choose.random() < 0.2
        said: dict[str, Any] = {"_pack_": 1} if packed else {}
        base = ctypes.Union if union else ctypes.Structure
        self._kinds[name] = type(name, (base,), {**said, "_fields_": fields})
        how = "__attribute__((packed)) " * packed
        self._types.append(
            f"typedef {'union' if union else 'struct'} {name} {{ {' '.join(lines)} }} {how}{name};"
        )

    def _function(self, name: str) -> Made:
        choose = self.random
        several = choose.choice([NUMBERS, NUMBERS, {"double": ctypes.c_double}])  # of one class
        count = choose.choice([0, 1, 2, 3, 5, 8, 12, 20])
        taken = [self._parameter(several) for _ in range(count)]
        body = ["uint64_t sum = 1;"]
        for index, one in enumerate(taken):
            if one.count:
                each = f"for (int i = 0; i < {one.count}; i++) "
                body.append(f"{each}sum = mixed(sum, {_bits(one.kind, f'a{index}[i]')});")
                body += [] if one.const else [f"{each}a{index}[i] += ({one.name})(i + 1);"]
            else:
                body += [f"sum = mixed(sum, {_bits(*e)});" for e in leaves(one.kind, f"a{index}")]
        every = {"void": None, **NUMBERS, **self._kinds}
        result_name, kind = choose.choice([*every.items()])
        result = None if kind is None else Taken(result_name, kind)
        if result is not None:
            body.append(f"{result_name} r = {{0}};")
            for shift, (_, part) in enumerate(leaves(kind, "r")):
                body.append(f"{part} = (sum >> {shift % 20}) & 0x7f;")
            body.append("return r;")
        said = ", ".join(one.declared(index) for index, one in enumerate(taken)) or "void"
        self._code.append(f"{result_name} {name}({said}) {{ {' '.join(body)} }}")
        given = ", ".join(
            f"a[{index}]" if one.count else f"*({one.name} *)a[{index}]"
            for index, one in enumerate(taken)
        )
        into = "" if result is None else f"*({result_name} *)r = "
        self._calls.append(f"{result_name} {name}({said});")
        self._calls.append(f"void by_{name}(void **a, void *r) {{ {into}{name}({given}); }}")
        return Made(name, taken, result)

    def _parameter(self, several: dict[str, Kind]) -> Taken:
        choose = self.random
        if choose.random() < 0.2:
            name, kind = choose.choice([item for item in NUMBERS.items() if item[0] != "_Bool"])
            count = choose.randint(1, choose.choice([3, 40, 900]))
            return Taken(name, kind, count, choose.random() < 0.5)
        known = self._kinds if choose.random() < 0.4 else several
        return Taken(*choose.choice([*known.items()]))

    def value(self, kind: Kind) -> Any:
        """Return a random value, an instance of the type."""
        choose, value = self.random, kind()
        if issubclass(kind, ctypes.Array):
            return kind(*(self.value(kind._type_) for _ in range(kind._length_)))
        if not issubclass(kind, ctypes.Structure | ctypes.Union):
            size = 8 * ctypes.sizeof(kind)
            low = -(1 << size - 1) if kind(-1).value < 0 else 0
            if kind in FLOATS:
                return kind(choose.choice([0.0, -0.0, 1.5, float("inf"), choose.uniform(-9, 9)]))
            return kind(
                choose.choice([low, low + (1 << size) - 1, 1, low + choose.getrandbits(size)])
            )
        for name, inner in members(kind):
            setattr(value, name, self.value(inner))
        return value


def members(kind: Kind) -> list[tuple[str, Kind]]:
    """Return the fields of a structure; of a union the largest."""
    if issubclass(kind, ctypes.Union):
        return [max(kind._fields_, key=lambda field: ctypes.sizeof(field[1]))]
    return list(kind._fields_)


def leaves(kind: Kind, path: str) -> Iterator[tuple[Kind, str]]:
    """Yield the numbers that a type consists of, and how C names them."""
    if issubclass(kind, ctypes.Array):
        for index in range(kind._length_):
            yield from leaves(kind._type_, f"{path}[{index}]")
    elif issubclass(kind, ctypes.Structure | ctypes.Union):
        for name, inner in members(kind):
            yield from leaves(inner, f"{path}.{name}")
    else:
        yield kind, path


def numbers(kind: Kind, value: Any) -> list[float]:
    """Return those of a value, of ctypes' or as a sandbox's function returns it."""
    if issubclass(kind, ctypes.Array):
        return [n for index in range(kind._length_) for n in numbers(kind._type_, value[index])]
    if issubclass(kind, ctypes.Structure | ctypes.Union):
        parts = ((inner, getattr(value, name)) for name, inner in members(kind))
        return [n for inner, part in parts for n in numbers(inner, part)]
    return [getattr(value, "value", value)]


def _bits(kind: Kind, path: str) -> str:
    return f"bits({path})" if kind in FLOATS else f"(uint64_t){path}"
