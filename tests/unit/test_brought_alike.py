"""Whether receivers wait makes no difference to what anybody gets, or is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import hypothesis.strategies as st
import pytest
from hypothesis import event, given, settings
from unit.exchange_scene import Scene

from vmm.ferry.books import LedgerError
from vmm.guest.abi import Operation
from vmm.memory.movers.remap import Park
from vmm.memory.pool import PagePool
from vmm.memory.runs import Extent

SEND, LEND, SHARE = Operation.SEND, Operation.LEND, Operation.SHARE


class Wanted(NamedTuple):
    """A message: of pages of a run of eight, or of a payload."""

    operation: Operation
    to: str
    extents: tuple[Extent, ...]
    flags: int
    ring: bool  # whether the doorbell is rung after it


extents = st.builds(
    lambda page, count: Extent(page, min(count, 8 - page)), st.integers(0, 7), st.integers(1, 3)
)
wanted = st.builds(
    Wanted,
    st.sampled_from([SEND, SEND, LEND, LEND, SHARE, Operation.RECLAIM]),
    st.sampled_from("bbc"),
    st.one_of(
        st.builds(lambda page: (Extent(page, 1),), st.integers(0, 7)),
        st.lists(extents, max_size=2).map(tuple),
    ),
    st.sampled_from([0, 0, 1]),
    st.booleans(),
)


class Parked(Scene):
    """One whose pages are moved, all of them."""

    def make_pool(self, frames: int) -> PagePool:  # type: ignore[override]
        return Park(frames, large=1)


SCENES = {"memfd": Scene, "anonymous": Parked}


def without(fields: dict[str, object], *names: str) -> dict[str, object]:
    return {name: value for name, value in fields.items() if name not in names}


def played(kind: str, messages: Sequence[Wanted], *waiting: str) -> tuple[object, int]:
    """What becomes of messages, and what anybody sees of it; and how many were brought."""
    with SCENES[kind](depth=6, audit=True) as scene:
        scene.join_frames()
        for peer in scene.peers:
            peer.idle = peer.name in waiting
        scene.alloc(scene.b, 1)
        scene.alloc(scene.a, 8)
        events = scene.listen()
        entries = []
        for operation, to, of, flags, ring in messages:
            peer = getattr(scene, to)
            flags = flags if operation in (LEND, SHARE) else 0
            payload = b"" if operation is Operation.RECLAIM else to.encode()
            entries.append(
                scene.put(scene.a, operation, *of, to=peer, flags=flags, payload=payload)
            )
            if ring:
                scene.exchange.transmit(scene.a)
                scene.check()
        scene.exchange.transmit(scene.a)
        scene.check()
        brought = sum(m.brought for peer in (scene.b, scene.c) for m in peer.queue)
        pending = [scene.enter(scene.b), scene.enter(scene.c)]
        scene.check()
        told_of = [(e.kind, without(e.fields, "took_us", "brought")) for e in events]
        state = scene.snapshot()
        untaken = [
            [message._replace(brought=False) for message in peer.untaken]
            for peer in (scene.b, scene.c)
        ]
        seen = (state.windows, state.mapped, state.accounts, state.memory, state.bonds)
        return (seen, state.contents, state.free, pending, told_of, untaken), brought


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(sorted(SCENES)), st.lists(wanted, min_size=1, max_size=8))
def test_it_makes_no_difference_whether_receivers_have_waited(
    kind: str, messages: list[Wanted]
) -> None:
    """Neither to what they get, in which order, nor to what is refused or told of it."""
    at_once, brought = played(kind, messages, "b", "c")
    later, none = played(kind, messages)
    event(f"{min(brought, 3)} brought")
    assert none == 0
    assert at_once == later


# ---- Traces and audits ----


@pytest.mark.parametrize("operation", [SEND, LEND, SHARE])
def test_a_message_is_told_when_it_is_sent_and_when_it_is_delivered(
    scene: Scene, operation: Operation
) -> None:
    one, two = scene.alloc(scene.a, 1, 1)
    scene.b.idle = True
    events = scene.listen()
    scene.done(scene.a, operation, one, to=scene.b, tag=1)
    scene.put(scene.a, operation, two, to=scene.b, tag=2)
    scene.put(scene.a, SEND, to=scene.b, tag=3)
    scene.exchange.transmit(scene.a)
    asked = operation.name.lower()
    assert [(e.kind, e.fields["tag"]) for e in events] == [(asked, 1), (asked, 2), ("send", 3)]
    scene.enter(scene.b)
    delivered = events[3:]
    assert [(e.kind, e.fields["tag"]) for e in delivered] == [("deliver", n) for n in (1, 2, 3)]
    assert [e.fields["op"] for e in delivered] == [asked, asked, "send"]
    assert [e.fields["brought"] for e in events] == [True, True, False] * 2
    assert all(e.fields["took_us"] > 0 for e in events)


@pytest.mark.parametrize("several", [False, True])
def test_an_audit_follows_what_is_brought(several: bool) -> None:
    with Scene(audit=True) as scene:
        scene.join_frames()
        own = scene.alloc(scene.a, 1, 1)
        scene.b.idle = True
        for page in own[: 1 + several]:
            scene.put(scene.a, SEND, page, to=scene.b)
        scene.ledger.account(scene.d.number).charged += 1
        with pytest.raises(LedgerError, match="peer 4 has"):
            scene.exchange.transmit(scene.a)
        assert all(message.brought for message in scene.b.queue)
        with pytest.raises(LedgerError, match="peer 4 has"):
            scene.exchange.deliver(scene.b)
