"""Deaths: everyone gets what is theirs of a peer that has stopped.

Not thread-safe: the monitor calls it under its lock.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence

from vmm.ferry import carry
from vmm.ferry.message import Message
from vmm.ferry.peer import Peer
from vmm.ferry.places import joined
from vmm.ferry.plans import Homecoming
from vmm.ferry.rules import READABLE, Refusal
from vmm.ferry.slices import HIDDEN_AT_ONCE, RUNS_AT_ONCE, RUNS_OF_SLOTS
from vmm.ferry.undelivered import Undelivered
from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, Hold, Operation, Status
from vmm.memory.runs import Extent, Run

_BORROWED = (Hold.BORROWED, Hold.VIEWED)
_LOANS = (Operation.LEND, Operation.SHARE)


class Deaths(Undelivered):
    """Buries peers."""

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
