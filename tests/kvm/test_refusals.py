"""Requests that must not be: each is answered with its status, and nothing has changed.

The guests under guests/faults check every status themselves, and panic over a wrong one.
"""

from __future__ import annotations

import pytest
from fault_scene import MOVERS, PAGE, Scene, scene

from vmm.engine.machine import Machine

pytestmark = pytest.mark.not_in_ept("statuses, which the books give")

INTACT = b"intact\0"


def messages_to(machine: Machine) -> object:
    return machine.outcome()["messages_received"]


def own_page_comes_back(s: Scene, letters: bytes) -> None:
    """The guest found every status right and still had its pages: it could read and send them."""
    assert s.guest.fault is None
    assert s.guest.exit_code == 0
    [reply] = s.replies
    assert reply.payload == INTACT
    content = b"".join(buffer.read() for buffer in reply.buffers)
    assert content == b"".join(bytes([letter]) * PAGE for letter in letters)


@pytest.mark.parametrize("mover", MOVERS)
@pytest.mark.parametrize(
    ("name", "letters"),
    [
        ("bad_bell", b"a"),
        ("bad_descriptor", b"a"),
        ("bad_log", b"a"),
        ("bad_ring", b"a"),
        ("out_of_range", b"a"),
        ("overflow_top", b"a"),
        ("overlapping_extents", b"aaa"),
        ("unaligned_extent", b"a"),
        ("unknown_operation", b"a"),
        ("zero_length", b"a"),
    ],
)
def test_a_refusal_changes_nothing(name: str, letters: bytes, mover: str) -> None:
    with scene(name, mover) as s:
        before = s.give(letters)
        s.run()
        own_page_comes_back(s, letters)
        assert s.m.audit() == before
        assert messages_to(s.peer) == 0
        assert s.lines == []


def test_peers_without_a_channel_cannot_be_told_from_none_at_all() -> None:
    with scene("bad_peer") as s:
        stranger = s.m.spawn(s.peer.guest.image.name, name="stranger")
        s.m.connect(stranger, s.guest, both=False)
        before = s.give(b"a")
        s.run()
        own_page_comes_back(s, b"a")
        assert s.m.audit() == before
        assert messages_to(s.peer) == messages_to(stranger) == 0


@pytest.mark.parametrize("mover", MOVERS)
def test_a_page_can_be_sent_only_once_and_only_by_its_owner(mover: str) -> None:
    with scene("not_owned", mover) as s:
        before = s.give(b"aac")
        s.run()
        own_page_comes_back(s, b"aa")
        assert s.m.audit() == before  # as many are owned: the third page by the peer
        assert s.logged_by(s.peer) == [f"from {s.guest.number}, tag 0, 1 pages of c: "]


def test_a_sender_cannot_pass_for_somebody_else() -> None:
    with scene("forged_sender") as s:
        s.run()
        assert s.guest.exit_code == 0
        assert s.logged_by(s.peer) == [
            f"from {s.guest.number}, tag {tag}, 0 pages of -: forged" for tag in range(3)
        ]
