"""What the kernel says of this process's mappings, asked either way."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vmm.guest.abi import PAGE_SIZE
from vmm.memory import mapping, maps
from vmm.memory.mapping import Mapping
from vmm.memory.pool import PagePool

PAGES = 8


@pytest.fixture
def window() -> Iterator[Mapping]:
    """Of eight pages the third and fourth are the pool's from its second on, the sixth private."""
    pool = PagePool(PAGES)
    with Mapping.reserve(PAGES * PAGE_SIZE) as window:
        mapping.show(window.address + 2 * PAGE_SIZE, 2 * PAGE_SIZE, pool.fd, PAGE_SIZE)
        mapping.show(window.address + 3 * PAGE_SIZE, PAGE_SIZE, pool.fd, 0, writable=False)
        with Mapping.anonymous(PAGE_SIZE) as other:
            mapping.move(other.address, window.address + 5 * PAGE_SIZE, PAGE_SIZE)
        window.file = maps.identity(pool.fd)  # type: ignore[attr-defined]
        yield window
    pool.close()


def look(found: list[maps.Area], window: Mapping) -> list[tuple[object, ...]]:
    return [
        ((a.start - window.address) // PAGE_SIZE, (a.end - a.start) // PAGE_SIZE, *a[2:])
        for a in found
    ]


def test_areas_say_what_is_mapped_and_how(window: Mapping) -> None:
    file = window.file  # type: ignore[attr-defined]
    expected = [
        (0, 2, "", False, None, 0),
        (2, 1, "rw", True, file, PAGE_SIZE),
        (3, 1, "r", True, file, 0),
        (4, 1, "", False, None, 0),
        (5, 1, "rw", False, None, 0),
        (6, 2, "", False, None, 0),
    ]
    end = window.address + window.size
    assert look(maps.areas(window.address, end), window) == expected
    inner = maps.areas(window.address + PAGE_SIZE, window.address + 3 * PAGE_SIZE)
    assert look(inner, window) == [(1, 1, *expected[0][2:]), expected[1]]


def test_a_kernel_that_is_not_asked_but_read_says_the_same(
    window: Mapping, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = window.address + window.size
    asked = maps.areas(window.address, end)
    monkeypatch.setattr(maps, "_PROCMAP_QUERY", 0xC0686600)  # which no kernel knows
    assert maps.areas(window.address, end) == asked
