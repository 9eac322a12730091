"""What will be used, and why: ring, doorbell and mover, decided from what the canaries did; and
what is copied, decided from what that costs.

Pure: songs and findings in, choices out. A reason names what was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

from vmm.errors import HostError
from vmm.guest.abi import PAGE_SIZE, Doorbell
from vmm.host.canary import LATE, Song
from vmm.host.copying import Cost
from vmm.host.hugepages import HugePages
from vmm.memory.mapping import HUGE
from vmm.sizes import format_size

T = TypeVar("T")
Songs = Mapping[tuple[int, Doorbell], Song]  # by ring and doorbell

# From the one to like most: a hypercall carries an operation in registers, a store is emulated.
DOORBELLS = ("hypercall", "pio", "mmio")

_LIKED = {
    "hypercall": "carries a whole operation in its registers",
    "pio": "is one instruction, which KVM need not decode",
    "mmio": "works in either ring on every host",
}


NOT_TRIED = "not tried: ring 0 is not native"


class Choice(NamedTuple, Generic[T]):
    """A decision, with its reason."""

    value: T
    why: str


def doorbell_name(doorbell: Doorbell) -> str:
    """Return a doorbell's name: "hypercall" for either vendor's instruction, "pio" or "mmio"."""
    return doorbell.name.lower() if doorbell in (Doorbell.PIO, Doorbell.MMIO) else "hypercall"


def native(songs: Songs, ring: int) -> bool:
    """Return whether guests run natively in a ring, not instruction by instruction."""
    return any(song.native for (where, _), song in songs.items() if where == ring)


def doorbells(songs: Songs, ring: int) -> list[Doorbell]:
    """Return the doorbells that work in a ring, the one to use first."""
    found = [bell for (where, bell), song in songs.items() if where == ring and song.exit_us]
    return sorted(found, key=lambda bell: DOORBELLS.index(doorbell_name(bell)))


def stopped(songs: Songs, ring: int) -> str:
    """Return what stopped the canaries that were tried in a ring, in a few words."""
    failed = [song for (where, _), song in songs.items() if where == ring and song.why]
    # One that rang has more to say than one that did not, and that more than one not tried.
    failed.sort(key=lambda song: (song.exit_us is None, song.why == NOT_TRIED))
    return failed[0].why if failed else "silent"


def loop_ns(songs: Songs, ring: int) -> float | None:
    """Return the nanoseconds of a loop's round in a ring, of the canary that was quickest."""
    times = [
        song.loop_ns
        for (where, _), song in songs.items()
        if where == ring and song.loop_ns is not None
    ]
    return min(times, default=None)


def _speed(songs: Songs, ring: int) -> str:
    nanoseconds = loop_ns(songs, ring)
    return "" if nanoseconds is None else f", {nanoseconds:,.1f} ns for a round of a loop"


def ring(songs: Songs) -> Choice[int]:
    """Return the guests' ring: 0 where it is native, else 3. Raises HostError if neither is."""
    if native(songs, 0):
        return Choice(0, f"ring 0 is native: the canary came back whole{_speed(songs, 0)}")
    if native(songs, 3):
        return Choice(
            3,
            f"ring 0 is emulated (its canary: {stopped(songs, 0)}{_speed(songs, 0)}); "
            f"ring 3 is native{_speed(songs, 3)}",
        )
    late = LATE in (stopped(songs, 0), stopped(songs, 3))
    raise HostError(
        f"no guest comes back, neither from ring 0 ({stopped(songs, 0)}) "
        f"nor from ring 3 ({stopped(songs, 3)})",
        ("try again when the host is less busy, and else " if late else "")
        + "see the kernel's log (sudo dmesg)",
    )


def doorbell(songs: Songs, ring: int) -> Choice[Doorbell]:
    """Return the doorbell to use in a ring. Raises HostError if guests cannot run there."""
    found = doorbells(songs, ring)
    if not found:
        raise HostError(
            f"guests cannot run in ring {ring} on this host (the canary: {stopped(songs, ring)})",
            f"leave --ring out, or use --ring {3 - ring}",
        )
    first = found[0]
    better = DOORBELLS[: DOORBELLS.index(doorbell_name(first))]
    why = f"it {_LIKED[doorbell_name(first)]}, and the canary used it in ring {ring}"
    silent = [f"{name}: {_silence(songs, ring, name)}" for name in better]
    return Choice(first, "; ".join([why, *silent]))


def _silence(songs: Songs, ring: int, name: str) -> str:
    """Return why a doorbell does not work in a ring."""
    if name == "hypercall" and ring == 3:
        return "KVM refuses it in ring 3"
    for (where, bell), song in songs.items():
        if where == ring and doorbell_name(bell) == name:
            return song.why or "silent"
    return "the kernel hands none to user space"


def named_doorbell(songs: Songs, ring: int, name: str) -> Doorbell:
    """Return the doorbell of a name, one of DOORBELLS. Raises HostError where it is silent."""
    best = doorbell(songs, ring).value
    for bell in doorbells(songs, ring):
        if doorbell_name(bell) == name:
            return bell
    raise HostError(
        f"the {name} doorbell does not work in ring {ring} on this host",
        f"use {doorbell_name(best)}, or leave --doorbell out",
    )


def mover(memslots: int, pages: HugePages, *, strict: bool = False) -> Choice[str]:
    """Return the mover's name.

    memslots   how many a machine may have
    strict     whether the kernel counts address space as memory (vm.overcommit_memory = 2), of
               which `remap` wants as much as there is memory
    """
    rest = (
        "KVM follows mapping calls (KVM_CAP_SYNC_MMU), and memslots stay as they are; "
        f"slots would rewrite them, of which there are {memslots}"
    )
    if pages.memfd:
        return Choice("memfd", f"memfds get huge pages, and a move is one call per extent; {rest}")
    if pages.anonymous and not strict:
        return Choice(
            "remap",
            "anonymous memory gets huge pages and memfds get none: large extents move with theirs; "
            f"{rest}",
        )
    none = "vm.overcommit_memory is 2" if pages.anonymous else "no memory gets huge pages"
    return Choice("memfd", f"a move is one call per extent, and {none}; {rest}")


def copy_below(costs: Sequence[Cost]) -> Choice[int]:
    """Return of how many bytes an exchange is moved, all smaller ones being copied; 0 for all.

    Never more than of a huge page, which moves as one.
    """
    better, worse = None, None
    for cost in costs:
        if cost.copied >= cost.moved:
            worse = cost
            break
        better = cost
    if better is None:
        return Choice(0, _compared(worse) if worse else "what it costs could not be measured")
    if worse is None:
        rest = "" if better.size >= HUGE else "; for larger ones the host took too long"
        return Choice(min(better.size + PAGE_SIZE, HUGE), f"{_compared(better)}{rest}")
    # Both costs grow about as the size does: where they meet, between the two.
    gain, loss = better.moved - better.copied, worse.copied - worse.moved
    size = better.size + (worse.size - better.size) * gain / (gain + loss)
    below = max(-(-int(size) // PAGE_SIZE), better.size // PAGE_SIZE + 1) * PAGE_SIZE
    return Choice(below, f"{_compared(better)}; {_compared(worse)}")


def _compared(cost: Cost) -> str:
    return (
        f"to exchange {format_size(cost.size)} and fill the pages again takes {cost.copied:.0f} µs "
        f"copied, {cost.moved:.0f} µs moved"
    )
