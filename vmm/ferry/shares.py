"""Shares of what peers have in common: so much is kept for each, whoever else wants it. Pure."""

from __future__ import annotations

from collections.abc import Collection

from vmm.guest.abi import PEER_HOST
from vmm.memory.frames import FramePool


class FrameShares:
    """How many of the pool's free frames are kept for each peer; the others are for whoever comes
    first.

    share    frames that are kept for each, if there are as many
    kept     for all together

    A peer's share is used up last, and filled up first when anybody's frames are free again. So it
    is there for a peer that wants it, except for what that peer has had of it and passed on. The
    host may have the shares of all: whose program has made the machines may give it everything.
    """

    def __init__(self, pool: FramePool, share: int) -> None:
        self._pool = pool
        self._share = share
        self._kept: dict[int, int] = {}
        self.kept = 0

    def join(self, peer: int) -> None:
        """Keep a share for a peer: never more than an eighth of what nobody has a claim to."""
        self._kept[peer] = part = min(self._share, (self._pool.free - self.kept) // 8)
        self.kept += part

    def recount(self, peers: Collection[int]) -> None:
        """Follow a pool that has been restored, for these peers: each has its share, as far as
        there is enough.
        """
        self._kept, self.kept = dict.fromkeys(peers, 0), 0
        self.refill()

    def leave(self, peer: int) -> None:
        """A peer has stopped: what was kept for it is for the others."""
        self.kept -= self._kept.pop(peer)
        self.refill()

    def available(self, peer: int) -> int:
        """Return how many frames a peer may have now."""
        if peer == PEER_HOST:
            return self._pool.free
        return self._pool.free - self.kept + self._kept[peer]

    def took(self, peer: int | None = None) -> None:
        """A peer has taken frames, or they are not free for a while: what was not there for all
        came out of its share.
        """
        missing = self.kept - self._pool.free
        if missing <= 0:
            return
        self.kept -= missing
        for whose in (
            *((peer,) if peer in self._kept else ()),
            *self._kept,
        ):  # its own first; others' only if it is the host
            part = min(missing, self._kept[whose])
            self._kept[whose] -= part
            missing -= part

    def refill(self, first: int | None = None) -> None:
        """Frames are free again: those come first of whose share something is missing; before all
        others, who has freed them.
        """
        spare = self._pool.free - self.kept
        if spare <= 0 or self.kept >= self._share * len(self._kept):
            return
        for peer in (*((first,) if first in self._kept else ()), *self._kept):
            more = min(self._share - self._kept[peer], spare)
            self._kept[peer] += more
            self.kept += more
            spare -= more
