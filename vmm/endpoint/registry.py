"""The machines of a monitor: how one joins the others, and leaves them again."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from functools import partial

from vmm.engine.guest import Guest
from vmm.engine.machine import Ending, Machine, State
from vmm.engine.standing import Standing
from vmm.errors import ConfigError
from vmm.ferry.events import Trace
from vmm.ferry.exchange import Exchange
from vmm.ferry.peer import Peer
from vmm.ferry.turns import Turns
from vmm.guest import abi
from vmm.kvm.given import Given, give_back, noted
from vmm.memory.movers import Mover

PIECES = 2048  # runs that a machine may cut its window into, each a mapping of its own
_SPOILED = Ending(
    "internal",
    "the host refused to change its window, and to undo that: there are too many mappings "
    "(vm.max_map_count), or too little memory for the kernel",
)


class Registry:
    """Who there is. Not thread-safe: each method is called in a turn, unless it says otherwise.

    by_name     those that have not been removed
    by_number   the same, oldest first
    numbers     of machines, none of them given twice; to be drawn from by any thread
    """

    def __init__(
        self,
        by_name: dict[str, Machine],
        by_number: dict[int, Machine],
        mover: Mover,
        exchange: Exchange,
        standing: Standing,
        turns: Turns,
        trace: Trace,
        host: Peer,
    ) -> None:
        self.by_name = by_name
        self.by_number = by_number
        self.numbers = itertools.count(1)
        self._mover = mover
        self._exchange = exchange
        self._standing = standing
        self._turns = turns
        self._trace = trace
        self._host = host

    def check_name(self, name: str) -> None:
        """Raise ConfigError if a machine cannot be called that."""
        if not name.isprintable() or not 0 < len(name.encode()) < abi.NAME_MAX:
            raise ConfigError(f"name {name!r} is not 1 to {abi.NAME_MAX - 1} printable bytes")
        if name in self.by_name or name == self._host.name:
            raise ConfigError(f"the name {name!r} is taken: give each machine its own (name=...)")

    def join(
        self,
        name: str,
        make: Callable[[], Guest],
        kind: Callable[..., Machine],
        path: str,
        depth: int,
        quota: int,
        *,
        populate: bool = False,
        waits: bool = False,
    ) -> Machine:
        """Make a machine of the guest that `make` returns. The name is a right one.

        populate   see Window
        waits      whether it runs only after `begin`
        """
        made: list[Given] = []
        self._turns.journal.undo(partial(give_back, made))
        try:
            with noted(made):
                guest = make()
                region = guest.layout.window
                window = self._mover.machine_window(
                    guest.vm, region.base, region.size, len(self.by_number)
                )
        except BaseException:
            give_back(made)
            raise
        window.populate = populate
        peer = Peer(guest.number, name, window, depth, guest.control)
        machine = kind(guest, peer, self._exchange, self._turns)
        self._turns.journal.undo(partial(self._forget, machine))
        window.on_spoiled = partial(self._condemn, machine)
        if window.blinks:
            peer.hold_still = partial(self._standing.hold, machine)
        self._exchange.join(peer, quota, PIECES)
        self._exchange.roster.connect(self._host, peer, both=True)
        self.by_name[name] = self.by_number[guest.number] = machine
        if waits:
            machine.state = State.PARKED
        else:
            self._standing.make_ready(machine)
        if self._trace:
            self._trace.emit("spawn", machine=name, image=path, window=region.size)
        return machine

    def begin(self, machine: Machine) -> None:
        """Let a machine run that has waited."""
        self._turns.journal.keep(machine)
        self._standing.make_ready(machine)

    def leave(self, machine: Machine) -> None:
        """Take out a machine that has stopped; what it holds is closed when the turn is over."""
        journal = self._turns.journal
        journal.undo(partial(self._remember, machine))
        machine.closed = True
        del self.by_number[machine.number], self.by_name[machine.name]
        self._exchange.roster.forget(machine.peer)
        journal.later(partial(_free, machine))

    def close(self) -> None:
        """Close all that the machines hold, outside any turn; they do not run any more.

        All VMs first, then what is mapped: the kernel tells each VM that there still is of that.
        """
        with contextlib.ExitStack() as freeing:
            for machine in self.by_number.values():
                machine.closed = True
                freeing.callback(_free, machine)
            for machine in self.by_number.values():
                freeing.callback(machine.guest.close_vm)

    def _forget(self, machine: Machine) -> None:
        """Undo a joining."""
        machine.closed = True
        self.by_number.pop(machine.number, None)
        if self.by_name.get(machine.name) is machine:
            del self.by_name[machine.name]
        _free(machine)

    def _remember(self, machine: Machine) -> None:
        """Undo a leaving."""
        machine.closed = False
        self.by_name[machine.name] = self.by_number[machine.number] = machine

    def _condemn(self, machine: Machine) -> None:
        """Let a machine end before it is entered again: its window is spoiled (Window)."""
        machine.ending = machine.ending or _SPOILED
        if machine.state is State.RUNNING:
            self._standing.interrupt(machine)
        elif machine.state is State.PARKED:
            self._standing.make_ready(machine)


def _free(machine: Machine) -> None:
    """Close all that a machine holds: the VM with its memslots before the memory behind them."""
    peer = machine.peer
    try:
        machine.guest.close()
    finally:
        peer.window.close()
        # Peers remember it, and would keep all of it with its image.
        peer.window.on_spoiled, peer.hold_still = None, _nothing


def _nothing() -> None:
    pass
