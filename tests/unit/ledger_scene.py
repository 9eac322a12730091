"""The ledger between A, B and C: every window begins empty, and is filled from its bottom."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vmm.ferry.accounts import UNLIMITED
from vmm.ferry.ledger import Ledger
from vmm.ferry.plans import Homecoming
from vmm.ferry.rules import Refusal
from vmm.guest.abi import Hold, Operation, Status
from vmm.memory.frames import Frames
from vmm.memory.runs import Extent

A, B, C = 1, 2, 3
SEND, LEND, SHARE, EXCHANGE = Operation.SEND, Operation.LEND, Operation.SHARE, Operation.EXCHANGE
TRANSFERS = [SEND, LEND, SHARE, EXCHANGE]


def three_peers(frames: int = 32, pages: int = 16, pieces: int = UNLIMITED) -> Ledger:
    ledger = Ledger(frames, pieces)
    for peer in (A, B, C):
        ledger.admit(peer, pages)
    return ledger


def a_has(count: int, *, cut: bool = False, pieces: int = UNLIMITED) -> Ledger:
    """The first pages of A are its own; frame n is page n, or `cut`: no two frames are adjacent."""
    ledger = three_peers(64, 16, pieces)
    if not cut:
        ledger.grant(A, [count])
        return ledger
    for _ in range(count):
        ledger.grant(A, [1])
        ledger.grant(C, [1])
    ledger.release(C, ledger.releasing(C, [Extent(0, count)]))
    return ledger


def transfer(
    ledger: Ledger,
    operation: Operation,
    sender: int,
    receiver: int,
    *extents: Extent,
    writable: bool = True,
) -> tuple[Extent, ...]:
    """The extents are on their way; return their places in the receiver's window."""
    plan = ledger.transfer(operation, sender, receiver, extents, writable=writable)
    ledger.commit_transfer(plan)
    return plan.targets


def deliver(ledger: Ledger, peer: int, *targets: Extent) -> None:
    ledger.arrive(peer, ledger.arriving(peer, targets))


def delivered(
    ledger: Ledger,
    operation: Operation,
    sender: int,
    receiver: int,
    *extents: Extent,
    writable: bool = True,
) -> tuple[Extent, ...]:
    targets = transfer(ledger, operation, sender, receiver, *extents, writable=writable)
    deliver(ledger, receiver, *targets)
    return targets


def bounce(ledger: Ledger, peer: int, *targets: Extent) -> Homecoming:
    """What is on its way to these places cannot be delivered, and goes back."""
    incoming = [
        run for target in targets for run in ledger.runs(peer, target) if run.hold is Hold.INCOMING
    ]
    return ledger.let_go(peer, incoming)


def give_back(ledger: Ledger, peer: int, owner: int, *extents: Extent) -> list[Frames]:
    return ledger.commit_return(ledger.returning(peer, owner, extents))


def take_back(ledger: Ledger, owner: int, *extents: Extent) -> set[int]:
    return ledger.commit_reclaim(ledger.reclaiming(owner, extents))


def release(ledger: Ledger, peer: int, *extents: Extent) -> list[Frames]:
    return ledger.release(peer, ledger.releasing(peer, extents))


def bury(ledger: Ledger, peer: int) -> list[Frames]:
    """A peer has died: what is not its own goes back, what is its own is freed; return that."""
    foreign = {Hold.INCOMING, Hold.BORROWED, Hold.VIEWED}
    home = ledger.let_go(peer, [run for run in ledger.window(peer) if run.hold in foreign])
    for owner, run in home.back:
        ledger.restore(owner, [run])
    return sorted(home.freed + ledger.dismiss(peer))


def states(ledger: Ledger) -> dict[str, int]:
    """The pages in each state that there is any in, free ones left out."""
    return {state: n for state, n in ledger.audit().items() if n and state != "free"}


def snapshot(ledger: Ledger) -> object:
    """All that an operation could have changed."""
    accounts = {
        peer: (tuple(account.window), account.charged, account.quota, account.pieces)
        for peer, account in ledger.accounts.items()
    }
    bonds, tally = tuple(ledger.bonds_by_frame), ledger._tally.intervals
    return ledger.pool.runs, ledger.pool.free, accounts, bonds, tally, ledger.audit()


def refused(ledger: Ledger, operation: Callable[[], object]) -> Status:
    """The status that an operation is refused with, having changed nothing."""
    before = snapshot(ledger)
    with pytest.raises(Refusal) as caught:
        operation()
    assert snapshot(ledger) == before
    return caught.value.status


def refused_transfer(
    ledger: Ledger, operation: Operation, sender: int, receiver: int, *extents: Extent
) -> Status:
    return refused(ledger, lambda: ledger.transfer(operation, sender, receiver, extents))


def ask(ledger: Ledger, operation: Operation, *extents: Extent) -> object:
    """A asks; whatever is to go somewhere is to go to B."""
    if operation is Operation.RELEASE:
        return ledger.releasing(A, extents)
    if operation is Operation.RECLAIM:
        return ledger.reclaiming(A, extents)
    if operation is Operation.RETURN:
        return ledger.returning(A, B, extents)
    return ledger.transfer(operation, A, B, extents)
