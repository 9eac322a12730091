"""What a bench has measured, row by row, and its JSON. Pure, but for `load`.

{"host": {…},
 "rows": [{"name": "page", "bytes": 4096, "unit": "us",
           "ours": {"p50": 38.1, "p99": 55.0, "n": 1500}, "floor": {…} or null, "copy": …,
           "bare": …, "host": …, "pipe": …, "socket": …, "shared_memory": …,
           "executor": …, "wasm": …, "plain": …, "cold": …,
           "unstable": ["pipe"], "note": ""}]}
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vmm.bench.samples import Samples
from vmm.errors import ConfigError
from vmm.sizes import format_size

COLUMNS = (
    *("ours", "floor", "copy", "bare", "host", "pipe", "socket", "shared_memory"),
    *("executor", "wasm", "plain", "cold"),
)
_LATER = COLUMNS[8:]  # which files of earlier benches do not have
MICROSECONDS = "us"  # per message, or per what the row's name says
RATE = "messages/s"

# Every row that there can be, and its unit.
ROW_UNITS = {
    "inline_64B": MICROSECONDS,
    "page": MICROSECONDS,
    "pingpong_page": MICROSECONDS,
    "batch64_scattered": MICROSECONDS,
    "batch64_adjacent": MICROSECONDS,
    "extent_untouched": MICROSECONDS,
    "extent_touched": MICROSECONDS,
    "extent_populated": MICROSECONDS,
    "extent_in_huge": MICROSECONDS,
    "lend_return": MICROSECONDS,
    "share": MICROSECONDS,
    "spawn_cold": MICROSECONDS,
    "close": MICROSECONDS,
    "spawn_1000": MICROSECONDS,
    "close_1000": MICROSECONDS,
    "alive_2": MICROSECONDS,
    "alive_10": MICROSECONDS,
    "alive_100": MICROSECONDS,
    "alive_1000": MICROSECONDS,
    "rate_1_worker": RATE,
    "rate_2_workers": RATE,
    # Of programs for Linux: one call, and what is there to be done in all.
    "linux_getppid": MICROSECONDS,
    "linux_read": MICROSECONDS,
    "linux_start": MICROSECONDS,
    "linux_sha256": MICROSECONDS,
    "linux_sort": MICROSECONDS,
    "linux_tree": MICROSECONDS,
    "linux_touch_small": MICROSECONDS,
    "linux_touch_huge": MICROSECONDS,
    # Of functions in a sandbox: one call, what is put back after one, an item of a pool's.
    "call_empty": MICROSECONDS,
    "call_1k_copied": MICROSECONDS,
    "call_64m": MICROSECONDS,
    "call_64m_copied": MICROSECONDS,
    "restore": MICROSECONDS,
    "call_fresh": MICROSECONDS,
    "pool_2": MICROSECONDS,
    "decoder": MICROSECONDS,
}
ROW_NAMES = tuple(ROW_UNITS)

# Of these there are several rows each, of one size after the other.
EXTENTS = ("extent_untouched", "extent_touched")
# The same, touched, of sizes between a page and a huge page: to machines that are spawned to have
# them mapped as they arrive; and in an extent of 2 MiB.
MEDIUM = ("extent_populated", "extent_in_huge")
TOUCHED = ("extent_touched", *MEDIUM)
ALIVE = ("alive_2", "alive_10", "alive_100", "alive_1000")

# One machine made and run to its first exit, or closed after it; some among so many that wait.
LIVES = ("spawn_cold", "close", "spawn_1000", "close_1000")

# What these do is more or less of the same, by their size.
COMPUTING = ("linux_sha256", "linux_sort", "linux_tree", "linux_touch_small", "linux_touch_huge")
LINUX = ("linux_getppid", "linux_read", "linux_start", *COMPUTING)
ARRAYS = ("call_64m", "call_64m_copied")
CALLS = ("call_empty", "call_1k_copied", *ARRAYS, "restore", "call_fresh", "pool_2", "decoder")


def row_label(name: str, size: int) -> str:
    """Return a row in a few words: its name, and its size where that tells it from others."""
    return f"{name} {format_size(size)}" if name in EXTENTS + MEDIUM + ALIVE else name


_FIX = "give a file that pageferry bench --json has written"
_DECIMALS = 3  # nanoseconds of a microsecond
_MOST = 16 << 20  # bytes of results: a thousand times what there are


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One kind of message of one size, in all the ways that it was sent; or what a program did.

    bytes     of a message, or of what a program works on; 0 where there is none
    unit      of all numbers: MICROSECONDS or RATE
    unstable  the columns whose rounds differed
    note      why a column, or all of the row, is missing; "" if there is nothing to say
    """

    name: str
    bytes: int
    unit: str
    ours: Samples | None = None
    floor: Samples | None = None
    copy: Samples | None = None
    bare: Samples | None = None
    host: Samples | None = None
    pipe: Samples | None = None
    socket: Samples | None = None
    shared_memory: Samples | None = None
    executor: Samples | None = None
    wasm: Samples | None = None
    plain: Samples | None = None
    cold: Samples | None = None
    unstable: tuple[str, ...] = ()
    note: str = ""

    def column(self, name: str) -> Samples | None:
        """Return the column of a name, one of COLUMNS."""
        samples: Samples | None = getattr(self, name)
        return samples

    def ratio(self, over: str, under: str) -> float | None:
        """Return a column's median divided by another's; None if either is missing."""
        a, b = self.column(over), self.column(under)
        return None if a is None or b is None or b.p50 == 0 else a.p50 / b.p50

    def as_json(self) -> dict[str, Any]:
        """Return the row's object."""
        return {
            "name": self.name,
            "bytes": self.bytes,
            "unit": self.unit,
            **{name: _samples_as_json(self.column(name)) for name in COLUMNS},
            "unstable": list(self.unstable),
            "note": self.note,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Results:
    """A whole bench: the host it was measured on (see `describe`), and the rows, in order."""

    host: dict[str, Any]
    rows: tuple[Row, ...]

    def named(self, *names: str) -> Iterator[Row]:
        """Give the rows of these names."""
        return (row for row in self.rows if row.name in names)

    def as_json(self) -> dict[str, Any]:
        """Return the object that `pageferry bench --json` writes."""
        return {"host": self.host, "rows": [row.as_json() for row in self.rows]}

    @classmethod
    def from_json(cls, value: Any) -> Results:
        """Return the results that `as_json` has returned this of.

        Raises ConfigError for anything else: what is wrong, and where in it.
        """
        fields = _object(value, "the whole", ("host", "rows"))
        host, rows = fields["host"], fields["rows"]
        if not isinstance(host, dict):
            raise _wrong("host", host, "an object")
        if not isinstance(rows, list):
            raise _wrong("rows", rows, "a list")
        return cls(host, tuple(_row(row, f"rows[{i}]") for i, row in enumerate(rows)))


def load(path: Path) -> Results:
    """Read the results of an earlier bench. Raises ConfigError if the file has none, OSError."""
    with path.open("rb") as file:
        text = file.read(_MOST + 1)
    if len(text) > _MOST:  # a device may have no end
        raise ConfigError(f"{path}: is longer than results are: {_FIX}")
    try:
        return Results.from_json(json.loads(text))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is not JSON: {error}: {_FIX}") from error


def _samples_as_json(samples: Samples | None) -> dict[str, Any] | None:
    if samples is None:
        return None
    rounded = (round(value, _DECIMALS) for value in (samples.p50, samples.p99))
    return dict(zip(("p50", "p99", "n"), (*rounded, samples.n), strict=True))


def _row(value: Any, where: str) -> Row:
    known = ("name", "bytes", "unit", *COLUMNS, "unstable", "note")
    fields = _object(value, where, known, optional=_LATER)
    name, unit, note = (_text(fields[key], f"{where}.{key}") for key in ("name", "unit", "note"))
    if name not in ROW_UNITS:
        raise _wrong(f"{where}.name", name, "the name of a row")
    if unit != ROW_UNITS[name]:
        raise _wrong(f"{where}.unit", unit, f"{ROW_UNITS[name]!r}, the unit of {name}")
    size = _count(fields["bytes"], f"{where}.bytes")
    noisy = _columns(fields["unstable"], f"{where}.unstable")
    columns = {column: _samples(fields.get(column), f"{where}.{column}") for column in COLUMNS}
    return dataclasses.replace(Row(name, size, unit, unstable=noisy, note=note), **columns)  # type: ignore[arg-type]


def _samples(value: Any, where: str) -> Samples | None:
    if value is None:
        return None
    fields = _object(value, where, ("p50", "p99", "n"))
    p50, p99 = (_number(fields[key], f"{where}.{key}") for key in ("p50", "p99"))
    return Samples(p50, p99, _count(fields["n"], f"{where}.n"))


def _columns(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(name in COLUMNS for name in value):
        raise _wrong(where, value, f"a list of some of {', '.join(COLUMNS)}")
    return tuple(value)


def _object(
    value: Any, where: str, keys: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(where, value, "an object")
    for key in keys:
        if key not in value and key not in optional:
            raise ConfigError(f"{where}: has no {key!r}: {_FIX}")
    for key in value:
        if key not in keys:
            raise ConfigError(f"{where}: has {key!r}, which is unknown: {_FIX}")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise _wrong(where, value, "a text")
    return value


def _number(value: Any, where: str) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0:
        raise _wrong(where, value, "a number that is not negative")
    return float(value)


def _count(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise _wrong(where, value, "a whole number that is not negative")
    return value


def _wrong(where: str, value: Any, wanted: str) -> ConfigError:
    shown = json.dumps(value, default=repr)
    shown = shown if len(shown) <= 40 else shown[:37] + "..."
    return ConfigError(f"{where}: {shown} is not {wanted}: {_FIX}")
