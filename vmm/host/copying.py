"""What it costs to exchange pages by moving them, and by copying: measured, once for a host.

Moved, they take three mapping calls, and a fault for each page that is filled again, as pages are
that are exchanged for fresh ones. Copied, they take one call to map the copy, a pass over the bytes
to make it, and one to clear what was copied, which is there to be filled again. Guests' faults cost
more than this process's, which are what is measured here.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vmm import __version__
from vmm.errors import ConfigError, ResourceError
from vmm.guest.abi import PAGE_SIZE
from vmm.host.cache import cache_root, content_key
from vmm.host.system import read_text
from vmm.kvm.given import opened
from vmm.memory import mapping
from vmm.memory.mapping import HUGE, Mapping

SIZES = tuple(PAGE_SIZE << power for power in range(10))  # 4 KiB to 2 MiB
_ROUNDS = 9  # of each size, of which the median counts
_HURRY_NS, _FEWER = 6_000_000, 3  # rounds that have to do, after this time
_END_NS = 25_000_000  # after which no larger size is begun


class Cost(NamedTuple):
    """What an exchange of `size` bytes takes, in microseconds."""

    size: int
    moved: float
    copied: float


def costs() -> tuple[Cost, ...]:
    """Return what exchanges cost, of each size up to the first that is not cheaper copied.

    From the user's cache, if this host has been measured before; else it takes up to 30 ms, after
    which a host that is too busy has not been measured for all sizes, and is again by the next
    process. None if the host refuses.
    """
    try:
        root = cache_root()
    except (ConfigError, OSError):  # the user has no home, or we are in no directory
        root = None
    return _costs(root)


@functools.lru_cache(maxsize=4)
def _costs(root: Path | None) -> tuple[Cost, ...]:
    path = None if root is None else root / f"exchange-{_key()}.json"
    found = () if path is None else _load(path)
    if not found:
        try:
            found = measure()
        except (OSError, ResourceError):
            return ()
        if path is not None and _whole(found):
            _save(path, found)
    return found


# ---- The cache ----


def _key() -> str:
    """Name all that the costs depend on."""
    lines = (read_text("/proc/cpuinfo") or "").splitlines()
    model = next((line for line in lines if line.startswith("model name")), "")
    return content_key(os.uname().release, model, str(os.cpu_count()), __version__)


def _load(path: Path) -> tuple[Cost, ...]:
    """Return what has been saved; nothing, if it is not what would be."""
    try:
        found = tuple(
            Cost(int(size), float(moved), float(copied))
            for size, moved, copied in json.loads(path.read_text())
        )
    except (OSError, ValueError, TypeError, OverflowError, RecursionError):
        return ()
    return found if _whole(found) else ()


def _whole(found: Sequence[Cost]) -> bool:
    """Whether each size has been measured, up to the first that is not cheaper copied."""
    if not all(0 < time < math.inf for cost in found for time in (cost.moved, cost.copied)):
        return False
    cheaper = [cost.copied < cost.moved for cost in found]
    if tuple(cost.size for cost in found) != SIZES[: len(found)] or not all(cheaper[:-1]):
        return False
    return len(found) == len(SIZES) or (bool(found) and not cheaper[-1])


def _save(path: Path, found: Sequence[Cost]) -> None:
    """Save costs for the next process, in one step; they are measured again where that fails."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".exchange-", dir=path.parent) as folder:
            new = Path(folder) / path.name
            new.write_text(json.dumps(found))
            new.replace(path)


# ---- Measuring ----


def measure() -> tuple[Cost, ...]:
    """Measure exchanges of each size, up to the first that is not cheaper copied.

    Raises OSError, ResourceError.
    """
    start = time.perf_counter_ns()
    found: list[Cost] = []
    with _Bench() as bench:
        for size in SIZES:
            bench.begin(size)
            times: list[tuple[float, float]] = []
            while len(times) < (_ROUNDS if time.perf_counter_ns() - start < _HURRY_NS else _FEWER):
                times.append((bench.move(), bench.copy()))  # what disturbs one, does both
            moved, copied = (round(statistics.median(side), 2) for side in zip(*times, strict=True))
            found.append(Cost(size, moved, copied))
            if copied >= moved or time.perf_counter_ns() - start > _END_NS:
                break
    return tuple(found)


class _Bench:
    """A sender's window, a receiver's, and a memfd with pages for one message, and fresh ones."""

    def __init__(self) -> None:
        with contextlib.ExitStack() as undo:
            file = opened(os.memfd_create, "pageferry-probe", os.MFD_CLOEXEC)
            self._fd = undo.enter_context(file).fileno()
            os.ftruncate(self._fd, 2 * HUGE)
            self._sender = undo.enter_context(Mapping.reserve(HUGE)).address
            self._receiver = undo.enter_context(Mapping.reserve(HUGE)).address
            self._undo = undo.pop_all()
        self._size = self._at = 0  # bytes, and where they are in the file

    def __enter__(self) -> _Bench:
        return self

    def __exit__(self, *exception: object) -> None:
        self._undo.close()

    def begin(self, size: int) -> None:
        """Let the sender have filled `size` bytes of pages."""
        self._size = size
        mapping.show(self._sender, size, self._fd, self._at)
        ctypes.memset(self._sender, 1, size)

    def move(self) -> float:
        """Return the microseconds of an exchange that is moved; the sender has other pages then."""
        gone, fresh = self._at, HUGE - self._at
        start = time.perf_counter_ns()
        mapping.hide(self._sender, self._size)
        mapping.show(self._sender, self._size, self._fd, fresh)
        self._at = fresh
        return self._ended(start, gone)

    def copy(self) -> float:
        """Return the microseconds of one that is copied."""
        fresh = HUGE - self._at
        start = time.perf_counter_ns()
        mapping.store(self._sender, self._size, self._fd, fresh)
        mapping.clear(self._sender, self._size)
        return self._ended(start, fresh)

    def _ended(self, start: int, gone: int) -> float:
        """Let the receiver have its pages, and the sender fill its own again; return what that and
        all before it took. The receiver's are free then.
        """
        mapping.show(self._receiver, self._size, self._fd, gone)
        ctypes.memset(self._sender, 1, self._size)
        ctypes.memset(self._receiver, 1, 1)
        took = (time.perf_counter_ns() - start) / 1000
        mapping.hide(self._receiver, self._size)
        mapping.punch(self._fd, gone, self._size)
        return took
