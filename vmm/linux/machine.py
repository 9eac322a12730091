"""A machine that runs a program for Linux, as its user sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from vmm.engine.machine import Ending, Machine, State
from vmm.errors import BusyError, ClosedError, ConfigError, ResourceError
from vmm.ferry.control import Wait
from vmm.ferry.exchange import Exchange
from vmm.ferry.peer import Peer
from vmm.ferry.turns import Turns
from vmm.guest import abi
from vmm.guest.abi import WaitFor
from vmm.linux.guest import LinuxGuest
from vmm.linux.window import ProgramWindow


class _Parked(NamedTuple):
    """How a machine waits: for what, with an empty ring or not, and how far its rings have come."""

    wait: Wait
    idle: bool
    places: tuple[int, int]


class LinuxMachine(Machine):
    """A program for Linux in its machine. What it has printed and written may be read while it
    runs, from any thread, and when it has been removed.

    files    what it has written: a mapping from absolute paths to bytes
    """

    guest: LinuxGuest
    _parked: _Parked | None = None

    def __init__(self, guest: LinuxGuest, peer: Peer, exchange: Exchange, turns: Turns) -> None:
        super().__init__(guest, peer, exchange, turns)
        process = guest.process
        process.memory.window = ProgramWindow(peer, exchange.ledger, turns)
        self.files: Mapping[str, bytes] = process.files.written
        self._outputs = process.outputs
        self._not_served = process.not_served

    def keep(self) -> None:
        """Keep the machine as it is, for `put_back`; instead of what was kept before.

        It is to wait for a message, without a time-out, as `pf_receive` does, and to have taken
        those that it has got. Raises BusyError if it does not, ConfigError if a file is mapped
        shared to be written, ClosedError, ResourceError, OSError: then nothing is kept.
        """
        with self._turns.telling, self._turns.lock, self._turns.change:
            self._check_still()
            self._parked = None
            wait, peer, process = self.wait, self.peer, self.guest.process
            if wait is None or wait.flags & ~WaitFor.MESSAGE or wait.timeout_us != abi.FOREVER:
                raise BusyError(f"{self.name} does not wait for a message, without a time-out")
            if peer.queue or peer.untaken or process.files.changes.log:
                raise BusyError(f"{self.name} has messages that it has not taken")
            if process.mapped:
                raise ConfigError(f"{self.name} has a file mapped to be written: unmap it first")
            self._write_again()
            self.guest.keep()
            self._parked = _Parked(wait, peer.idle, self.guest.control.places)

    def put_back(self) -> None:
        """Let the machine be what it was at `keep`, and wait as it did; in place, and at the cost
        of what it has written since. See `vmm.linux.kept` for what that is.

        Messages in its queue are still to come; those that it has not taken are forgotten. Pages
        of its window stay where they are, and whose they are: that is the caller's business, and
        what it has printed is to be read before this. Cut off by whatever is raised, it is done
        before anything else happens to any machine. Raises BusyError while it runs, ConfigError if
        nothing has been kept, ClosedError; ResourceError if the host refuses: then it ends.
        """
        turns = self._turns
        with turns.telling, turns.lock:
            with turns.change:
                self._check_still()
                if self._parked is None:
                    raise ConfigError(f"nothing has been kept of {self.name}")
                turns.journal.keep(self)
                turns.journal.keep(self.peer)
                self._park_again(self._parked)
                turns.journal.later(self._restore)
            if self.peer.queue or self.ending is not None:
                with turns.change:
                    self.exchange.roster.wake(self.peer)
            if self.ending is not None:
                raise ResourceError(f"{self.name}: {self.ending.reason}")

    def _check_still(self) -> None:
        if self.closed or not self.peer.alive:
            raise ClosedError(f"{self.name} has {'been closed' if self.closed else 'stopped'}")
        if self.state is State.RUNNING or self.exit is not None or self.ending is not None:
            raise BusyError(f"{self.name} is running, or has not been dealt with since it has")

    def _park_again(self, parked: _Parked) -> None:
        peer = self.peer
        self.state, self.wait, self.deadline = State.PARKED, parked.wait, None
        self.verdict = self.refused = None
        peer.idle = parked.idle
        peer.untaken.clear()
        peer.parted.clear()
        self.guest.control.places = parked.places

    def _restore(self) -> None:
        """Put back what is the guest's own; again is fine."""
        kept = self.guest.kept
        if kept is None or self.closed:
            return
        try:
            kept.put_back()
        except Exception as error:  # half of it may have been: it must not run
            self.ending = Ending("internal", f"it could not be put back: {error}")
            return
        self._write_again()

    def _write_again(self) -> None:
        """Write what the monitor tells it: that is as it is at present, not as it was."""
        self.guest.control.write_again()
        self.exchange.roster.write_again(self.peer)

    @property
    def stdout(self) -> bytes:
        """What it has printed so far; nothing, if that went elsewhere."""
        return self._outputs[0].contents()

    @property
    def stderr(self) -> bytes:
        """What it has printed to standard error so far; nothing, if that went elsewhere."""
        return self._outputs[1].contents()

    @property
    def not_served(self) -> dict[str, int]:
        """How often it asked for each system call that is not served, by name."""
        return dict(self._not_served)

    def outcome(self) -> dict[str, Any]:
        return {**super().outcome(), "not_served": self.not_served}
