"""The operations of the protocol, each as one peer asks for it.

All have the same shape: check and plan (ledger), change the mappings (carrier), commit (ledger),
tell the other peer (roster). A Refusal at any point leaves everything as it was.

Not thread-safe: the monitor calls them under its lock.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter

from vmm.ferry.carry import spans
from vmm.ferry.control import Notice
from vmm.ferry.message import TOGETHER, Answer, Message, Request
from vmm.ferry.parting import Parted
from vmm.ferry.peer import Peer
from vmm.ferry.places import without
from vmm.ferry.plans import Reclaim, Return
from vmm.ferry.rules import Refusal
from vmm.ferry.sending import Sending
from vmm.guest import abi
from vmm.guest.abi import Hold, Operation, Status
from vmm.memory.runs import Extent, Run


class Operations(Sending):
    """What peers may ask for. `serve` does it; the others are for those who know what they ask."""

    def serve(self, peer: Peer, request: Request, together: list[Parted] | None = None) -> Answer:
        """Do what a peer asks for. Raises Refusal.

        together  gets what a SEND or LEND leaves to be hidden, and noted as parted, if it is given;
                  otherwise that has been done
        """
        if together is not None and request.operation in TOGETHER:
            return self.transfer(peer, request, together)
        answer = _SERVED[request.operation](self, peer, request)
        if peer.untaken:
            self.note_parted(peer, request.operation, request.spans)
        return answer

    # ---- The way back ----

    def give_back(self, borrower: Peer, request: Request) -> Answer:
        """RETURN: the owner has its pages again, at once, and a message that says so.

        A dead owner's pages go to the pool when the last borrower lets go, and there is no message.
        """
        owner = self._roster.get(request.receiver)
        extents = request.extents(borrower.window.region)
        plan = self._ledger.returning(borrower.number, request.receiver, extents)
        if owner is not None:
            self._check_return(borrower, owner, request, plan.spans)
        self._bring_home(plan)
        if owner is None:
            return Answer(Status.OK)
        message = Message(
            number=next(self.numbers),
            operation=Operation.RETURN,
            status=Status.OK,
            sender=borrower.number,
            receiver=owner.number,
            tag=request.tag,
            length=request.length,
            payload=request.payload,
            spans=spans(owner.window, plan.spans),
        )
        borrower.sent += 1
        self._roster.put(borrower, owner, message)
        return Answer(Status.OK, message.number)

    def withdraw(self, borrower: Peer, owner: int, extents: Sequence[Extent]) -> None:
        """Have a peer that is not running RETURN what it borrows of an owner, who asks for it: no
        message tells of it. Raises Refusal.
        """
        self._bring_home(self._ledger.returning(borrower.number, owner, extents))
        if borrower.untaken:
            self.note_parted(borrower, Operation.RETURN, spans(borrower.window, extents))

    def _bring_home(self, plan: Return) -> None:
        """Hide what is returned, and show the owner what was lent. Raises Refusal."""
        keep = partial(self._take_back, plan.owner)
        with self._carrier.all_or_nothing() as moves:
            shown = [run._replace(hold=Hold.OWNED) for run in plan.shown]
            if len(shown) == len(plan.runs) == 1 and shown[0].pages == plan.runs[0].pages:
                moves.pass_on(plan.peer, plan.runs[0], plan.owner, shown[0], keep)
            else:
                moves.hide(plan.peer, plan.runs)
                moves.show(plan.owner, shown, keep)
        self._carrier.zero(self._ledger.commit_return(plan))

    @staticmethod
    def _check_return(
        borrower: Peer, owner: Peer, request: Request, places: Sequence[Extent]
    ) -> None:
        """Check that the owner can be told. Giving back is no way around a missing channel."""
        if request.payload and borrower.receiver(owner.number) is None:
            raise Refusal(Status.E_PEER)
        if not owner.queue.takes(borrower.number):
            raise Refusal(Status.E_QUEUE_FULL)
        if len(places) > abi.EXTENTS_MAX:  # apart in the owner's window: to be returned by parts
            raise Refusal(Status.E_LENGTH)

    def reclaim(self, owner: Peer, extents: Sequence[Extent]) -> None:
        """RECLAIM: from all who borrow the pages, whatever they are doing; they get a notice."""
        plan = self._ledger.reclaiming(owner.number, extents)
        with self._carrier.all_or_nothing() as moves:
            for peer, hidden in itertools.groupby(plan.hidden, itemgetter(0)):
                moves.hide(peer, [run for _, run in hidden])
            shown = [run._replace(hold=Hold.OWNED) for run in plan.shown]
            moves.show(owner.number, shown, partial(self._take_back, owner.number))
        self._commit_reclaim(plan)

    def _take_back(self, owner: int, run: Run) -> None:
        """Let an owner have what it sees and nobody else does, although all else is refused."""
        self._commit_reclaim(Reclaim(owner, (run,), (), ()))

    def _commit_reclaim(self, plan: Reclaim) -> None:
        for peer in self._ledger.commit_reclaim(plan):
            self._roster.notice(self._roster[peer], Notice.RECLAIM)

    # ---- The pool ----

    def grant(self, peer: Peer, counts: Sequence[int]) -> list[Extent]:
        """Give a peer zeroed pages, an extent for each count. Raises Refusal."""
        extents, runs = self._grant(peer.number, counts)
        kept: list[Run] = []
        try:
            with self._carrier.all_or_nothing() as moves:
                moves.show(peer.number, runs, kept.append)
        except Refusal:
            unseen = [part for run in runs for part in without(run, kept)]
            self._carrier.zero(self._ledger.release(peer.number, unseen))
            raise
        return extents

    def _grant(self, peer: int, counts: Sequence[int]) -> tuple[list[Extent], list[Run]]:
        """Plan it; where there are too few pages, with those that were still to be zeroed."""
        try:
            return self._ledger.grant(peer, counts)
        except Refusal as refusal:
            if refusal.status is not Status.E_NO_MEMORY or not self._ledger.aside:
                raise
        self._carrier.clean()
        return self._ledger.grant(peer, counts)

    def release(self, peer: Peer, extents: Sequence[Extent]) -> None:
        """Take disjoint extents back into the pool; they read as zeros from now on.

        Raises Refusal.
        """
        runs = self._releasing(peer, extents)
        with self._carrier.all_or_nothing() as moves:
            moves.hide(peer.number, [run for run in runs if run.hold is Hold.OWNED])
        self._carrier.zero(self._ledger.release(peer.number, runs))

    def _releasing(self, peer: Peer, extents: Sequence[Extent]) -> list[Run]:
        runs = self._ledger.releasing(peer.number, extents)
        if _awaits(peer, [run for run in runs if run.hold is Hold.REVOKED]):
            raise Refusal(Status.E_OWNERSHIP)
        return runs

    # ---- In parts ----

    def check(self, peer: Peer, operation: Operation, extents: Sequence[Extent]) -> None:
        """Raise Refusal if a RECLAIM or RELEASE might be refused, whatever the host does. Takes
        little time for each run, and none for who borrows it.
        """
        if operation is Operation.RECLAIM:
            self._ledger.allowed(operation, peer.number, extents)
            # Only at their ends anything is cut in two.
            ends = {Extent(at, 1) for page, pages in extents for at in (page, page + pages - 1)}
            self._ledger.reclaiming(peer.number, sorted(ends))
        else:
            self._releasing(peer, extents)

    def do(self, peer: Peer, operation: Operation, extents: Sequence[Extent]) -> None:
        """Do a part of a RECLAIM or RELEASE. Raises Refusal."""
        if operation is Operation.RECLAIM:
            self.reclaim(peer, extents)
        else:
            self.release(peer, extents)
            self.note_parted(peer, operation, spans(peer.window, extents))

    def _alloc(self, peer: Peer, request: Request) -> Answer:
        return Answer(Status.OK, spans=spans(peer.window, self.grant(peer, request.counts())))

    def _reclaim(self, peer: Peer, request: Request) -> Answer:
        self.reclaim(peer, request.extents(peer.window.region))
        return Answer(Status.OK)

    def _release(self, peer: Peer, request: Request) -> Answer:
        self.release(peer, request.extents(peer.window.region))
        return Answer(Status.OK)

    # ---- Questions ----

    def _query(self, peer: Peer, request: Request) -> Answer:
        extents = request.extents(peer.window.region)
        account = self._ledger.account(peer.number)
        answer = abi.Answer(
            owner=abi.NO_PEER,
            pages_held=account.charged,
            pages_quota=account.quota,
            pieces_held=len(account.window),
            pieces_quota=account.pieces,
            pool_free=self._ledger.pool.free,
        )
        for extent in extents:
            about = self._ledger.describe(peer.number, extent)
            answer.hold, answer.pages = about.hold, about.pages
            answer.owner = abi.NO_PEER if about.owner is None else about.owner
            answer.borrower_count = len(about.borrowers)
            for index, borrower in enumerate(about.borrowers[: abi.ANSWER_BORROWERS]):
                answer.borrowers[index] = borrower
        return Answer(Status.OK, payload=bytes(answer))


_SERVED: dict[Operation, Callable[[Operations, Peer, Request], Answer]] = {
    Operation.SEND: Operations.transfer,
    Operation.LEND: Operations.transfer,
    Operation.SHARE: Operations.transfer,
    Operation.EXCHANGE: Operations.transfer,
    Operation.RETURN: Operations.give_back,
    Operation.RECLAIM: Operations._reclaim,
    Operation.ALLOC: Operations._alloc,
    Operation.RELEASE: Operations._release,
    Operation.QUERY: Operations._query,
}


def _awaits(peer: Peer, runs: Sequence[Run]) -> bool:
    """Whether a message in the peer's queue says that it comes to these places, reclaimed or not.

    As long as it does, nothing else may: it would be taken for what the message brings.
    """
    if not runs:
        return False
    targets = sorted(target for message in peer.queue for target in message.targets)
    before = [bisect_left(targets, (run.end, 0)) for run in runs]  # no two of them overlap
    return any(i and targets[i - 1].end > run.page for i, run in zip(before, runs, strict=True))
