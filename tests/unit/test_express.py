"""The express way of a payload: whatever is asked for, it does what the plain way does, or leaves
it alone.
"""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings
from unit.exchange_scene import Scene

from vmm.ferry.message import Message, Request
from vmm.guest import abi
from vmm.guest.abi import Operation

# What differs from an honest payload to b, by field. Now and then several do.
FIELDS = {
    "operation": st.sampled_from([Operation.SEND, Operation.LEND, Operation.ALLOC, 99]),
    "flags": st.sampled_from([0, 1, 0x8000]),
    "status": st.integers(-(2**31), 2**31 - 1),
    "sender": st.integers(0, 2**32 - 1),
    "receiver": st.sampled_from([0, 1, 2, 3, 4, 99, 2**32 - 1]),
    "tag": st.integers(0, 2**64 - 1),
    "length": st.sampled_from([0, 1, 2**64 - 1]),
    "message": st.integers(0, 2**64 - 1),
    "extent_count": st.sampled_from([0, 1, 16, 17, 2**16 - 1]),
    "payload_length": st.sampled_from([0, 1, 64, 192, 193, 2**16 - 1]),
    "reserved0": st.sampled_from([0, 1, 2**31]),
}
changes = st.fixed_dictionaries({}, optional=FIELDS)
reserved = st.sampled_from([(0, 0), (1, 0), (0, 2**63)])

Outcome = tuple[bytes, list[Message], list[bytes], tuple[int, ...]]


def outcome(descriptor: abi.Descriptor, full: bool, dead: bool, plain: bool) -> Outcome:
    """What a descriptor in a's ring does: its answer, b's queue, all that peers are told."""
    with Scene(depth=1) as scene:
        if full:
            scene.done(scene.a, Operation.SEND, to=scene.b)
        if dead:
            scene.exchange.leave(scene.b)
        if plain:
            scene.listen()
        control = scene.guest(scene.a)
        control.tx[control.tx_tail % abi.TX_ENTRIES] = descriptor
        control.tx_head = control.tx_tail + 1
        scene.exchange.transmit(scene.a)
        told = [bytes(scene.memory[peer.name]) for peer in scene.peers]
        counts = (scene.a.sent, scene.a.refused, scene.b.received)
        return told[0], list(scene.b.queue), told, counts


@settings(max_examples=150, deadline=None)
@given(changes, reserved, st.binary(min_size=192, max_size=192), st.booleans(), st.booleans())
@example({}, (0, 0), bytes(192), False, False)
@example({"payload_length": 192}, (0, 0), b"\xff" * 192, False, False)
@example({"length": 1}, (0, 0), bytes(192), False, False)
@example({"flags": 1}, (0, 0), bytes(192), False, False)
@example({"receiver": 3}, (0, 0), bytes(192), False, False)
@example({"receiver": 4}, (0, 0), bytes(192), False, False)
@example({}, (0, 0), bytes(192), True, False)
@example({}, (0, 0), bytes(192), False, True)
def test_any_descriptor_does_the_same_by_either_way(
    changed: dict[str, int], words: tuple[int, int], payload: bytes, full: bool, dead: bool
) -> None:
    descriptor = abi.Descriptor(operation=Operation.SEND, receiver=2, payload_length=64, tag=7)
    for name, value in changed.items():
        setattr(descriptor, name, value)
    descriptor.reserved1[:] = words
    descriptor.payload[:] = payload
    express, plain = (outcome(descriptor, full, dead, plain) for plain in (False, True))
    assert express == plain


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


def test_a_payload_goes_the_express_way_and_a_page_does_not(scene: Scene) -> None:
    asked: list[Operation] = []
    serve = scene.exchange.operations.serve
    scene.exchange.operations.serve = (  # type: ignore[method-assign]
        lambda peer, request, *rest: asked.append(request.operation) or serve(peer, request, *rest)
    )
    scene.put(scene.a, Operation.SEND, to=scene.b, payload=b"hello")
    scene.exchange.transmit(scene.a)
    assert [message.payload for message in scene.b.queue] == [b"hello"]
    assert asked == []
    (own,) = scene.alloc(scene.a, 1)
    scene.put(scene.a, Operation.SEND, own, to=scene.b)
    scene.exchange.transmit(scene.a)
    assert asked == [Operation.SEND]
