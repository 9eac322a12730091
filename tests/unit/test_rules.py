"""The rules: the table is complete, its docstring shows it, and the ledger follows it."""

from __future__ import annotations

import itertools
import re

import pytest

from vmm.ferry import rules
from vmm.ferry.ledger import Ledger
from vmm.ferry.rules import READABLE, RULES, WRITABLE, Refusal
from vmm.guest.abi import Hold, Operation, Status
from vmm.memory.runs import Extent, Run

ASKER, PEER, OTHER = 1, 2, 3
EXTENT = Extent(0, 2)

# ALLOC and QUERY ask for nothing that a page has to be; UNDELIVERED is not asked for.
OPERATIONS = sorted(set(Operation) - {Operation.ALLOC, Operation.QUERY, Operation.UNDELIVERED})
CELLS = list(itertools.product(OPERATIONS, Hold))


def documented() -> dict[tuple[Operation, Hold], str]:
    """The docstring's first table: what a page becomes to its asker, where that is allowed."""
    lines = iter((rules.__doc__ or "").splitlines())
    header = next(line for line in lines if "SEND" in line)
    columns = {match.start(): Operation[match[0]] for match in re.finditer(r"[A-Z]+", header)}
    table = {}
    for line in itertools.takewhile(str.strip, lines):
        for cell in itertools.islice(re.finditer(r"\S+", line), 1, None):
            table[columns[cell.start()], Hold[line.split()[0]]] = cell[0]
    return table


DOCUMENTED = documented()


# ---- The table ----


def test_every_operation_has_an_answer_for_every_hold() -> None:
    assert RULES.keys() == set(CELLS)


def test_the_docstring_shows_what_is_allowed() -> None:
    assert {cell for cell, status in RULES.items() if status is Status.OK} == DOCUMENTED.keys()


def test_what_may_be_written_may_be_read() -> None:
    assert WRITABLE | {Hold.VIEWED} == READABLE
    assert Hold.VIEWED not in WRITABLE


# ---- The ledger and the table ----


def transfer(
    ledger: Ledger, operation: Operation, sender: int, receiver: int, writable: bool = True
) -> None:
    ledger.commit_transfer(
        ledger.transfer(operation, sender, receiver, [EXTENT], writable=writable)
    )


def received(operation: Operation, writable: bool = True) -> Ledger:
    """What the peer had is the asker's, as the operation has it."""
    ledger = admitted()
    ledger.grant(PEER, [EXTENT.pages])
    transfer(ledger, operation, PEER, ASKER, writable)
    ledger.arrive(ASKER, ledger.arriving(ASKER, [EXTENT]))
    return ledger


def parted(operation: Operation) -> Ledger:
    """What the asker had is on its way to the peer."""
    ledger = admitted()
    ledger.grant(ASKER, [EXTENT.pages])
    transfer(ledger, operation, ASKER, PEER)
    return ledger


def admitted() -> Ledger:
    ledger = Ledger(16)
    for peer in (ASKER, PEER, OTHER):
        ledger.admit(peer, 8)
    return ledger


def incoming() -> Ledger:
    ledger = admitted()
    ledger.grant(PEER, [EXTENT.pages])
    transfer(ledger, Operation.SEND, PEER, ASKER)
    return ledger


def revoked() -> Ledger:
    ledger = received(Operation.LEND)
    ledger.commit_reclaim(ledger.reclaiming(PEER, [EXTENT]))
    return ledger


SCENES = {
    Hold.NONE: admitted,
    Hold.OWNED: lambda: received(Operation.SEND),
    Hold.SHARED: lambda: parted(Operation.SHARE),
    Hold.LENT: lambda: parted(Operation.LEND),
    Hold.SENT: lambda: parted(Operation.SEND),
    Hold.INCOMING: incoming,
    Hold.BORROWED: lambda: received(Operation.LEND),
    Hold.VIEWED: lambda: received(Operation.LEND, writable=False),
    Hold.REVOKED: revoked,
}


def ask(ledger: Ledger, operation: Operation) -> None:
    """Do what the asker asks for: with another peer, or, for RETURN, with the owner."""
    if operation is Operation.RELEASE:
        ledger.release(ASKER, ledger.releasing(ASKER, [EXTENT]))
    elif operation is Operation.RECLAIM:
        ledger.commit_reclaim(ledger.reclaiming(ASKER, [EXTENT]))
    elif operation is Operation.RETURN:
        ledger.commit_return(ledger.returning(ASKER, PEER, [EXTENT]))
    else:
        transfer(ledger, operation, ASKER, OTHER)


def hold_of(ledger: Ledger) -> Hold:
    """What the extent is to the asker, as a whole."""
    described = ledger.describe(ASKER, EXTENT)
    assert described.pages == EXTENT.pages
    return described.hold


def frames(runs: list[Run]) -> set[int]:
    return {run.frame + i for run in runs for i in range(run.pages)}


def snapshot(ledger: Ledger) -> object:
    """All that an operation could have changed."""
    accounts = [ledger.account(peer) for peer in (ASKER, PEER, OTHER)]
    return (
        ledger.pool.runs,
        [(tuple(account.window), account.charged) for account in accounts],
        tuple(ledger.bonds_by_frame),
        ledger.audit(),
    )


@pytest.mark.parametrize("hold", Hold)
def test_a_scene_is_what_it_says(hold: Hold) -> None:
    assert hold_of(SCENES[hold]()) is hold


@pytest.mark.parametrize(
    ("operation", "hold"), [cell for cell in CELLS if RULES[cell] is not Status.OK]
)
def test_what_the_table_refuses_changes_nothing(operation: Operation, hold: Hold) -> None:
    ledger = SCENES[hold]()
    before = snapshot(ledger)
    with pytest.raises(Refusal) as caught:
        ask(ledger, operation)
    assert caught.value.status is RULES[operation, hold]
    assert snapshot(ledger) == before


@pytest.mark.parametrize(("operation", "hold"), sorted(DOCUMENTED))
def test_what_is_allowed_makes_of_a_page_what_the_docstring_says(
    operation: Operation, hold: Hold
) -> None:
    ledger = SCENES[hold]()
    before = ledger.runs(ASKER, EXTENT)
    ask(ledger, operation)
    becomes, *others = DOCUMENTED[operation, hold].split("(*)")
    assert hold_of(ledger) is Hold[becomes]
    assert not others or frames(before).isdisjoint(frames(ledger.runs(ASKER, EXTENT)))
    ledger.audit()
