"""The exchange between peers with real windows in this process: all of it, or nothing."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

import pytest

from vmm.ferry.exchange import Exchange
from vmm.ferry.ledger import Ledger, Refusal
from vmm.ferry.message import Request, Span
from vmm.ferry.peer import Peer
from vmm.ferry.runs import Extent
from vmm.guest.abi import PAGE_SIZE, Operation, Status
from vmm.memory.movers import MappedWindow, MemfdMover
from vmm.trace import Trace

FRAMES = 64


class FragileWindow(MappedWindow):
    """A window whose n-th call from now on the host refuses, as it does when mappings run out."""

    fails_in = -1

    def _count_down(self) -> None:
        self.fails_in -= 1
        if self.fails_in == 0:
            raise OSError(errno.ENOMEM, "too many mappings")

    def show(self, page: int, frame: int, count: int) -> None:
        self._count_down()
        super().show(page, frame, count)

    def hide(self, page: int, count: int) -> None:
        self._count_down()
        super().hide(page, count)


class Scene:
    """Two peers with four pages each in scattered extents, one channel from a to b."""

    def __init__(self, mover: MemfdMover, stack: contextlib.ExitStack) -> None:
        self.woken: list[str] = []
        self.ledger = Ledger(FRAMES)
        self.exchange = Exchange(self.ledger, mover, Trace(), lambda p: self.woken.append(p.name))
        self.a, self.b = (self._peer(n, name, mover, stack) for n, name in ((1, "a"), (2, "b")))
        self.exchange.connect(self.a, self.b)
        self.own = [self.exchange.grant(self.a, 1) for _ in range(4)]

    def _peer(self, number: int, name: str, mover: MemfdMover, stack: contextlib.ExitStack) -> Peer:
        window = FragileWindow(mover.pool, 16 * PAGE_SIZE)
        stack.callback(window.close)
        peer = Peer(number, name, window, depth=2)
        self.exchange.join(peer)
        return peer

    def request(self, *extents: Extent, **fields: int) -> Request:
        base = self.a.window.region.base
        spans = tuple(Span(base + extent.page * PAGE_SIZE, extent.pages) for extent in extents)
        return Request(receiver=2, spans=spans, **fields)

    def state(self) -> tuple[object, ...]:
        windows = [self.ledger.window(peer.number) for peer in (self.a, self.b)]
        return windows, self.ledger.audit(), len(self.b.queue), self.a.sent


@pytest.fixture
def scene(no_leaks: None) -> Iterator[Scene]:
    with contextlib.ExitStack() as stack:
        mover = MemfdMover(FRAMES)
        stack.callback(mover.close)
        yield Scene(mover, stack)


def test_a_message_goes_from_window_to_queue_to_window(scene: Scene) -> None:
    message = scene.exchange.send(scene.a, scene.request(Extent(0, 2), tag=9, length=8192))
    assert [m.number for m in scene.b.queue] == [message.number]
    assert (message.sender, message.receiver, message.tag) == (1, 2, 9)
    assert scene.ledger.audit()["in_flight"] == 2
    assert scene.exchange.take(scene.b) is message
    assert scene.ledger.owns(2, Extent(0, 2))
    assert not scene.ledger.owns(1, Extent(0, 1))
    assert scene.woken == ["b"]


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_where_the_host_refuses_to_hide_an_extent_nothing_has_changed(
    scene: Scene, nth: int
) -> None:
    before = scene.state()
    window = scene.a.window
    assert isinstance(window, FragileWindow)
    window.fails_in = nth
    with pytest.raises(Refusal) as refused:
        scene.exchange.send(scene.a, scene.request(Extent(0, 1), Extent(3, 1), Extent(1, 1)))
    window.fails_in = -1
    assert refused.value.status is Status.E_NO_MEMORY
    assert scene.state() == before
    # And really: what was hidden is shown again, so that all of it can be sent now.
    scene.exchange.send(scene.a, scene.request(Extent(0, 1), Extent(3, 1), Extent(1, 1)))


@pytest.mark.parametrize("nth", [1, 2])
def test_where_the_host_refuses_to_show_an_extent_the_message_goes_back_to_its_sender(
    scene: Scene, nth: int
) -> None:
    window = scene.b.window
    assert isinstance(window, FragileWindow)
    scene.exchange.send(scene.a, scene.request(Extent(3, 1), Extent(0, 1), tag=5))
    window.fails_in = nth
    assert scene.exchange.take(scene.b) is None
    (back,) = scene.a.queue
    assert (back.operation, back.status, back.tag) == (
        Operation.UNDELIVERED,
        Status.E_NO_MEMORY,
        5,
    )
    assert scene.ledger.owns(1, Extent(0, 4))
    assert scene.ledger.window(2) == ()
    base = scene.a.window.region.base
    assert back.spans == (Span(base + 3 * PAGE_SIZE, 1), Span(base, 1))


def test_where_the_host_refuses_even_the_way_back_the_message_returns_without_its_pages(
    scene: Scene,
) -> None:
    a, b = scene.a.window, scene.b.window
    assert isinstance(a, FragileWindow)
    assert isinstance(b, FragileWindow)
    scene.exchange.send(scene.a, scene.request(Extent(0, 1), Extent(2, 1), tag=5))
    b.fails_in, a.fails_in = 1, 2
    assert scene.exchange.take(scene.b) is None
    (back,) = scene.a.queue
    assert (back.status, back.tag, back.spans) == (Status.E_NO_MEMORY, 5, ())
    assert scene.ledger.audit() == {"free": FRAMES - 2, "owned": 2, "in_flight": 0}


def test_a_full_queue_is_a_refusal_that_changes_nothing(scene: Scene) -> None:
    for _ in range(2):
        scene.exchange.send(scene.a, scene.request())
    before = scene.state()
    with pytest.raises(Refusal) as refused:
        scene.exchange.send(scene.a, scene.request(Extent(0, 1)))
    assert refused.value.status is Status.E_QUEUE_FULL
    assert scene.state() == before


def test_without_a_channel_a_peer_cannot_be_told_from_one_that_does_not_exist(scene: Scene) -> None:
    for receiver in (1, 3):
        with pytest.raises(Refusal) as refused:
            scene.exchange.send(scene.b, Request(receiver=receiver))
        assert refused.value.status is Status.E_PEER


def test_what_a_dead_peer_had_not_been_given_goes_back_and_what_it_owned_is_freed(
    scene: Scene,
) -> None:
    scene.exchange.send(scene.a, scene.request(Extent(0, 1)))
    scene.exchange.take(scene.b)
    scene.exchange.send(scene.a, scene.request(Extent(1, 2)))
    scene.exchange.leave(scene.b)
    assert scene.ledger.owns(1, Extent(1, 3))
    assert scene.ledger.audit() == {"free": FRAMES - 3, "owned": 3, "in_flight": 0}
    assert [message.status for message in scene.a.queue] == [Status.E_DEAD]
    with pytest.raises(Refusal) as refused:
        scene.exchange.send(scene.a, scene.request(Extent(1, 1)))
    assert refused.value.status is Status.E_DEAD


def test_what_a_dead_peer_had_sent_is_still_delivered(scene: Scene) -> None:
    scene.exchange.send(scene.a, scene.request(Extent(0, 1), tag=3))
    scene.exchange.leave(scene.a)
    message = scene.exchange.take(scene.b)
    assert message is not None
    assert message.tag == 3
    assert scene.ledger.owns(2, Extent(0, 1))


def test_when_both_ends_of_a_message_die_its_pages_are_free(scene: Scene) -> None:
    scene.exchange.send(scene.a, scene.request(Extent(0, 4)))
    scene.exchange.leave(scene.a)
    scene.exchange.leave(scene.b)
    assert scene.ledger.audit() == {"free": FRAMES, "owned": 0, "in_flight": 0}
