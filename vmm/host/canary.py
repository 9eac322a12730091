"""The canary: a guest that does what every guest may do, run with a deadline.

A capability bit proves nothing (KVM_CAP_EXIT_HYPERCALL is reported where the instruction
livelocks), so what a host can do is found by letting a guest do it: a number of doorbells, some
with a loop before them, which takes a thousand times as long where it is emulated, then SSE. The
source is guests/canary.c.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
import time
from typing import NamedTuple

from vmm.engine.guest import DIAGNOSIS_SECONDS, Guest
from vmm.engine.kick import deadline
from vmm.guest.abi import Bell, Doorbell, Status
from vmm.guest.blueprint import Blueprint, Shape
from vmm.guest.bundled import bundled_guest
from vmm.guest.image import Image, load_image
from vmm.kvm import CpuidTable, Exit, InternalError, Intr, Kvm

# A native canary takes a few milliseconds. A busy host may make it late, or look slow: patience
# grows with each try, but not for one that looks slow twice.
PATIENCE = (0.15, 0.5, 2.0)  # seconds
LATE = "no answer in time"
SLOW = "its instructions are emulated"
_SLOW_NS = 300.0  # for a round: emulated ones were seen to take 700 to 3000, native ones 1
_MOST_EXITS = 64

# As in guests/canary.c.
_EXITS, _LOOPS, _ROUNDS, _SSE_ROUNDS = 24, 3, 1000, 100_000


class Song(NamedTuple):
    """What became of a canary.

    exit_us   median microseconds of the doorbell's exit and re-entry; None if it never rang
    native    whether it came back whole and in time: guests run natively in this ring
    why       what stopped it otherwise, in a few words
    loop_ns   nanoseconds of one round of a loop of two or three instructions; None if not timed
    """

    exit_us: float | None
    native: bool = False
    why: str = ""
    loop_ns: float | None = None


def sing(kvm: Kvm, ring: int, doorbell: Doorbell) -> Song:
    """Run the canary in a ring, with a doorbell. Raises OSError if not even a VM can be made."""
    why = ""
    for seconds in PATIENCE:
        song = _sing_once(kvm, ring, doorbell, seconds)
        if song.why not in (LATE, SLOW) or song.why == why == SLOW:
            break
        why = song.why
    return song


def _sing_once(kvm: Kvm, ring: int, doorbell: Doorbell, seconds: float) -> Song:
    shape = Shape(ring, doorbell, 4 << 20, 64 << 10, 2 << 20)
    with contextlib.ExitStack() as opened:
        blueprint = Blueprint(_canary(), shape, CpuidTable.of(kvm.supported_cpuid()))
        opened.callback(blueprint.close)
        guest = Guest(kvm, blueprint, 1, "canary")
        opened.callback(guest.close)
        with deadline(seconds):
            return _listen(guest)


@functools.cache
def _canary() -> Image:
    return load_image(bundled_guest("canary"))


def _listen(guest: Guest) -> Song:
    took: list[float] = []
    for _ in range(_MOST_EXITS):
        start = time.perf_counter()
        exit_ = guest.vcpu.run()
        took.append((time.perf_counter() - start) * 1e6)
        match guest.bell(exit_):
            case Bell.EXIT if guest.control.exit_code == 0:
                return timed(took, whole=True)
            case Bell.LOG:
                guest.answer(Status.OK)
            case _:
                song = timed(took[:-1], whole=False)
                late = song.why == SLOW and isinstance(exit_, Intr)
                return song if late else song._replace(why=_why(guest, exit_))
    return timed(took, whole=False)._replace(why="no end")


def timed(took: list[float], *, whole: bool) -> Song:
    """Return what the times of its exits, in microseconds, say of a canary.

    whole     whether the last of them is that of its end, which the SSE loop comes before

    The first has the start in it, and does not count.
    """
    bare = took[1:_EXITS]
    if not bare:
        return Song(None, whole)
    exit_us = statistics.median(bare)
    loops = took[_EXITS : _EXITS + _LOOPS]
    loop_ns = (min(loops) - exit_us) / _ROUNDS * 1e3 if len(loops) == _LOOPS else None
    slow = loop_ns is not None and loop_ns > _SLOW_NS
    if whole and not slow:
        loop_ns = (took[-1] - exit_us) / _SSE_ROUNDS * 1e3
    return Song(
        round(exit_us, 1),
        native=whole and not slow,
        why=SLOW if slow else "",
        loop_ns=None if loop_ns is None else round(max(loop_ns, 0.0), 1),
    )


def _why(guest: Guest, exit_: Exit) -> str:
    if isinstance(exit_, Intr):
        return LATE
    if isinstance(exit_, InternalError):
        return "the instruction emulator gave up"
    with deadline(DIAGNOSIS_SECONDS):
        return guest.explain(exit_).reason
