"""Messages that cannot be delivered, and the pages that they were to bring: back to their senders.

What comes back is its owner's at once, before the message that tells of it. If the host refuses to
show it there, it is LENT to nobody: the message says E_NO_MEMORY, and RECLAIM tries again.

Not thread-safe: the monitor calls it under its lock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vmm.ferry import carry
from vmm.ferry.carry import Carrier
from vmm.ferry.events import Trace
from vmm.ferry.ledger import Ledger
from vmm.ferry.message import Message
from vmm.ferry.peer import Peer
from vmm.ferry.places import without
from vmm.ferry.plans import Homecoming
from vmm.ferry.roster import Roster
from vmm.guest.abi import Hold, Operation, Status
from vmm.memory.runs import Extent, Run

Tell = Callable[[str, Message], None]


class Undelivered:
    """Brings messages back.

    tell    called with "deliver", "undelivered" or "return" and the message, if the trace is on
    """

    def __init__(
        self,
        ledger: Ledger,
        roster: Roster,
        carrier: Carrier,
        trace: Trace,
        tell: Tell,
    ) -> None:
        self._ledger = ledger
        self._roster = roster
        self._carrier = carrier
        self._trace = trace
        self._tell = tell

    def take_back(self, peer: Peer, message: Message, seen: Sequence[Run]) -> None:
        """Undo a SEND or LEND that is in the peer's queue: the sender has its pages again.

        seen    what the sender still sees of this message, or others

        If the host refuses to show the others there, they are LENT to nobody.
        """
        self._roster.withdraw(peer, message)
        coming = self._runs(peer, message.targets, (Hold.INCOMING,))
        home = self._ledger.let_go(peer.number, coming)
        back = []
        for owner, run in home.back:
            for page, pages, _, _ in seen:
                if (part := run.clip(page, page + pages)).pages > 0:
                    self._ledger.restore(owner, [part])
            back += [(owner, part) for part in without(run, seen)]
        self._bring_home(Homecoming(back, home.freed))

    def send_back(self, peer: Peer, message: Message, status: Status) -> None:
        """Give a message that has not been delivered to `peer` back to its sender, with its pages.

        Without a sender, what nobody else has is freed.
        """
        coming = self._runs(peer, message.targets, (Hold.INCOMING,))
        hidden = self._bring_home(self._ledger.let_go(peer.number, coming))
        self._tell_sender(message, Status.E_NO_MEMORY if hidden else status)

    def _runs(self, peer: Peer, extents: Sequence[Extent], holds: tuple[Hold, ...]) -> list[Run]:
        runs = (run for extent in extents for run in self._ledger.runs(peer.number, extent))
        return [run for run in runs if run.hold in holds]

    def _bring_home(self, home: Homecoming) -> set[int]:
        """Show owners what is theirs again, zero what is nobody's.

        Return the owners of what the host does not show.
        """
        self._carrier.zero(home.freed)
        hidden = set()
        for owner, run in home.back:
            try:
                carry.show(self._roster[owner].window, run._replace(hold=Hold.OWNED))
            except OSError as error:
                hidden.add(owner)
                self._ledger.restore(owner, carry.parts(run, error))
            else:
                self._ledger.restore(owner, [run])
        return hidden

    def _tell_sender(self, message: Message, status: Status) -> None:
        """Let a sender have its message again: what only came back to its receiver is not sent."""
        sender = self._roster.get(message.sender)
        if sender is None or message.operation in (Operation.UNDELIVERED, Operation.RETURN):
            return
        back = message._replace(
            operation=Operation.UNDELIVERED,
            status=status,
            spans=carry.spans(sender.window, message.homes),
            targets=(),
        )
        self._roster.put_back(sender, back)
        if self._trace.on:
            self._tell("undelivered", back)
