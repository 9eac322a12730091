"""The monitor: machines, the channels between them, and the loop that runs them.

The public façade.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, SupportsFloat, SupportsIndex

from vmm import host
from vmm.endpoint import Buffer, HostEndpoint, arguments
from vmm.endpoint.opened import Opened
from vmm.endpoint.registry import Registry
from vmm.endpoint.spawning import Spawning, Wanted
from vmm.engine.driver import Console, Driver
from vmm.engine.machine import Ending, Machine, State
from vmm.engine.scheduler import Scheduler
from vmm.engine.standing import Standing
from vmm.engine.turn import Turn
from vmm.errors import BusyError, ClosedError, ConfigError
from vmm.ferry.accounts import UNLIMITED
from vmm.ferry.control import Notice
from vmm.ferry.events import Trace
from vmm.ferry.exchange import Exchange
from vmm.ferry.ledger import Ledger
from vmm.ferry.peer import Peer
from vmm.ferry.slices import MOMENT
from vmm.ferry.turns import Turns
from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE
from vmm.guest.blueprint import Blueprints
from vmm.host.choice import DOORBELLS
from vmm.kvm.given import Given, give_back, noted
from vmm.linux.blueprints import Blueprints as ProgramBlueprints
from vmm.linux.files.offering import Offered
from vmm.linux.files.streams import Source
from vmm.linux.spawning import Options
from vmm.memory.budget import BUDGET
from vmm.memory.movers import MOVERS, Mover
from vmm.sizes import integer, parse_limit, parse_size

_MAX_WORKERS = 1024
Seconds = SupportsFloat | SupportsIndex
_MAPPINGS_EACH = 2  # a run, and what is between it and the next
_PIECES_SHARE = 256  # of all pieces, kept for each peer; half of them at most, for all
_QUEUE = 1024  # messages that may wait for the host
_ANSWER = 2  # messages that a machine may answer a call with, whoever else floods the host's queue
_FRAMES_SHARE = 1024  # frames of the pool, kept for each peer; a 64th of them at most


def print_line(name: str, line: str) -> None:
    """The default console: one line of a machine's, prefixed with its name, to standard output.

    What its encoding cannot say is escaped. Where there is no standard output, nothing is printed.
    A write that the system refuses raises OSError, as with `print`.
    """
    stream = sys.stdout
    if stream is None or getattr(stream, "closed", False):
        return
    text = f"{name}: {line}\n"
    try:
        stream.write(text)
    except UnicodeEncodeError as error:
        encoding = getattr(stream, "encoding", None) or error.encoding
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


class Monitor(Opened):
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
    pool      memory for all messages together, populated as it is used; by default what the host,
              and the process's cgroups, have left, but for a 16th
    workers   threads that run machines, at most 1,024; the caller's of `run` is the first
    copy_below  bytes: an EXCHANGE of fewer is copied, not moved; 0 for none. By default measured on
              this host, once, and cached
    console   called with a machine's name and a line that it logged: in order, by one thread at a
              time, without the monitor's lock. It may call the monitor
    audit     check the ledger after every operation, delivery and death, not only when asked to;
              what it finds ends `run` with a LedgerError

    device    the path of KVM's device

    Sizes are bytes, or text such as "64K", "1.5G". Numbers may be of any type that has `__index__`,
    as NumPy's have, but no bool.

    Raises HostError if this host cannot run machines, ResourceError, and ConfigError (a ValueError)
    for an argument that cannot be meant; it is a TypeError too if that is of the wrong type. Every
    method does, and ClosedError once the monitor is closed, and nothing has changed then. What has
    been given out (machines, buffers, `host`) may be asked at any time: it raises ClosedError then,
    or says what is still true.

    Thread-safety: every method may be called from any thread, also while another is in `run`. A
    signal's handler may `kill`, `interrupt` and `notice` at any time; all else raises BusyError if
    the handler has interrupted the monitor at work.
    Everything that the monitor opened is closed by `close`, which `with` calls; nothing is left to
    finalizers, which only warn (ResourceWarning).
    """

    def __init__(
        self,
        *,
        ring: SupportsIndex | None = None,
        doorbell: str | None = None,
        mover: str | type[Mover] | None = None,
        pool: SupportsIndex | str | None = None,
        workers: SupportsIndex = 1,
        copy_below: SupportsIndex | str | None = None,
        console: Console = print_line,
        audit: bool = False,
        device: str | bytes | os.PathLike[str] = host.DEVICE,
    ) -> None:
        # What is wrong with the arguments is said before anything is looked at, or made.
        threads = integer(workers, "workers", 1, _MAX_WORKERS)
        frames = _frames(pool)
        arguments.function(console, "console")
        arguments.flag(audit, "audit")
        path = arguments.file_path(device, "device", plain=True)
        self.machines: dict[str, Machine] = {}
        self._by_number: dict[int, Machine] = {}  # those that hold something, oldest first
        self._closers: list[Callable[[], object]] = []  # the last first; each may be called again
        made: list[Given] = []
        try:
            with host.reported("no monitor can be made"), noted(made):
                mover = self._choose(path, ring, doorbell, mover, copy_below)
                self._open(path, mover, frames, threads, console, audit)
            self._note_opened()
            self._closed = False
        except BaseException:
            self._close_all()
            give_back(made)
            raise

    def _open(
        self,
        device: str,
        mover: type[Mover],
        frames: int,
        threads: int,
        console: Console,
        audit: bool,
    ) -> None:
        closers = self._closers
        self._kvm = host.open_kvm(device)
        closers.append(self._kvm.close)
        self._blueprints = Blueprints(self._kvm)
        closers.append(self._blueprints.close)
        self._programs = ProgramBlueprints(self._kvm)
        closers.append(self._programs.close)
        self._mover = mover(frames)
        closers.append(self._mover.close)
        self._turns = turns = Turns(self._mover.pool.journal)
        self.trace = Trace(turns.outbox)
        self._standing = Standing(turns, self._by_number.values)
        turns.recover = self._standing.recover
        self._scheduler = Scheduler(self._standing, threads)
        closers.append(self._scheduler.close)
        ledger = Ledger(
            frames,
            journal=turns.journal,
            share=_PIECES_SHARE,
            frames_share=min(_FRAMES_SHARE, frames // 64),
        )
        mappings = host.mapping_limit() // 2 - self._mover.seams
        ledger.lazy = True
        closers.append(partial(BUDGET.leave, ledger))
        BUDGET.join(ledger, max(mappings, 2) // _MAPPINGS_EACH)
        ledger.ask_for_pieces = BUDGET.balance
        self._exchange = Exchange(
            ledger,
            self._mover.pool,
            self.trace,
            self._wake,
            audit=audit,
            copy_below=self.copy_below,
        )
        usual = Turn(self._exchange, self.trace, self._by_number, self._wake)
        self._driver = Driver(self._exchange, self._standing, self.trace, turns, console, usual)
        window = self._mover.host_window(frames * PAGE_SIZE)
        closers.append(window.close)
        peer = Peer(abi.PEER_HOST, "host", window, _QUEUE, own=_ANSWER)
        self.host = HostEndpoint(peer, self._exchange, turns)
        self._exchange.join(self.host.peer, frames, UNLIMITED)
        self._registry = Registry(
            self.machines,
            self._by_number,
            self._mover,
            self._exchange,
            self._standing,
            turns,
            self.trace,
            self.host.peer,
        )
        self._spawning = Spawning(
            self._kvm,
            self._blueprints,
            self._programs,
            self._registry,
            self.host,
            turns,
            self.ring,
            self.doorbell,
            console,
            self._give_up,
        )
        closers += [self._registry.close, turns.settle]

    def _choose(
        self,
        device: str,
        ring: SupportsIndex | None,
        doorbell: str | None,
        mover: str | type[Mover] | None,
        copy_below: SupportsIndex | str | None,
    ) -> type[Mover]:
        """Choose what is best on this host, where nothing is asked for; return the mover."""
        wanted = None if ring is None else _ring(ring)
        name = None if doorbell is None else arguments.choice(doorbell, "doorbell", DOORBELLS)
        kind = None if mover is None else _mover_class(mover)
        below = None if copy_below is None else parse_limit(copy_below, "copy_below")
        facts = host.inspect(device)
        self.backend = facts.backend.value
        self.ring = facts.ring if wanted is None else wanted
        self.doorbell = facts.doorbell(self.ring, name)
        kind = MOVERS[facts.mover] if kind is None else kind
        self.mover = kind.name
        self.copy_below = facts.copy_below if below is None else below
        return kind

    # ---- Machines ----

    def spawn(
        self,
        path: str | bytes | os.PathLike[str],
        *,
        name: str | None = None,
        window: SupportsIndex | str = "1G",
        memory: SupportsIndex | str | None = None,
        stack: SupportsIndex | str | None = None,
        queue: SupportsIndex = 64,
        quota: SupportsIndex | str | None = None,
        populate: bool = False,
        args: Iterable[str | bytes | os.PathLike[str]] = (),
        env: Mapping[str, str] | None = None,
        files: Mapping[str, Offered | Buffer] | None = None,
        writable_files: Iterable[str] = (),
        root: str | bytes | os.PathLike[str] | None = None,
        stdin: bytes | Source = b"",
        stdout: Any = None,
        stderr: Any = None,
        disk: SupportsIndex | str = "256M",
        clock: str = "real",
        seed: SupportsIndex = 0,
        strace: Callable[[str], object] | None = None,
    ) -> Machine:
        """Make a machine from an ELF file: a bare guest, or a program for Linux. It starts with the
        next (or present) `run`.

        name      how its peers find it, by default the file's stem; unique, at most 31 bytes
        window    address space for transferable pages, rounded up to 2 MiB
        memory    private memory, for the image and the stack; stack is the latter's size. By
                  default 16 MiB and 256 KiB; for a program 256 MiB, a limit, and 8 MiB
        queue     messages that may wait for it before senders are refused; at most 2^20
        quota     memory that may be its own at a time, sent to it or allocated; by default as much
                  as its window holds
        populate  whether it reads what it gets: small pages are mapped as they arrive, 8 MiB at a
                  time at most, rather than as each is touched, where that spares it faults. Who
                  only passes them on waits longer for them

        For a program, which is a LinuxMachine (docs/linux.md):

        args      what follows argv[0], the file's name
        env       its environment; by default only PATH and HOME
        files     what it may read, by absolute path: bytes, Path of the host's, or Buffer: that is
                  lent to it, and its pages are what it maps
        writable_files  those of these paths whose Buffers it may write to
        root      a directory of the host's that it sees, and cannot change
        stdin     bytes, or a binary file
        stdout    None: kept (`LinuxMachine.stdout`); "console": to the console, line by line; or a
                  binary file. stderr likewise
        disk      memory that what it writes may take
        clock     "real"; or "frozen": time and chance are the same in every run with one `seed`
        strace    called with each system call, as text, when it has been served: by the thread that
                  runs the machine, without any lock

        Raises GuestImageError, ConfigError, ResourceError, ClosedError; nothing is left behind
        then.
        """
        given: Any = files  # as it is known when the buffers among them have been taken out
        return self._spawning.spawn(
            path,
            Wanted(name, window, memory, stack, queue, quota, populate),
            Options(
                args=args,
                env=env,
                files=given,
                root=root,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                disk=disk,
                clock=clock,
                seed=seed,
                writable_files=writable_files,
                strace=strace,
            ),
        )

    def _give_up(self, machine: Machine) -> None:
        """Remove a machine whose spawn has failed; it may be running by now."""
        with contextlib.suppress(BusyError):  # it ends, then, and remains as one that was killed
            self.kill(machine, "it could not be made")
            self.remove(machine)

    def connect(self, a: Machine, b: Machine, *, both: bool = True) -> None:
        """Let `a` send to `b`, and unless `both` is false `b` to `a`.

        The only permission there is. One that has stopped may be connected, for what it is worth.
        Raises ConfigError if one has been removed, or has as many peers as there may be.
        """
        for machine, what in ((a, "a"), (b, "b")):
            arguments.check_machine(machine, what, self._exchange)
        arguments.flag(both, "both")
        if a is b:
            raise ConfigError(f"a and b are the same machine, {a.name}: it needs no channel")
        with self._turns.telling, self._turns.lock, self._turns.change:
            for machine, what in ((a, "a"), (b, "b")):
                if machine.closed:
                    raise ConfigError(f"{what} {machine.name!r} has been removed")
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

        Its outcome stays readable. Raises BusyError if it is running at this moment: `kill` it,
        and remove it when it has stopped. Does nothing if it has been removed.
        """
        arguments.check_machine(machine, "machine", self._exchange)
        begun = False
        while True:
            with self._turns.telling, self._turns.lock, self._turns.change:
                if self._by_number.get(machine.number) is not machine:
                    return
                if machine.state is State.STOPPED:
                    self._registry.leave(machine)
                    break
                if machine.state is not State.RUNNING:
                    self._end(machine, Ending("killed", "removed by the host"))
                elif not begun:
                    raise BusyError(f"{machine.name} is running: kill it, and remove it afterwards")
                begun = True  # and if it runs now, that is a worker that goes on with its end
            time.sleep(MOMENT)
        self._clean()

    # ---- Running ----

    def run(self, timeout: Seconds | None = None) -> list[Machine]:
        """Run until every machine has stopped, or all that have not wait for messages nobody can
        send.

        timeout   seconds, of any type that has `__float__`, after which the machines that still
                  run, or wait, are stopped with a fault; infinity is as None

        Returns all machines: look at `exit_code` and `fault`, and at `state` for those still
        PARKED, which run on when the host has sent them something and calls `run` again.

        What is raised in it (by Ctrl-C, an alarm's handler, a console, a listener) comes out of it;
        each operation is done then, or not, and a further `run` goes on. Raises BusyError if
        another thread, or this one, is in `run`, ResourceError if there is no thread to be had.
        """
        limit = arguments.seconds(timeout, "timeout")
        self._turns.check_open()
        reason = f"still running after {limit:g} seconds" if limit is not None else ""
        try:
            expire = partial(self._expire, reason)
            self._scheduler.run(self._driver, limit, self.host._window.take_all, expire)
        except Exception as error:
            if self._turns.gone is not None:  # closed by another thread, or a child that was forked
                raise ClosedError(self._turns.gone) from error
            raise
        self._clean()
        return list(self.machines.values())

    def _check_idle(self) -> None:
        """Raise BusyError if this is a callback, or a signal's handler that has interrupted the
        monitor at work; ClosedError.
        """
        self._turns.check_open()
        if self._turns.inside or self._scheduler.working:
            raise BusyError("a function was called from within run(), or another call")

    def _drive(self, machine: Machine, until: float) -> bool:
        """Run one machine in the calling thread; see engine.drive."""
        try:
            return self._scheduler.drive(self._driver, machine, until)
        except Exception as error:
            if self._turns.gone is not None:
                raise ClosedError(self._turns.gone) from error
            raise

    def _expire(self, reason: str) -> None:
        """Stop all machines that have not stopped: the time of a run is over."""
        for machine in list(self.machines.values()):
            more = True
            while more:
                with self._turns.telling, self._turns.lock, self._turns.change:
                    more = self._end(machine, Ending("timeout", reason))

    def _end(self, machine: Machine, ending: Ending) -> bool:
        """Stop a machine that is not running, or do a part of that; it does not run any more. True
        if there is more to do: by this again, or by whoever runs machines.
        """
        if machine.state is State.STOPPED:
            return False
        self._turns.journal.keep(machine)
        if machine.peer.alive:
            machine.ending = ending
        if machine.ending is not None:
            ended = self._driver.end(machine, machine.ending)
        else:  # it was at its end already
            ended = machine.exit is None or self._driver.handle(machine, machine.exit)
        if ended:
            self._standing.forget(machine)
        elif machine.state is State.PARKED:
            self._standing.make_ready(machine)
        return not ended

    def interrupt(self, machine: Machine) -> None:
        """Make a machine exit, now if it is running.

        What waits for it is delivered as it is entered again. Does nothing if it has stopped.
        """
        arguments.check_machine(machine, "machine", self._exchange)
        self._now_or_soon(partial(self._standing.interrupt, machine))

    def notice(self, machine: Machine, bits: SupportsIndex) -> None:
        """Set notice bits, of which there are 32, in a machine's control structure; wake it if it
        waits for notices. Does nothing if it has stopped.
        """
        arguments.check_machine(machine, "machine", self._exchange)
        word = integer(bits, "bits", 0, 0xFFFFFFFF)
        self._now_or_soon(partial(self._notice, machine, word))

    def _notice(self, machine: Machine, bits: int) -> None:
        if machine.state is not State.STOPPED:
            self._exchange.roster.notice(machine.peer, Notice.HOST, bits)

    def kill(self, machine: Machine, reason: str = "killed by the host") -> None:
        """Stop a machine with a fault, wherever it is; does nothing if it has stopped.

        reason    text, of which one line is made
        """
        arguments.check_machine(machine, "machine", self._exchange)
        line = arguments.one_line(reason, "reason")
        self._now_or_soon(partial(self._kill, machine, line))

    def _kill(self, machine: Machine, reason: str) -> bool:
        ending = Ending("killed", reason)
        if machine.state is not State.RUNNING:
            return self._end(machine, ending)
        if machine.peer.alive:
            self._turns.journal.keep(machine)
            machine.ending = ending
            self._standing.interrupt(machine)
        return False

    def _now_or_soon(self, change: Callable[[], object]) -> None:
        """Make a change in a turn of its own, or several, as long as it says that there is more; if
        this is a signal's handler that has interrupted one, when that is over.
        """
        if self._turns.inside:
            self._turns.outbox.leave(partial(self._now_or_soon, change))
            return
        more: object = True
        while more:
            with self._turns.telling, self._turns.lock, self._turns.change:
                more = change()
            if more:
                time.sleep(MOMENT)

    def _wake(self, peer: Peer) -> None:
        machine = self._by_number.get(peer.number)
        if (
            machine is not None
            and machine.state is State.PARKED
            and (
                (peer.idle and peer.queue)
                or machine.ending is not None
                or self._driver.wants(machine)
            )
        ):
            self._standing.make_ready(machine)

    def audit(self, *, mappings: bool = False) -> dict[str, int]:
        """Check the ledger; return how many pages are in each state (vmm.ferry.books).

        mappings   check as well that each window shows what the ledger says, by what the kernel
                   says, and nothing else (by the monitor's own list, for memslots)

        Their sum is the pool. Raises LedgerError.
        """
        arguments.flag(mappings, "mappings")
        self._clean()
        with self._turns.telling, self._turns.lock, self._turns.change:
            return self._exchange.audit(mappings=mappings)

    def _clean(self) -> None:
        """Zero what has been freed and is not free before that, in slices."""
        while self._exchange.ledger.pool.unclean:
            with self._turns.telling, self._turns.lock, self._turns.change:
                if not self._exchange.slices.chores():
                    break
            time.sleep(MOMENT)

    # ---- The end ----

    def _disown(self) -> None:
        """Let go of it in a process that was forked: machines and memory are the parent's."""
        self._turns.abandon("the monitor is of the process that forked this one: make another here")
        self._closed = True
        for machine in self._by_number.values():
            machine.closed = True

    def close(self) -> None:
        """Stop and close everything, newest first. Further calls do nothing.

        A thread that is in `run` is waited for: its `run` ends. Raises BusyError in such a thread.
        """
        if self._closed:
            return
        if self._turns.inside or self._scheduler.working:
            raise BusyError("close() was called from within run(): return from the callback first")
        held = self._turns.held  # by what a signal's handler has interrupted
        try:
            self._turns.stop("the monitor has been closed")  # nobody asks, or runs, anything now
            for machine in self._by_number.values():
                machine.closed = True
            self._scheduler.end(wait=True)
        finally:  # as in `settle`; or the clock waits for the lock, and we for the clock
            if not held:
                self._turns.let_go()
        self._close_all()
        self._closed = True  # what was interrupted before this can be called again

    def _close_all(self) -> None:
        with contextlib.ExitStack() as closing:
            for close in self._closers:
                closing.callback(close)

    def __repr__(self) -> str:
        return f"<Monitor {'closed' if self._closed else f'of {len(self._by_number)} machines'}>"

    def __enter__(self) -> Monitor:
        self._turns.check_open()
        return self


def _frames(pool: SupportsIndex | str | None) -> int:
    frames = (host.pool_memory() if pool is None else parse_size(pool, "pool")) // PAGE_SIZE
    if not frames:
        raise ConfigError(f"pool {pool!r} is less than a page")
    return frames


def _ring(value: SupportsIndex) -> int:
    ring = integer(value, "ring")
    if ring not in (0, 3):
        raise ConfigError(f"ring {ring} is none of 0, 3")
    return ring


def _mover_class(value: str | type[Mover]) -> type[Mover]:
    if not isinstance(value, type):
        return MOVERS[arguments.choice(value, "mover", tuple(MOVERS))]
    if not issubclass(value, Mover):
        raise arguments.wrong_type("mover", "a name or a subclass of Mover", value)
    return value
