"""Pages from window to window at once: where they are then, whatever the host refuses of it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import pytest
from kvm.mappings import View, content, huge
from unit.remap_scene import (
    CALLS,
    FRAMES,
    LARGE,
    PROT_NONE,
    Refusals,
    homes,
    read,
    seen,
    window_lines,
    write,
)

from vmm.guest.abi import PAGE_SIZE
from vmm.host.hugepages import huge_pages
from vmm.memory import frames, mapping
from vmm.memory.movers import RemapWindow
from vmm.memory.movers.park import Park

Move = Callable[[], bool]


def asked(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> list[str]:
    """Return what the kernel is asked to do, by name."""
    names: list[str] = []

    def noting(name: str, call: Callable[..., None]) -> Callable[..., None]:
        return lambda *args, **options: names.append(name) or call(*args, **options)

    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(mapping, name, noting(name, getattr(mapping, name)))
        act()
    return names


def lodged(park: Park, frame: int, count: int) -> list[tuple[object, ...]]:
    """Where the memory of frames is: whether it is anonymous, in which window, from which page."""
    return [
        (part.pages, part.anonymous, part.window, part.page)
        for part in park.lodgings.within(frame, count)
    ]


# ---- What is passed on ----


def test_a_large_run_is_moved_once_and_its_old_place_is_a_hole(
    park: Park, a: RemapWindow, b: RemapWindow, monkeypatch: pytest.MonkeyPatch
) -> None:
    a.show(8, 0, 16)
    write(a, 8, 16)
    calls = asked(monkeypatch, lambda: a.pass_on(8, 0, 16, b, 40))
    assert calls == ["move", "hide"]
    assert (seen(a), a.shown, window_lines(a)) == ([], (), [PROT_NONE])
    assert seen(b) == [View(40, 16, 0, True)]
    assert window_lines(b) == [PROT_NONE, "rw-p", PROT_NONE]
    assert lodged(park, 0, FRAMES) == [(16, True, b, 40)]
    assert read(b, 40, 16) == list(range(9, 25))


def test_what_was_passed_on_can_go_wherever_pages_go(
    park: Park, a: RemapWindow, b: RemapWindow
) -> None:
    a.show(8, 0, 16)
    write(a, 8, 16)
    assert a.pass_on(8, 0, 16, b, 40)
    assert b.pass_on(44, 4, 4, a, 0)  # a part of it, back
    b.hide(48, 2)
    a.show(4, 8, 2)
    b.make_shareable(40, 2)
    assert seen(a) == [View(0, 6, 4, True)]
    assert seen(b) == [View(40, 4, 0, True), View(50, 6, 10, True)]
    assert read(a, 0, 6) == list(range(13, 19))
    assert read(b, 40, 4) + read(b, 50, 6) == [9, 10, 11, 12, *range(19, 25)]
    a.hide(0, FRAMES)
    b.hide(0, FRAMES)
    assert homes(park) == ["rw-p"]
    park.zero([(0, 16)])
    assert list(park.lodgings) == []
    assert not any(content(park, frame).strip(b"\0") for frame in range(FRAMES))


def test_of_a_part_of_a_run_the_rest_stays(park: Park, a: RemapWindow, b: RemapWindow) -> None:
    a.show(8, 0, 16)
    write(a, 8, 16)
    assert a.pass_on(12, 4, 3, b, 0)
    assert seen(a) == [View(8, 4, 0, True), View(15, 9, 7, True)]
    assert seen(b) == [View(0, 3, 4, True)]
    assert lodged(park, 0, 16) == [(4, True, a, 8), (3, True, b, 0), (9, True, a, 15)]
    assert window_lines(a) == [PROT_NONE, "rw-p", PROT_NONE, "rw-p", PROT_NONE]
    assert read(a, 8, 4) + read(b, 0, 3) + read(a, 15, 9) == list(range(9, 25))
    write(a, 11)
    write(a, 15)
    assert read(b, 0, 3) == [13, 14, 15]


def test_what_is_lent_to_be_read_can_never_be_written_there(
    park: Park, a: RemapWindow, b: RemapWindow, monkeypatch: pytest.MonkeyPatch
) -> None:
    a.show(0, 0, 8)
    write(a, 0, 8)
    move, writable = mapping.move, []

    def look(source: int, target: int, size: int) -> None:
        move(source, target, size)
        writable.append("rw-p" in window_lines(b))

    with monkeypatch.context() as patch:
        patch.setattr(mapping, "move", look)
        assert a.pass_on(0, 0, 8, b, 20, writable=False)
    assert not any(writable)
    assert (seen(a), seen(b)) == ([], [View(20, 8, 0, False)])
    assert window_lines(a) == [PROT_NONE]
    assert window_lines(b) == [PROT_NONE, "r--p", PROT_NONE]
    assert read(b, 20, 8) == list(range(1, 9))
    b.hide(20, 8)
    assert homes(park) == ["rw-p"]


@pytest.mark.parametrize("beside", [(), ("a",), ("b",), ("a", "b")])
@pytest.mark.parametrize("writable", [True, False])
def test_small_runs_are_the_memfds_there_too_whatever_is_beside_them(
    park: Park, a: RemapWindow, b: RemapWindow, beside: Sequence[str], writable: bool
) -> None:
    a.show(0, 0, 3)
    write(a, 0, 3)
    if "a" in beside:
        a.show(8, 8, 8)
    if "b" in beside:
        b.show(48, 48, 8)
    others = seen(a)[1:], seen(b)
    assert a.pass_on(1, 1, 2, b, 30, writable=writable)
    assert (seen(a)[1:], seen(b)[1:] if "b" in beside else []) == others
    assert (seen(a)[0], seen(b)[0]) == (View(0, 1, 0, True), View(30, 2, 1, writable))
    assert lodged(park, 0, 3) == [(3, False, None, 0)]
    assert read(b, 30, 2) == [2, 3]


def test_a_run_that_is_in_several_kinds_of_memory_is_passed_on(
    park: Park, a: RemapWindow, b: RemapWindow
) -> None:
    a.show(0, 0, 16)
    write(a, 0, 16)
    a.make_shareable(4, 4)
    assert a.pass_on(0, 0, 16, b, 16)
    assert (seen(a), seen(b)) == ([], [View(16, 16, 0, True)])
    assert [part[1] for part in lodged(park, 0, 16)] == [True, False, True]
    assert read(b, 16, 16) == list(range(1, 17))


@pytest.mark.skipif(not huge_pages().anonymous, reason="anonymous memory gets no huge pages")
def test_huge_pages_are_passed_on_as_they_are(no_leaks: None) -> None:
    count = 2 * frames.LARGE
    park = Park(count)
    a, b = (RemapWindow(park, count * PAGE_SIZE) for _ in range(2))
    try:
        a.show(0, 0, count)
        for page in range(count):
            ctypes.memset(a.address(page), page % 251 + 1, 8)
        there_are = huge(a.mapping.address, a.mapping.size)
        assert there_are >= frames.LARGE
        assert a.pass_on(0, 0, count, b, 0)
        assert (
            huge(a.mapping.address, a.mapping.size),
            huge(b.mapping.address, b.mapping.size),
        ) == (0, there_are)
        assert read(b, 0, count) == [page % 251 + 1 for page in range(count)]
    finally:
        a.close()
        b.close()
        park.close()


# ---- A host that refuses ----


def large(a: RemapWindow, b: RemapWindow) -> Move:
    a.show(0, 0, 16)
    write(a, 0, 16)
    return lambda: a.pass_on(0, 0, 16, b, 30)


def middle(a: RemapWindow, b: RemapWindow) -> Move:
    large(a, b)
    b.show(50, 40, 5)
    return lambda: a.pass_on(5, 5, 6, b, 35)


def to_be_read(a: RemapWindow, b: RemapWindow) -> Move:
    large(a, b)
    return lambda: a.pass_on(4, 4, 8, b, 30, writable=False)


def small(a: RemapWindow, b: RemapWindow) -> Move:
    a.show(0, 0, 3)
    write(a, 0, 3)
    return lambda: a.pass_on(0, 0, 2, b, 30)


def both_kinds(a: RemapWindow, b: RemapWindow) -> Move:
    large(a, b)
    a.make_shareable(4, 4)
    return lambda: a.pass_on(0, 0, 16, b, 30)


KINDS = {f.__name__.replace("_", " "): f for f in (large, middle, to_be_read, small, both_kinds)}
FEWEST = {"large": 2, "middle": 2, "to be read": 4, "small": 2, "both kinds": 4}  # calls


@pytest.mark.parametrize("kind", KINDS)
def test_each_call_that_the_host_refuses_leaves_pages_in_one_window_or_in_none(
    kind: str, monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    """As they were, if it is refused; hidden, and to be shown yet, if they are in flight then."""
    for at in range(1, 20):
        park = Park(FRAMES, LARGE)
        a, b = (RemapWindow(park, FRAMES * PAGE_SIZE) for _ in range(2))
        try:
            ended = attempt(KINDS[kind](a, b), park, a, b, monkeypatch, at)
        finally:
            a.close()
            b.close()
            park.close()
        if ended:
            assert at > FEWEST[kind]
            return
    raise AssertionError("it never ends")


def attempt(
    act: Move, park: Park, a: RemapWindow, b: RemapWindow, patch: pytest.MonkeyPatch, at: int
) -> bool:
    """Let the host refuse one call; return whether there were fewer."""

    def look() -> object:
        return seen(a), seen(b), a.shown, b.shown, [content(park, f, 1) for f in range(FRAMES)]

    before, holes = look(), (window_lines(a), window_lines(b))
    there = seen(b)
    refusals, brought = refused(act, patch, at)
    if brought is None:
        assert look() == before, f"after call {at}"
        assert (window_lines(a), window_lines(b)) == holes
    elif not brought:
        assert (seen(b), window_lines(b)) == (there, holes[1])
        gone = {v.frame + i for v in before[0] for i in range(v.pages)} - {  # type: ignore[index]
            v.frame + i for v in seen(a) for i in range(v.pages)
        }
        assert len(gone) >= 2
        b.show(30, min(gone), len(gone))
        assert read(b, 30, len(gone)) == [frame + 1 for frame in sorted(gone)]
    else:
        assert (len(seen(b)), look() != before) == (len(there) + 1, True)
        return refusals.calls < at
    return False


def refused(act: Move, monkeypatch: pytest.MonkeyPatch, *at: int) -> tuple[Refusals, bool | None]:
    """Return what becomes of it if the host refuses these calls: None if it is an OSError."""
    refusals = Refusals(*at)
    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(mapping, name, refusals.wrap(getattr(mapping, name)))
        try:
            return refusals, act()
        except OSError:
            return refusals, None


@pytest.mark.parametrize("at", [(2, 3), (2, 3, 4)], ids=["move back", "move back and hide"])
def test_what_cannot_be_moved_back_is_not_left_with_its_receiver(
    park: Park, a: RemapWindow, b: RemapWindow, monkeypatch: pytest.MonkeyPatch, at: Sequence[int]
) -> None:
    """The second call hides it where it was; it is refused, and so is what would undo the first."""
    move = middle(a, b)
    before = seen(a), a.shown, read(a, 0, 16), lodged(park, 0, 16)
    _, brought = refused(move, monkeypatch, *at)
    assert brought is None
    assert (seen(a), a.shown, read(a, 0, 16), lodged(park, 0, 16)) == before
    assert b.spoiled == (at == (2, 3, 4))
    if b.spoiled:  # what is there is nobody's, and blank
        assert "rw-p" in window_lines(b)[:-1]
        assert not any(read(b, 35, 6))
        b.tidy()
    assert seen(b) == [View(50, 5, 40, True)]
