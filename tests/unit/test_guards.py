"""Pages that are hidden where they are mapped (guards), in windows over a pool."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm.guest.abi import PAGE_SIZE
from vmm.memory import guards, mapping
from vmm.memory.guards import LARGEST, guards_work
from vmm.memory.movers import MappedWindow, Sight
from vmm.memory.pool import PagePool

pytestmark = pytest.mark.skipif(not guards_work(), reason="this kernel has no guards of memfds")

PAGES = 32


@pytest.fixture
def pool(no_leaks: None) -> Iterator[PagePool]:
    pool = PagePool(64)
    yield pool
    pool.close()


@pytest.fixture
def window(pool: PagePool) -> Iterator[MappedWindow]:
    window = MappedWindow(pool, PAGES * PAGE_SIZE, guarded=True)
    yield window
    window.close()


def write(window: MappedWindow, page: int, number: int) -> None:
    ctypes.c_uint64.from_address(window.address(page)).value = number


def read(window: MappedWindow, page: int) -> int | None:
    """Return the number in a page; None if it is hidden."""
    try:
        mapping.touch(window.address(page))
    except OSError:
        return None
    return ctypes.c_uint64.from_address(window.address(page)).value


def guarded(window: MappedWindow) -> set[int]:
    start = window.mapping.address
    return {(address - start) // PAGE_SIZE for address in window._pool.guarded.pieces}


@pytest.mark.parametrize("pages", [1, 2, LARGEST])
def test_what_is_hidden_and_shown_again_changes_no_mapping(
    window: MappedWindow, pages: int
) -> None:
    window.show(3, 10, pages)
    write(window, 3, 7)
    before = Path("/proc/self/maps").read_text()
    for _ in range(3):
        window.hide(3, pages)
        assert guarded(window) == set(range(3, 3 + pages))
        assert [read(window, page) for page in range(3, 3 + pages)] == [None] * pages
        assert window.seen() == []
        window.show(3, 10, pages)
        assert (read(window, 3), guarded(window)) == (7, set())
        assert window.seen() == [Sight(3, pages, 10, True)]
    assert Path("/proc/self/maps").read_text() == before


def test_another_frame_or_to_be_read_only_or_more_of_them_is_mapped_anew(
    window: MappedWindow,
) -> None:
    for frame, pages, writable in ((11, 1, True), (10, 1, False), (10, 2, True), (9, 2, True)):
        window.show(3, 10, 1)
        window.hide(3, 1)
        assert guarded(window) == {3}
        window.show(3, frame, pages, writable=writable)
        assert guarded(window) == set()
        assert window.seen() == [Sight(3, pages, frame, writable)]
        window.hide(3, pages)


def test_a_part_of_what_is_shown_is_hidden_as_ever_and_so_is_what_is_left(
    window: MappedWindow,
) -> None:
    window.show(3, 10, 4)
    window.hide(4, 2)
    assert guarded(window) == set()
    assert window.seen() == [Sight(3, 1, 10, True), Sight(6, 1, 13, True)]
    window.hide(3, 4)
    assert (guarded(window), window.seen()) == (set(), [])


def test_a_large_extent_is_hidden_as_ever(window: MappedWindow) -> None:
    window.show(0, 0, LARGEST + 1)
    window.hide(0, LARGEST + 1)
    assert (guarded(window), window.seen()) == (set(), [])


def test_whoever_never_shows_again_stops_being_guarded_and_starts_when_he_does(
    window: MappedWindow,
) -> None:
    for frame in range(60):
        window.show(3, frame, 1)
        window.hide(3, 1)
        if frame == 0:
            assert guarded(window) == {3}
    assert guarded(window) == set()
    for _ in range(2 * guards._PATIENCE):
        window.show(5, 1, 1)
        window.hide(5, 1)
    assert guarded(window) == {5}


def test_no_more_are_guarded_than_may_be_and_the_oldest_are_hidden_otherwise(
    window: MappedWindow, pool: PagePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guards, "MOST", 5)
    other = MappedWindow(pool, PAGES * PAGE_SIZE, guarded=True)
    other.show(0, 40, 2)
    other.hide(0, 2)
    for page in range(4):
        window.show(page, page, 1)
    for page in range(4):
        window.hide(page, 1)
    assert guarded(window) == set(range(4))  # the other's two have made room
    assert (window.seen(), other.seen()) == ([], [])
    other.close()


def test_a_window_that_is_closed_leaves_nothing_that_could_be_hidden_later(
    pool: PagePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what lies at its addresses by then would vanish."""
    closed = MappedWindow(pool, PAGES * PAGE_SIZE, guarded=True)
    closed.show(3, 10, 2)
    closed.hide(3, 2)
    assert pool.guarded.pieces
    closed.close()
    assert not pool.guarded.pieces


@pytest.mark.parametrize("refused", ["guard", "unguard"])
def test_where_the_kernel_refuses_it_is_done_as_ever(
    window: MappedWindow, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    monkeypatch.setattr(mapping, refused, lambda address, size: False)
    window.show(3, 10, 1)
    write(window, 3, 7)
    window.hide(3, 1)
    assert (read(window, 3), window.seen()) == (None, [])
    window.show(3, 10, 1)
    assert (read(window, 3), guarded(window)) == (7, set())
    assert window.seen() == [Sight(3, 1, 10, True)]


extents = st.tuples(st.integers(0, 11), st.integers(1, LARGEST + 2), st.integers(0, 2))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), extents, st.booleans()), max_size=60))
def test_whatever_is_shown_and_hidden_two_windows_show_that_and_nothing_else(
    steps: list[tuple[int, tuple[int, int, int], bool]],
) -> None:
    """As they are asked: what is shown in one is often what was hidden there before."""
    pool = PagePool(64)
    windows = [MappedWindow(pool, PAGES * PAGE_SIZE, guarded=True) for _ in range(2)]
    model: list[dict[int, tuple[int, bool]]] = [{}, {}]
    for which, (page, count, shift), writable in steps:
        window, shown = windows[which], model[which]
        pages = range(page, page + count)
        if any(place in shown for place in pages):
            window.hide(page, count)
            for place in pages:
                shown.pop(place, None)
        else:
            window.show(page, page + 16 * shift, count, writable=writable)
            shown.update({place: (place + 16 * shift, writable) for place in pages})
        for one, expected in zip(windows, model, strict=True):
            seen = {
                sight.page + n: (None if sight.frame is None else sight.frame + n, sight.writable)
                for sight in one.seen()
                for n in range(sight.pages)
            }
            assert seen == expected
    for window in windows:
        window.close()
    assert not pool.guarded.pieces
    pool.close()
