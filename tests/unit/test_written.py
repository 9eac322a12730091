"""Which pages of private memory have been written, found in two ways."""

from __future__ import annotations

import ctypes
import mmap
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmm.linux.ranges import pairs
from vmm.memory import mapping, written
from vmm.memory.mapping import Mapping
from vmm.memory.template import Template
from vmm.memory.written import Written

PAGE = mmap.PAGESIZE
PAGES = 8192


@pytest.fixture
def memory() -> Iterator[Mapping]:
    """Plain memory, the first half of it a template's, copy-on-write."""
    template = Template([(0, b"x" * (PAGES // 2 * PAGE))])
    made = template.map(PAGES * PAGE)
    yield made
    made.close()
    template.close()


@pytest.fixture(params=["the kernel scans", "its pagemap is read"])
def finder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Written]:
    made = Written()
    if request.param != "the kernel scans":
        monkeypatch.setattr(written, "_PAGEMAP_SCAN", 0)  # ENOTTY, as before Linux 6.7
    yield made
    made.close()


def found(finder: Written, memory: Mapping) -> set[int]:
    bounds = finder.find(memory.address, memory.size)
    assert bounds == sorted(set(bounds))  # in order, and no two touch
    return {
        page
        for start, end in pairs(bounds)
        for page in range((start - memory.address) // PAGE, (end - memory.address) // PAGE)
    }


@pytest.mark.parametrize("count", [0, 1, 700, 3000])
def test_what_was_written_is_found_and_what_was_read_of_a_file_is_not(
    finder: Written, memory: Mapping, count: int
) -> None:
    for page in range(PAGES // 2):
        ctypes.string_at(memory.address + page * PAGE, 1)
    pages = set(random.sample(range(PAGES), count))
    for page in pages:
        ctypes.memset(memory.address + page * PAGE + page % PAGE, 1, 1)
    assert found(finder, memory) == pages


def test_what_is_given_back_is_found_no_more(finder: Written, memory: Mapping) -> None:
    ctypes.memset(memory.address, 1, memory.size)
    assert found(finder, memory) == set(range(PAGES))
    mapping.empty(memory.address + PAGE, memory.size - 2 * PAGE)
    assert found(finder, memory) == {0, PAGES - 1}


def test_what_was_written_by_a_system_call_is_found(finder: Written, memory: Mapping) -> None:
    with Path("/dev/zero").open("rb", buffering=0) as zeros:
        zeros.readinto(memory.view()[5 * PAGE : 6 * PAGE])
    assert found(finder, memory) == {5}


def test_who_looks_again_and_again_sees_what_who_looks_once_does(
    finder: Written, memory: Mapping
) -> None:
    again = finder.again(memory.address, memory.size)
    view = memory.view()
    for count in (0, 1, 1, 5, 60, 300, 1000):  # at last more regions than one call finds
        for _ in range(count):
            view[random.randrange(PAGES) * PAGE] = 1
        bounds = again()
        assert bounds == finder.find(memory.address, memory.size)
        assert bounds == again()
    mapping.empty(memory.address, memory.size)
    assert again() == finder.find(memory.address, memory.size) == []
    view.release()


def test_what_is_found_again_is_the_same_list(memory: Mapping) -> None:
    finder = Written()
    again = finder.again(memory.address, memory.size)
    ctypes.memset(memory.address, 1, 3 * PAGE)
    first = again()
    assert again() is first
    ctypes.memset(memory.address, 1, 4 * PAGE)
    assert again() is not first
    assert first == [memory.address, memory.address + 3 * PAGE]
    finder.close()
