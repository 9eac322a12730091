"""A pair that talks beside one that takes all it can get: it keeps half of its fair share at least.

How much it talks is compared with how much it does alone, in the same test, a moment before: for
each second of processor time that the process has had, as other programs take theirs.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from tests_support import sized

from vmm import Monitor
from vmm.ferry import slices

Open = Callable[..., Monitor]

SECONDS = sized(0.2, 1.0)  # of each measurement
TRIES = 5
LARGE = 64 << 20  # bytes that are shared

WAYS = {"an endless loop": 1, "doorbells": 2, "logs": 3, "scattered loans": 4, "a large share": 5}
PAGES = {"scattered loans", "a large share"}  # which another has to receive
SINK = 6

# Of its fair share: half. An emulated processor's times are none, and there it is enough to go on.
KEPT = sized(1 / 2, 1 / 16)
LONG = slices.LONG  # as users have it: other tests count pieces, and let no clock make them
GOES_ON = 1 / 16  # by the clock on the wall: nobody is to be kept waiting by who does nothing

pytestmark = [
    pytest.mark.smaller_in_lanes("an emulated processor's times are none: only that it goes on"),
    pytest.mark.not_in_lanes("an emulated processor's times are none"),
]


def quiet() -> bool:
    """Whether no more programs run than there are processors."""
    running = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])
    return running <= (os.cpu_count() or 1)


class Rate(NamedTuple):
    """Messages in a second on the wall, and in a second of processor time."""

    wall: float
    processor: float


def messages(open_monitor: Open, elfs: Path, mover: str, workers: int, way: int | None) -> Rate:
    """Return how many messages the pair sends, beside who does what it does."""
    monitor = open_monitor(mover=mover, workers=workers, pool="1G", copy_below=0)
    a, b = (monitor.spawn(elfs / "rally.elf", name=name, window="2M", memory="4M") for name in "ab")
    monitor.connect(a, b)
    monitor.host.send(a, payload=struct.pack("<I", b.number))
    if way is not None:
        evil, sink = (
            monitor.spawn(elfs / "nuisance.elf", name=name, window="256M", memory="4M")
            for name in ("evil", "sink")
        )
        monitor.connect(evil, sink)
        monitor.host.send(sink, payload=struct.pack("<IIQ", SINK, 0, 0))
        monitor.host.send(evil, payload=struct.pack("<IIQ", way, sink.number, LARGE // 4096))
    wall, processor = time.monotonic(), time.process_time()
    monitor.run(SECONDS)
    wall, processor = time.monotonic() - wall, time.process_time() - processor
    for machine in monitor.machines.values():
        assert machine.fault is not None
        assert machine.fault.kind == "timeout", machine.fault
    sent = a.peer.sent + b.peer.sent
    monitor.close()
    return Rate(sent / wall, sent / processor)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_pair_keeps_half_of_its_fair_share_beside_a_nuisance(
    open_monitor: Open,
    test_guests: Path,
    mover: str,
    workers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A machine's fair share is as large as every other's: of the one worker's time, or of the
    monitor's, which two workers share. The pair has one between them, as only one of them has
    anything to do at a time; a nuisance has one, and who has to receive its pages another.
    """
    monkeypatch.setattr(slices, "LONG", LONG)
    failed = dict(list(WAYS.items())[: sized(len(WAYS), 1)])
    seen: dict[str, list[str]] = {}
    for _ in range(TRIES):
        busy = not quiet()
        alone = messages(open_monitor, test_guests, mover, workers, None)
        for name, way in list(failed.items()):
            beside = messages(open_monitor, test_guests, mover, workers, way)
            seen.setdefault(name, []).append(f"{beside} of {alone}")
            share = 1 / 3 if name in PAGES else 1 / 2
            # Two workers make room for each other, and long work is cut in pieces, by the clock on
            # the wall: where other programs have the processors then, that is worth less.
            least = min(KEPT, 1 / 8) if busy and (workers > 1 or name in PAGES) else KEPT
            if (
                beside.processor >= alone.processor * share * least
                and beside.wall >= alone.wall * share * GOES_ON
            ):
                del failed[name]
        if not failed:
            break
    assert not failed, seen
