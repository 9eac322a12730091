"""Delivery: messages out of queues, their pages into windows; and back, where that cannot be.

What comes back is its owner's at once, before the message that tells of it. If the host refuses to
show it there, it is LENT to nobody: the message says E_NO_MEMORY, and RECLAIM tries again.

Not thread-safe: the monitor calls it under its lock.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence

from vmm.ferry import carry
from vmm.ferry.carry import Carrier
from vmm.ferry.events import Trace
from vmm.ferry.ledger import Ledger
from vmm.ferry.message import Message
from vmm.ferry.peer import Peer
from vmm.ferry.places import joined, without
from vmm.ferry.plans import Homecoming
from vmm.ferry.roster import Roster
from vmm.ferry.rules import Refusal
from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, Hold, Operation, Status
from vmm.memory.runs import Extent, Run

_BORROWED = (Hold.BORROWED, Hold.VIEWED)
_LOANS = (Operation.LEND, Operation.SHARE)

Tell = Callable[[str, Message], None]


class Delivery:
    """Brings messages to their receivers, or back to their senders.

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

    # ---- To the receiver ----

    def take(self, peer: Peer) -> Message | None:
        """Dequeue one message and bring its pages into the peer's window.

        None if the host refuses to map them: the message has then gone back to its sender.
        """
        message = self._roster.get_message(peer)
        if message.targets and not message.brought:
            return message if self._bring(peer, message) else None
        self._taken(peer, message)
        return message

    def _bring(self, peer: Peer, message: Message) -> bool:
        """Bring a message's pages into a peer's window. False if it has gone back instead."""
        if message.brought or not message.targets:
            self._taken(peer, message)
            return True
        number = peer.number
        runs = self._ledger.arriving(number, message.targets)
        try:
            if len(runs) == 1:
                carry.show(peer.window, runs[0])
            else:
                with self._carrier.all_or_nothing() as moves:
                    moves.show(number, runs, lambda run: self._ledger.arrive(number, [run]))
        except (OSError, Refusal) as error:
            if isinstance(error, OSError):
                self._ledger.arrive(number, carry.parts(runs[0], error))
            self.send_back(peer, message, Status.E_NO_MEMORY)
            return False
        self._ledger.arrive(number, runs)
        self._taken(peer, message)
        return True

    def _taken(self, peer: Peer, message: Message) -> None:
        peer.received += 1
        if self._trace.on:
            self._tell("deliver", message)

    def take_many(self, peer: Peer, count: int) -> list[Message]:
        """Dequeue `count` messages, with one call for pages that are adjacent, to each other and in
        the pool, whichever of them brings which.

        Those that the host refuses to map are not among them, and have gone back.
        """
        messages, number = [self._roster.get_message(peer) for _ in range(count)], peer.number
        targets = [t for m in messages if not m.brought for t in m.targets]
        if targets:
            runs = self._ledger.arriving(number, targets)
            try:
                with self._carrier.all_or_nothing() as moves:
                    moves.show(number, runs, lambda run: self._ledger.arrive(number, [run]))
            except Refusal:
                return [message for message in messages if self._bring(peer, message)]
            self._ledger.arrive(number, runs)
        for message in messages:
            self._taken(peer, message)
        return messages

    # ---- Back to the sender ----

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

    # ---- Deaths ----

    def bury(self, peer: Peer) -> None:
        """A peer has stopped, and will not run again: everyone gets what is theirs.

        Messages that it had not taken, from its queue or its receive ring, go back to their
        senders with E_DEAD; what it borrowed goes back to its owners, who get a RETURN with E_DEAD;
        what it owned is zeroed and free, except that its borrowers keep theirs until they let go.
        """
        if self._ledger.window(peer.number):  # to hide nothing from it takes the kernel as long
            with contextlib.suppress(OSError):  # its refusal hides nothing from one that is dead
                peer.window.hide(0, peer.window.region.pages)
        for message in peer.untaken:
            self._untake(peer, message)
        while peer.queue:
            message = self._roster.get_message(peer)
            if message.brought:
                self._untake(peer, message)
            else:
                self.send_back(peer, message, Status.E_DEAD)
        self._return_borrowed(peer)
        self._carrier.zero(self._ledger.dismiss(peer.number))

    def _untake(self, peer: Peer, message: Message) -> None:
        """Send a message back that a dead machine never took, although its pages had reached it."""
        if message.number in peer.parted:  # what it borrows still is returned with the rest
            message, home = message._replace(homes=()), Homecoming()
        elif message.operation in _LOANS:
            home = self._ledger.let_go(peer.number, self._runs(peer, message.targets, _BORROWED))
        elif message.operation is Operation.SEND and self._roster.get(message.sender) is not None:
            homes, home = self._send_again(peer, message)
            message = message._replace(homes=homes)
        else:
            return
        hidden = self._bring_home(home)
        self._tell_sender(message, Status.E_NO_MEMORY if hidden else Status.E_DEAD)

    def _send_again(self, peer: Peer, message: Message) -> tuple[tuple[Extent, ...], Homecoming]:
        """Give pages that were delivered back to who sent them; return where they are there.

        Nowhere, if the sender has no room for them any more, or the dead had not kept them: they
        are freed with all that it owned.
        """
        sender, extents = message.sender, message.targets
        if not extents:
            return (), Homecoming()
        try:
            plan = self._ledger.transfer(Operation.SEND, peer.number, sender, extents)
        except Refusal:
            return (), Homecoming()
        self._ledger.commit_transfer(plan)
        runs = self._ledger.arriving(sender, plan.targets)
        self._ledger.arrive(sender, runs)
        for run in runs:
            self._ledger.withhold(sender, run)
        return plan.targets, Homecoming([(sender, run) for run in runs])

    def _return_borrowed(self, peer: Peer) -> None:
        """Return what a dead peer had borrowed, with a message to each owner that is alive."""
        window = Extent(0, peer.window.region.pages)
        borrowed = self._runs(peer, [window], _BORROWED)
        places: dict[int, list[Extent]] = {}
        for bond in self._ledger.bonds(borrowed):
            places.setdefault(bond.owner, []).append(bond.place.extent)
        hidden = self._bring_home(self._ledger.let_go(peer.number, borrowed))
        for number, extents in places.items():
            owner = self._roster.get(number)
            status = Status.E_NO_MEMORY if number in hidden else Status.E_DEAD
            for part in _batched(joined(sorted(extents)), abi.EXTENTS_MAX):
                if owner is not None:
                    self._tell_owner(peer, owner, part, status)

    def _tell_owner(self, peer: Peer, owner: Peer, part: Sequence[Extent], status: Status) -> None:
        message = Message(
            number=0,  # nobody sent it
            operation=Operation.RETURN,
            status=status,
            sender=peer.number,
            receiver=owner.number,
            length=sum(extent.pages for extent in part) * PAGE_SIZE,
            spans=carry.spans(owner.window, part),
        )
        self._roster.put_back(owner, message)
        if self._trace.on:
            self._tell("return", message)


def _batched(extents: Sequence[Extent], count: int) -> Iterator[Sequence[Extent]]:
    """Yield the extents, `count` at a time."""
    for first in itertools.count(0, count):
        if first >= len(extents):
            return
        yield extents[first : first + count]
