"""What is sent in a single run, or brought at once: as all else is, in fewer steps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import hypothesis.strategies as st
import pytest
from hypothesis import assume, event, given, settings
from unit.ledger_scene import (
    LEND,
    SEND,
    SHARE,
    TRANSFERS,
    A,
    B,
    C,
    a_has,
    bury,
    deliver,
    delivered,
    give_back,
    refused_transfer,
    release,
    snapshot,
    states,
    take_back,
    three_peers,
    transfer,
)

from vmm.ferry.accounts import UNLIMITED
from vmm.ferry.ledger import Ledger
from vmm.ferry.plans import Transfer
from vmm.ferry.rules import RULES, Refusal
from vmm.guest.abi import Hold, Operation, Status
from vmm.memory.runs import Extent, Run

FRAMES, PAGES = 40, 16
PEERS = (A, B, C)


# ---- Ledgers of every kind ----


class Step(NamedTuple):
    """Something that one peer may do, to another, with an extent of its window."""

    act: Operation | None  # None: what the other has sent it is delivered
    peer: int
    other: int
    extent: Extent
    writable: bool


extents = st.builds(
    lambda page, count: Extent(page, min(count, PAGES - page)),
    st.integers(0, PAGES - 1),
    st.integers(1, 5),
)
steps = st.builds(
    Step,
    st.sampled_from([*TRANSFERS, LEND, SEND, Operation.RECLAIM, Operation.RETURN, None, None]),
    st.sampled_from(PEERS),
    st.sampled_from(PEERS),
    extents,
    st.booleans(),
)


@st.composite
def ledgers(draw: st.DrawFn, *, limited: bool) -> Ledger:
    """Three peers after some events, with limits that they may have reached, or none."""
    ledger = Ledger(FRAMES)
    for peer in PEERS:
        ledger.admit(peer, PAGES)
        ledger.grant(peer, draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    waiting: list[tuple[int, Extent]] = []
    for step in draw(st.lists(steps, max_size=14)):
        try:
            take(ledger, step, waiting)
        except Refusal:
            continue
    if limited:
        pieces = [len(ledger.window(peer)) for peer in PEERS]
        for peer, has in zip(PEERS, pieces, strict=True):
            account = ledger.account(peer)
            account.quota = draw(st.sampled_from([UNLIMITED, account.charged + 2]))
            account.pieces = draw(st.sampled_from([UNLIMITED, has, has + 1, has + 2]))
        slack = draw(st.sampled_from([UNLIMITED, 0, 1, 2]))
        ledger._pieces = UNLIMITED if slack == UNLIMITED else sum(pieces) + slack
    return ledger


def take(ledger: Ledger, step: Step, waiting: list[tuple[int, Extent]]) -> None:
    act, peer, other, extent, writable = step
    if act is None:
        for receiver, target in [pair for pair in waiting if pair[0] == peer]:
            deliver(ledger, receiver, target)
            waiting.remove((receiver, target))
    elif act is Operation.RECLAIM:
        take_back(ledger, peer, extent)
    elif act is Operation.RETURN:
        give_back(ledger, peer, other, extent)
    elif peer != other:
        targets = transfer(ledger, act, peer, other, extent, writable=writable)
        waiting += [(other, target) for target in targets]


def part_of(data: st.DataObject, whole: Extent) -> Extent:
    page = data.draw(st.integers(whole.page, whole.end - 1))
    return Extent(page, data.draw(st.integers(1, whole.end - page)))


# ---- What is handed over ----


def state(ledger: Ledger) -> object:
    """All that there is to know, and where the next extents would come."""
    places = [
        (ledger.account(peer).window.gap(count), ledger.account(peer).window.gap_from_top(count, 4))
        for peer in PEERS
        for count in range(1, PAGES + 1)
    ]
    return snapshot(ledger), places


@settings(max_examples=400, deadline=None)
@given(
    ledgers(limited=False),
    st.sampled_from([SEND, LEND, SHARE]),
    st.permutations(PEERS),
    st.lists(extents, min_size=1, max_size=2),
    st.booleans(),
    st.data(),
)
def test_what_is_handed_over_is_as_what_was_sent_and_has_arrived(
    ledger: Ledger,
    operation: Operation,
    ends: Sequence[int],
    wanted: list[Extent],
    writable: bool,
    data: st.DataObject,
) -> None:
    sender, receiver, _ = ends
    holds = {Hold.OWNED, Hold.SHARED} if operation is SHARE else {Hold.OWNED}
    own = [run.extent for run in ledger.window(sender) if run.hold in holds]
    if own and data.draw(st.integers(0, 3)):  # most would be refused
        wholes = data.draw(st.lists(st.sampled_from(own), min_size=1, max_size=2, unique=True))
        wanted = [part_of(data, whole) for whole in wholes]
    assume(len(wanted) == 1 or not wanted[0].overlaps(wanted[1]))
    try:
        plan = ledger.transfer(operation, sender, receiver, wanted, writable=writable)
    except Refusal:
        event("refused")
        return
    event(f"{operation.name} of {len(plan.runs)} runs")
    at_once = copy.deepcopy(ledger)
    at_once.hand_over(plan)
    ledger.commit_transfer(plan)
    deliver(ledger, receiver, *plan.targets)
    assert state(at_once) == state(ledger)


@pytest.mark.parametrize(
    ("operation", "writable", "hold"),
    [
        (SEND, True, Hold.OWNED),
        (LEND, True, Hold.BORROWED),
        (LEND, False, Hold.VIEWED),
        (SHARE, True, Hold.BORROWED),
        (SHARE, False, Hold.VIEWED),
    ],
)
def test_what_is_handed_over_has_never_been_on_its_way(
    operation: Operation, writable: bool, hold: Hold
) -> None:
    ledger = a_has(4)
    plan = ledger.transfer(operation, A, B, [Extent(1, 2)], writable=writable)
    ledger.hand_over(plan)
    assert ledger.window(B) == (Run(0, 2, 1, hold),)
    assert ledger.arriving(B, plan.targets) == []
    kept = ledger.account(A).charged
    if operation is SEND:
        assert ledger.window(A) == (Run(0, 1, 0, Hold.OWNED), Run(3, 1, 3, Hold.OWNED))
        assert (kept, ledger.account(B).charged, states(ledger)) == (2, 2, {"owned": 4})
    else:
        left = Hold.LENT if operation is LEND else Hold.SHARED
        assert ledger.runs(A, Extent(1, 2)) == [Run(1, 2, 1, left)]
        assert (kept, ledger.account(B).charged) == (4, 0)
        assert states(ledger) == {"owned": 2, left.name.lower(): 2}


def test_what_was_lent_at_once_is_returned_and_reclaimed_like_any_loan() -> None:
    ledger = a_has(4)
    before = snapshot(ledger)
    for end in (
        lambda: give_back(ledger, B, A, Extent(0, 4)),
        lambda: take_back(ledger, A, Extent(0, 4)),
    ):
        ledger.hand_over(ledger.transfer(LEND, A, B, [Extent(0, 4)]))
        end()
        assert ledger.describe(A, Extent(0, 4)).hold is Hold.OWNED
        ledger.release(B, ledger.releasing(B, [run.extent for run in ledger.window(B)]))
        assert snapshot(ledger) == before
    ledger.hand_over(ledger.transfer(LEND, A, B, [Extent(0, 4)]))
    bury(ledger, A)
    assert states(ledger) == {"orphaned": 4}
    bury(ledger, B)
    assert states(ledger) == {}


# ---- The plan of a single run ----


def outcome(ask: Callable[[], Transfer]) -> Transfer | Status:
    try:
        return ask()
    except Refusal as refusal:
        return refusal.status


@settings(max_examples=600, deadline=None)
@given(
    ledgers(limited=True),
    st.sampled_from([SEND, LEND, SHARE]),
    st.permutations(PEERS),
    st.data(),
    st.booleans(),
)
def test_a_single_run_is_planned_and_refused_as_several_are(
    ledger: Ledger,
    operation: Operation,
    ends: Sequence[int],
    data: st.DataObject,
    writable: bool,
) -> None:
    sender, receiver, _ = ends
    there = ledger.window(sender)
    assume(there)
    extent = part_of(data, data.draw(st.sampled_from(there)).extent)
    before = snapshot(ledger)
    long = outcome(
        lambda: ledger._transfer_runs(operation, sender, receiver, [extent], writable, False)
    )
    short = outcome(
        lambda: ledger.transfer(operation, sender, receiver, [extent], writable=writable)
    )
    event(long.name if isinstance(long, Status) else "planned")
    assert short == long
    assert snapshot(ledger) == before


def held(hold: Hold) -> Ledger:
    """A's pages 0-3 are one run, and this to it."""
    if hold in (Hold.BORROWED, Hold.VIEWED, Hold.REVOKED, Hold.INCOMING):
        ledger = three_peers()
        ledger.grant(B, [4])
        bring = transfer if hold is Hold.INCOMING else delivered
        bring(ledger, LEND, B, A, Extent(0, 4), writable=hold is not Hold.VIEWED)
        if hold is Hold.REVOKED:
            take_back(ledger, B, Extent(0, 4))
        return ledger
    ledger = a_has(4)
    if hold is not Hold.OWNED:
        by = {Hold.SENT: SEND, Hold.LENT: LEND, Hold.SHARED: SHARE}[hold]
        transfer(ledger, by, A, B, Extent(0, 4))
    return ledger


@pytest.mark.parametrize("extent", [Extent(0, 4), Extent(1, 2)], ids=["whole", "part"])
@pytest.mark.parametrize("operation", [SEND, LEND, SHARE])
@pytest.mark.parametrize("hold", sorted(set(Hold) - {Hold.NONE}))
def test_a_single_run_is_refused_by_the_rules(
    hold: Hold, operation: Operation, extent: Extent
) -> None:
    ledger = held(hold)
    assert ledger.window(A)[0][1::2] == (4, hold)
    if RULES[operation, hold] is Status.OK:
        transfer(ledger, operation, A, C, extent)
    else:
        assert refused_transfer(ledger, operation, A, C, extent) is RULES[operation, hold]


@pytest.mark.parametrize("operation", [SEND, LEND, SHARE])
def test_a_single_run_is_refused_for_the_first_of_what_is_against_it(operation: Operation) -> None:
    """The sender's pieces, a place, the quota, the receiver's pieces, those of the host."""
    ledger = a_has(8, pieces=4)
    ledger.grant(B, [PAGES])
    a, b, middle = ledger.account(A), ledger.account(B), Extent(1, 2)
    a.pieces, b.quota, b.pieces = 2, PAGES - 2, 1
    assert refused_transfer(ledger, operation, A, B, middle) is Status.E_QUOTA
    a.pieces = 3
    assert refused_transfer(ledger, operation, A, B, middle) is Status.E_WINDOW_FULL
    b.pieces = UNLIMITED
    release(ledger, B, Extent(PAGES - 2, 2))
    b.pieces = 1
    if operation is SEND:
        assert refused_transfer(ledger, operation, A, B, middle) is Status.E_QUOTA
        b.quota = PAGES
    assert refused_transfer(ledger, operation, A, B, middle) is Status.E_WINDOW_FULL
    b.pieces = 2
    assert refused_transfer(ledger, operation, A, B, middle) is Status.E_NO_MEMORY
    ledger._pieces = 5
    assert transfer(ledger, operation, A, B, middle) == (Extent(PAGES - 2, 2),)
