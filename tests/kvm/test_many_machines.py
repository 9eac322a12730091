"""Many machines: what they cost as long as they wait, and that a page gets round all of them.

PAGEFERRY_MACHINES says how many. The kernel tells each of the VMs of each change of a mapping, so
that a hop takes the longer the more there are: with a thousand, ten rounds take a quarter minute.
"""

from __future__ import annotations

import os
import resource
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests_support import sized

from vmm import Machine, Monitor, State
from vmm.guest.abi import PAGE_SIZE
from vmm.memory.movers import RemapMover
from vmm.memory.movers.park_slots import ParkSlotsWindow
from vmm.memory.movers.remap import RemapWindow

MACHINES, ROUNDS = int(os.environ.get("PAGEFERRY_MACHINES", sized(1000, 8))), sized(10, 2)
DESCRIPTORS_EACH = 2  # of the VM and of its vCPU
SPARE_DESCRIPTORS = 200
PATIENCE = 100  # seconds
SEED, PRIME, MASK = 0x5EED, 0x100000001B3, (1 << 64) - 1

PAGE = struct.Struct("<4Q508Q")  # struct page of tests/guests/relay.c

Elf = Callable[[str], Path]


@pytest.fixture
def enough_descriptors() -> Iterator[None]:
    """Raise the limit on open files as far as need be; skip the test if that may not be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = MACHINES * DESCRIPTORS_EACH + SPARE_DESCRIPTORS
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"{MACHINES} machines need {needed} open files, and the limit is {hard}")
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def spawn(monitor: Monitor, image: Path) -> list[Machine]:
    """Spawn the machines, as small as they can be."""
    return [
        monitor.spawn(image, name=f"m{index}", window="2M", memory="3M", stack="16K", queue=4)
        for index in range(MACHINES)
    ]


def tasks() -> int:
    """Count this process's threads, but not the one that newer kernels add to it for every VM."""
    count = 0
    for task in os.scandir("/proc/self/task"):
        try:
            count += not Path(task.path, "comm").read_bytes().startswith(b"kvm-nx-lpage")
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
    return count


class Sampler:
    """Counts threads while others run; itself is not counted."""

    def __init__(self) -> None:
        self.samples: list[int] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def _sample(self) -> None:
        while not self._over.is_set():
            self.samples.append(tasks() - 1)
            self._over.wait(0.05)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def threads_of_a_run(monitor: Monitor, waiter: Path) -> int:
    """Return how many threads there are while one machine waits in vain."""
    with Sampler() as sampler:
        monitor.spawn(waiter, name="waiter", window="2M", memory="3M", stack="16K")
        monitor.run(PATIENCE)
    return max(sampler.samples)


def pass_round(monitor: Monitor, ring: list[Machine], rounds: int) -> None:
    """Let a page go round, and check what has become of it."""
    hops = len(ring) * rounds
    page = monitor.host.alloc(PAGE_SIZE)
    page.write(PAGE.pack(hops, 0, 0, SEED, *[SEED] * 508))
    monitor.host.send(ring[0], page)
    monitor.run(PATIENCE)
    received = monitor.host.receive()
    assert received is not None
    assert received.sender == ring[-1].number
    left, counted, digest, seed, *words = PAGE.unpack(received.buffers[0].read())
    assert (left, counted, seed) == (0, hops, SEED)
    assert words == [SEED + index * hops for index in range(508)]
    expected = 0
    for hop in range(hops):
        expected = (expected ^ ring[hop % len(ring)].number) * PRIME & MASK
    assert digest == expected
    assert {m.peer.sent for m in ring} == {rounds}


@pytest.mark.smaller_in_lanes("a machine takes fifty times as long to make")
def test_beside_256_machines_one_gets_memslots_and_all_others_keep_what_they_have(
    open_monitor: Callable[..., Monitor], test_guest: Elf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From about there on it takes longer to tell them all of a change in a mapping."""
    assert RemapMover.many == 256
    monkeypatch.setattr(RemapMover, "many", many := sized(256, 4))
    monitor = open_monitor(mover="remap", pool="2M")
    small = {"window": "2M", "memory": "3M", "stack": "16K"}
    machines = [
        monitor.spawn(test_guest("relay"), name=f"m{index}", **small) for index in range(many + 2)
    ]
    kinds = [type(machine.peer.window) for machine in machines]
    assert kinds == [RemapWindow] * many + [ParkSlotsWindow] * 2
    ring = [machines[0], machines[-1], machines[1], machines[-2]]
    for machine, following in zip(ring, [*ring[1:], ring[0]], strict=True):
        monitor.connect(machine, following, both=False)
    pass_round(monitor, ring, ROUNDS)
    for machine in machines[2:5]:
        monitor.remove(machine)
    few = monitor.spawn(test_guest("relay"), name="few", **small)
    assert type(few.peer.window) is RemapWindow
    assert type(machines[-1].peer.window) is ParkSlotsWindow
    monitor.audit()


@pytest.mark.smaller_in_lanes("a machine takes fifty times as long to make, and a hop too")
@pytest.mark.usefixtures("enough_descriptors")
def test_many_machines_that_wait_cost_no_threads_and_a_page_gets_round_all_of_them_intact(
    open_monitor: Callable[..., Monitor], test_guest: Elf
) -> None:
    waiter = test_guest("wait_50_ms")
    few = threads_of_a_run(open_monitor(pool="1M"), waiter)
    monitor = open_monitor(pool="1M")
    start, descriptors = time.monotonic(), len(list(Path("/proc/self/fd").iterdir()))
    ring = spawn(monitor, test_guest("relay"))
    for machine, following in zip(ring, [*ring[1:], ring[0]], strict=True):
        monitor.connect(machine, following, both=False)
    descriptors = len(list(Path("/proc/self/fd").iterdir())) - descriptors
    spawned = time.monotonic()
    assert threads_of_a_run(monitor, waiter) <= few + 2
    assert {m.state for m in ring} == {State.PARKED}
    waited = time.monotonic()
    pass_round(monitor, ring, ROUNDS)
    assert {m.state for m in ring} == {State.PARKED}
    print(f"{spawned - start:.1f} s for {MACHINES} machines with {descriptors} descriptors;")
    print(f"{time.monotonic() - waited:.1f} s for {ROUNDS} rounds")
