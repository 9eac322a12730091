"""The canary: a guest that does what every guest may do, run with a deadline.

A capability bit proves nothing (KVM_CAP_EXIT_HYPERCALL is reported where the instruction
livelocks), so what a host can do is found by letting a guest do it: SSE, a loop that emulation is
too slow for, and a number of doorbells. The source is guests/canary.c.
"""

from __future__ import annotations

import functools
import statistics
import time
from typing import NamedTuple

from vmm.guest.abi import Bell, Doorbell, Status
from vmm.guest.bundled import bundled_guest
from vmm.guest.guest import Guest, Shape
from vmm.guest.image import Image, load_image
from vmm.kick import deadline
from vmm.kvm import Exit, InternalError, Intr, Kvm

SECONDS = 0.15  # native: well under a millisecond; emulated: the loop alone takes longer than this
_TRIES = 2  # a busy host may make even a native canary late, once
_EXITS = 64
_LATE = "no answer in time"


class Song(NamedTuple):
    """What became of a canary.

    exit_us   median microseconds of the doorbell's exit and re-entry; None if it never rang
    native    whether it came back whole and in time: guests run natively in this ring
    why       what stopped it otherwise, in a few words
    """

    exit_us: float | None
    native: bool = False
    why: str = ""


def sing(kvm: Kvm, ring: int, doorbell: Doorbell) -> Song:
    """Run the canary in a ring, with a doorbell. Raises OSError if not even a VM can be made."""
    song = Song(None)
    for _ in range(_TRIES):
        song = _sing_once(kvm, ring, doorbell)
        if song.why != _LATE:
            break
    return song


def _sing_once(kvm: Kvm, ring: int, doorbell: Doorbell) -> Song:
    guest = Guest(kvm, _canary(), Shape(ring, doorbell, 4 << 20, 64 << 10, 2 << 20), 1, "canary")
    try:
        with deadline(SECONDS):
            return _listen(guest)
    finally:
        guest.close()


@functools.cache
def _canary() -> Image:
    return load_image(bundled_guest("canary"))


def _listen(guest: Guest) -> Song:
    took: list[float] = []
    for _ in range(_EXITS):
        start = time.perf_counter()
        exit_ = guest.vcpu.run()
        took.append((time.perf_counter() - start) * 1e6)
        match guest.bell(exit_):
            case Bell.EXIT if guest.control.exit_code == 0:
                return Song(_typical(took), True)
            case Bell.LOG:
                guest.answer(Status.OK)
            case _:
                return Song(_typical(took[:-1]), False, _why(guest, exit_))
    return Song(_typical(took), False, "no end")


def _typical(took: list[float]) -> float | None:
    """Return the median of the exits after the first, which has the start in it."""
    return round(statistics.median(took[1:]), 1) if len(took) > 1 else None


def _why(guest: Guest, exit_: Exit) -> str:
    if isinstance(exit_, Intr):
        return _LATE
    if isinstance(exit_, InternalError):
        return "the instruction emulator gave up"
    return guest.explain(exit_).reason
