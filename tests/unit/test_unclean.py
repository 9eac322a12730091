"""Frames that are freed: nobody's before they are zeros, and whoever has them next finds zeros."""

from __future__ import annotations

import dataclasses
import errno

import pytest
from unit.refused_scene import FRAMES, RefusedScene, Refuser, small_scenes

from vmm.ferry.rules import Refusal
from vmm.guest.abi import Operation, Status
from vmm.memory import mapping

__all__ = ["small_scenes"]

pytestmark = pytest.mark.usefixtures("small_scenes")

every_mover = pytest.mark.parametrize("mover", ["memfd", "slots", "remap", "park", "both"])


def refuse(*_: object) -> None:
    raise OSError(errno.ENOMEM, "refused by the test")


@every_mover
def test_what_the_host_does_not_let_be_zeroed_is_nobodys_until_it_does(
    mover: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RefusedScene(mover, Refuser()) as scene:
        scene.join_frames()
        own, kept = scene.alloc(scene.a, 3, 1)
        with monkeypatch.context() as patch:
            patch.setattr(mapping, "punch", refuse)
            patch.setattr(mapping, "empty", refuse)
            scene.done(scene.a, Operation.RELEASE, own)
            scene.exchange.leave(scene.a)
            states = scene.ledger.audit()
            assert (states["unclean"], states["free"]) == (4, FRAMES - 4)
            with pytest.raises(Refusal) as refused:
                scene.exchange.operations.grant(scene.b, [FRAMES])
            assert refused.value.status is Status.E_NO_MEMORY
            scene.alloc(scene.b, FRAMES - 4)
            scene.check()
        (rest,) = scene.exchange.operations.grant(scene.b, [4])  # which the host lets be zeroed now
        assert "unclean" not in scene.ledger.audit()
        assert [scene.read(scene.b, page) for page in range(rest.page, rest.end)] == [b""] * 4
        scene.check()
        assert kept.pages


@every_mover
def test_what_is_freed_and_allocated_in_one_turn_is_there_and_zeros(mover: str) -> None:
    with RefusedScene(mover, Refuser()) as scene:
        scene.join_frames()
        (own,) = scene.alloc(scene.a, 4)
        journal = scene.pool.journal
        journal.begin()
        scene.done(scene.a, Operation.RELEASE, own)
        (new,) = scene.exchange.operations.grant(scene.a, [FRAMES - 4])
        (last,) = scene.exchange.operations.grant(scene.a, [4])  # there are no others
        journal.commit()
        scene.check()
        assert scene.ledger.audit()["owned"] == FRAMES
        for page in (*range(new.page, new.end), *range(last.page, last.end)):
            assert scene.read(scene.a, page) == b""
        scene.end()


@every_mover
def test_what_is_freed_in_a_turn_that_is_cut_off_is_its_owners_as_it_was(mover: str) -> None:
    with RefusedScene(mover, Refuser()) as scene:
        scene.join_frames()
        (own,) = scene.alloc(scene.a, 4)
        before = scene.snapshot()
        scene.pool.journal.begin()
        scene.done(scene.a, Operation.RELEASE, own)
        scene.done(
            scene.b, Operation.SEND, *scene.exchange.operations.grant(scene.b, [2]), to=scene.c
        )
        scene.pool.journal.roll_back()
        after = dataclasses.replace(scene.snapshot(), memory=before.memory)  # of no account here
        assert after == before
        scene.check()
