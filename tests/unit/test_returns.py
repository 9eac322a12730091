"""What is returned in one run: from window to window, and no more of it than its owner had lent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from unit.exchange_scene import Scene, extents_of, queued, told
from unit.refusing_host import every_way

from vmm.guest.abi import Hold, Operation, Status
from vmm.memory.runs import Extent

pytestmark = pytest.mark.usefixtures("each_pool")

LEND, SHARE, RETURN = Operation.LEND, Operation.SHARE, Operation.RETURN


@pytest.fixture
def scene(no_leaks: None) -> Iterator[Scene]:
    with Scene(audit=True) as scene:
        scene.join_frames()
        yield scene


@pytest.mark.parametrize("still", [False, True], ids=["", "shared still"])
@pytest.mark.parametrize("operations", [(SHARE, LEND), (LEND, SHARE), (SHARE, LEND, SHARE)])
def test_what_is_lent_and_shared_and_looks_alike_is_returned_to_where_it_was(
    scene: Scene, operations: Sequence[Operation], still: bool
) -> None:
    """To its borrower it is one run; its owner sees a part of it all the time."""
    (own,) = scene.alloc(scene.a, 5)
    for index, operation in enumerate(operations):
        page = Extent(own.page + 1 + index, 1)
        scene.pass_on(scene.a, operation, page, to=scene.b)
        if still and operation is SHARE:
            scene.pass_on(scene.a, SHARE, page, to=scene.c)
    (run,) = scene.ledger.window(scene.b.number)
    scene.done(scene.b, RETURN, run.extent, to=scene.a)
    assert extents_of(queued(scene.a)) == [Extent(own.page + 1, len(operations))]
    assert [scene.read(scene.a, page) for page in range(5)] == [f"a {n}".encode() for n in range(5)]
    shared = Hold.SHARED if still else Hold.OWNED
    held = [shared if operation is SHARE else Hold.OWNED for operation in operations]
    assert scene.holds(scene.a, own) == [Hold.OWNED, *held, *[Hold.OWNED] * (4 - len(held))]
    assert scene.mapped()["b"] == {}
    scene.check()


@pytest.mark.parametrize("writable", [True, False])
@pytest.mark.parametrize("part", [Extent(0, 3), Extent(1, 1)], ids=["all", "part"])
def test_whatever_the_host_refuses_a_loan_is_returned_or_as_it_was(
    part: Extent, writable: bool
) -> None:
    def attempt(plan: Sequence[bool]) -> Sequence[bool]:
        with Scene(plan, audit=True) as scene:
            scene.join_frames()
            (own,) = scene.alloc(scene.a, 3)
            (there,) = scene.pass_on(scene.a, LEND, own, to=scene.b, writable=writable)
            before = scene.snapshot()
            back = Extent(there.page + part.page, part.pages)
            scene.host.armed = True
            status = scene.ask(scene.b, RETURN, back, to=scene.a).status
            scene.host.armed = False
            taken = scene.host.taken
            scene.check()
            assert scene.contents() == before.contents
            if not any(taken):
                assert (status, told(scene.a)) == (Status.OK, [(RETURN, Status.OK)])
                assert set(scene.holds(scene.a, *extents_of(queued(scene.a)))) == {Hold.OWNED}
            else:
                assert (status, told(scene.a)) == (Status.E_NO_MEMORY, [])
                if sum(taken) == 1:  # it sees them as before
                    assert scene.snapshot() == before
                else:
                    assert set(scene.holds(scene.b, back)) == {Hold.REVOKED}
            scene.recover()
            scene.end()
            return taken

    assert every_way(attempt) == 4  # returned; not hidden; hidden and shown again, or not
