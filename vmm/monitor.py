"""The monitor: machines, the channels between them, and the loop that runs them.

The public façade.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from vmm import host
from vmm.endpoint import HostEndpoint
from vmm.engine.driver import Console, Driver
from vmm.engine.guest import Guest
from vmm.engine.machine import Ending, Machine, State
from vmm.engine.scheduler import Scheduler
from vmm.errors import BusyError, ClosedError, ConfigError
from vmm.ferry.accounts import UNLIMITED
from vmm.ferry.control import Notice
from vmm.ferry.events import Trace
from vmm.ferry.exchange import Exchange
from vmm.ferry.ledger import Ledger
from vmm.ferry.peer import Peer
from vmm.ferry.turns import Turns
from vmm.guest import abi
from vmm.guest.blueprint import Blueprints, Shape
from vmm.guest.image import Image, load_image
from vmm.guest.x86 import LARGE_PAGE
from vmm.host.choice import DOORBELLS
from vmm.memory.movers import MOVERS, Mover
from vmm.sizes import format_size, parse_limit, parse_size

_MAX_PRIVATE = abi.DOORBELL_GPA // LARGE_PAGE * LARGE_PAGE
_MAX_WINDOW = 256 << 30

PIECES = 2048  # runs that a machine may cut its window into, each a mapping of its own
_MAPPINGS_EACH = 2  # a run, and what is between it and the next
_PIECES_SHARE = 256  # of all pieces, kept for each peer; half of them at most, for all
_FRAMES_SHARE = 1024  # frames of the pool, kept for each peer; a 64th of them at most


def print_line(name: str, line: str) -> None:
    """The default console: one line of a machine's, prefixed with its name, to standard output."""
    print(f"{name}: {line}", file=sys.stdout, flush=True)


class Monitor:
    """Runs machines and moves pages between them.

        with Monitor() as m:
            a = m.spawn("a.elf", name="a", window="1G")
            b = m.spawn("b.elf", name="b")
            m.connect(a, b)
            m.run()

    ring      0 or 3; by default whichever this host runs natively
    doorbell  "hypercall", "pio" or "mmio"; by default the best that works
    mover     one of `vmm.memory.movers`, by its name, or a Mover class of one's own; by default
              the one for this host (`vmm.host.choice`)
    pool      memory for all messages together, populated as it is used; by default all of the
              machine's
    workers   threads that run machines; the caller's of `run` is the first
    copy_below  bytes: an EXCHANGE of fewer is copied, not moved; 0 for none. By default measured on
              this host, once, and cached
    console   called with a machine's name and a line that it logged
    audit     check the ledger after every operation, delivery and death, not only when asked to;
              what it finds ends `run` with a LedgerError

    Thread-safety: every method may be called from any thread, also while another is in `run`.
    Everything that the monitor opened is closed by `close`, which `with` calls; nothing is left to
    finalizers.
    """

    def __init__(
        self,
        *,
        ring: int | None = None,
        doorbell: str | None = None,
        mover: str | type[Mover] | None = None,
        pool: int | str | None = None,
        workers: int = 1,
        copy_below: int | str | None = None,
        console: Console = print_line,
        audit: bool = False,
        device: str = host.DEVICE,
    ) -> None:
        facts = host.inspect(device)
        self.backend = facts.backend.value
        self.ring = facts.ring if ring is None else _choice("ring", ring, (0, 3))
        if doorbell is not None:
            _choice("doorbell", doorbell, DOORBELLS)
        self.doorbell = facts.doorbell(self.ring, doorbell)
        if not isinstance(mover, type):
            mover = MOVERS[_choice("mover", mover or facts.mover, tuple(MOVERS))]
        self.mover = mover.name
        self.copy_below = (
            facts.copy_below if copy_below is None else parse_limit(copy_below, "copy_below")
        )
        if workers < 1:
            raise ConfigError(f"workers {workers} is not a positive number")
        frames = (
            parse_size(pool, "pool") // abi.PAGE_SIZE
            if pool
            else host.total_memory() // abi.PAGE_SIZE
        )
        if not frames:
            raise ConfigError(f"pool {pool!r} is less than a page")

        self.machines: dict[str, Machine] = {}
        self._by_number: dict[int, Machine] = {}  # those that hold something, oldest first
        self._numbers = itertools.count(1)
        self._closed = False
        with contextlib.ExitStack() as undo:
            self._kvm = undo.enter_context(host.open_kvm(device))
            self._blueprints = Blueprints(self._kvm)
            undo.callback(self._blueprints.close)
            self._mover = mover(frames)
            undo.callback(self._mover.close)
            self._turns = turns = Turns(self._mover.pool.journal)
            self.trace = Trace(turns.outbox)
            self._scheduler = Scheduler(turns, workers, self._by_number.values)
            undo.callback(self._scheduler.close)
            turns.recover = self._scheduler.recover
            mappings = host.mapping_limit() // 2 - self._mover.seams
            ledger = Ledger(
                frames,
                max(mappings, 2) // _MAPPINGS_EACH,
                turns.journal,
                share=_PIECES_SHARE,
                frames_share=min(_FRAMES_SHARE, frames // 64),
            )
            ledger.lazy = True
            self._exchange = Exchange(
                ledger,
                self._mover.pool,
                self.trace,
                self._wake,
                audit=audit,
                copy_below=self.copy_below,
            )
            self._driver = Driver(self._exchange, self._scheduler, self.trace, turns, console)
            window = self._mover.host_window(frames * abi.PAGE_SIZE)
            undo.callback(window.close)
            self.host = HostEndpoint(
                Peer(abi.PEER_HOST, "host", window, 1024), self._exchange, turns
            )
            self._exchange.join(self.host.peer, frames, UNLIMITED)
            self._closer = undo.pop_all()

    # ---- Machines ----

    def spawn(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        window: int | str = "1G",
        memory: int | str = "16M",
        stack: int | str = "256K",
        queue: int = 64,
        quota: int | str | None = None,
    ) -> Machine:
        """Make a machine from a guest's ELF file; it starts with the next (or present) `run`.

        name      how its peers find it, by default the file's stem; unique, at most 31 bytes
        window    address space for transferable pages, rounded up to 2 MiB
        memory    private memory; stack is the part of it at the top
        queue     messages that may wait for it before senders are refused
        quota     memory that may be its own at a time, sent to it or allocated; by default as much
                  as its window holds

        Raises GuestImageError, ConfigError, ResourceError, ClosedError; nothing is left behind
        then.
        """
        if queue < 1:
            raise ConfigError(f"queue {queue} is not a positive number of messages")
        image = load_image(path)
        shape = Shape(
            privilege=self.ring,
            doorbell=self.doorbell,
            private=_rounded(memory, "memory", abi.PAGE_SIZE, _MAX_PRIVATE),
            stack=_rounded(stack, "stack", abi.PAGE_SIZE, _MAX_PRIVATE // 2),
            window=_rounded(window, "window", LARGE_PAGE, _MAX_WINDOW),
        )
        with self._turns.turn():
            self._check_open()
            name = self._check_name(Path(path).stem if name is None else name)
            limit = shape.window if quota is None else parse_size(quota, "quota")
            machine = self._make(image, shape, name, queue, limit // abi.PAGE_SIZE)
            self._scheduler.make_ready(machine)
            if self.trace:
                self.trace.emit("spawn", machine=name, image=str(path), window=shape.window)
        return machine

    def _make(self, image: Image, shape: Shape, name: str, depth: int, quota: int) -> Machine:
        number = next(self._numbers)
        guest = Guest(self._kvm, self._blueprints.get(image, shape), number, name)
        try:
            window = self._mover.machine_window(
                guest.vm, guest.layout.window.base, shape.window, len(self._by_number)
            )
        except BaseException:
            guest.close()
            raise
        machine = Machine(guest, Peer(number, name, window, depth, guest.control))
        try:
            if window.blinks:
                machine.peer.hold_still = partial(self._scheduler.hold, machine)
            self._exchange.join(machine.peer, quota, PIECES)
            self._exchange.roster.connect(self.host.peer, machine.peer, both=True)
        except BaseException:
            _free(machine)
            raise
        self._turns.journal.undo(partial(self._forget, machine))
        self.machines[name] = self._by_number[number] = machine
        return machine

    def _forget(self, machine: Machine) -> None:
        """Undo a spawn."""
        self._by_number.pop(machine.number, None)
        if self.machines.get(machine.name) is machine:
            del self.machines[machine.name]
        _free(machine)

    def _check_name(self, name: str) -> str:
        if not name.isprintable() or not 0 < len(name.encode()) < abi.NAME_MAX:
            raise ConfigError(f"name {name!r} is not 1 to {abi.NAME_MAX - 1} printable bytes")
        if name in self.machines or name == self.host.peer.name:
            raise ConfigError(f"the name {name!r} is taken: give each machine its own (name=...)")
        return name

    def connect(self, a: Machine, b: Machine, *, both: bool = True) -> None:
        """Let `a` send to `b`, and unless `both` is false `b` to `a`.

        The only permission there is.
        """
        if a is b:
            raise ConfigError(f"{a.name} cannot be connected to itself")
        with self._turns.turn():
            self._check_open()
            for peer, other in ((a.peer, b.peer), (b.peer, a.peer)):
                if other.number not in peer.table and not self._exchange.roster.has_place(peer):
                    raise ConfigError(
                        f"{peer.name} has {abi.PEERS_MAX} peers already, which is the limit"
                    )
            self._exchange.roster.connect(a.peer, b.peer)
            if both:
                self._exchange.roster.connect(b.peer, a.peer)

    def remove(self, machine: Machine) -> None:
        """Stop a machine if it has not stopped, and free all that it holds; its name is free again.

        Its outcome stays readable. Raises ConfigError if it is running at this moment: `kill` it,
        and remove it when it has stopped. Does nothing if it has been removed.
        """
        with self._turns.turn():
            if machine.state is State.RUNNING:
                raise ConfigError(f"{machine.name} is running: kill it, and remove it afterwards")
            if self._by_number.get(machine.number) is not machine:
                return
            journal = self._turns.journal
            if machine.state is not State.STOPPED:
                journal.keep(machine)
                self._driver.end(machine, Ending("killed", "removed by the host"))
            journal.undo(partial(self._remember, machine))
            del self._by_number[machine.number], self.machines[machine.name]
            journal.later(partial(_free, machine))
        self._clean()

    def _remember(self, machine: Machine) -> None:
        """Undo a removal."""
        self.machines[machine.name] = self._by_number[machine.number] = machine

    # ---- Running ----

    def run(self, timeout: float | None = None) -> list[Machine]:
        """Run until every machine has stopped, or all that have not wait for messages nobody can
        send.

        timeout   seconds, after which the machines that still run, or wait, are stopped with a
                  fault

        Returns all machines: look at `exit_code` and `fault`, and at `state` for those still
        PARKED, which run on when the host has sent them something and calls `run` again.
        """
        self._check_open()
        if not self._scheduler.run(self._driver, timeout):
            reason = f"still running after {timeout:g} seconds"
            for machine in list(self.machines.values()):
                with self._turns.turn():
                    if machine.state is not State.STOPPED:
                        self._turns.journal.keep(machine)
                        self._driver.end(machine, Ending("timeout", reason))
        self._clean()
        return list(self.machines.values())

    def interrupt(self, machine: Machine) -> None:
        """Make a machine exit, now if it is running.

        What waits for it is delivered as it is entered again.
        """
        self._now_or_soon(partial(self._scheduler.interrupt, machine))

    def notice(self, machine: Machine, bits: int) -> None:
        """Set notice bits in a machine's control structure; wake it if it waits for notices."""
        self._now_or_soon(partial(self._notice, machine, bits))

    def _notice(self, machine: Machine, bits: int) -> None:
        if machine.state is not State.STOPPED:
            self._exchange.roster.notice(machine.peer, Notice.HOST, bits)

    def kill(self, machine: Machine, reason: str = "killed by the host") -> None:
        """Stop a machine with a fault, wherever it is; does nothing if it has stopped."""
        self._now_or_soon(partial(self._kill, machine, reason))

    def _kill(self, machine: Machine, reason: str) -> None:
        if machine.state is State.STOPPED:
            return
        self._turns.journal.keep(machine)
        machine.ending = Ending("killed", reason)
        if machine.state is State.RUNNING:
            self._scheduler.interrupt(machine)
        else:
            self._driver.end(machine, machine.ending)
            self._scheduler.forget(machine)

    def _now_or_soon(self, change: Callable[[], None]) -> None:
        """Make a change in a turn of its own; if this is a signal's handler that has interrupted
        one, when that is over.
        """
        if self._turns.inside:
            self._turns.outbox.say(self._now_or_soon, change)
            return
        with self._turns.turn():
            change()

    def _wake(self, peer: Peer) -> None:
        machine = self._by_number.get(peer.number)
        if (
            machine is not None
            and machine.state is State.PARKED
            and ((peer.idle and peer.queue) or self._driver.wants(machine))
        ):
            self._scheduler.make_ready(machine)

    def audit(self) -> dict[str, int]:
        """Check the ledger; return how many pages are in each state (vmm.ferry.books).

        Their sum is the pool. Raises LedgerError.
        """
        self._clean()
        with self._turns.turn():
            return self._exchange.ledger.audit()

    def _clean(self) -> None:
        """Zero what has been freed and is not free before that, in slices."""
        while self._exchange.ledger.pool.unclean:
            with self._turns.turn():
                self._exchange.slices.chores()

    # ---- The end ----

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the monitor has been closed")

    def close(self) -> None:
        """Stop and close everything, newest first. Further calls do nothing.

        A thread that is in `run` is waited for: its `run` ends. Raises BusyError in such a thread.
        """
        if self._closed:
            return
        if self._turns.inside or self._scheduler.working:
            raise BusyError("close() was called from within run(): return from the callback first")
        self._closed = True  # nobody runs anything any more
        self._scheduler.end(wait=True)
        with contextlib.ExitStack() as closers:
            closers.push(self._closer)
            for machine in self._by_number.values():
                closers.callback(_free, machine)

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _free(machine: Machine) -> None:
    """Close all that a machine holds: the VM with its memslots before the memory behind them."""
    try:
        machine.guest.close()
    finally:
        machine.peer.window.close()


def _rounded(size: int | str, what: str, unit: int, limit: int) -> int:
    value = -(-parse_size(size, what) // unit) * unit
    if value > limit:
        raise ConfigError(
            f"{what} of {format_size(value)} is over the limit of {format_size(limit)}"
        )
    return value


def _choice(what: str, value: Any, choices: tuple[Any, ...]) -> Any:
    if value not in choices:
        raise ConfigError(f"{what} {value!r} is none of {', '.join(map(str, choices))}")
    return value
