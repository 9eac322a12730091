"""What peers can really reach, compared with the ledger: the audit of mappings."""

from __future__ import annotations

from collections.abc import Iterable

from vmm.ferry.books import LedgerError
from vmm.ferry.ledger import Ledger
from vmm.ferry.peer import Peer
from vmm.ferry.rules import READABLE, WRITABLE
from vmm.memory.movers import Sight


def check_mappings(ledger: Ledger, peers: Iterable[Peer]) -> None:
    """Check that the kernel shows each peer what the ledger says that it has, as it has it, and
    nothing else: the right frames, to be written or only read.

    Not looked at: the dead, and those whose window is spoiled; they do not run again.

    Raises LedgerError, OSError.
    """
    for peer in peers:
        if not peer.alive:
            continue
        seen = peer.window.seen()
        if seen is None or (peer.window.spoiled and peer.window.on_spoiled is not None):
            continue
        allowed = [
            Sight(run.page, run.pages, run.frame, run.hold in WRITABLE)
            for run in ledger.window(peer.number)
            if run.hold in READABLE
        ]
        _compare(peer, _joined(seen), _joined(allowed))


def _compare(peer: Peer, seen: list[Sight], allowed: list[Sight]) -> None:
    for sight in seen:
        if sight not in allowed:
            raise LedgerError(f"{peer.name} reaches {_text(sight)}, and by the ledger does not")
    for sight in allowed:
        if sight not in seen:
            raise LedgerError(f"{peer.name} does not reach {_text(sight)}, and by the ledger does")


def _text(sight: Sight) -> str:
    what = "something else" if sight.frame is None else f"frame {sight.frame}"
    how = "writable" if sight.writable else "read-only"
    return f"{what} at page {sight.page} ({sight.pages} pages, {how})"


def _joined(sights: Iterable[Sight]) -> list[Sight]:
    """Return sights with each that continues another joined to it."""
    found: list[Sight] = []
    for page, pages, frame, writable in sights:
        if found and frame is not None:
            last = found[-1]
            follows = last.frame is not None and (
                last.page + last.pages,
                last.frame + last.pages,
                last.writable,
            ) == (page, frame, writable)
            if follows:
                found[-1] = last._replace(pages=last.pages + pages)
                continue
        found.append(Sight(page, pages, frame, writable))
    return found
