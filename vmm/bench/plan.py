"""Which rows a bench has, how much is measured for each, and the rounds that measure one.

The columns of a row take turns, round by round, so that a host that becomes slower, or busier,
becomes so for all of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from vmm.bench.results import (
    ALIVE,
    ARRAYS,
    COLUMNS,
    COMPUTING,
    EXTENTS,
    LIVES,
    MEDIUM,
    RATE,
    ROW_NAMES,
    ROW_UNITS,
    Row,
    row_label,
)
from vmm.bench.samples import merge, unstable
from vmm.guest.abi import PAGE_SIZE
from vmm.host import memory_available
from vmm.memory.mapping import HUGE
from vmm.sizes import format_size

Column = Callable[[], Sequence[float]]  # one round's numbers, in the row's unit

_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30
_MEDIUM = 64 * _KIB
_QUICK_SIZES = (4 * _KIB, 256 * _KIB, 2 * _MIB, 16 * _MIB, 128 * _MIB)
_LANE_SIZES = (4 * _KIB, 256 * _KIB, 2 * _MIB, 16 * _MIB)
_FULL_SIZES = (
    *(4 * _KIB, 16 * _KIB, 64 * _KIB, 256 * _KIB),
    *(1 * _MIB, 2 * _MIB, 4 * _MIB, 16 * _MIB, 64 * _MIB, 128 * _MIB, 256 * _MIB),
    1 * _GIB,
)
_BYTES = {
    **{"inline_64B": 64, "rate_1_worker": 64, "rate_2_workers": 64, **dict.fromkeys(LIVES, 0)},
    **{"linux_getppid": 0, "linux_read": 64 * _KIB, "linux_start": 0},
    **{"linux_sha256": 256 * _MIB, "linux_sort": 40_000_000, "linux_tree": 8_000_000},
    **{"linux_touch_small": 256 * _MIB, "linux_touch_huge": 256 * _MIB},
    **{"call_empty": 0, "call_1k_copied": _KIB, "decoder": 0},
    **{"call_64m": 64 * _MIB, "call_64m_copied": 64 * _MIB},
    **{"restore": 64 * PAGE_SIZE, "call_fresh": 64 * PAGE_SIZE, "pool_2": 0},
}

# Who measures has the message, who receives it has one, and what is between them another; some
# ways take memory anew while the former is still there.
_COPIES = 5
_SPARE = 256 * _MIB


class Unavailable(Exception):
    """A column that cannot be measured here. The text says why, in a few words."""


@dataclasses.dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured.

    rounds   of each column
    budget   the bytes that a column may send in a round, as long as that is `least` messages
    most     messages in a round
    seconds  of a round of a rate
    part     of what a program has to compute, one in so many bytes
    """

    rounds: int
    budget: int
    least: int
    most: int
    seconds: float
    sizes: tuple[int, ...]
    part: int = 1

    def samples(self, size: int) -> int:
        """Return how many messages of a size are measured in a round."""
        return max(self.least, min(self.most, self.budget // max(1, size)))


QUICK = Effort(3, 256 * _MIB, 3, 300, 0.2, _QUICK_SIZES, 8)
QUICK_IN_LANE = Effort(
    3, 8 * _MIB, 3, 30, 0.2, _LANE_SIZES, 64
)  # which has little memory, and time
FULL = Effort(5, 512 * _MIB, 3, 1000, 0.5, _FULL_SIZES)


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """What a row measures: its name, a message's bytes, and how much of it in a round."""

    name: str
    bytes: int
    samples: int
    seconds: float

    @property
    def unit(self) -> str:
        """The unit of the row's numbers."""
        return ROW_UNITS[self.name]

    @property
    def label(self) -> str:
        """The row in a few words."""
        return row_label(self.name, self.bytes)

    @property
    def memory(self) -> int:
        """The bytes of memory that must be available for it."""
        large = self.name in EXTENTS + COMPUTING + ARRAYS
        return self.bytes * _COPIES + _SPARE if large else 0


class Bench(Protocol):
    """One row, ready to be measured.

    columns()  by their names, some of COLUMNS: each call of one is a round; it may raise
               Unavailable
    close()    ends what measuring has begun, whether it has or not
    """

    @property
    def case(self) -> Case: ...

    def columns(self) -> Mapping[str, Column]: ...

    def close(self) -> None: ...


# Who can measure some columns of a row. What has to be ended after the row goes on the stack.
Source = Callable[[Case, contextlib.ExitStack], Mapping[str, Column]]


class Composed:
    """A row whose columns come from several sources."""

    def __init__(self, case: Case, sources: Iterable[Source]) -> None:
        self.case = case
        self._sources = tuple(sources)
        self._stack = contextlib.ExitStack()

    def columns(self) -> Mapping[str, Column]:
        found: dict[str, Column] = {}
        for source in self._sources:
            found.update(source(self.case, self._stack))
        return {name: found[name] for name in COLUMNS if name in found}

    def close(self) -> None:
        self._stack.close()


def cases(effort: Effort, names: Iterable[str] = ROW_NAMES) -> Iterator[Case]:
    """Give the cases of the rows with these names, in the order of ROW_NAMES."""
    wanted = set(names)
    for name in ROW_NAMES:
        if name not in wanted:
            continue
        sizes = effort.sizes if name in EXTENTS else (_BYTES.get(name, PAGE_SIZE),)
        if name in MEDIUM:
            sizes = tuple(size for size in effort.sizes if _MEDIUM <= size < HUGE)
        if name in ALIVE:
            sizes = (64, PAGE_SIZE)  # an inline message, and a page
        if name in COMPUTING:
            sizes = (_BYTES[name] // effort.part,)
        if name in ARRAYS:
            sizes = (min(_BYTES[name], max(effort.sizes)),)
        for size in sizes:
            seconds = effort.seconds if ROW_UNITS[name] == RATE else 0.0
            yield Case(name, size, effort.samples(size), seconds)


def measure(
    bench: Bench,
    rounds: int,
    tell: Callable[[], None] = lambda: None,
    available: Callable[[], int] = memory_available,
) -> Row:
    """Measure a row and close it. `tell` is called before every column of every round."""
    case = bench.case
    kept: dict[str, list[Sequence[float]]] = {}
    missing: dict[str, str] = {}
    try:
        if (free := available()) < case.memory:
            needed = f"{format_size(case.memory)} of memory needed, {format_size(free)} available"
            return Row(case.name, case.bytes, case.unit, note=f"left out: {needed}")
        columns = dict(bench.columns())
        for _ in range(rounds):
            for name in [name for name in columns if name not in missing]:
                tell()
                try:
                    kept.setdefault(name, []).append(columns[name]())
                except Unavailable as why:
                    missing[name] = str(why)
    finally:
        bench.close()
    return _row(case, {name: kept[name] for name in kept if name not in missing}, missing)


def _row(case: Case, kept: Mapping[str, list[Sequence[float]]], missing: Mapping[str, str]) -> Row:
    by_reason: dict[str, list[str]] = {}
    for name, why in missing.items():
        by_reason.setdefault(why, []).append(name)
    return Row(
        case.name,
        case.bytes,
        case.unit,
        **{name: merge(numbers) for name, numbers in kept.items()},
        unstable=tuple(name for name in COLUMNS if name in kept and unstable(kept[name])),
        note="; ".join(f"{', '.join(names)}: {why}" for why, names in by_reason.items()),
    )
