"""What peers can really reach, looked at from outside: the process's mappings, KVM's slots."""

from __future__ import annotations

import ctypes
import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import groupby, islice
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from vmm import Monitor
from vmm.ferry.peer import Peer
from vmm.ferry.rules import READABLE, WRITABLE
from vmm.guest.abi import PAGE_SIZE
from vmm.memory.movers import MOVERS, MappedWindow, RemapWindow, SlotsWindow, Window
from vmm.memory.movers.park import Park
from vmm.memory.pool import PagePool

_ZEROS = bytes(PAGE_SIZE)


class Line(NamedTuple):
    """A mapping that something can be seen through; `first` is the file's first page in it."""

    low: int
    high: int
    permissions: str
    first: int
    text: str


class View(NamedTuple):
    """Adjacent pages of a window, and the frames that are seen there."""

    page: int
    pages: int
    frame: int
    writable: bool


def mappings() -> list[Line]:
    """Return this process's mappings, in order, but for those that nothing can be seen through."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in map(_line, lines) if line is not None]


@lru_cache(1 << 12)  # from look to look most are the same
def _line(text: str) -> Line | None:
    addresses, permissions, offset, _ = text.split(maxsplit=3)
    if permissions == "---p":
        return None
    low, high = (int(part, 16) for part in addresses.split("-"))
    return Line(low, high, permissions, int(offset, 16) // PAGE_SIZE, text)


def views(window: Window, lines: Sequence[Line]) -> list[View]:
    """Return what the kernel shows in a window, in order; `lines` are in order, too."""
    if isinstance(window, SlotsWindow):
        slots = sorted(window._slots.values())
        return _joined(View(s.page, s.pages, s.frame, s.writable) for s in slots)
    assert isinstance(window, MappedWindow)
    start, end = window.mapping.address, window.mapping.address + window.mapping.size
    found = []
    first_in = bisect_right(lines, start, key=attrgetter("high"))
    for low, high, permissions, first, text in islice(lines, first_in, None):
        if low >= end:
            break
        page, pages = (low - start) // PAGE_SIZE, (high - low) // PAGE_SIZE
        if permissions[3] == "p":
            found += _anonymous(window, page, pages, permissions)
            continue
        assert "pageferry-pool" in text, f"a window shows something else: {text}"
        assert permissions in ("rw-s", "r--s"), text
        found += [
            View(page + at, count, first + at, permissions == "rw-s")
            for at, count in unguarded(low, pages)
        ]
    return _joined(found)


def unguarded(address: int, pages: int) -> list[tuple[int, int]]:
    """Return which of so many pages are not guarded, as runs: an entry's bit 58 says that one is
    (the kernel's admin-guide/mm/pagemap), since there are guards of files.
    """
    with Path("/proc/self/pagemap").open("rb", buffering=0) as file:
        file.seek(address // PAGE_SIZE * 8)
        marks = [byte >> 2 & 1 for byte in file.read(8 * pages)[7::8]]
    assert len(marks) == pages
    found = []
    for marked, run in groupby(range(pages), key=marks.__getitem__):
        places = list(run)
        if not marked:
            found.append((places[0], len(places)))
    return found


def _anonymous(window: Window, page: int, pages: int, permissions: str) -> list[View]:
    """Return what a mapping of anonymous memory shows, as its window says: the kernel does not.

    In the host's window memory of nobody's is wherever there is nothing else.
    """
    ground = isinstance(window, MappedWindow) and window.views is not None
    if ground and not isinstance(window, RemapWindow):
        return []
    assert isinstance(window, RemapWindow), "a window shows anonymous memory"
    assert permissions in ("rw-p", "r--p"), permissions
    runs = window._shown.within(page, pages)
    if ground and not runs:
        return []
    shown = sum(run.pages for run in runs)
    assert shown == pages or (ground and shown < pages), "a window shows more than it knows of"
    assert {run.hold in WRITABLE for run in runs} == {permissions == "rw-p"}
    for run in runs:
        for part in window._park.lodgings.within(run.frame, run.pages):
            here = part.page - part.frame == run.page - run.frame
            assert (part.window, here) == (window, True), "a frame is not where it is shown"
    return [View(run.page, run.pages, run.frame, run.hold in WRITABLE) for run in runs]


def huge(start: int, size: int) -> int:
    """Return how many pages are huge pages' of mappings that begin in this range (smaps)."""
    end, found, inside = start + size, 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = start <= int(bounds[1], 16) < end
        elif inside and line.startswith("AnonHugePages:"):
            found += int(line.split()[1]) * 1024 // PAGE_SIZE
    return found


def is_anonymous(pool: PagePool, frame: int) -> bool:
    """Whether a frame's memory is its own, and not the memfd's."""
    return isinstance(pool, Park) and any(p.anonymous for p in pool.lodgings.within(frame, 1))


def content(pool: PagePool, frame: int, length: int = PAGE_SIZE) -> bytes:
    """Return the beginning of a frame, wherever its memory is."""
    if isinstance(pool, Park):
        if is_anonymous(pool, frame):
            (part,) = pool.lodgings.within(frame, 1)
            return ctypes.string_at(pool.memory(part), length)
        assert ctypes.string_at(pool.home(frame), PAGE_SIZE) == _ZEROS, "something is at home"
    return os.pread(pool.fd, length, frame * PAGE_SIZE)


def _joined(parts: Iterable[View]) -> list[View]:
    found: list[View] = []
    for part in parts:
        if found and found[-1][0] + found[-1][1] == part.page:
            last = found[-1]
            if (last.frame + last.pages, last.writable) == (part.frame, part.writable):
                found[-1] = last._replace(pages=last.pages + part.pages)
                continue
        found.append(part)
    return found


def allowed(monitor: Monitor, peer: Peer) -> list[View]:
    """Return what the ledger says that a peer can see: nothing, if it is dead."""
    if not peer.alive:
        return []
    runs = monitor._exchange.ledger.window(peer.number)
    return _joined(
        View(run.page, run.pages, run.frame, run.hold in WRITABLE)
        for run in runs
        if run.hold in READABLE
    )


def check(monitor: Monitor) -> dict[int, list[View]]:
    """Assert that every peer reaches what the ledger says, as it says, and nothing else.

    Return what it reaches, by peer; of one whose end is under way it makes no difference.
    """
    if monitor._turns.inside:
        monitor._exchange.ledger.audit()
    else:  # also what a turn that was cut off has left to do
        monitor.audit()
    if monitor.mover not in MOVERS:  # one that copies
        return {}
    with monitor._turns.lock:  # other threads may be at work
        lines = mappings()
        seen = {}
        for peer in (monitor.host.peer, *(m.peer for m in monitor.machines.values())):
            if not peer.alive and monitor._exchange.roster.get(peer.number) is peer:
                continue  # its death is not over
            now = views(peer.window, lines)
            assert now == allowed(monitor, peer), f"{peer} reaches what it should not, or does not"
            seen[peer.number] = now
        return seen
