"""Plans: what the ledger has found may be done, and what became of it. Pure data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

from vmm.guest.abi import Hold, Operation
from vmm.memory.frames import Frames
from vmm.memory.runs import Extent, Run


class Transfer(NamedTuple):
    """A SEND, LEND, SHARE or EXCHANGE that may be.

    runs      what goes: what is in the extents, in their order; or, for an EXCHANGE that is copied,
              free frames that are to get the same bytes, as the sender would have them at `homes`
    homes     for each run its place in the sender's window should it come back
    places    for each run its place in the receiver's window
    sources   for each extent its place in the sender's window should it come back
    targets   for each extent its place in the receiver's window
    fresh     what takes the runs' place, for an EXCHANGE that is moved
    copied    what is in the extents, in their order, and stays there, for one that is copied
    """

    operation: Operation
    sender: int
    receiver: int
    writable: bool
    runs: tuple[Run, ...]
    homes: tuple[int, ...]
    places: tuple[int, ...]
    sources: tuple[Extent, ...]
    targets: tuple[Extent, ...]
    fresh: tuple[Run, ...] = ()
    copied: tuple[Run, ...] = ()

    def copies(self) -> Iterator[tuple[Run, Run]]:
        """Yield what is copied and where to, in pieces of adjacent pages and adjacent frames."""
        source = target = Run(0, 0, 0, Hold.OWNED)
        sources, targets = iter(self.copied), iter(self.runs)
        for _ in range(len(self.copied) + len(self.runs)):
            source = source if source.pages else next(sources, source)
            target = target if target.pages else next(targets, target)
            pages = min(source.pages, target.pages)
            if not pages:
                return
            yield source._replace(pages=pages), target._replace(pages=pages)
            source = source.clip(source.page + pages, source.end)
            target = target.clip(target.page + pages, target.end)


class Return(NamedTuple):
    """A RETURN that may be.

    runs     what the borrower gives back, in the order of its extents
    shown    what its owner has again; nothing, if it was only shared, or the owner has stopped
    spans    the same by extents of the owner's window, those that are only shared included
    """

    peer: int
    owner: int
    runs: tuple[Run, ...]
    shown: tuple[Run, ...]
    spans: tuple[Extent, ...]


class Reclaim(NamedTuple):
    """A RECLAIM that may be.

    runs     what is in the extents
    hidden   what borrowers have of it: (peer, run)
    shown    what the owner could not see, and has again
    """

    owner: int
    runs: tuple[Run, ...]
    hidden: tuple[tuple[int, Run], ...]
    shown: tuple[Run, ...]


@dataclasses.dataclass(slots=True)
class Homecoming:
    """What became of pages that a peer has let go of.

    back     LENT to nobody now: (owner, run), to be shown there and then `restore`d
    freed    frames that are in the pool again, to be zeroed before anything else happens: not those
             that are unclean
    """

    back: list[tuple[int, Run]] = dataclasses.field(default_factory=list)
    freed: list[Frames] = dataclasses.field(default_factory=list)
