"""The window that memory is moved to: what the kernel says of it, whatever the host refuses."""

from __future__ import annotations

import ctypes
import itertools
import os
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from cut_off import Tracer
from kvm.mappings import View, content
from unit.remap_scene import (
    CALLS,
    FRAMES,
    PROT_NONE,
    Refusals,
    homes,
    read,
    seen,
    window_lines,
    write,
)

from vmm.guest.abi import PAGE_SIZE
from vmm.memory import mapping
from vmm.memory.mapping import HUGE, Mapping
from vmm.memory.movers import RemapWindow, remap
from vmm.memory.movers import park as parking
from vmm.memory.movers.park import Park


def test_what_is_hidden_and_shown_elsewhere_is_the_same_and_the_kernel_joins_it_again(
    park: Park, a: RemapWindow, b: RemapWindow
) -> None:
    a.show(8, 0, 16)
    write(a, 8, 16)
    a.hide(12, 3)
    assert seen(a) == [View(8, 4, 0, True), View(15, 9, 7, True)]
    b.show(40, 4, 3)
    assert read(b, 40, 3) == [13, 14, 15]
    assert homes(park) == ["rw-p"]
    b.hide(40, 3)
    a.show(12, 4, 3)
    assert seen(a) == [View(8, 16, 0, True)]
    assert window_lines(a) == [PROT_NONE, "rw-p", PROT_NONE]
    assert window_lines(b) == [PROT_NONE]
    a.hide(0, FRAMES)
    assert homes(park) == ["rw-p"]
    assert [content(park, frame, 1)[0] for frame in range(16)] == list(range(9, 25))


def test_small_runs_are_the_memfds_and_one_call_hides_both_kinds(
    park: Park, a: RemapWindow, b: RemapWindow
) -> None:
    a.show(0, 0, 2)
    a.show(8, 8, 8)
    write(a, 0, 2)
    write(a, 8, 8)
    assert os.pread(park.fd, 1, 0) == b"\1"
    assert [line for line in window_lines(a) if line != PROT_NONE] == ["rw-s", "rw-p"]
    a.hide(0, FRAMES)
    assert window_lines(a) == [PROT_NONE]
    b.show(0, 0, 16)
    assert read(b, 0, 2) == [1, 2]
    assert read(b, 8, 8) == list(range(9, 17))


def test_what_is_only_to_be_read_cannot_be_written_and_comes_back_as_it_was(
    park: Park, a: RemapWindow, b: RemapWindow
) -> None:
    a.show(0, 0, 8)
    write(a, 0, 8)
    a.hide(0, 8)
    b.show(0, 0, 8, writable=False)
    assert seen(b) == [View(0, 8, 0, False)]
    assert homes(park) == ["rw-p"]
    b.hide(2, 2)
    assert seen(b) == [View(0, 2, 0, False), View(4, 4, 4, False)]
    a.show(2, 2, 2)
    write(a, 2, 2)
    b.hide(0, 8)
    a.show(4, 4, 4)
    assert homes(park) == ["rw-p"]
    assert window_lines(a) == [PROT_NONE, "rw-p", PROT_NONE]


def test_freed_frames_are_zeros_whatever_they_were(park: Park, a: RemapWindow) -> None:
    for _ in range(2):
        a.show(0, 0, 2)
        a.show(8, 8, 8)
        assert read(a, 0, 2) + read(a, 8, 8) == [0] * 10
        write(a, 0, 2)
        write(a, 8, 8)
        a.hide(0, 16)
        park.zero([(0, 2), (8, 8)])
        assert list(park.lodgings) == []
        assert not any(content(park, frame).strip(b"\0") for frame in range(FRAMES))


def test_what_is_shared_is_the_memfds_from_then_on_and_all_see_the_same(
    park: Park, a: RemapWindow, b: RemapWindow
) -> None:
    a.show(0, 0, 16)
    write(a, 0, 16)
    a.make_shareable(4, 4)
    a.make_shareable(4, 4)
    b.show(20, 4, 4, writable=False)
    assert read(a, 0, 16) == list(range(1, 17))
    assert read(b, 20, 4) == [5, 6, 7, 8]
    ctypes.memset(a.address(5), 99, 1)
    assert read(b, 21) == [99]
    assert seen(a) == [View(0, 16, 0, True)]
    assert park.lodgings.seams == 2
    b.hide(20, 4)
    a.hide(0, 16)
    park.zero([(0, 16)])
    a.show(0, 0, 16)
    assert window_lines(a) == ["rw-p", PROT_NONE]
    assert read(a, 0, 16) == [0] * 16


def test_a_window_of_many_pieces_is_not_cut_for_a_share(
    park: Park, a: RemapWindow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remap, "PIECES", 1)
    a.show(0, 0, 16)
    with pytest.raises(OSError, match="too many pieces"):
        a.make_shareable(4, 4)
    monkeypatch.setattr(remap, "PIECES", 2)
    a.make_shareable(4, 4)
    monkeypatch.setattr(remap, "PIECES", 1)
    a.make_shareable(0, 4)  # whole
    monkeypatch.setattr(parking, "SEAMS", 1)
    monkeypatch.setattr(parking, "_COMMON", 0)
    with pytest.raises(OSError, match="too many pieces"):
        a.make_shareable(9, 1)


def test_a_window_that_makes_all_the_seams_leaves_the_others_a_few(
    park: Park, a: RemapWindow, b: RemapWindow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parking, "_COMMON", 4)
    monkeypatch.setattr(parking, "_OWN", 2)
    a.show(0, 0, 32)
    b.show(0, 32, 32)
    for page in (1, 3, 5):  # two of them while there are few
        a.make_shareable(page, 1)
    with pytest.raises(OSError, match="too many pieces"):
        a.make_shareable(9, 1)
    for page in (1, 3):
        b.make_shareable(page, 1)
    with pytest.raises(OSError, match="too many pieces"):
        b.make_shareable(9, 1)
    b.make_shareable(4, 28)  # which cuts nothing


def test_frames_that_the_dead_still_have_are_taken_from_them(
    park: Park, a: RemapWindow, b: RemapWindow
) -> None:
    a.show(0, 0, 8)
    a.show(16, 16, 8, writable=False)
    write(a, 0, 8)
    b.show(0, 2, 2)
    b.show(16, 18, 2)
    assert read(b, 0, 2) == [3, 4]
    write(b, 16, 2)
    assert seen(a) == [
        View(0, 2, 0, True),
        View(4, 4, 4, True),
        View(16, 2, 16, False),
        View(20, 4, 20, False),
    ]
    park.zero([(4, 4)])
    b.show(4, 4, 4)
    assert read(b, 4, 4) == [0] * 4
    a.close()
    b.show(8, 0, 2)
    assert read(b, 8, 2) == [1, 2]


def test_memory_that_is_several_mappings_to_the_kernel_is_moved_by_parts(
    park: Park, a: RemapWindow
) -> None:
    mapping.protect(park.home(3), PAGE_SIZE, writable=False)
    mapping.protect(park.home(9), PAGE_SIZE, writable=False)
    a.show(0, 0, 16)
    for page in (0, 2, 4, 8, 10, 15):
        write(a, page)
    a.hide(0, 16)
    assert [content(park, frame, 1)[0] for frame in (0, 2, 4, 8, 10, 15)] == [1, 3, 5, 9, 11, 16]


def test_what_is_raised_at_any_line_while_frames_are_zeroed_loses_none_of_the_others(
    park: Park, a: RemapWindow
) -> None:
    """Between two turns, as freed frames are: then no journal keeps the tables."""
    reached = 0
    for line in itertools.count(1):
        a.show(0, 0, 16)
        write(a, 0, 16)
        a.hide(4, 4)
        with Tracer(line) as tracer:
            park.zero([(2, 6)])
        park.zero([(2, 6)])
        assert [part[:3] for part in park.lodgings] == [(0, 2, True), (8, 8, True)], tracer.where
        assert [view.page for view in seen(a)] == [0, 8], tracer.where
        assert read(a, 0, 2) + read(a, 8, 8) == [1, 2, *range(9, 17)], tracer.where
        assert park.lodgings.seams == 0
        a.hide(0, FRAMES)
        park.zero([(0, 16)])
        reached = line
        if tracer.where is None:
            break
    assert reached > 50


@pytest.mark.parametrize("call", ["hide", "show"])
def test_zeros_that_the_kernel_puts_into_an_empty_home_are_not_taken_for_what_lives_there(
    park: Park, a: RemapWindow, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """As it does when it makes one huge page of a few: khugepaged, whenever it likes to."""

    def cut_off(move: Callable[[int, int, int], None], source: int, target: int, size: int) -> None:
        if call == "show":  # done, and then cut off; else before it
            move(source, target, size)
        ctypes.memset(park.home(0), 0, 8 * PAGE_SIZE)
        raise KeyboardInterrupt

    a.show(0, 0, 8)
    write(a, 0, 8)
    if call == "show":
        a.hide(0, 8)
    park.journal.begin()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(mapping, "move", partial(cut_off, mapping.move))
        a.hide(0, 8) if call == "hide" else a.show(0, 0, 8)
    park.undo_moves()
    if call == "hide":
        assert read(a, 0, 8) == list(range(1, 9))
    else:
        assert [content(park, frame, 1)[0] for frame in range(8)] == list(range(1, 9))


def test_windows_and_homes_begin_at_multiples_of_2_mib() -> None:
    for make in (Mapping.reserve, Mapping.park):
        with make(3 * PAGE_SIZE) as one, make(HUGE) as other:
            assert one.address % HUGE == other.address % HUGE == 0
            assert (one.size, other.size) == (3 * PAGE_SIZE, HUGE)


# ---- A host that refuses ----


def attempt_all(
    park: Park, monkeypatch: pytest.MonkeyPatch, act: Callable[[], None], look: Callable[[], object]
) -> int:
    """Let the host refuse each of the calls in turn; then what can be looked at is as before.

    Return how many there were. In the end it is done.
    """
    before = look()
    for at in range(1, 30):
        refusals = Refusals(at)
        with monkeypatch.context() as patch:
            for name in CALLS:
                patch.setattr(mapping, name, refusals.wrap(getattr(mapping, name)))
            try:
                act()
            except OSError:
                assert look() == before, f"after call {at}"
                assert refusals.calls >= at
                continue
        if refusals.calls < at:
            return at - 1
        assert look() != before  # it could do without
        return at
    raise AssertionError("it never ends")


@pytest.mark.parametrize("writable", [True, False])
def test_a_refused_hide_or_show_changes_nothing(
    park: Park,
    a: RemapWindow,
    b: RemapWindow,
    monkeypatch: pytest.MonkeyPatch,
    writable: bool,
) -> None:
    """Of three runs, one of them the memfd's in between."""
    for page, frame, count in ((0, 40, 4), (4, 2, 3), (7, 19, 9)):
        a.show(page, frame, count)
        write(a, page, count)
        a.hide(page, count)
        a.show(page, frame, count, writable=writable)

    def look() -> object:
        return (
            seen(a),
            seen(b),
            set(a.shown),
            [content(park, frame, 1) for frame in range(FRAMES)],
            sorted(part[:5] for part in park.lodgings if part.window is None),
        )

    assert attempt_all(park, monkeypatch, lambda: a.hide(1, 13), look) >= 3
    assert seen(a) == [View(0, 1, 40, writable), View(14, 2, 26, writable)]

    def show() -> None:
        b.show(30, 19, 7, writable=writable)

    assert attempt_all(park, monkeypatch, show, look) >= 1
    assert read(b, 30, 7) == list(range(8, 15))


def test_a_refused_share_leaves_everything_to_be_seen_as_it_was(
    park: Park, a: RemapWindow, monkeypatch: pytest.MonkeyPatch
) -> None:
    a.show(0, 0, 16)
    write(a, 0, 16)
    a.hide(4, 4)
    a.show(4, 20, 4)
    write(a, 4, 4)

    def look() -> object:
        return seen(a), read(a, 0, 16)

    for at in range(1, 20):
        refusals = Refusals(at)
        with monkeypatch.context() as patch:
            for name in CALLS:
                patch.setattr(mapping, name, refusals.wrap(getattr(mapping, name)))
            try:
                a.make_shareable(2, 8)
            except OSError:
                refusals.armed = False
                assert look() == (
                    [View(0, 4, 0, True), View(4, 4, 20, True), View(8, 8, 8, True)],
                    list(range(1, 17)),
                )
                continue
        break
    assert at > 3
    assert sum(part.pages for part in park.lodgings if not part.anonymous) == 8


# ---- Frames that are filled ----


@pytest.fixture
def bytes_of_three() -> Iterator[int]:
    """The address of three pages, of which each byte is the page's number, from 101 on."""
    with Mapping.anonymous(3 * PAGE_SIZE) as memory:
        for index in range(3):
            ctypes.memset(memory.address + index * PAGE_SIZE, 101 + index, PAGE_SIZE)
        yield memory.address


def test_what_fills_frames_is_shown_whatever_their_neighbours_are(
    park: Park, a: RemapWindow, b: RemapWindow, bytes_of_three: int
) -> None:
    a.show(0, 0, 8)
    write(a, 0, 8)
    park.fill(8, bytes_of_three, 3 * PAGE_SIZE)
    assert park.lodgings.in_memfd(8, 3)
    b.show(20, 8, 3)
    assert read(b, 20, 3) == [101, 102, 103]
    b.hide(21, 1)
    a.show(9, 9, 1)
    assert read(a, 9) == [102]
    assert read(a, 0, 8) == list(range(1, 9))


def test_filled_frames_are_zeros_to_their_next_owner(
    park: Park, a: RemapWindow, bytes_of_three: int
) -> None:
    a.show(0, 0, 4)
    park.fill(4, bytes_of_three, 3 * PAGE_SIZE)
    park.zero([(4, 3)])
    assert not os.pread(park.fd, 8 * PAGE_SIZE, 0).strip(b"\0")
    a.show(4, 4, 3)
    assert read(a, 4, 3) == [0] * 3


def test_frames_that_could_only_be_filled_in_part_are_zeros_to_their_next_owner(
    park: Park, a: RemapWindow, bytes_of_three: int
) -> None:
    mapping.hide(bytes_of_three + 2 * PAGE_SIZE, PAGE_SIZE)
    with pytest.raises(OSError, match="pwrite"):
        park.fill(4, bytes_of_three, 3 * PAGE_SIZE)
    park.zero([(4, 3)])
    a.show(0, 0, 8)
    assert read(a, 0, 8) == [0] * 8
    assert not os.pread(park.fd, 8 * PAGE_SIZE, 0).strip(b"\0")


def test_frames_are_not_filled_where_there_are_too_many_seams(
    park: Park, monkeypatch: pytest.MonkeyPatch, a: RemapWindow, bytes_of_three: int
) -> None:
    a.show(0, 0, 8)
    assert park.fillable
    monkeypatch.setattr(parking, "SEAMS", 1)
    park.fill(8, bytes_of_three, PAGE_SIZE)
    assert not park.fillable
