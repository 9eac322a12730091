"""Long work in slices: what is shared, freed, or asked for by many descriptors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from unit.exchange_scene import FRAMES, Scene, told

from vmm.ferry import checks, deaths, delivery, slices
from vmm.guest.abi import Hold, Operation, Status
from vmm.memory.movers.park import Park
from vmm.memory.runs import Extent

LARGE = 4  # frames


class Parked(Scene):
    make_pool = staticmethod(lambda frames: Park(frames, LARGE))


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """Machines whose larger runs are anonymous memory; slices are of four pages."""
    for module, name in (
        (slices, "SHARED_AT_ONCE"),
        (slices, "ZEROED_AT_ONCE"),
        (checks, "ZEROED_AT_ONCE"),
    ):
        monkeypatch.setattr(module, name, LARGE)
    with Parked(audit=True) as scene:
        scene.join_frames()
        yield scene


def transmit(scene: Scene) -> int:
    """Let a's doorbell be answered in slices; return how many there were."""
    count = 1
    while (status := scene.exchange.transmit(scene.a)) is None:
        scene.check()
        count += 1
    assert status is Status.OK
    return count


def anonymous(scene: Scene) -> int:
    """How many pages of a's window are anonymous memory."""
    return sum(run.pages for run in scene.a.window.shown)  # type: ignore[attr-defined]


def test_what_is_shared_is_copied_slice_by_slice_and_looks_the_same_meanwhile(scene: Scene) -> None:
    (own,) = scene.alloc(scene.a, 16)
    words = [scene.read(scene.a, page) for page in range(own.page, own.end)]
    assert anonymous(scene) == 16
    entry = scene.put(scene.a, Operation.SHARE, own, to=scene.b)
    for left in (12, 8, 4, 0):
        assert scene.exchange.transmit(scene.a) is None
        assert (anonymous(scene), entry.status) == (left, Status.PENDING)
        assert [scene.read(scene.a, page) for page in range(own.page, own.end)] == words
        assert scene.holds(scene.a, own) == [Hold.OWNED] * 16
        scene.check()
    assert scene.exchange.transmit(scene.a) is Status.OK
    assert entry.status == Status.OK
    (there,) = scene.take(scene.b)
    assert [scene.read(scene.b, page) for page in range(there.page, there.end)] == words
    scene.check()


def test_a_share_that_is_refused_in_the_end_has_harmed_nobody(scene: Scene) -> None:
    (own,) = scene.alloc(scene.a, 16)
    words = [scene.read(scene.a, page) for page in range(own.page, own.end)]
    entry = scene.put(scene.a, Operation.SHARE, own, to=scene.b)
    assert scene.exchange.transmit(scene.a) is None
    scene.exchange.leave(scene.b)
    transmit(scene)
    assert entry.status == Status.E_DEAD
    assert anonymous(scene) == 12  # no more than had been done
    assert [scene.read(scene.a, page) for page in range(own.page, own.end)] == words
    scene.check()
    scene.end()


@pytest.mark.parametrize("operation", [Operation.SEND, Operation.LEND])
def test_half_of_a_share_can_be_done_with_as_with_all_else(
    scene: Scene, operation: Operation
) -> None:
    """Its owner dies, or comes to do something else with it, before the rest is copied."""
    (own,) = scene.alloc(scene.a, 16)
    scene.put(scene.a, Operation.SHARE, own, to=scene.b)
    assert scene.exchange.transmit(scene.a) is None
    (there,) = scene.pass_on(scene.a, operation, own, to=scene.c)
    assert scene.read(scene.c, there.page) == b"a 0"
    scene.check()
    scene.end()


def test_what_is_not_ones_own_is_not_prepared(scene: Scene) -> None:
    (own,) = scene.alloc(scene.a, 16)
    scene.done(scene.a, Operation.LEND, Extent(own.page, 1), to=scene.b)
    entry = scene.put(scene.a, Operation.SHARE, own, to=scene.b)
    assert transmit(scene) == 1
    assert entry.status == Status.E_LENT


def test_many_descriptors_are_answered_in_slices_and_in_their_order(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "_WEIGHT", 6)
    own = scene.alloc(scene.a, *[1] * 12)[::2]  # that do not follow each other
    entries = [scene.put(scene.a, Operation.SEND, page, to=scene.b, tag=page.page) for page in own]
    answered = []
    while scene.exchange.transmit(scene.a) is None:
        answered.append(scene.guest(scene.a).tx_tail)
        assert [entry.status == Status.OK for entry in entries] == [
            index < answered[-1] for index in range(6)
        ]
        scene.check()
    assert answered == [2, 4]
    assert [message.tag for message in scene.b.queue] == [page.page for page in own]
    assert [entry.status for entry in entries] == [Status.OK] * 6


def test_what_follows_each_other_is_one_slice(scene: Scene) -> None:
    (own,) = scene.alloc(scene.a, 8)
    for page in range(own.page, own.end):
        scene.put(scene.a, Operation.LEND, Extent(page, 1), to=scene.b)
    assert transmit(scene) == 1


def test_a_share_among_others_waits_for_those_before_it(scene: Scene) -> None:
    one, own = scene.alloc(scene.a, 1, 16)
    first = scene.put(scene.a, Operation.SEND, one, to=scene.b)
    second = scene.put(scene.a, Operation.SHARE, own, to=scene.b)
    third = scene.put(scene.a, Operation.RECLAIM, own)
    assert scene.exchange.transmit(scene.a) is None
    assert [entry.status for entry in (first, second)] == [Status.OK, Status.PENDING]
    transmit(scene)
    assert [entry.status for entry in (second, third)] == [Status.OK] * 2
    scene.check()


# ---- What is freed ----


def unclean(scene: Scene) -> int:
    return scene.ledger.audit().get("unclean", 0)


def test_what_is_freed_is_zeroed_slice_by_slice_and_nobodys_until_then(scene: Scene) -> None:
    scene.ledger.lazy = True
    (own,) = scene.alloc(scene.a, 16)
    free = scene.ledger.audit()["free"]
    scene.done(scene.a, Operation.RELEASE, own)
    for done in (0, 4, 8, 12):
        assert (unclean(scene), scene.ledger.audit()["free"]) == (16 - done, free + done)
        assert scene.exchange.slices.chores() is (done < 12)
    assert scene.contents() == {}
    assert not scene.exchange.slices.chores()


def test_little_is_zeroed_at_once(scene: Scene) -> None:
    scene.ledger.lazy = True
    (own,) = scene.alloc(scene.a, LARGE)
    scene.done(scene.a, Operation.RELEASE, own)
    assert unclean(scene) == 0
    assert scene.contents() == {}


@pytest.mark.parametrize("sliced", [True, False])
def test_who_asks_for_more_than_is_clean_gets_zeros(scene: Scene, sliced: bool) -> None:
    scene.ledger.lazy = True
    (own,) = scene.alloc(scene.a, FRAMES)
    scene.done(scene.a, Operation.RELEASE, own)
    assert unclean(scene) == FRAMES
    if sliced:
        entry = scene.put(scene.a, Operation.ALLOC, Extent(0, 16))
        entry.extents[0].gpa = 0
        assert transmit(scene) == 5
        assert entry.status == Status.OK
    else:
        assert scene.ask_alloc(scene.a, 16).status is Status.OK
    assert unclean(scene) == FRAMES - 16
    assert [scene.read(scene.a, page) for page in range(16)] == [b""] * 16


def test_what_the_dead_had_is_zeroed_in_slices_too(scene: Scene) -> None:
    scene.ledger.lazy = True
    scene.alloc(scene.a, 32)
    scene.exchange.leave(scene.a)
    assert unclean(scene) == 32
    while scene.exchange.slices.chores():
        pass
    scene.end()


@pytest.mark.parametrize("received", [True, False])
def test_what_the_dead_left_with_who_dies_later_is_zeroed_in_slices_too(
    scene: Scene, received: bool
) -> None:
    scene.ledger.lazy = True
    (own,) = scene.alloc(scene.a, 32)
    free = scene.ledger.audit()["free"]
    scene.done(scene.a, Operation.LEND, own, to=scene.b)
    if received:
        scene.take(scene.b)
    assert scene.exchange.leave(scene.a)
    assert scene.exchange.leave(scene.b)
    assert (unclean(scene), scene.ledger.audit()["free"]) == (32, free)
    while scene.exchange.slices.chores():
        pass
    assert scene.ledger.audit()["free"] == free + 32
    scene.end()


def test_a_host_that_refuses_to_zero_leaves_it_unclean(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.ledger.lazy = True
    (own,) = scene.alloc(scene.a, 16)
    scene.done(scene.a, Operation.RELEASE, own)
    with monkeypatch.context() as patch:
        patch.setattr(scene.pool, "zero", lambda frames: (_ for _ in ()).throw(OSError("no")))
        assert not scene.exchange.slices.chores()  # for now: nobody is to wait for that
    assert unclean(scene) == 16
    while scene.exchange.slices.chores():
        pass
    assert scene.contents() == {}


def test_who_wants_what_the_host_refuses_to_zero_does_not_wait_for_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.ledger.lazy = True
    (own,) = scene.alloc(scene.a, FRAMES)
    scene.done(scene.a, Operation.RELEASE, own)
    with monkeypatch.context() as patch:
        patch.setattr(scene.pool, "zero", lambda frames: (_ for _ in ()).throw(OSError("no")))
        assert scene.ask_alloc(scene.a, 16).status is Status.E_NO_MEMORY
    assert scene.ask_alloc(scene.a, 16).status is Status.OK


def test_what_is_freed_in_many_pieces_is_zeroed_many_at_a_time(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "ZEROED_AT_ONCE", 64)
    monkeypatch.setattr(slices, "PARTS_AT_ONCE", 3)
    scene.ledger.lazy = True
    own = scene.alloc(scene.a, *[1] * 32)[::2]
    scene.done(scene.a, Operation.RELEASE, *own)
    left = [unclean(scene)]
    while scene.exchange.slices.chores():
        left.append(unclean(scene))
    assert left == [12, 9, 6, 3]
    assert scene.ledger.pool.unclean == scene.ledger.pool.unclean.__class__()


# ---- What is hidden ----


@pytest.mark.parametrize("operation", [Operation.SEND, Operation.LEND, Operation.RELEASE])
def test_what_is_hidden_is_loosened_slice_by_slice_and_looks_the_same_meanwhile(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, operation: Operation
) -> None:
    monkeypatch.setattr(slices, "HIDDEN_AT_ONCE", LARGE)
    loosened = list[tuple[int, int]]()
    loosen = type(scene.a.window).loosen

    def noted(window: object, page: int, count: int) -> bool:
        loosened.append((page, count))
        return loosen(window, page, count) or True  # type: ignore[arg-type]

    monkeypatch.setattr(type(scene.a.window), "loosen", noted)
    (own,) = scene.alloc(scene.a, 10)
    words = [scene.read(scene.a, page) for page in range(own.page, own.end)]
    to = {} if operation is Operation.RELEASE else {"to": scene.b}
    entry = scene.put(scene.a, operation, own, **to)  # type: ignore[arg-type]
    for done in (4, 8, 10):
        assert scene.exchange.transmit(scene.a) is None
        assert (sum(count for _, count in loosened), entry.status) == (done, Status.PENDING)
        assert [scene.read(scene.a, page) for page in range(own.page, own.end)] == words
        scene.check()
    assert scene.exchange.transmit(scene.a) is Status.OK
    assert entry.status == Status.OK
    assert loosened == [(own.page, 4), (own.page + 4, 4), (own.page + 8, 2)]
    if to:
        (there,) = scene.take(scene.b)
        assert [scene.read(scene.b, page) for page in range(there.page, there.end)] == words
    scene.check()
    scene.end()


@pytest.mark.parametrize("back", [Operation.RETURN, Operation.RECLAIM])
def test_what_comes_back_is_loosened_where_it_is_borrowed(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, back: Operation
) -> None:
    (own,) = scene.alloc(scene.a, 10)
    words = [scene.read(scene.a, page) for page in range(own.page, own.end)]
    (loan,) = scene.pass_on(scene.a, Operation.LEND, own, to=scene.b)
    monkeypatch.setattr(slices, "HIDDEN_AT_ONCE", LARGE)
    loosened = list[object]()
    monkeypatch.setattr(type(scene.b.window), "loosen", lambda *what: not loosened.append(what[0]))
    who, what = (scene.b, loan) if back is Operation.RETURN else (scene.a, own)
    scene.put(who, back, what, to=scene.a if back is Operation.RETURN else 0)
    count = 1
    while scene.exchange.transmit(who) is None:
        count += 1
    assert (count, loosened) == (4, [scene.b.window] * 3)
    assert [scene.read(scene.a, page) for page in range(own.page, own.end)] == words
    scene.check()


def test_a_request_that_is_another_than_before_is_loosened_from_its_beginning(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "HIDDEN_AT_ONCE", LARGE)
    monkeypatch.setattr(type(scene.a.window), "loosen", lambda *what: True)
    one, other = scene.alloc(scene.a, 8, 8)
    first = scene.request(Operation.SEND, one, to=scene.b)
    assert scene.exchange.serve(scene.a, lambda: first) is None
    second = scene.request(Operation.SEND, other, to=scene.b)
    slice_ = 0
    while scene.exchange.serve(scene.a, lambda: second) is None:
        slice_ += 1
    assert slice_ == 2
    scene.check()


def test_what_is_moved_as_it_is_is_sent_at_once(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "HIDDEN_AT_ONCE", LARGE)
    (own,) = scene.alloc(scene.a, 2 * LARGE)
    assert scene.a.window.moves(*own)
    entry = scene.put(scene.a, Operation.SEND, own, to=scene.b)
    assert scene.exchange.transmit(scene.a) is Status.OK
    assert entry.status == Status.OK
    scene.check()


# ---- By the clock ----


def test_where_the_time_is_over_the_next_descriptor_waits(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "LONG", 0)
    own = scene.alloc(scene.a, *[1] * 8)[::2]
    entries = [scene.put(scene.a, Operation.LEND, page, to=scene.b) for page in own]
    for done in range(1, 4):
        assert scene.exchange.transmit(scene.a) is None
        assert [entry.status == Status.OK for entry in entries] == [i < done for i in range(4)]
        scene.check()
    assert scene.exchange.transmit(scene.a) is Status.OK
    assert [message.number for message in scene.b.queue] == [1, 2, 3, 4]


# ---- A death ----


@pytest.mark.parametrize("taken", [0, 3, 6])
def test_a_death_in_parts_is_whole_after_each(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    for name in ("RUNS_AT_ONCE", "RUNS_OF_SLOTS"):
        for module in (deaths, delivery):
            monkeypatch.setattr(module, name, 2)
    monkeypatch.setattr(deaths, "HIDDEN_AT_ONCE", 3)
    mine, *loans = scene.alloc(scene.a, *[1] * 12)[::2]
    scene.alloc(scene.b, 8)
    wide = Extent(loans[0].page, 1)
    words = {page.page: scene.read(scene.a, page.page) for page in (mine, *loans)}
    scene.done(scene.a, Operation.LEND, *loans[1:], to=scene.b)
    scene.done(scene.a, Operation.SEND, wide, to=scene.b)
    scene.done(scene.a, Operation.SEND, mine, to=scene.b)
    for _ in range(taken // 3):
        scene.take(scene.b)
    parts = 1
    while not scene.exchange.leave(scene.b):
        parts += 1
        scene.ledger.audit()
        assert not scene.b.alive
    assert parts > 3
    scene.check()
    back = [operation for operation, status in told(scene.a) if status is Status.E_DEAD]
    assert back
    for page in loans[1:]:
        assert scene.read(scene.a, page.page) == words[page.page]
    scene.end()
