"""What the kernel gives is held, whenever a signal's handler raises; and is given back once."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from cut_off import CutOff

from vmm.kvm.given import Given, GivenDescriptor, GivenMapping, give_back, noted, opened
from vmm.memory import maps

_raise: Any = ctypes.CDLL(None)["raise"]  # a C function during which a signal comes


@contextlib.contextmanager
def handler_that_raises() -> Iterator[None]:
    def handler(number: int, frame: object) -> None:
        raise CutOff

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_a_signal_during_a_call_loses_its_result_where_python_stores_it() -> None:
    """The gap, which is Python's: what a Given is there for."""
    stored: list[int] = []
    with handler_that_raises(), pytest.raises(CutOff):
        result = _raise(signal.SIGUSR1)
        stored.append(result)
    assert not stored


def test_a_signal_during_a_call_does_not_lose_its_result_where_a_given_stores_it() -> None:
    given = GivenDescriptor()
    with handler_that_raises(), pytest.raises(CutOff):
        given.take(_raise, signal.SIGUSR1)
    assert given._held == [0]  # what raise(3) returns
    given._held.clear()


def test_what_is_held_is_not_taken_twice() -> None:
    first, second = os.pipe()
    os.close(first)
    given = GivenDescriptor(second)
    assert given.take(os.dup, second) == second  # whose result a signal has hidden, the first time
    given.give_back()
    assert not is_open(second)


@pytest.mark.parametrize("call", ["dup", "memfd_create"])
def test_a_descriptor_is_closed_once(call: str) -> None:
    arguments = (0,) if call == "dup" else ("test",)
    given = GivenDescriptor()
    fd = given.take(getattr(os, call), *arguments)
    assert given.held
    given.give_back()
    other = os.dup(0)
    assert other == fd  # the number is somebody else's by now
    given.give_back()
    assert is_open(other)
    os.close(other)


def test_a_call_that_fails_gives_nothing() -> None:
    libc: Any = ctypes.CDLL(None)
    given = GivenDescriptor()
    assert given.take(libc.dup, -1) == -1
    assert not given.held
    given._held.append(-1)  # as if it had been cut off before it looked
    assert not given.held
    given.give_back()
    mapping = GivenMapping()
    assert mapping.take(0, 0, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0) == mapping.failed
    assert mapping.address is None
    mapping.give_back()


def test_a_mapping_is_unmapped_once_and_of_its_size() -> None:
    size = 4 * mmap.PAGESIZE
    given = GivenMapping()
    address = given.take(0, size, mmap.PROT_READ, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    assert given.address == address
    assert sum(area.end - area.start for area in maps.areas(address, address + size)) == size
    given.give_back()
    assert not maps.areas(address, address + size)
    assert given.address is None
    given.give_back()


def test_all_that_is_noted_is_given_back_the_last_first() -> None:
    made: list[Given] = []
    with noted(made):
        first, second = GivenDescriptor(), GivenDescriptor()
        fds = first.take(os.dup, 0), second.take(os.dup, 0)
    elsewhere = GivenDescriptor()
    kept = elsewhere.take(os.dup, 0)
    assert made == [first, second]
    give_back(made)
    assert not any(map(is_open, fds))
    assert is_open(kept)
    assert not made
    elsewhere.give_back()


def test_a_block_in_a_block_notes_for_itself() -> None:
    outer: list[Given] = []
    inner: list[Given] = []
    with noted(outer):
        with noted(inner):
            inside = GivenDescriptor()
        after = GivenDescriptor()
    assert (inner, outer) == ([inside], [after])


def test_a_block_whose_end_was_cut_off_notes_no_more() -> None:
    made: list[Given] = []
    noted(made).__enter__()
    give_back(made)
    GivenDescriptor()
    assert not made


def test_a_file_that_is_lost_is_closed() -> None:
    with opened(os.memfd_create, "test") as file:
        fd = file.fileno()
        assert is_open(fd)
    assert not is_open(fd)
    with pytest.warns(ResourceWarning):
        opened(os.memfd_create, "test")
    assert not is_open(fd)
