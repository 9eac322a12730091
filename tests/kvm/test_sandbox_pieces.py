"""Calls with very many arrays, and with arrays that lie in very many pieces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vmm import Buffer, GuestError, Machine, Sandbox, Status
from vmm.ferry.checks import RUNS_MAX
from vmm.guest.abi import EXTENTS_MAX, PAGE_SIZE

Elf = Callable[[str], Path]

PIECES = 100  # of each array
MANY = 250  # arrays


def crumble(lib: Sandbox, other: Machine, frames: int) -> Buffer:
    """Leave only so many frames free, no two of them adjacent: what is between them is another
    machine's. Return what has the rest.
    """
    buffers = [lib.alloc(PAGE_SIZE) for _ in range(2 * frames)]
    rest = lib.alloc(lib.monitor.audit()["free"] * PAGE_SIZE)
    for buffer in buffers[::2]:
        lib.monitor.host.release(buffer)
    for start in range(1, len(buffers), 2 * EXTENTS_MAX):
        lib.monitor.host.send(other, *buffers[start : start + 2 * EXTENTS_MAX : 2])
        with lib.monitor._turns.lock, lib.monitor._turns.change:
            lib.monitor._exchange.take(other.peer)  # so that the places are the host's again
    return rest


def borrower(lib: Sandbox, sandboxed: Elf) -> Machine:
    """Return a machine that takes what it is given, and does not run."""
    return lib.monitor.spawn(sandboxed("pieces"), name="borrower", window="64M", memory="32M")


def pieces(lib: Sandbox, buffer: Any) -> int:
    ledger, host = lib.monitor._exchange.ledger, lib.monitor.host.peer.number
    return len(ledger.runs(host, buffer.extent))


def test_arrays_in_many_pieces_are_shared_by_several_messages(sandboxed: Elf) -> None:
    with Sandbox(sandboxed("pieces"), pool="8M", timeout=20) as lib:
        lib.mixes(b"", b"", bytearray(), bytearray(), 0, bytearray(500))  # there is memory for it
        rest = crumble(lib, borrower(lib, sandboxed), 4 * PIECES + 2)
        arrays = [lib.alloc(PIECES * PAGE_SIZE) for _ in range(4)]
        assert all(pieces(lib, array) > RUNS_MAX // 2 for array in arrays)
        for array in arrays:
            array.write(b"\1" * len(array))
        size = PIECES * PAGE_SIZE
        before = lib.monitor.audit(mappings=True)
        for _ in range(3):
            # Two to be read, two to be written, and something that is copied.
            assert lib.mixes(arrays[0], arrays[1], arrays[2], arrays[3], size, bytearray(500)) == (
                2 * size
            )
        assert all(bytes(array) == b"\1" * size for array in arrays[:2])
        assert all(bytes(array) == b"\4" * size for array in arrays[2:])
        assert lib.one() == 1  # which is given none of them
        assert lib.monitor.audit(mappings=True) == before
        assert sorted(lib.monitor.machines) == ["borrower", "pieces-1"]
        lib.monitor.host.release(rest)


def test_very_many_arrays_are_shared(sandboxed: Elf) -> None:
    with Sandbox(sandboxed("pieces"), pool="16M", timeout=20, audit=True) as lib:
        # No two adjacent: what is between them is not shared.
        arrays = [lib.alloc(10) for n in range(2 * MANY)][::2]
        for number, array in enumerate(arrays):
            array.write(bytes([number]) * 10)
        lib.next_of_each(*arrays)
        for number, array in enumerate(arrays):
            assert bytes(array) == bytes([number + 1]) * 10
        lib.monitor.audit(mappings=True)


def test_one_array_that_is_shared_in_too_many_pieces_is_refused_in_words(sandboxed: Elf) -> None:
    with Sandbox(sandboxed("pieces"), pool="16M", timeout=20, machines=2) as lib:
        size = 2 * (RUNS_MAX + 2) * PAGE_SIZE
        buffer = lib.alloc(size)
        lib.mixes(b"", b"", bytearray(), bytearray(), 0, bytearray(500))  # there is memory for it
        (other,) = lib.monitor.machines.values()
        mine = borrower(lib, sandboxed)
        for at in range(0, buffer.extent.pages, 2):
            extent = buffer.extent._replace(page=buffer.extent.page + at, pages=1)
            part = Buffer(buffer._window, extent, PAGE_SIZE)
            lib.monitor.host.share(mine, part)
            lib.monitor._exchange.take(mine.peer)
        given = bytearray(b"\5" * 500)
        before = lib.monitor.audit(mappings=True)
        with pytest.raises(GuestError, match=f"more than {RUNS_MAX} pieces") as raised:
            lib.mixes(buffer, given, buffer, buffer, size, given)
        assert raised.value.status is Status.E_LENGTH
        assert given == b"\5" * 500
        # What is not called is not copied to where a machine sees it.
        assert all(b"\5" not in bytes(one.copies._memory) for one in lib._crew.workers)
        after = lib.monitor.audit(mappings=True)
        assert after["owned"] + after["shared"] == before["owned"] + before["shared"]
        assert other.name in lib.monitor.machines  # it knows of nothing, and goes on
        assert lib.one() == 1
