"""Calls on every back end, and with every way of moving pages: without NumPy, which lanes lack."""

from __future__ import annotations

import array
from collections.abc import Iterator
from pathlib import Path

import pytest
from guest_elfs import SANDBOXED
from kvm import mappings
from tests_support import IN_LANE

from vmm import CallCrash, CallExit, CallTimeout, Sandbox
from vmm.memory.movers import MOVERS
from vmm.memory.movers.in_place import InPlaceMover
from vmm.sandbox import library

SIZE = 5000


@pytest.fixture(params=["in-place", *MOVERS])
def lib(
    request: pytest.FixtureRequest, test_guests: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Sandbox]:
    mover = InPlaceMover if request.param == "in-place" else request.param
    monkeypatch.setattr(library, "_mover", lambda device: mover)
    with Sandbox(SANDBOXED / "library.elf", pool="64M", memory="64M") as made:
        yield made


def test_numbers_text_and_structures_go_and_come(lib: Sandbox) -> None:
    assert lib.add(2, -3) == -1
    assert lib.half(5) == 2.5
    assert lib.moved((1, 2.5), 0.5) == (2, 3.0)
    assert lib.greeting("you") == b"hello you"
    assert lib.all_registers(*range(8), *range(9), 1) == sum(
        (i + 1) * v for i, v in enumerate([*range(8), *range(9), 1])
    )


def test_memory_is_shared_for_the_time_of_a_call(lib: Sandbox) -> None:
    buffer, other = lib.alloc(SIZE), lib.alloc(SIZE)
    buffer.write(bytes(range(250)) * 20)
    assert lib.total(buffer, SIZE) == sum(range(250)) * 20
    lib.copy(other, buffer, SIZE)
    assert other.read() == buffer.read()
    with memoryview(other) as view:
        view[0] = 200
        assert lib.total(view[:1], 1) == 200
    assert lib.stats.copied_bytes == 0
    mappings.check(lib.monitor)
    address = lib.where(buffer)
    with pytest.raises(CallCrash, match=r"SIGSEGV|SIGBUS|SIGILL"):
        lib.peek(address)  # what it saw before
    with pytest.raises(CallCrash, match=r"SIGSEGV|SIGBUS"):
        lib.write_through_const(buffer)
    assert buffer.read(0, 4) == bytes(range(4))
    lib.monitor.host.release(buffer)
    lib.monitor.host.release(other)
    totals = lib.monitor.audit(mappings=True)
    assert totals["shared"] == totals["lent"] == 0


def test_memory_of_the_callers_is_copied(lib: Sandbox) -> None:
    values = array.array("d", range(1000))
    lib.scale(values, 1000, 2)
    assert list(values) == [2 * value for value in range(1000)]
    small = array.array("d", [1, 2])
    lib.scale(small, 2, 3)
    assert list(small) == [3, 6]


def test_what_goes_wrong_is_an_exception_and_the_next_call_has_a_machine(lib: Sandbox) -> None:
    with pytest.raises(CallCrash, match="poke: SIGSEGV"):
        lib.poke(16, 1)
    with pytest.raises(CallExit):
        lib.leave(3)
    with pytest.raises(CallTimeout):
        lib.for_ever(timeout=1 if IN_LANE else 0.1)
    assert lib.nap(1) == 0
    assert lib.counter() == 1


def test_a_fresh_machine_remembers_nothing(test_guests: Path) -> None:
    with Sandbox(SANDBOXED / "library.elf", pool="64M", memory="64M", fresh=True) as lib:
        buffer = lib.alloc(SIZE)
        for _ in range(3):
            assert lib.counter() == 1
            lib.scale(buffer, 4, 1.5)
        lib.monitor.host.release(buffer)
