"""A RECLAIM or RELEASE of very many runs: in parts, each whole, and to its asker as one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cut_off import Tracer
from unit.exchange_scene import Scene

from vmm.ferry import parts, slices
from vmm.ferry.checks import RUNS_MAX
from vmm.ferry.rules import Refusal
from vmm.guest import abi
from vmm.guest.abi import Hold, Operation, Status
from vmm.memory.runs import Extent

AT_ONCE = 4  # runs, or twice as many windows as a loan is in
PAGES = 12
EVERY = 3  # line is where a turn is cut off


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """Machines whose every page is a run of its own."""
    monkeypatch.setattr(parts, "RUNS_MAX", AT_ONCE)
    monkeypatch.setattr(slices, "RUNS_MAX", AT_ONCE // 2)
    for operation in parts.PARTED:
        monkeypatch.setitem(parts.PARTED, operation, AT_ONCE // 2)
    with Scene(depth=16, audit=True) as scene:
        yield scene


def lent(scene: Scene, operation: Operation = Operation.LEND) -> tuple[Extent, list[Extent]]:
    """Let a lend b an extent page by page; return it, and where its pages are there."""
    (own,) = scene.alloc(scene.a, PAGES)
    pages = [Extent(page, 1) for page in range(own.page, own.end)]
    there = [scene.pass_on(scene.a, operation, page, to=scene.b)[0] for page in pages]
    return own, there


def turns(scene: Scene, entry: abi.Descriptor) -> Iterator[int]:
    """Let a's doorbell be answered; yield after each turn but the last how many there were."""
    count = 1
    while scene.exchange.transmit(scene.a) is None:
        assert entry.status == Status.PENDING
        scene.check()
        yield count
        count += 1
    scene.check()


@pytest.mark.parametrize("operation", [Operation.LEND, Operation.SHARE])
def test_what_is_taken_back_is_so_part_by_part(scene: Scene, operation: Operation) -> None:
    own, there = lent(scene, operation)
    entry = scene.put(scene.a, Operation.RECLAIM, own)
    for turn in turns(scene, entry):
        done = 2 * (turn - 1)  # the first turn only checks it
        assert scene.holds(scene.a, own).count(Hold.OWNED) == done
        assert scene.holds(scene.b, *there).count(Hold.REVOKED) == done
    assert (entry.status, turn) == (Status.OK, 6)
    assert scene.holds(scene.a, own) == [Hold.OWNED] * PAGES
    words = [f"a {page}".encode() for page in range(own.page, own.end)]
    assert [scene.read(scene.a, page) for page in range(own.page, own.end)] == words


def test_what_is_released_is_so_part_by_part(scene: Scene) -> None:
    (own,) = scene.alloc(scene.a, PAGES)
    entry = scene.put(scene.a, Operation.RELEASE, own)
    for turn in turns(scene, entry):
        assert scene.holds(scene.a, own).count(Hold.NONE) == AT_ONCE * (turn - 1)
    assert (entry.status, turn) == (Status.OK, 3)
    assert scene.contents() == {}


def test_what_is_refused_is_so_before_anything_is_done(scene: Scene) -> None:
    own, there = lent(scene)
    scene.done(scene.b, Operation.RETURN, there[-1], to=scene.a)
    before = scene.snapshot()
    entry = scene.put(scene.a, Operation.RECLAIM, own)
    assert not [*turns(scene, entry)]
    assert entry.status == Status.E_NOT_LENT
    assert scene.snapshot().windows == before.windows


def test_what_a_borrower_returns_meanwhile_is_the_owners_as_well(scene: Scene) -> None:
    own, there = lent(scene)
    entry = scene.put(scene.a, Operation.RECLAIM, own)
    for turn in turns(scene, entry):
        if turn == 2:
            for place in there[2:]:
                scene.done(scene.b, Operation.RETURN, place, to=scene.a)
    assert entry.status == Status.OK
    assert scene.holds(scene.a, own) == [Hold.OWNED] * PAGES


@pytest.mark.parametrize("dead", ["a", "b"])
def test_between_two_parts_anybody_may_die(scene: Scene, dead: str) -> None:
    own, _ = lent(scene)
    entry = scene.put(scene.a, Operation.RECLAIM, own)
    for turn in turns(scene, entry):
        if turn == 3:
            scene.exchange.leave(scene.a if dead == "a" else scene.b)
            if dead == "a":
                break
    if dead == "b":
        assert entry.status == Status.OK
        assert scene.holds(scene.a, own) == [Hold.OWNED] * PAGES
    assert not scene.exchange.slices.parts.begun(scene.a)
    scene.check()
    scene.end()


def test_if_the_host_refuses_a_part_that_is_the_answer_and_nothing_is_lost(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, _ = lent(scene)
    entry = scene.put(scene.a, Operation.RECLAIM, own)

    def refuse(*_: object) -> None:
        raise Refusal(Status.E_NO_MEMORY)

    for turn in turns(scene, entry):
        if turn == 3:
            monkeypatch.setattr(scene.exchange.operations, "do", refuse)
    monkeypatch.undo()
    assert entry.status == Status.E_NO_MEMORY
    assert scene.holds(scene.a, own) == [Hold.OWNED] * 4 + [Hold.LENT] * (PAGES - 4)
    rest = Extent(own.page + 4, PAGES - 4)
    assert scene.ask(scene.a, Operation.RECLAIM, rest).status is Status.OK


def test_a_part_that_is_cut_off_at_any_line_is_still_to_be_done(scene: Scene) -> None:
    own, _ = lent(scene)
    entry = scene.put(scene.a, Operation.RECLAIM, own)
    journal, cut = scene.pool.journal, 0
    for turn in turns(scene, entry):
        for line in range(1, 1 << 20, EVERY) if turn == 2 else ():
            journal.begin()
            with Tracer(line) as tracer:
                assert scene.exchange.transmit(scene.a) is None
            journal.roll_back()
            assert scene.holds(scene.a, own).count(Hold.OWNED) == 2
            if tracer.where is None:
                break
            cut += 1
    assert cut > 20
    assert entry.status == Status.OK
    assert scene.holds(scene.a, own) == [Hold.OWNED] * PAGES


# ---- What is not done in parts ----


@pytest.mark.parametrize(
    "operation", [Operation.SEND, Operation.LEND, Operation.SHARE, Operation.EXCHANGE]
)
def test_a_message_takes_so_many_runs_at_most(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, operation: Operation
) -> None:
    monkeypatch.setattr("vmm.ferry.checks.RUNS_MAX", AT_ONCE)
    (own,) = scene.alloc(scene.a, AT_ONCE)
    (more,) = scene.alloc(scene.d, 1)
    scene.exchange.roster.connect(scene.d, scene.a)
    scene.pass_on(scene.d, Operation.SEND, more, to=scene.a)
    whole = Extent(own.page, AT_ONCE + 1)
    before = scene.snapshot()
    assert scene.ask(scene.a, operation, whole, to=scene.b).status is Status.E_LENGTH
    assert scene.snapshot() == before
    assert scene.ask(scene.a, operation, own, to=scene.b).status is Status.OK
    scene.check()


def test_pages_of_one_run_are_one_however_many_they_are(scene: Scene) -> None:
    scene.join_frames()
    pages = RUNS_MAX // 2
    (own,) = scene.alloc(scene.a, pages)
    entry = scene.put(scene.a, Operation.RELEASE, own)
    assert not [*turns(scene, entry)]
    assert entry.status == Status.OK
