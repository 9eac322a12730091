"""What machines see of the host's memory while their functions are called."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from vmm.endpoint.host import HostEndpoint
from vmm.endpoint.refusals import refused
from vmm.endpoint.wholes import Undone, prepare, served
from vmm.engine.machine import Machine
from vmm.errors import BusyError, GuestError
from vmm.ferry import carry
from vmm.ferry.checks import RUNS_MAX
from vmm.ferry.message import Request
from vmm.ferry.peer import Peer
from vmm.ferry.places import joined
from vmm.guest.abi import EXTENTS_MAX, PAGE_SIZE, Hold, Operation, Status
from vmm.memory.runs import Extent

_AT_ONCE = 16  # extents that are taken back in one turn
_TOO_LONG = (
    f"an array lies in more than {RUNS_MAX} pieces, or is shared in as many: "
    "give the call a copy of it (Sandbox.array)"
)


class Shown(NamedTuple):
    """Memory of the host's that a machine sees.

    source     of the host's window
    writable   by the machine
    extent     of the machine's window
    address    of its first byte, there
    """

    source: Extent
    writable: bool
    extent: Extent
    address: int


class Showing:
    """The machines of one monitor that see memory of the host's. Thread-safe; one call at a time
    to a machine.

    What a machine is shown for a call it goes on seeing until the next one, or until all machines
    are run, as it does not run in between: to show it the same again costs nothing. Before it runs,
    what it is not to see has been taken from it; and whatever else is to be done with what no call
    has been given, it is taken from all who see it.

    seen     what each machine sees, by its number, if anything: to be read only
    called   by machine: what it is shown for a call, until that is over and who has asked for it
             takes it out
    """

    def __init__(self, host: HostEndpoint) -> None:
        self._host = host
        self._turns = host._turns
        self.seen: dict[int, tuple[Shown, ...]] = {}
        self._peers: dict[int, Peer] = {}  # of those
        self.called: dict[int, frozenset[tuple[Extent, bool]]] = {}
        self.turn = 0  # Journal's
        host._window.take_in, host._window.take_all = self._take_in, self._take_all

    def saved(self) -> dict[int, tuple[Shown, ...]]:
        return dict(self.seen)

    def restore(self, saved: dict[int, tuple[Shown, ...]]) -> None:
        self.seen = dict(saved)

    def show(self, to: Machine, wanted: Sequence[tuple[Extent, bool]]) -> tuple[Shown, ...]:
        """Let a machine that waits for a call, which follows, see disjoint extents of the host's
        window, by whether it may write to them, and nothing else. Return them, in that order.

        Raises GuestError, and what it sees is among what it has seen then.
        """
        number, keys, turns = to.number, frozenset(wanted), self._turns
        with turns.lock:
            if turns.journal.active:  # left by who was cut off
                turns.settle()
            self.called[number] = keys  # nobody else takes these from it from now on
            shown = self.seen.get(number, ())
            self._peers[number] = to.peer
        if [one[:2] for one in shown] == wanted:
            return shown
        try:
            self._take_less(to.peer, [one for one in shown if one[:2] not in keys])
            return self._show(to, wanted)
        except (GuestError, Undone):  # windows are in as many pieces as there may be, perhaps
            self._relax(number)
        try:
            return self._show(to, wanted)
        except Undone as undone:
            raise undone.why from None

    def _show(self, to: Machine, wanted: Sequence[tuple[Extent, bool]]) -> tuple[Shown, ...]:
        turns, number = self._turns, to.number
        known = {one[:2] for one in self.seen.get(number, ())}
        requests = [*self._requests(to, [key for key in wanted if key not in known])]
        for request in requests:
            prepare(self._host, request)
        with turns.telling, turns.lock, turns.change:
            found = {one[:2]: one for one in self.seen.get(number, ())}
            for request in requests:
                found |= {one[:2]: one for one in self._share(to, request)}
            shown = tuple([found[key] for key in wanted])
            self._keep(number, shown)
        return shown

    def _relax(self, number: int | None = None) -> None:
        """Take what they are shown from a machine, and all those that are not called."""
        for other in tuple(self.seen):
            with self._turns.telling, self._turns.lock, self._turns.change:
                shown = self.seen.get(other, ())  # none, if it has gone meanwhile
                if shown and (other == number or other not in self.called):
                    self._withdraw(self._peers[other], shown)

    def _take_less(self, peer: Peer, less: list[Shown]) -> None:
        """Take some of what a machine is shown from it, in turns of their own."""
        while less:
            with self._turns.telling, self._turns.lock, self._turns.change:
                left = frozenset(self.seen.get(peer.number, ()))  # as others may take some, too
                self._withdraw(peer, [one for one in less[:_AT_ONCE] if one in left])
            del less[:_AT_ONCE]

    def _requests(self, to: Machine, wanted: Sequence[tuple[Extent, bool]]) -> Iterator[Request]:
        """Return what asks for it, of so many extents, and runs of them, as messages may have."""
        window = self._host.peer.window
        for writable in (False, True):
            groups: list[list[Extent]] = []
            left = 0
            for extent in [extent for extent, other in wanted if other is writable]:
                runs = self._runs(extent)
                if runs > left or len(groups[-1]) == EXTENTS_MAX:
                    groups.append([])
                    left = RUNS_MAX
                groups[-1].append(extent)
                left -= runs
            for group in groups:
                spans = carry.spans(window, group)
                length = sum(span.pages for span in spans) * PAGE_SIZE
                yield Request(to.number, 0, length, spans, b"", Operation.SHARE, writable)

    def _runs(self, extent: Extent) -> int:
        """Return in how many pieces an extent of the host's is, or is shared already."""
        turns, ledger, number = self._turns, self._host._exchange.ledger, self._host.peer.number
        with turns.lock:
            runs = ledger.runs(number, extent)
            shared = ledger.bonds([run for run in runs if run.hold is Hold.SHARED])
            return max(len(runs), len(shared))

    def _share(self, to: Machine, request: Request) -> Iterator[Shown]:
        """Share extents with a machine, which finds no message of that. In a turn, which is to be
        undone if this raises Undone.
        """
        host, peer = self._host, to.peer
        status = Status.E_QUEUE_FULL if peer.queue else served(host, lambda: request).status
        message = host._exchange.take(peer) if status is Status.OK else None
        if message is None:
            status = Status.E_NO_MEMORY if status is Status.OK else status
            words = _TOO_LONG if status is Status.E_LENGTH else None
            raise Undone(refused(f"share memory with {to.name}", status, words))
        peer.received -= 1
        base = host.peer.window.region.base
        for span, there, extent in zip(request.spans, message.spans, message.targets, strict=True):
            source = Extent((span.gpa - base) // PAGE_SIZE, span.pages)
            yield Shown(source, request.writable, extent, there.gpa)

    def _withdraw(self, peer: Peer, shown: Sequence[Shown]) -> None:
        """Take from a machine that does not run what it is shown. In a turn. Raises GuestError, and
        has taken none of it, or is to be asked for all of it again.
        """
        if peer.alive and shown:
            self._take_back(peer, joined(sorted([one.extent for one in shown])))
        gone = frozenset(shown)
        left = [one for one in self.seen.get(peer.number, ()) if one not in gone]
        self._keep(peer.number, tuple(left))

    def _take_back(self, peer: Peer, extents: list[Extent]) -> None:
        status = self._host._exchange.withdraw(peer, self._host.peer.number, extents)
        if status is Status.E_LENGTH and len(extents) > 1:
            half = len(extents) // 2
            self._take_back(peer, extents[:half])
            self._take_back(peer, extents[half:])
        elif status is Status.E_LENGTH and extents[0].pages > 1:  # shared since in more pieces
            ((page, pages),) = extents
            self._take_back(peer, [Extent(page, pages // 2)])
            self._take_back(peer, [Extent(page + pages // 2, pages - pages // 2)])
        elif status is not Status.OK:
            raise refused(f"take memory back from {peer.name}", status)

    def _keep(self, number: int, shown: tuple[Shown, ...]) -> None:
        """Know what a machine is shown. In a turn."""
        self._turns.journal.keep(self)
        if shown:
            self.seen[number] = shown
        else:
            self.seen.pop(number, None)

    def _take_in(self, extents: Sequence[Extent]) -> None:
        """Take extents of the host's from machines that see them, but not for a call. In a turn."""
        for number in self._viewers(extents):
            kept, shown = self.called.get(number, ()), self.seen[number]
            found = [one for one in shown if one[:2] not in kept]
            if len(shown) <= _AT_ONCE:  # if it sees very many, others are likely to follow, and
                # to cut each out of what is mapped as one costs more than to show the rest again
                found = [one for one in found if any(map(one.source.overlaps, extents))]
            with contextlib.suppress(GuestError):  # then they are not to be had
                self._withdraw(self._peers[number], found)

    def _take_all(self) -> None:
        """Take everything from machines that may run now, uncalled: who waits may be woken by more
        than a call. Raises BusyError, GuestError.
        """
        if self.called:
            raise BusyError("a function is being called: wait until it has returned")
        self._relax()

    def _viewers(self, extents: Sequence[Extent]) -> Collection[int]:
        """Return the numbers of machines that see any of these extents of the host's."""
        ledger, number = self._host._exchange.ledger, self._host.peer.number
        runs = [run for extent in extents for run in ledger.runs(number, extent)]
        bonds = ledger.bonds([run for run in runs if run.hold is Hold.SHARED])
        return self.seen.keys() & {one.peer for bond in bonds for one in bond.borrowers}

    def keeps(self, by: Machine) -> bool:
        """Whether what a machine borrows is what it is shown, all of that and nothing else. So it
        is if it has stopped.
        """
        ledger, number = self._host._exchange.ledger, by.number
        with self._turns.lock:
            if not by.peer.alive:
                return True
            loaned = ledger.account(number).loaned
            for _, writable, extent, _ in self.seen.get(number, ()):
                loaned -= extent.pages
                wanted = Hold.BORROWED if writable else Hold.VIEWED
                hold, end, _ = ledger.piece(number, extent.page)
                whole = hold is wanted and end >= extent.end  # as a rule
                if not (whole or ledger.holds(number, extent, frozenset({wanted}))):
                    return False
            return not loaned

    def forget(self, machine: Machine) -> None:
        """Know nothing of a machine any more: it has gone."""
        with self._turns.telling, self._turns.lock, self._turns.change:
            self._keep(machine.number, ())
        self._peers.pop(machine.number, None)  # not before: whose turn is undone is known again
        self.called.pop(machine.number, None)
