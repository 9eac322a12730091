"""What a machine is shown for a call: it stays until the next one, and nothing else can be told."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cut_off import Tracer
from tests_support import sized

from vmm import Buffer, CallCrash, CallError, GuestError, Sandbox
from vmm.errors import BusyError, ClosedError, LiveViewError
from vmm.guest.abi import PAGE_SIZE, Hold
from vmm.kvm import Vm
from vmm.memory.runs import Extent
from vmm.sandbox.worker import Worker

Elf = Callable[[str], Path]

EVERY = os.environ.get("PAGEFERRY_SWEEP") == "all"
PAGES = 3
SIZE = PAGES * PAGE_SIZE
VALUE = 7

not_in_ept = pytest.mark.not_in_ept(
    "what the ledger and the memslots say; the first tests see that it is so"
)


@pytest.fixture
def lib(sandboxed: Elf) -> Iterator[Sandbox]:
    with Sandbox(sandboxed("cheats"), pool="16M", timeout=20, machines=2, audit=True) as lib:
        yield lib
        lib.monitor.audit(mappings=True)


def array(lib: Sandbox) -> Buffer:
    return lib.alloc(SIZE)


def seen(worker: Worker) -> dict[int, bool]:
    """What a worker's machine sees, by the first page in the host's window, and if it may write."""
    assert worker.machine is not None
    shown = worker._showing.seen.get(worker.machine.number, ())
    return {one.source.page: one.writable for one in shown}


def first(lib: Sandbox) -> Worker:
    """The worker that the next call has."""
    return next(reversed(lib._crew._idle))


@contextlib.contextmanager
def slots_set(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Count the memslots that are made and deleted."""
    made, real = list[Any](), Vm.set_user_memory_region
    with monkeypatch.context() as patch:
        patch.setattr(Vm, "set_user_memory_region", lambda *a: (made.append(a[1:]), real(*a))[1])
        yield made


def test_the_same_array_again_costs_no_mapping(
    lib: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = array(lib), array(lib)
    lib.fills(one, SIZE, VALUE)
    with slots_set(monkeypatch) as slots:
        for value in range(20):
            lib.fills(one, SIZE, value)
            assert bytes(one) == bytes([value]) * SIZE
        assert not slots
        lib.fills(other, SIZE, VALUE)
        if lib.monitor.mover == "in-place":
            assert len(slots) == 2
    assert list(seen(first(lib))) == [other.extent.page]


def test_a_call_sees_what_it_is_given_and_nothing_of_calls_before(lib: Sandbox) -> None:
    one, other = array(lib), array(lib)
    lib.remembers(one)
    with pytest.raises(CallCrash, match="read"):
        lib.looks()
    lib.remembers(one)
    lib.fills(other, SIZE, VALUE)
    with pytest.raises(CallCrash, match="read"):
        lib.looks()


def test_what_may_only_be_read_is_shown_so_and_anew_where_it_may_be_written(lib: Sandbox) -> None:
    mine = array(lib)
    page = mine.extent.page
    for _ in range(2):
        lib.reads(mine)
        assert seen(first(lib)) == {page: False}
        lib.fills(mine, SIZE, VALUE)
        assert seen(first(lib)) == {page: True}
    lib.reads(mine)
    with pytest.raises(CallCrash, match="write"):
        lib.writes_to_what_it_reads(mine)
    assert bytes(mine) == bytes([VALUE]) * SIZE


@not_in_ept
def test_a_part_of_an_array_is_shown_alone(lib: Sandbox) -> None:
    mine = array(lib)
    lib.fills(mine, SIZE, VALUE)
    with memoryview(mine)[:PAGE_SIZE] as part:
        lib.fills(part, PAGE_SIZE, 2)
        assert [run.pages for run in lib.monitor._exchange.ledger.window(number(lib))] == [1]
        with pytest.raises(CallCrash):
            lib.fills(part, PAGE_SIZE + 1, 3)
    assert bytes(mine) == b"\3" * PAGE_SIZE + bytes([VALUE]) * (SIZE - PAGE_SIZE)


def number(lib: Sandbox) -> int:
    machine = first(lib).machine
    assert machine is not None
    return machine.number


# ---- Whatever else is done with it ----


def other_machine(lib: Sandbox, sandboxed: Elf) -> Any:
    return lib.monitor.spawn(sandboxed("cheats"), name="other", window="16M", memory="32M")


@pytest.mark.parametrize("what", ["release", "send", "lend", "exchange", "share", "close"])
@not_in_ept
def test_between_calls_it_is_the_hosts_for_whatever_is_done_with_it(
    lib: Sandbox, sandboxed: Elf, what: str
) -> None:
    mine, host, other = array(lib), lib.monitor.host, other_machine(lib, sandboxed)
    lib.fills(mine, SIZE, VALUE)
    worker = first(lib)
    assert list(seen(worker)) == [mine.extent.page]
    if what == "close":
        return
    if what == "release":
        host.release(mine)
    else:
        getattr(host, what)(other, mine)
    assert seen(worker) == {}
    assert lib.honest(3) == 3


@not_in_ept
def test_it_is_the_hosts_own_when_it_is_asked(lib: Sandbox) -> None:
    mine = array(lib)
    lib.fills(mine, SIZE, VALUE)
    assert mine.hold is Hold.OWNED
    with pytest.raises(GuestError, match="E_NOT_LENT"):
        lib.monitor.host.reclaim(mine)
    lib.fills(mine, SIZE, 2)
    assert bytes(mine) == b"\2" * SIZE


@not_in_ept
def test_while_it_is_viewed_it_does_not_go_and_stays_shown(lib: Sandbox, sandboxed: Elf) -> None:
    mine, other = array(lib), other_machine(lib, sandboxed)
    lib.fills(mine, SIZE, VALUE)
    with memoryview(mine), pytest.raises(LiveViewError):
        lib.monitor.host.send(other, mine)
    assert list(seen(first(lib))) == [mine.extent.page]


@not_in_ept
def test_several_machines_may_have_been_shown_the_same(lib: Sandbox) -> None:
    mine = array(lib)
    for worker in lib._crew.workers:
        with lib._crew.bound(worker):
            lib.fills(mine, SIZE, VALUE)
    page = mine.extent.page
    assert [list(seen(worker)) for worker in lib._crew.workers] == [[page], [page]]
    with lib._crew.bound(lib._crew.workers[0]):
        lib.honest(1)
    assert [list(seen(worker)) for worker in lib._crew.workers] == [[], [page]]
    lib.monitor.host.release(mine)
    assert [list(seen(worker)) for worker in lib._crew.workers] == [[], []]


@not_in_ept
def test_where_windows_are_in_too_many_pieces_what_idle_machines_see_is_taken_back(
    lib: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = lib._crew.workers
    arrays = [array(lib) for _ in range(9)]
    with lib._crew.bound(one):
        lib.copies_firsts(*arrays[:8], *arrays[:2], 0, *arrays[:8], *arrays[:2])
    assert len(seen(one)) == 8
    with lib._crew.bound(other):
        lib.honest(1)
    ledger = lib.monitor._exchange.ledger
    monkeypatch.setattr(ledger, "ask_for_pieces", None)
    ledger.allow(ledger.pieces_used())
    with lib._crew.bound(other):
        lib.fills(arrays[8], SIZE, VALUE)
    assert bytes(arrays[8]) == bytes([VALUE]) * SIZE
    assert seen(one) == {}


@not_in_ept
def test_very_many_arrays_are_not_taken_back_one_by_one(
    lib: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = [lib.alloc(10) for _ in range(20)]
    for worker in lib._crew.workers:
        with lib._crew.bound(worker):
            lib.copies_firsts(*arrays[:10], 0, *arrays[10:])
        assert len(seen(worker)) == 20
    with slots_set(monkeypatch) as slots:
        for one in arrays:
            lib.monitor.host.release(one)
    assert len(slots) <= 2 * 4  # as few as they were shown by
    assert [seen(worker) for worker in lib._crew.workers] == [{}, {}]


@not_in_ept
def test_what_a_machine_that_died_was_shown_is_known_no_more(lib: Sandbox) -> None:
    mine = array(lib)
    lib.fills(mine, SIZE, VALUE)
    worker = first(lib)
    assert worker.machine is not None
    lib.monitor.remove(worker.machine)
    lib.monitor.host.release(mine)
    assert lib.honest(1) == 1
    assert len(worker._showing.seen) == 0


@not_in_ept
def test_who_runs_all_machines_does_so_between_calls(lib: Sandbox) -> None:
    mine, host = array(lib), lib.monitor.host
    lib.fills(mine, SIZE, VALUE)
    lib.monitor.run()
    assert seen(first(lib)) == {}
    runs: list[str] = []

    def run() -> None:
        with pytest.raises(BusyError, match="called"):
            lib.monitor.run()
        runs.append(mine.hold.name)

    showing, real = first(lib)._showing, first(lib)._showing.show

    def shows(*args: Any) -> Any:
        shown = real(*args)
        run()
        return shown

    showing.show = shows  # type: ignore[method-assign]
    lib.fills(mine, SIZE, 2)
    assert runs == ["SHARED"]
    assert bytes(mine) == b"\2" * SIZE
    host.release(mine)


@not_in_ept
def test_what_a_machine_is_about_to_lose_can_be_released(
    lib: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = array(lib), array(lib)
    showing = first(lib)._showing
    take_less = showing._take_less
    lib.fills(mine, SIZE, VALUE)

    def released(*what: Any) -> None:  # as another thread may, just then
        lib.monitor.host.release(mine)
        take_less(*what)

    with monkeypatch.context() as patch:
        patch.setattr(showing, "_take_less", released)
        lib.fills(other, SIZE, VALUE)
    assert bytes(other) == bytes([VALUE]) * SIZE
    with pytest.raises(ClosedError):
        _ = mine.extent


@not_in_ept
def test_nobody_takes_what_a_machine_is_being_called_with_since_just_now(
    lib: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = array(lib)
    lib.fills(mine, SIZE, VALUE)
    worker = first(lib)
    machine, showing = worker.machine, worker._showing
    assert machine is not None
    before = showing.seen[machine.number]
    telling = showing._turns.telling

    class Telling:
        """Has another thread's call come between."""

        def __enter__(self) -> None:
            showing.show(machine, [one[:2] for one in before])
            telling.__enter__()

        def __exit__(self, *what: Any) -> None:
            telling.__exit__(*what)

    with monkeypatch.context() as patch:
        patch.setattr(showing._turns, "telling", Telling())
        showing._relax()
    assert showing.seen[machine.number] == before
    showing.called.clear()


@not_in_ept
def test_what_is_done_with_other_buffers_looks_at_no_machine(
    lib: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = array(lib), array(lib)
    lib.fills(mine, SIZE, VALUE)
    looked, real = list[Extent](), Extent.overlaps
    monkeypatch.setattr(Extent, "overlaps", lambda *a: (looked.append(a[1]), real(*a))[1])
    assert other.hold is Hold.OWNED
    assert not looked
    assert mine.hold is Hold.OWNED
    assert looked


# ---- Cut off at any line ----


@pytest.mark.smaller_in_lanes("a call with a tracer takes fifty times as long there")
@pytest.mark.not_in_ept("a call with a tracer takes two hundred times as long there")
@pytest.mark.timeout(3600 if EVERY else 60)
def test_what_a_call_was_given_that_was_cut_off_can_be_released_at_once(lib: Sandbox) -> None:
    def act(mine: Buffer) -> None:
        lib.fills(mine, SIZE, VALUE)

    act(array(lib))
    with Tracer() as tracer:
        act(array(lib))
    step = 1 if EVERY else max(tracer.lines // sized(60, 4), 1)
    for line in range(1 + random.randrange(step), tracer.lines + 1, step):
        mine = array(lib)
        with Tracer(line) as tracer, contextlib.suppress(CallError):
            act(mine)
        lib.monitor._turns.let_go()  # a tracer, unlike a signal's handler, raises as a `with` ends
        lib.monitor.host.release(mine)
        assert not first(lib)._showing.called, tracer.where


@pytest.mark.smaller_in_lanes("a call with a tracer takes fifty times as long there")
@pytest.mark.not_in_ept("a call with a tracer takes two hundred times as long there")
@pytest.mark.timeout(3600 if EVERY else 60)
@pytest.mark.parametrize("what", ["another call", "release"])
def test_what_shows_other_arrays_is_cut_off_at_any_line(lib: Sandbox, what: str) -> None:
    one, other = array(lib), array(lib)

    def begin() -> Buffer:
        lib.fills(other, SIZE, VALUE)
        spare = array(lib)
        lib.reads_both(one, spare)
        return spare

    def act(spare: Buffer) -> None:
        if what == "release":
            lib.monitor.host.release(spare)
        else:
            lib.fills_both(one, other, SIZE, 2)

    spare = begin()
    with Tracer() as tracer:
        act(spare)
    if what != "release":
        lib.monitor.host.release(spare)
    step = 1 if EVERY else max(tracer.lines // sized(25, 4), 1)
    for line in range(1 + random.randrange(step), tracer.lines + 1, step):
        spare = begin()
        with Tracer(line) as tracer, contextlib.suppress(CallError):
            act(spare)
        assert lib.honest(line) == line, tracer.where
        assert seen(first(lib)) == {}, tracer.where
        with contextlib.suppress(ClosedError):
            lib.monitor.host.release(spare)
        books = lib.monitor.audit(mappings=True)
        assert (books["owned"], books["shared"]) == (2 * PAGES, 0), tracer.where
