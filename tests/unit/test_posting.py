"""A payload of the host's is posted in fewer calls than it is served, or left to be served."""

from __future__ import annotations

import pytest
from unit.exchange_scene import Scene

from vmm.ferry.message import Request
from vmm.guest.abi import Operation


@pytest.mark.parametrize("to", [0, 1, 2, 3, 4, 99])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("dead", [False, True])
def test_a_payload_of_the_hosts_is_posted_as_it_is_served_or_left_alone(
    to: int, full: bool, dead: bool
) -> None:
    def outcome(*, post: bool) -> tuple[object, ...]:
        with Scene(depth=1) as scene:
            if full:
                scene.done(scene.a, Operation.SEND, to=scene.b)
            if dead:
                scene.exchange.leave(scene.b)
            ask = Request(to, 7, payload=b"hello")
            if not (post and scene.exchange.post(scene.a, to, ask.tag, ask.payload)):
                scene.exchange.serve(scene.a, lambda: ask)
            counts = [(peer.sent, peer.refused, list(peer.queue)) for peer in scene.peers]
            return counts, scene.woken, [bytes(scene.memory[peer.name]) for peer in scene.peers]

    assert outcome(post=True) == outcome(post=False)


@pytest.mark.parametrize("audit", [False, True])
def test_who_wants_to_know_of_each_operation_has_it_served(audit: bool) -> None:
    with Scene(audit=audit) as scene:
        if not audit:
            scene.listen()
        assert not scene.exchange.post(scene.a, 2, 7, b"hello")
        assert not scene.b.queue
