"""No page is reachable from two peers.

Looked at from outside, at every event, in the process's own mappings.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

from vmm import Monitor
from vmm.ferry.runs import Hold
from vmm.guest.abi import PAGE_SIZE
from vmm.memory.movers import MappedWindow, SlotsWindow, Window
from vmm.trace import Event

Line = tuple[int, int, str, int]  # from, to, permissions and name, first page of the file


def mappings() -> list[Line]:
    """This process's mappings, but for those that nothing can be seen through."""
    lines = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "---p" not in line:
            addresses, offset = line.split(maxsplit=3)[0:3:2]
            low, high = addresses.split("-")
            lines.append((int(low, 16), int(high, 16), line, int(offset, 16) // PAGE_SIZE))
    return lines


def mapped_frames(window: MappedWindow, lines: list[Line]) -> set[int]:
    """The pool's frames that the kernel says are mapped in a window's address range."""
    frames: set[int] = set()
    start, end = window.mapping.address, window.mapping.address + window.mapping.size
    for low, high, line, first in lines:
        if low < end and start < high:
            assert "pageferry-pool" in line, f"a window shows something else: {line}"
            frames.update(range(first, first + (high - low) // PAGE_SIZE))
    return frames


def reachable(window: Window, lines: list[Line]) -> set[int]:
    if isinstance(window, SlotsWindow):
        slots = window._slots.values()
        return {frame for s in slots for frame in range(s.frame, s.frame + s.pages)}
    assert isinstance(window, MappedWindow)
    return mapped_frames(window, lines)


def test_at_every_event_each_page_is_reachable_from_its_owner_only(
    monitor: Monitor, test_guest: Callable[[str], Path]
) -> None:
    image = test_guest("ferryman")
    machines = [monitor.spawn(image, name=f"m{index}", window="4M") for index in range(3)]
    for a, b in itertools.combinations(machines, 2):
        monitor.connect(a, b)
    peers = [monitor.host.peer, *(machine.peer for machine in machines)]
    looks = 0

    def look(event: Event) -> None:
        nonlocal looks
        if event.kind not in ("send", "deliver", "return", "release", "stop"):
            return
        looks += 1
        ledger = monitor._exchange.ledger
        ledger.audit()
        seen: set[int] = set()
        lines = mappings()
        for peer in peers:
            now = reachable(peer.window, lines)
            assert not now & seen, f"{event}: frames {now & seen} are reachable from two peers"
            seen |= now
            if peer.alive:
                runs = ledger.window(peer.number)
                owned = {r.frame + i for r in runs if r.hold is Hold.OWNED for i in range(r.pages)}
                assert now == owned, f"{event}: {peer} reaches what it does not own"
            else:
                assert not now, f"{event}: {peer} is dead and reaches pages"

    buffer = monitor.host.alloc(64 * PAGE_SIZE)
    buffer.write(b"p" * buffer.size)
    monitor.trace.listen(look)
    monitor.host.send(machines[0], buffer)
    monitor.run(60)
    assert [machine.exit_code for machine in machines] == [0, 0, 0], [m.fault for m in machines]
    assert looks > 100
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
