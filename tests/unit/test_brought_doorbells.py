"""Doorbells of several messages to peers that wait: what is brought at once, and by which calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
from unit.exchange_scene import Scene, extents_of, told
from unit.refusing_host import every_way

from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, Hold, Operation, Status
from vmm.memory.movers import Window
from vmm.memory.runs import Extent

SEND, LEND = Operation.SEND, Operation.LEND
Call = tuple[str, int, int]  # what a's window is asked to do, from which page on, with how many


def begin(scene: Scene, *waiting: str) -> Scene:
    scene.join_frames()
    for peer in scene.peers:
        peer.idle = peer.name in waiting
    return scene


@pytest.fixture
def scene(each_pool: None, no_leaks: None) -> Iterator[Scene]:
    """Both receivers wait."""
    with Scene(audit=True) as scene:
        yield begin(scene, "b", "c")


@pytest.fixture
def calls(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    window, seen = scene.a.window, list[Call]()
    hide, pass_on = window.hide, window.pass_on
    inside: list[bool] = []

    def note_hide(page: int, count: int) -> None:
        if not inside:
            seen.append(("hide", page, count))
        hide(page, count)

    def note_pass_on(
        page: int, frame: int, count: int, other: Window, place: int, *, writable: bool = True
    ) -> bool:
        seen.append(("pass on", page, count))
        inside.append(True)
        try:
            return pass_on(page, frame, count, other, place, writable=writable)
        finally:
            inside.pop()

    monkeypatch.setattr(window, "hide", note_hide)
    monkeypatch.setattr(window, "pass_on", note_pass_on)
    return seen


def pages(scene: Scene, count: int) -> list[Extent]:
    """Give a adjacent pages that are adjacent frames, each in an extent of its own."""
    (first,) = scene.alloc(scene.a, count)
    return [Extent(first.page + index, 1) for index in range(count)]


def transmit(scene: Scene, *entries: abi.Descriptor) -> list[Status]:
    assert scene.exchange.transmit(scene.a) is Status.OK
    return [Status(entry.status) for entry in entries]


# ---- Which are brought ----


@pytest.mark.parametrize("operation", [SEND, LEND])
def test_scattered_pages_are_brought_one_by_one(
    scene: Scene, calls: list[Call], operation: Operation
) -> None:
    own = pages(scene, 6)
    entries = [scene.put(scene.a, operation, page, to=scene.b) for page in own[::-2]]
    assert transmit(scene, *entries) == [Status.OK] * 3
    assert calls == [("pass on", page.page, 1) for page in own[::-2]]
    assert [scene.read(scene.b, page) for page in range(3)] == [b"a 5", b"a 3", b"a 1"]
    scene.check()
    assert scene.enter(scene.b) == 3


@pytest.mark.parametrize("operation", [SEND, LEND])
def test_adjacent_pages_to_one_are_brought_with_one_call(
    scene: Scene, calls: list[Call], operation: Operation
) -> None:
    own = pages(scene, 4)
    entries = [scene.put(scene.a, operation, page, to=scene.b) for page in own]
    assert transmit(scene, *entries) == [Status.OK] * 4
    assert calls == [("pass on", own[0].page, 4)]
    assert [message.brought for message in scene.b.queue] == [True] * 4
    scene.check()
    assert scene.enter(scene.b) == 4
    read = [scene.read(scene.b, extents_of(m)[0].page) for m in scene.b.untaken]
    assert read == [b"a 0", b"a 1", b"a 2", b"a 3"]


def test_pages_that_touch_but_go_to_several_are_hidden_together(
    scene: Scene, calls: list[Call]
) -> None:
    own = pages(scene, 9)
    entries = [
        scene.put(scene.a, SEND, own[8], to=scene.b),  # apart
        scene.put(scene.a, SEND, own[0], to=scene.b),
        scene.put(scene.a, SEND, own[1], to=scene.c),  # touches both
        scene.put(scene.a, LEND, own[2], to=scene.c),
        scene.put(scene.a, SEND, to=scene.b, payload=b"without pages"),
        scene.put(scene.a, SEND, own[3], to=scene.b),  # touches the one before it but one
        scene.put(scene.a, LEND, own[5], to=scene.c),
        scene.put(scene.a, LEND, own[6], to=scene.c),  # one run with it
    ]
    assert transmit(scene, *entries) == [Status.OK] * 8
    assert calls == [
        ("pass on", own[8].page, 1),
        ("pass on", own[3].page, 1),
        ("pass on", own[5].page, 2),
        ("hide", own[0].page, 3),
    ]
    assert [message.brought for message in scene.b.queue] == [True, False, False, True]
    assert [message.brought for message in scene.c.queue] == [False, False, True, True]
    scene.check()
    assert (scene.enter(scene.b), scene.enter(scene.c)) == (4, 4)
    read = {
        peer.name: [scene.read(peer, e.page) for m in peer.untaken for e in extents_of(m)]
        for peer in (scene.b, scene.c)
    }
    assert read == {"b": [b"a 8", b"a 0", b"a 3"], "c": [b"a 1", b"a 2", b"a 5", b"a 6"]}
    scene.check()


@pytest.mark.parametrize("room", [3, 2])
def test_a_run_that_the_ring_does_not_take_whole_is_on_its_way(
    scene: Scene, calls: list[Call], room: int
) -> None:
    scene.b.queue.room = scene.b.queue.depth = abi.RX_ENTRIES + 1
    for _ in range(abi.RX_ENTRIES - room):
        scene.done(scene.a, SEND, to=scene.b)
    for page in pages(scene, 3):
        scene.put(scene.a, SEND, page, to=scene.b)
    transmit(scene)
    assert calls == [("pass on" if room == 3 else "hide", 0, 3)]
    assert [message.brought for message in scene.b.queue][-3:] == [room == 3] * 3
    scene.check()
    assert scene.enter(scene.b) == abi.RX_ENTRIES
    assert len(scene.b.queue) == 3 - room
    scene.check()


def test_a_page_is_lent_reclaimed_and_sent_elsewhere_with_one_doorbell(
    scene: Scene, calls: list[Call]
) -> None:
    (own,) = pages(scene, 1)
    entries = [
        scene.put(scene.a, LEND, own, to=scene.b),
        scene.put(scene.a, Operation.RECLAIM, own),
        scene.put(scene.a, SEND, own, to=scene.c),
        scene.put(scene.a, SEND, own, to=scene.b),  # gone
    ]
    assert transmit(scene, *entries) == [Status.OK] * 3 + [Status.E_OWNERSHIP]
    assert calls == [("pass on", own.page, 1)] * 2
    assert scene.holds(scene.b, Extent(0, 1)) == [Hold.REVOKED]
    assert scene.read(scene.c, 0) == b"a 0"
    scene.check()


# ---- A host that refuses ----

Put = Callable[[Scene], list[abi.Descriptor]]


def apart(scene: Scene) -> list[abi.Descriptor]:
    own = pages(scene, 3)
    return [
        scene.put(scene.a, SEND, own[2], to=scene.b),
        scene.put(scene.a, LEND, own[0], to=scene.c, flags=abi.Flags.READONLY),
    ]


def in_a_row(scene: Scene) -> list[abi.Descriptor]:
    return [scene.put(scene.a, SEND, page, to=scene.b) for page in pages(scene, 3)]


def mixed(scene: Scene) -> list[abi.Descriptor]:
    own = pages(scene, 5)
    return [
        scene.put(scene.a, LEND, own[4], to=scene.b),
        scene.put(scene.a, SEND, own[0], to=scene.b),
        scene.put(scene.a, SEND, own[1], to=scene.c),
    ]


@pytest.mark.usefixtures("each_pool")
@pytest.mark.parametrize("put", [apart, in_a_row, mixed])
def test_whatever_the_host_refuses_each_message_is_sent_or_its_pages_have_stayed(
    put: Put,
) -> None:
    def attempt(plan: Sequence[bool]) -> Sequence[bool]:
        with Scene(plan, audit=True) as scene:
            entries = put(begin(scene, "b", "c"))
            before = scene.contents()
            scene.host.armed = True
            statuses = transmit(scene, *entries)
            scene.host.armed = False
            scene.check()
            assert scene.contents() == before
            assert set(statuses) <= {Status.OK, Status.E_NO_MEMORY}
            sent = [m.number for peer in (scene.b, scene.c) for m in peer.queue]
            assert sorted(sent) == [entry.message for entry in entries if not entry.status]
            assert (scene.a.sent, scene.a.refused) == (len(sent), len(entries) - len(sent))
            scene.recover()
            for entry in entries:
                page = (entry.extents[0].gpa - abi.WINDOW_GPA) // PAGE_SIZE
                if entry.status:
                    assert scene.read(scene.a, page) == f"a {page}".encode()
            assert scene.enter(scene.b) + scene.enter(scene.c) == len(sent)
            scene.check()
            assert (scene.contents(), told(scene.a)) == (before, [])
            scene.end()
            return scene.host.taken

    assert every_way(attempt) > 3
