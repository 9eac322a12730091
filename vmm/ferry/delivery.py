"""Delivery: messages out of queues, their pages into windows; and back, where that cannot be.

What comes back is its owner's at once, before the message that tells of it. If the host refuses to
show it there, it is LENT to nobody: the message says E_NO_MEMORY, and RECLAIM tries again.

Not thread-safe: the monitor calls it under its lock.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

from vmm.ferry import carry
from vmm.ferry.carry import Carrier
from vmm.ferry.events import Trace
from vmm.ferry.ledger import Ledger
from vmm.ferry.message import Message
from vmm.ferry.peer import Peer
from vmm.ferry.places import joined, without
from vmm.ferry.plans import Homecoming
from vmm.ferry.roster import Roster
from vmm.ferry.rules import READABLE, Refusal
from vmm.ferry.slices import HIDDEN_AT_ONCE
from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, Hold, Operation, Status
from vmm.memory.runs import Extent, Run

RUNS_AT_ONCE = 128  # that are shown, or hidden, before others have their turns
RUNS_OF_SLOTS = 16  # the same, by memslots
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
        peer.received += 1  # as `_taken`, without its call: most messages come here
        if self._trace.on:
            self._tell("deliver", message)
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
        the pool, whichever of them brings which; fewer, if that are very many calls.

        Those that the host refuses to map are not among them, and have gone back.
        """
        count, runs = self._few(peer, count)
        messages, number = self._roster.get_messages(peer, count), peer.number
        if runs:
            try:
                with self._carrier.all_or_nothing() as moves:
                    moves.show(number, runs, lambda run: self._ledger.arrive(number, [run]))
            except Refusal:
                return [message for message in messages if self._bring(peer, message)]
            self._ledger.arrive(number, runs)
        peer.received += count
        if self._trace.on:
            for message in messages:
                self._tell("deliver", message)
        return messages

    def _few(self, peer: Peer, count: int) -> tuple[int, list[Run]]:
        """Return how many of so many messages are taken together, and what comes with them."""
        runs: list[Run] = []
        most = RUNS_OF_SLOTS if peer.window.blinks else RUNS_AT_ONCE
        for index, message in enumerate(itertools.islice(peer.queue, count)):
            if message.brought or not message.targets:
                continue
            more = self._ledger.arriving(peer.number, message.targets)
            follows = bool(runs and more) and runs[-1].continues(more[0])
            if index and len(runs) + len(more) - follows > most:
                return index, runs
            if follows:
                runs[-1] = runs[-1].lengthened(more.pop(0).pages)
            runs += more
        return count, runs

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

    def bury(self, peer: Peer) -> bool:
        """A peer has stopped, and will not run again: everyone gets what is theirs.

        Messages that it had not taken, from its queue or its receive ring, go back to their
        senders with E_DEAD; what it borrowed goes back to its owners, who get a RETURN with E_DEAD;
        what it owned is zeroed and free, except that its borrowers keep theirs until they let go.

        Does a part of that, if it is much, and is False then. In between nothing is half done, but
        for the dead's window, which nobody looks into.
        """
        left = most = RUNS_OF_SLOTS if peer.window.blinks else RUNS_AT_ONCE
        begun = peer.covered > 0
        if not self._hide_all(peer, most):
            return False
        while peer.untaken or peer.queue:
            left -= self._give_back(peer, most)
            if left <= 0:
                return False
        borrowed = self._runs(peer, [Extent(0, peer.window.region.pages)], _BORROWED)
        if borrowed:
            self._return_borrowed(peer, borrowed[:most])
            if len(borrowed) > left:
                return False
        if begun:  # what has come back to it meanwhile, too
            with contextlib.suppress(OSError):
                peer.window.hide(0, peer.window.region.pages)
        self._carrier.zero(self._ledger.dismiss(peer.number))
        return True

    def _hide_all(self, peer: Peer, most: int) -> bool:
        """Hide everything from a dead peer, so that no one call has much to hide. False if that was
        a part of it. The host's refusal hides nothing from one that is dead.
        """
        window, pages = peer.window, peer.window.region.pages
        if peer.covered == pages:
            return True
        held = [run for run in self._ledger.window(peer.number) if run.hold in READABLE]
        left = [run.clip(peer.covered, pages) for run in held if run.end > peer.covered]
        part, *more = (*_pieces(left, most), None, None)[:2]
        if part is None or (more == [None] and not peer.covered):
            peer.covered = pages
            if self._ledger.window(peer.number):  # to hide nothing takes the kernel as long
                with contextlib.suppress(OSError):
                    window.hide(0, pages)
            return True
        page = part.page
        if window.blinks:  # a memslot goes as a whole, when nothing of it is in use any more
            window.loosen(*part)
            page = next((run.page for run in held if run.page <= page < run.end), page)
        if not (window.blinks and any(run.page < part.end < run.end for run in held)):
            with contextlib.suppress(OSError):
                window.hide(page, part.end - page)
        peer.covered = part.end
        return False

    def _give_back(self, peer: Peer, most: int) -> int:
        """Give the oldest message that a dead peer had not taken back to its sender; only so many
        runs of its pages, if they are more, and the rest the next time. Return how many they were,
        or 1.
        """
        messages = peer.untaken or peer.queue
        message = messages[0]
        here = bool(peer.untaken) or message.brought
        runs: list[Run] = []
        if not here:
            runs = self._runs(peer, message.targets, (Hold.INCOMING,))
        elif message.operation in _LOANS and message.number not in peer.parted:
            runs = self._runs(peer, message.targets, _BORROWED)
        if len(runs) > most:
            if self._bring_home(self._ledger.let_go(peer.number, runs[:most])):
                messages[0] = message._replace(status=Status.E_NO_MEMORY)
            return most
        if peer.untaken:
            peer.untaken.popleft()
        else:
            self._roster.get_message(peer)
        status = Status.E_DEAD if message.status is Status.OK else message.status
        if here:
            self._untake(peer, message, status)
        else:
            self.send_back(peer, message, status)
        return max(len(message.targets), len(runs), 1)

    def _untake(self, peer: Peer, message: Message, status: Status) -> None:
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
        self._tell_sender(message, Status.E_NO_MEMORY if hidden else status)

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

    def _return_borrowed(self, peer: Peer, borrowed: Sequence[Run]) -> None:
        """Return what a dead peer had borrowed, with a message to each owner that is alive."""
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


def _pieces(runs: Iterable[Run], most: int) -> Iterator[Extent]:
    """Yield what runs cover, and what is between them, in pieces that are hidden quickly: a part of
    a large run, or at most so many small ones.
    """
    start = end = count = 0
    for run in runs:
        if count and (count == most or run.end - start > HIDDEN_AT_ONCE):
            yield Extent(start, end - start)
            count = 0
        start = start if count else run.page
        end, count = run.end, count + 1
        while end - start > HIDDEN_AT_ONCE:
            yield Extent(start, HIDDEN_AT_ONCE)
            start += HIDDEN_AT_ONCE
    if count:
        yield Extent(start, end - start)


def _batched(extents: Sequence[Extent], count: int) -> Iterator[Sequence[Extent]]:
    """Yield the extents, `count` at a time."""
    for first in itertools.count(0, count):
        if first >= len(extents):
            return
        yield extents[first : first + count]
