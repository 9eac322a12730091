"""What this process is like: its memory, its interpreter. Afterwards nothing may have grown."""

from __future__ import annotations

import asyncio
import gc
import sys
from pathlib import Path
from typing import NamedTuple

_TASKS = Path("/proc/self/task")


class Health(NamedTuple):
    """What is counted.

    resident    KiB of memory that is this process's own (VmRSS, without what is shared)
    shared      KiB of what its memfds have
    mappings    of any kind
    objects     that the garbage collector knows
    blocks      of Python's memory
    children    processes
    """

    resident: int
    shared: int
    mappings: int
    objects: int
    blocks: int
    children: int

    def growth(self, before: Health) -> Health:
        """Return by how much each is more than it was."""
        return Health(*(mine - other for mine, other in zip(self, before, strict=True)))


# What may come and go for reasons of Python's own, or the C library's: caches, heaps of threads.
# A leak of anything for each call, or each machine, is more by far.
MOST = Health(resident=8 << 10, shared=64, mappings=40, objects=400, blocks=1500, children=0)


def look() -> Health:
    """Return what there is, of what is not garbage."""
    while gc.collect():
        pass
    return Health(
        _status("RssAnon"),
        _memfds(),
        len(Path("/proc/self/maps").read_text().splitlines()),
        len(gc.get_objects()),
        sys.getallocatedblocks(),
        sum(len((task / "children").read_text().split()) for task in _TASKS.iterdir()),
    )


def check(before: Health) -> None:
    """Check that nothing has grown, and that the interpreter works."""
    growth = look().growth(before)
    print(growth)
    over = {
        name: f"{getattr(growth, name)} more, of {getattr(before, name)}"
        for name in Health._fields
        if getattr(growth, name) > getattr(MOST, name)
    }
    assert not over, over
    assert not gc.garbage
    assert gc.isenabled()
    assert sys.gettrace() is None
    assert asyncio.run(asyncio.to_thread(sum, range(10))) == 45


def _status(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:"))


def _memfds() -> int:
    """Return what is behind the memfds that are open, each once."""
    found: dict[int, int] = {}
    for path in Path("/proc/self/fd").iterdir():
        try:
            if str(path.readlink()).startswith("/memfd:"):
                stat = path.stat()
                found[stat.st_ino] = stat.st_blocks * 512 // 1024
        except FileNotFoundError:  # the descriptor of this very listing
            continue
    return sum(found.values())
