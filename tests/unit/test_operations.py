"""What peers may ask for, on a host that refuses any of the calls that it takes, or several."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from unit.exchange_scene import Scene, Snapshot, every_way

from vmm.ferry.message import Answer
from vmm.ferry.runs import Extent
from vmm.guest.abi import Operation, Status

Act = Callable[[], Answer]
Prepare = Callable[[Scene], Act]


# ---- Operations that take several calls, among them such as bring back several runs at once ----


def parted(operation: Operation) -> Prepare:
    def prepare(scene: Scene) -> Act:
        first, second, third = scene.alloc(scene.a, 3, 2, 1)
        middle = Extent(first.page + 1, 1)
        return lambda: scene.ask(scene.a, operation, third, middle, second, to=scene.b, tag=7)

    return prepare


def give_back(scene: Scene) -> Act:
    own = scene.alloc(scene.a, 3, 2)
    lent = scene.pass_on(scene.a, Operation.LEND, *own, to=scene.b)
    shared = scene.pass_on(scene.a, Operation.SHARE, *scene.alloc(scene.a, 2), to=scene.b)
    parts = (Extent(lent[1].page, 2), Extent(lent[0].page + 1, 1), Extent(shared[0].page, 1))
    return lambda: scene.ask(scene.b, Operation.RETURN, *parts, to=scene.a, payload=b"here")


def reclaim(scene: Scene) -> Act:
    lent, shared, waiting, going = scene.alloc(scene.a, 3, 2, 1, 1)
    scene.pass_on(scene.a, Operation.LEND, lent, to=scene.b)
    scene.pass_on(scene.a, Operation.SHARE, shared, to=scene.b, writable=False)
    scene.pass_on(scene.a, Operation.SHARE, shared, to=scene.c)
    scene.done(scene.a, Operation.LEND, going, to=scene.b)
    scene.done(scene.a, Operation.SHARE, waiting, to=scene.c)
    middle = Extent(lent.page + 1, 2)
    return lambda: scene.ask(scene.a, Operation.RECLAIM, shared, middle, going, waiting)


def alloc(scene: Scene) -> Act:
    scene.alloc(scene.a, 1)
    request = scene.request(Operation.ALLOC, *(Extent(0, pages) for pages in (2, 1, 2)))
    counts = [span.pages for span in request.spans]

    def act() -> Answer:
        extents = scene.exchange.serve
        return extents(scene.a, lambda: _alloc_request(counts))

    return act


def _alloc_request(counts: list[int]):  # type: ignore[no-untyped-def]
    from vmm.ferry.message import Request, Span

    return Request(operation=Operation.ALLOC, spans=tuple(Span(0, count) for count in counts))


def release(scene: Scene) -> Act:
    first, second, third = scene.alloc(scene.a, 3, 2, 1)
    middle = Extent(first.page + 1, 1)
    return lambda: scene.ask(scene.a, Operation.RELEASE, third, middle, second)


CASES: dict[str, tuple[Prepare, int]] = {
    "send": (parted(Operation.SEND), 3),
    "lend": (parted(Operation.LEND), 3),
    "share": (parted(Operation.SHARE), 0),
    "exchange": (parted(Operation.EXCHANGE), 7),
    "return": (give_back, 6),
    "reclaim": (reclaim, 9),
    "alloc": (alloc, 5),
    "release": (release, 3),
}


@pytest.mark.parametrize("name", CASES)
def test_x(name: str) -> None:
    prepare, calls = CASES[name]
    undisturbed = None
    failed = []

    def attempt(plan):
        nonlocal undisturbed
        with Scene(plan) as scene:
            act = prepare(scene)
            scene.check()
            before = scene.snapshot()
            scene.host.armed = True
            try:
                answer = act()
            except OSError:
                failed.append((plan, scene.host.taken))
                return scene.host.taken
            scene.host.armed = False
            taken = scene.host.taken
            refusals = sum(taken)
            scene.check()
            if not refusals:
                assert answer.status is Status.OK
                undisturbed = scene.snapshot()
                print(name, len(taken))
                return taken
            assert answer == Answer(Status.E_NO_MEMORY)
            if refusals == 1:
                assert scene.snapshot() == before
                assert act().status is Status.OK
                assert scene.snapshot() == undisturbed
            else:
                after = scene.contents()
                assert {**after, **before.contents} == after
                scene.recover()
            return taken

    print(every_way(attempt))
    assert not failed, failed
