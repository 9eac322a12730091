"""No page is reachable from two peers.

Looked at from outside, at every event, in the process's own mappings.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from kvm import mappings
from tests_support import sized

from vmm import Monitor
from vmm.ferry.events import Event
from vmm.guest.abi import PAGE_SIZE

MOVES = {"send", "deliver", "undelivered", "release", "stop"}
MESSAGES, LOOKS = sized(
    (60, 300), (12, 100)
)  # how many each machine takes, how many looks at least


@pytest.mark.smaller_in_lanes(
    "12 messages to each machine instead of 60: a look takes 0.01 s there"
)
def test_at_every_event_each_page_is_reachable_from_its_owner_only(
    monitor: Monitor, test_guest: Callable[[str], Path]
) -> None:
    image = test_guest("ferryman")
    machines = [monitor.spawn(image, name=f"m{index}", window="4M") for index in range(3)]
    for a, b in itertools.combinations(machines, 2):
        monitor.connect(a, b)
    looks = 0

    def look(event: Event) -> None:
        nonlocal looks
        if event.kind in MOVES:
            looks += 1
            seen: set[int] = set()
            for views in mappings.check(monitor).values():
                now = {view.frame + i for view in views for i in range(view.pages)}
                assert not now & seen, f"{event}: frames {now & seen} are reachable from two peers"
                seen |= now

    buffer = monitor.host.alloc(64 * PAGE_SIZE)
    buffer.write(b"p" * buffer.size)
    monitor.trace.listen(look)
    monitor.host.send(machines[0], buffer, tag=MESSAGES)
    monitor.run(60)
    assert [machine.exit_code for machine in machines] == [0, 0, 0], [m.fault for m in machines]
    assert looks > LOOKS
    totals = monitor.audit()
    assert totals["owned"] == totals["in_flight"] == 0


def test_released_pages_and_those_of_the_dead_read_as_zero_to_their_next_owner(
    monitor: Monitor, test_guest: Callable[[str], Path]
) -> None:
    machine = monitor.spawn(test_guest("fill_and_release"), name="writer", window="4M")
    buffer = monitor.host.alloc(8 * PAGE_SIZE)
    frames = {run.frame for run in monitor._exchange.ledger.runs(0, buffer.extent)}
    monitor.host.send(machine, buffer)
    monitor.run(10)
    assert machine.exit_code == 0, machine.fault
    again = monitor.host.alloc(8 * PAGE_SIZE)
    assert {run.frame for run in monitor._exchange.ledger.runs(0, again.extent)} == frames
    assert again.read() == bytes(8 * PAGE_SIZE)
