"""A library that cheats can harm its own calls, and nothing else: tests/sandboxed/cheats.c."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kvm.sandbox_books import books

from vmm import CallCrash, CallError, CallTimeout, Sandbox

np: Any = pytest.importorskip("numpy", reason="a nested lane has no more than the package needs")
Elf = Callable[[str], Path]

PAGES = 3
SIZE = PAGES * 4096


@pytest.fixture
def lib(sandboxed: Elf) -> Iterator[Sandbox]:
    """The library; afterwards it works, and no page is anybody's that was not before."""
    with Sandbox(sandboxed("cheats"), machines=2, pool="16M", timeout=20, audit=True) as lib:
        before = books(lib)
        yield lib
        assert [lib.honest(n) for n in range(4)] == [0, 1, 2, 3]
        assert not lib.monitor.host.peer.queue
        assert books(lib) == before


def tag(lib: Sandbox) -> int:
    """The tag of the next call, which anybody can guess: it counts."""
    return next(reversed(lib._crew._idle))._tag + 1


def array(lib: Sandbox) -> Any:
    made = lib.empty(SIZE, np.uint8)
    made[:] = 5
    return made


@pytest.mark.parametrize("cheat", ["answers_twice", "answers_ahead"])
def test_too_many_answers_are_nobody_elses(lib: Sandbox, cheat: str) -> None:
    lib[cheat](tag(lib))
    found = [lib.honest(n) for n in range(8)]
    assert found[4:] == [4, 5, 6, 7]  # those before it may have answered itself
    other = next(w for w in lib._crew.workers if w is not next(reversed(lib._crew._idle)))
    assert other.machine is None or other._tag < tag(lib)


def test_an_answer_to_another_call_or_that_is_too_short_is_none(lib: Sandbox) -> None:
    with pytest.raises(CallCrash, match="waits for what nobody sends"):
        lib.answers_wrongly(tag(lib))


def test_an_answer_without_what_is_copied_back_is_none(lib: Sandbox) -> None:
    mine = bytearray(b"12345678")
    with pytest.raises(CallCrash, match="waits for what nobody sends"):
        lib.answers_without_its_data(mine, tag(lib))
    assert mine == b"12345678"


@pytest.mark.parametrize("cheat", ["answers_and_runs_on", "answers_and_sleeps"])
def test_a_function_that_goes_on_after_its_answer_has_not_returned(
    lib: Sandbox, cheat: str
) -> None:
    with pytest.raises(CallTimeout):
        lib[cheat](tag(lib), timeout=0.2)


def test_who_never_answers_has_nothing_afterwards(lib: Sandbox) -> None:
    mine = array(lib)
    with pytest.raises(CallCrash):
        lib.never_answers(mine)
    assert mine.tolist() == [1] + [5] * (SIZE - 1)
    mine[:] = 6
    del mine


def test_who_answers_by_its_own_words_and_waits_has_nothing_when_it_is_called_next(
    lib: Sandbox,
) -> None:
    mine = array(lib)
    lib.keeps(mine, tag(lib))
    one = next(reversed(lib._crew._idle))
    assert one.machine is not None
    assert [seen.source.pages for seen in one._showing.seen[one.machine.number]] == [PAGES]
    with pytest.raises(CallCrash):  # which has been taken by the function that has not returned
        lib.looks_at(mine.ctypes.data)
    assert one._showing.seen == {}
    mine[:] = 6
    del mine


def test_who_answers_by_its_own_words_and_is_woken_by_a_notice_has_nothing_when_it_runs(
    lib: Sandbox,
) -> None:
    mine = array(lib)
    lib.lurks(mine, tag(lib))
    machine = next(reversed(lib._crew._idle)).machine
    assert machine is not None
    lib.monitor.notice(machine, 1)
    lib.monitor.run()
    assert mine.tolist() == [5] * SIZE
    assert "does not own" in str(machine.fault)
    del mine


def test_who_takes_no_message_costs_one_call_and_not_all_that_are_given_arrays(
    lib: Sandbox,
) -> None:
    mine = array(lib)
    lib.leaves_a_message(tag(lib))
    with pytest.raises(CallCrash, match="not taken a message"):
        lib.deals_with(mine, PAGES)
    assert lib.deals_with(mine, PAGES) == 0
    assert mine.tolist() == [5] * SIZE
    del mine


@pytest.mark.parametrize("pages", [1, PAGES])
def test_pages_that_are_given_back_early_cost_the_machine_and_nothing_else(
    lib: Sandbox, pages: int
) -> None:
    mine = array(lib)
    with pytest.raises(CallCrash):
        lib.gives_back(mine, pages)
    assert mine.tolist() == [5] * SIZE
    del mine


def test_what_is_shared_for_a_call_cannot_be_passed_on(lib: Sandbox) -> None:
    mine = array(lib)
    assert lib.deals_with(mine, PAGES) == 0
    assert mine.tolist() == [5] * SIZE
    del mine


def test_between_calls_nothing_is_seen(lib: Sandbox) -> None:
    mine = array(lib)
    lib.remembers(mine)
    with pytest.raises(CallCrash, match="read"):
        lib.looks()
    del mine


def test_a_flood_of_messages_is_dropped(lib: Sandbox) -> None:
    assert lib.floods(500) == 500
    assert not lib.monitor.host.peer.queue
    with pytest.raises(CallCrash, match="does not take the answer"):
        lib.floods(3000)  # there was no room left for its own
    assert not lib.monitor.host.peer.queue


def test_a_flood_keeps_nobody_elses_call_from_its_answer(lib: Sandbox) -> None:
    flooding = threading.Thread(target=ends_by_timeout, args=(lib.floods_and_stays,))
    flooding.start()
    mine = array(lib)
    for n in range(50):
        assert lib.honest(n) == n
        assert lib.deals_with(mine, PAGES) == 0
    flooding.join()
    del mine


@pytest.mark.parametrize("flood", ["floods_and_stays", "floods_by_batches_and_stays"])
def test_a_flood_keeps_no_answer_of_two_messages_from_coming(lib: Sandbox, flood: str) -> None:
    read = [lib.array(np.full(10, n, np.uint8)) for n in range(10)]
    written = [lib.empty(10, np.uint8) for _ in range(10)]
    flooding = threading.Thread(target=ends_by_timeout, args=(lib[flood],))
    flooding.start()
    calls = 0
    while flooding.is_alive():
        assert lib.copies_firsts(*read, 200, *written) == 200
        calls += 1
    flooding.join()
    assert [array[0] for array in written] == list(range(10))
    assert calls > 1
    for worker in lib._crew.workers:
        worker.copies.drop()


def ends_by_timeout(function: Callable[..., object]) -> None:
    with pytest.raises(CallTimeout):
        function(timeout=1)


def test_pages_that_are_sent_unasked_are_freed(lib: Sandbox) -> None:
    for _ in range(3):
        assert lib.gives_pages(0, 40) == 1  # a quota is of what has not been taken, too


@pytest.mark.parametrize("how", [1, 2], ids=["lent", "shared"])
def test_pages_that_are_lent_unasked_go_back_which_the_machine_does_not_expect(
    lib: Sandbox, how: int
) -> None:
    with pytest.raises(CallCrash):
        lib.gives_pages(how, 1)


def test_a_storm_of_doorbells_ends_with_its_time(lib: Sandbox) -> None:
    assert lib.storms(200) == 1
    with pytest.raises(CallTimeout):
        lib.storms(-1, timeout=0.2)


@pytest.mark.parametrize("value", [0, 0x55, 0xFF])
def test_a_spoiled_control_structure_spoils_one_call(lib: Sandbox, value: int) -> None:
    mine = array(lib)
    with contextlib.suppress(CallError):
        lib.spoils_the_control_structure(value, timeout=0.3)
    assert mine.tolist() == [5] * SIZE
    del mine
