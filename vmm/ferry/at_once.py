"""One run, from the window of who sends it into that of who waits for it, in a turn of its own.

Not thread-safe: called in a hold of the monitor's lock.
"""

from __future__ import annotations

from typing import Any

from vmm.ferry.books import Bond
from vmm.ferry.ledger import Ledger
from vmm.ferry.message import Span
from vmm.ferry.peer import Peer
from vmm.ferry.plans import Transfer
from vmm.ferry.rules import Refusal
from vmm.ferry.slices import HIDDEN_AT_ONCE, SHARED_AT_ONCE
from vmm.guest.abi import PAGE_SIZE, Flags, Hold, Operation
from vmm.memory.frames import LARGE
from vmm.memory.journal import Kept

_SEND, _SHARE, _RETURN = Operation.SEND, Operation.SHARE, Operation.RETURN
SENT, _READONLY = int(_SEND), int(Flags.READONLY) << 16  # as a descriptor's first word has them
OPERATIONS = {int(operation): operation for operation in Operation}
# By that word: of how many pages, at most, an operation is done at once.
MOST = {
    SENT: HIDDEN_AT_ONCE,
    **dict.fromkeys((int(Operation.LEND), Operation.LEND | _READONLY), HIDDEN_AT_ONCE),
    **dict.fromkeys((int(_SHARE), _SHARE | _READONLY), SHARED_AT_ONCE),
    int(_RETURN): HIDDEN_AT_ONCE,
}
_new = tuple.__new__


def moves(peer: Peer, kind: int, page: int, pages: int) -> bool:
    """Whether a run is sent on, however large it is, as quickly as a small one."""
    return kind == SENT and peer.window.moves(page, pages)


class Runs:
    """Brings them, by the ledger's leave."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def bring(
        self,
        kind: int,
        peer: Peer,
        receiver: Peer,
        page: int,
        pages: int,
        table: Kept,
        saved: tuple[Any, ...],
    ) -> tuple[Any, ...]:
        """Bring a run from a window into another, in a turn that this begins.

        kind           a descriptor's operation, and above it its flags
        table, saved   what is undone with the turn, besides (Journal.open): tables of runs that
                       change are added to it

        Returns what the message says of it; nothing, with nothing done, if there is anything
        unusual about it.
        """
        ledger, here, there = self._ledger, peer.window, receiver.window
        journal = ledger.journal
        sender, to, writable = peer.number, receiver.number, not kind & _READONLY
        operation = OPERATIONS[kind & 0xFFFF]
        bond: Bond | None = None
        plan: Transfer | None = None
        try:
            if operation is _RETURN:
                bond = ledger.loan(sender, to, page, pages)
            else:
                plan = ledger.transfer_one(operation, sender, to, page, pages, writable)
        except Refusal:
            return ()
        if bond is None and plan is None:
            return ()
        own, its = ledger.accounts[sender].window, ledger.accounts[to].window
        tables: tuple[tuple[Any, Any], ...] = (own, own.items.copy()), (its, its.items.copy())
        if operation is not _SEND:
            bonds = ledger.bonds_by_frame
            tables = (*tables, (bonds, bonds.items.copy()))
        if pages >= LARGE:  # which windows move, perhaps, and have tables of
            tables = (*tables, *here.tables(there))
        if not journal.open(table, (*saved, tables)):
            return ()
        for each, _ in tables:
            each.turn = journal.turn  # it is kept
        if here.blinks:
            peer.hold_still()
        brought = True
        try:
            if plan is not None:
                ((_, _, frame, _),), (place,) = plan.runs, plan.places
                if operation is _SHARE:
                    here.make_shareable(page, pages)
                    there.show(place, frame, pages, writable=writable)
                else:
                    brought = here.pass_on(page, frame, pages, there, place, writable=writable)
            elif bond is not None and bond.hold is Hold.LENT:
                brought = here.pass_on(page, bond.frame, pages, there, bond.page, writable=True)
            else:
                here.hide(page, pages)
        except OSError:
            brought = False
        if not brought:  # the host refuses: others know what to do then
            journal.roll_back()
            return ()
        base = there.region.base
        if plan is not None:
            ledger.hand_over(plan)
            (target,) = targets = plan.targets
            span = _new(Span, (base + target[0] * PAGE_SIZE, pages))
            return (span,), targets, plan.sources, writable, True
        assert bond is not None
        ledger.give_back(sender, bond)
        span = _new(Span, (base + bond[4] * PAGE_SIZE, pages))
        return (span,), (), (), True, False
