"""The machines that a bench measures: a sender that has the clock, and a receiver.

The guests are guests/bench_sender.c and bench_receiver.c; what they are asked for is in
guests/include/bench.h.
"""

from __future__ import annotations

import enum
import resource
import struct
from collections.abc import Sequence
from typing import NamedTuple

from vmm.bench.plan import Unavailable
from vmm.errors import PageferryError
from vmm.guest.abi import PAGE_SIZE
from vmm.guest.bundled import bundled_guest
from vmm.monitor import Monitor

PATIENCE = 600.0  # seconds, for a command
_COMMAND = struct.Struct("<7I")
_ANSWER = struct.Struct("<QQ")
_DESCRIPTORS_EACH, _DESCRIPTORS_BESIDES = 2, 100


class Kind(enum.IntEnum):
    """As enum bench_kind."""

    INLINE = 1
    PAGES = 2
    PINGPONG = 3
    BATCH = 4
    LEND = 5
    SHARE = 6
    STREAM = 7


class Command(NamedTuple):
    """As struct bench_command.

    depth      of the receiver's queue
    populate   whether the machines are spawned so
    """

    kind: Kind
    rounds: int
    pages: int = 1
    batch: int = 1
    touch: bool = False
    used: int = 0
    depth: int = 64
    populate: bool = False

    @property
    def window_pages(self) -> int:
        """How many pages its messages have together, those between them included."""
        each = 1 + self.pages if self.kind is Kind.BATCH else self.pages
        return each * self.batch * (self.rounds if self.kind is Kind.PAGES else 1)

    def line(self) -> str:
        """Return it as the floor wants it."""
        return "run " + " ".join(str(int(number)) for number in self)


def allow_machines(count: int) -> None:
    """Let this process have the descriptors of so many machines. Raises Unavailable."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count * _DESCRIPTORS_EACH + _DESCRIPTORS_BESIDES
    if needed > hard != resource.RLIM_INFINITY:
        raise Unavailable(f"{needed} descriptors needed, {hard} allowed (ulimit -Hn)")
    if needed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def spawn_others(monitor: Monitor, count: int) -> None:
    """Spawn machines that wait for ever."""
    for index in range(count):
        monitor.spawn(bundled_guest("bench_receiver"), name=f"other-{index}", window="2M")


class Pair:
    """A sender and a receiver, connected; `others` are machines that wait for ever.

    Raises Unavailable if so many machines cannot be.
    """

    def __init__(self, monitor: Monitor, command: Command, others: int = 0) -> None:
        allow_machines(others + 2)
        self._monitor = monitor
        window = max(64 << 20, 2 * command.window_pages * PAGE_SIZE)
        spawn_others(monitor, others)
        self.sender, self.receiver = (
            monitor.spawn(
                bundled_guest(name), window=window, queue=depth, populate=command.populate
            )
            for name, depth in (("bench_sender", 64), ("bench_receiver", command.depth))
        )
        monitor.connect(self.sender, self.receiver)
        self._khz = self.sender.guest.vcpu.get_tsc_khz()

    def run(self, command: Command) -> Sequence[float]:
        """Carry a command out; return its samples, in microseconds."""
        kind, rounds, pages, batch, touch, used, _, _ = command
        payload = _COMMAND.pack(kind, self.receiver.number, rounds, pages, batch, touch, used)
        self._monitor.host.send(self.sender, payload=payload)
        self._monitor.run(PATIENCE)
        for machine in (self.sender, self.receiver):
            if machine.fault is not None:
                raise machine.fault
        answer = self._monitor.host.receive()
        if answer is None:
            raise PageferryError(f"{self.sender.name} has not answered: this is a bug")
        address, count = _ANSWER.unpack(answer.payload)
        ticks = struct.unpack(f"<{count}Q", self.sender.guest.memory.read(address, 8 * count))
        return [tick / self._khz * 1e3 for tick in ticks]
