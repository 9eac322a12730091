"""Two machines that talk to each other, beside others that they know nothing of."""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection
from pathlib import Path

from vmm import Monitor, State

_ORDER = struct.Struct("<IIIIQII")  # struct order of pages_to_and_fro.c


class Innocent:
    """A pair that passes pages to and fro, and looks at every word of them."""

    def __init__(self, monitor: Monitor, elf: Callable[[str], Path]) -> None:
        self.monitor = monitor
        self.machines = [
            monitor.spawn(elf("pages_to_and_fro"), name=name, window="2M", memory="4M")
            for name in ("left", "right")
        ]
        monitor.connect(*self.machines)
        self._orders = 0

    def begin(self, rounds: int) -> None:
        """Tell them to do so many rounds, in the next `run`."""
        left, right = self.machines
        for machine, peer, begins in ((left, right, 1), (right, left, 0)):
            order = _ORDER.pack(peer.number, begins, rounds, 0, self._orders * 1000 + 1, 0, 0)
            self.monitor.host.send(machine, payload=order)
        self._orders += 1

    def check(self, done: Collection[int]) -> None:
        """They have done what they were to do, and seen nothing else than each other's pages.

        done   the senders of the messages that the host has got since
        """
        for machine in self.machines:
            assert machine.fault is None, machine.fault
            assert list(done).count(machine.number) == 1
            assert machine.state is State.PARKED
            assert not machine.peer.queue
            assert not machine.peer.untaken
        ledger = self.monitor._exchange.ledger
        assert ledger.account(self.machines[1].number).charged == 0
