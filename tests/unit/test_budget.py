"""The budget of mappings is one for the process, whoever has a part of it."""

from __future__ import annotations

import threading

import pytest
from cut_off import Tracer

from vmm.ferry.books import UNLIMITED
from vmm.ferry.ledger import Ledger
from vmm.ferry.rules import Refusal
from vmm.guest.abi import Status
from vmm.memory.budget import LEAST, Budget
from vmm.memory.runs import Extent

TOTAL = 2048
FRAMES = 8192


def member(budget: Budget) -> Ledger:
    ledger = Ledger(FRAMES)
    ledger.admit(1, FRAMES, UNLIMITED, UNLIMITED)
    budget.join(ledger, TOTAL)
    ledger.ask_for_pieces = budget.balance
    ledger.grant(1, [FRAMES])
    return ledger


def cut(ledger: Ledger, most: int = FRAMES) -> int:
    """Release every other page until that is refused; return in how many pieces the window is."""
    for page in range(1, FRAMES, 2):
        if ledger.pieces_used() >= most:
            break
        if not ledger.runs(1, Extent(page, 1)):
            continue
        try:
            ledger.release(1, ledger.releasing(1, [Extent(page, 1)]))
        except Refusal as refusal:
            assert refusal.status is Status.E_NO_MEMORY
            break
    return ledger.pieces_used()


def test_one_alone_may_have_all_of_it() -> None:
    assert TOTAL - 2 < cut(member(Budget())) <= TOTAL


def test_three_do_not_have_more_than_one() -> None:
    budget = Budget()
    members = [member(budget) for _ in range(3)]
    assert cut(members[0]) <= TOTAL - 2
    assert sum(map(cut, members)) <= TOTAL + 2 * LEAST
    assert all(cut(one) >= LEAST - 1 for one in members)


def test_what_each_may_have_grows_by_the_same() -> None:
    budget = Budget()
    first, second = member(budget), member(budget)
    cut(first, 1000)
    budget.balance()
    assert first._pieces - first.pieces_used() == second._pieces - second.pieces_used() > 400


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "forgotten"])
def test_what_one_had_is_the_others_when_it_is_gone(closed: bool) -> None:
    budget = Budget()
    first, second = Ledger(FRAMES), member(budget)
    budget.join(first, TOTAL)
    assert second._pieces < TOTAL
    if closed:
        budget.leave(first)
        budget.leave(first)
    del first
    assert TOTAL - 2 < cut(second) <= TOTAL


def test_what_one_releases_is_the_others_when_they_ask() -> None:
    budget = Budget()
    first, second = member(budget), member(budget)
    cut(first)
    before = cut(second)
    first.release(1, list(first.window(1)))
    assert cut(second) > before + 500


def test_members_of_several_threads_keep_to_it() -> None:
    budget = Budget()
    members = [member(budget) for _ in range(4)]
    threads = [threading.Thread(target=cut, args=(one,)) for one in members]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert TOTAL * 3 // 4 < sum(one.pieces_used() for one in members) <= TOTAL + 4 * LEAST


def test_whatever_is_raised_at_any_line_other_threads_have_their_turn() -> None:
    """What is held for ever would be so for all monitors of the process."""
    budget = Budget()
    ledger = member(budget)
    with Tracer() as counted:
        budget.leave(ledger)
        budget.join(ledger, TOTAL)
    for line in range(1, counted.lines + 1):
        with Tracer(line) as tracer:
            budget.leave(ledger)
            budget.join(ledger, TOTAL)
        assert tracer.where is not None
        other = threading.Thread(target=budget.balance, daemon=True)
        other.start()
        other.join(20)
        assert not other.is_alive(), tracer.where
    assert counted.lines > 20
