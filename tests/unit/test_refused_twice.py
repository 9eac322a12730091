"""A host that refuses a mapping call, and then what would undo it: nobody sees what is not theirs.

At every step of every operation, on every mover, with real mappings: two refusals in a row, two
with a call between them, and all calls from one on. Afterwards each peer reaches what the ledger
says, or is to be stopped; nothing is lost that somebody owns; what is freed is zeros to its next
owner.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from unit.exchange_scene import Scene
from unit.refused_scene import MOVERS, RefusedScene, Refuser, refusing, small_scenes
from unit.test_operations import OPERATIONS

from vmm.ferry.peer import Peer
from vmm.guest.abi import Operation
from vmm.memory.runs import Extent

__all__ = ["small_scenes"]

Act = Callable[[], object]
Prepare = Callable[[Scene], Act]
FAR = int(os.environ.get("PAGEFERRY_REFUSALS", "2"))  # between the first and the second of two


def seamed(scene: Scene, peer: Peer) -> Extent:
    """Give a peer a run in the middle of which a page has been shared: two kinds of memory."""
    scene.join_frames()
    (own,) = scene.alloc(peer, 6)
    middle = Extent(own.page + 2, 1)
    scene.done(peer, Operation.SHARE, middle, to=scene.c)
    scene.done(peer, Operation.RECLAIM, middle)
    scene.exchange.take(scene.c)
    return own


def brought(operation: Operation, *, writable: bool = True) -> Prepare:
    def prepare(scene: Scene) -> Act:
        own = seamed(scene, scene.a)
        scene.b.idle = True
        return lambda: scene.ask(scene.a, operation, own, to=scene.b, writable=writable)

    return prepare


def brought_plain(operation: Operation, *, writable: bool = True) -> Prepare:
    def prepare(scene: Scene) -> Act:
        scene.join_frames()
        (own,) = scene.alloc(scene.a, 6)
        scene.b.idle = True
        part = Extent(own.page + 1, 4)
        return lambda: scene.ask(scene.a, operation, part, to=scene.b, writable=writable)

    return prepare


def deliver(operation: Operation, *, writable: bool = True) -> Prepare:
    def prepare(scene: Scene) -> Act:
        scene.done(scene.a, operation, seamed(scene, scene.a), to=scene.b, writable=writable)
        return lambda: scene.exchange.deliver(scene.b)

    return prepare


def deliver_many(scene: Scene) -> Act:
    whole = seamed(scene, scene.a)
    for page in range(0, 6, 2):
        scene.done(scene.a, Operation.SEND, Extent(whole.page + page, 2), to=scene.b)
    return lambda: scene.exchange.deliver(scene.b)


def together(scene: Scene) -> Act:
    own = seamed(scene, scene.a)
    for index, to in enumerate((scene.b, scene.c, scene.b)):
        scene.put(scene.a, Operation.SEND, Extent(own.page + 2 * index, 2), to=to)
    return lambda: scene.exchange.transmit(scene.a)


def return_whole(scene: Scene) -> Act:
    (there,) = scene.pass_on(scene.a, Operation.LEND, seamed(scene, scene.a), to=scene.b)
    return lambda: scene.ask(scene.b, Operation.RETURN, there, to=scene.a)


def return_viewed(scene: Scene) -> Act:
    scene.join_frames()
    (own,) = scene.alloc(scene.a, 4)
    (there,) = scene.pass_on(scene.a, Operation.LEND, own, to=scene.b, writable=False)
    return lambda: scene.ask(scene.b, Operation.RETURN, there, to=scene.a)


def reclaim_viewed(scene: Scene) -> Act:
    own = seamed(scene, scene.a)
    scene.pass_on(scene.a, Operation.LEND, own, to=scene.b, writable=False)
    return lambda: scene.ask(scene.a, Operation.RECLAIM, own)


def die(scene: Scene) -> Act:
    """The dead owns, has lent, borrows, and has not taken what it was sent."""
    scene.join_frames()
    scene.alloc(scene.b, 3)
    (lent,) = scene.alloc(scene.b, 2)
    scene.pass_on(scene.b, Operation.LEND, lent, to=scene.c)
    (own, other) = scene.alloc(scene.a, 3, 2)
    scene.pass_on(scene.a, Operation.LEND, own, to=scene.b, writable=False)
    scene.done(scene.a, Operation.SEND, other, to=scene.b)
    scene.exchange.deliver(scene.b)
    scene.done(scene.a, Operation.LEND, seamed(scene, scene.a), to=scene.b)
    return lambda: scene.exchange.leave(scene.b)


CASES: dict[str, Prepare] = {
    **{name: prepare for name, (prepare, _) in OPERATIONS.items()},
    "send, brought": brought(Operation.SEND),
    "lend, brought": brought(Operation.LEND),
    "lend to read, brought": brought(Operation.LEND, writable=False),
    "share, brought": brought(Operation.SHARE),
    "part of a run, brought": brought_plain(Operation.SEND),
    "part of a run lent to read, brought": brought_plain(Operation.LEND, writable=False),
    "send, delivered": deliver(Operation.SEND),
    "lend to read, delivered": deliver(Operation.LEND, writable=False),
    "share, delivered": deliver(Operation.SHARE),
    "many, delivered": deliver_many,
    "together": together,
    "return whole": return_whole,
    "return what was to be read": return_viewed,
    "reclaim what is to be read": reclaim_viewed,
    "death": die,
}


def refusers(calls: int, split: bool) -> Iterator[Refuser]:
    """Yield each way of refusing two calls, or all from one on, of so many that there would be."""
    for first in range(calls):
        for second in range(first + 1, first + 1 + FAR):
            yield Refuser((first, second), split=split)
        yield Refuser(after=first, split=split)


def undergo(mover: str, prepare: Prepare, refuser: Refuser, patch: pytest.MonkeyPatch) -> int:
    """Do it, and look at what became of it; return how many calls it took."""
    with patch.context() as calls:
        refusing(refuser, calls)
        with RefusedScene(mover, refuser) as scene:
            act = prepare(scene)
            before = scene.owned()
            refuser.armed = True
            act()
            refuser.armed = False
            taken = refuser.calls
            scene.check()
            if scene.b.alive:
                after = scene.owned()
                assert not {f for f, data in before.items() if after.get(f, data) != data}
            for peer in [p for p in scene.peers if p.alive and p.window.spoiled]:
                scene.exchange.leave(peer)
            scene.check()
            for peer in (p for p in (scene.b, scene.c) if p.alive):
                scene.exchange.deliver(peer)
                scene.check()
            scene.end()
            return taken


@pytest.mark.parametrize(
    ("name", "mover"),
    [  # the operations of others are of single pages, which nobody moves by halves
        (name, mover)
        for name in CASES
        for mover in MOVERS
        if not (name in OPERATIONS and mover.endswith("split"))
    ],
)
def test_nobody_sees_more_than_the_ledger_says_whatever_is_refused(
    name: str, mover: str, small_scenes: pytest.MonkeyPatch
) -> None:
    split = mover.endswith("split")
    kind = mover.removesuffix(", split")
    calls = undergo(kind, CASES[name], Refuser(split=split), small_scenes)
    for refuser in refusers(calls, split):
        try:
            undergo(kind, CASES[name], refuser, small_scenes)
        except Exception as error:
            error.add_note(f"refused: {refuser}")
            raise
