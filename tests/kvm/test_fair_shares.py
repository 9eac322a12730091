"""A pair that talks beside one that takes all it can get: it keeps half of its fair share at least.

How much it talks is compared with how much it does alone, in the same test, a moment before.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from tests_support import sized

from vmm import Monitor

Open = Callable[..., Monitor]

SECONDS = 0.2  # of each measurement
TRIES = 5  # other programs take their share of the processors, too
LARGE = 64 << 20  # bytes that are shared

WAYS = {"an endless loop": 1, "doorbells": 2, "logs": 3, "scattered loans": 4, "a large share": 5}
PAGES = {"scattered loans", "a large share"}  # which another has to receive
SINK = 6

# Of its fair share: half. An emulated processor's times are none, and there it is enough to go on.
KEPT = sized(1 / 2, 1 / 16)

pytestmark = pytest.mark.not_in_lanes("an emulated processor's times are none")


def kept() -> float:
    """Return how much of its fair share the pair is to keep. Where as many other programs run as
    there are processors, the kernel's shares are what is measured: there, too, it is to go on.
    """
    running = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])
    return KEPT if running <= (os.cpu_count() or 1) else min(KEPT, 1 / 16)


def messages(open_monitor: Open, elfs: Path, mover: str, workers: int, way: int | None) -> float:
    """Return how many messages the pair sends in a second, beside who does what it does."""
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
    monitor.run(SECONDS)
    for machine in monitor.machines.values():
        assert machine.fault is not None
        assert machine.fault.kind == "timeout", machine.fault
    sent = a.peer.sent + b.peer.sent
    monitor.close()
    return sent / SECONDS


@pytest.mark.parametrize("workers", [1, 2])
def test_a_pair_keeps_half_of_its_fair_share_beside_a_nuisance(
    open_monitor: Open, test_guests: Path, mover: str, workers: int
) -> None:
    """A machine's fair share is as large as every other's: of the one worker's time, or of the
    monitor's, which two workers share. The pair has one between them, as only one of them has
    anything to do at a time; a nuisance has one, and who has to receive its pages another.
    """
    failed = dict(list(WAYS.items())[: sized(len(WAYS), 1)])
    seen: dict[str, list[str]] = {}
    for _ in range(TRIES):
        least = kept()
        alone = messages(open_monitor, test_guests, mover, workers, None)
        for name, way in list(failed.items()):
            beside = messages(open_monitor, test_guests, mover, workers, way)
            seen.setdefault(name, []).append(f"{beside:.0f} of {alone:.0f}")
            share = 1 / 3 if name in PAGES else 1 / 2
            if beside >= alone * share * least:
                del failed[name]
        if not failed:
            break
    assert not failed, seen
