"""A machine: one guest in its VM, its window, and how far it has come."""

from __future__ import annotations

import enum
from typing import Any, NamedTuple, NoReturn, SupportsIndex

from vmm.engine.guest import Asked, Guest
from vmm.errors import AccessError, ClosedError, GuestFault
from vmm.ferry.control import Wait
from vmm.ferry.exchange import Exchange
from vmm.ferry.peer import Peer
from vmm.ferry.rules import READABLE
from vmm.ferry.turns import Turns
from vmm.guest.abi import PAGE_SIZE
from vmm.kvm import Exit
from vmm.memory.pagemap import frame_number
from vmm.memory.region import OutOfBounds, Region
from vmm.memory.runs import Extent
from vmm.sizes import integer, shown


class State(enum.Enum):
    """Where a machine is in its life, as the scheduler sees it."""

    READY = "ready"
    RUNNING = "running"
    PARKED = "parked"
    STOPPED = "stopped"


class Ending(NamedTuple):
    """Why a machine is stopped from outside: the kind and the reason of its fault, and the errno
    if the kernel has refused to run it.
    """

    kind: str
    reason: str
    code: int = 0


class Machine:
    """A running program's view is its guest; a sender's view is its peer; this is the user's.

    name        unique within the monitor
    state       READY, RUNNING, PARKED or STOPPED
    exit_code   what it exited with, None as long as it has not
    fault       why it was stopped, None if it was not

    closed      whether it has been removed, or its monitor closed: its memory is no longer there

    Made by `Monitor.spawn` only, and closed with it. Attributes may be read from any thread, and at
    any time: they stay as they were when it was closed.
    """

    def __init__(self, guest: Guest, peer: Peer, exchange: Exchange, turns: Turns) -> None:
        self.guest = guest
        self.peer = peer
        self.closed = False
        self.exchange = exchange
        self._turns = turns
        self.state = State.READY
        self.exit_code: int | None = None
        self.fault: GuestFault | None = None
        self.deadline: float | None = None  # of a wait, on time.monotonic()'s clock
        self.thread = 0  # that runs it
        self.ran_on = 0  # the thread that has last been in KVM_RUN for it
        self.wait: Wait | None = None  # its last doorbell was a WAIT, not yet answered
        self.ending: Ending | None = None  # why it is to stop as soon as it has exited
        self.exit: Exit | Asked | None = None  # its last one, not acted on yet
        self.verdict: GuestFault | None = None  # why it cannot go on, once that has been found out
        self.refused: int | None = None  # requests, before a doorbell that is being answered
        self.place = 0  # in line
        self.debt = 0.0  # seconds that it has had beyond its slices
        self.turn = 0

    def saved(self) -> tuple[Any, ...]:
        return (
            (self.state, self.exit_code, self.fault, self.deadline),
            (self.wait, self.ending, self.exit, self.verdict, self.refused),
        )

    def restore(self, saved: tuple[Any, ...]) -> None:
        (
            (self.state, self.exit_code, self.fault, self.deadline),
            (self.wait, self.ending, self.exit, self.verdict, self.refused),
        ) = saved

    def done(self) -> None:
        """Its exit has been acted on."""
        self.exit = None
        self.guest.vcpu.forget_exit()

    def see_exit(self) -> None:
        """Find the exit that it has made, if what was raised as KVM_RUN returned has hidden it."""
        if self.state is State.RUNNING and self.exit is None:
            self.exit = self.guest.vcpu.last_exit()

    @property
    def name(self) -> str:
        """Its name."""
        return self.guest.name

    @property
    def number(self) -> int:
        """Its id, as peers see it."""
        return self.peer.number

    @property
    def window(self) -> Region:
        """The guest-physical addresses of its window."""
        return self.peer.window.region

    @property
    def progress(self) -> tuple[int, int]:
        """What the guest says of its progress: done and total, (0, 0) if it says nothing, or has
        stopped or been closed.
        """
        if self.state is State.STOPPED or self.closed:
            return 0, 0
        try:
            return self.guest.control.progress
        except ValueError:  # closed by another thread just now
            return 0, 0

    def frame_number(self, gpa: SupportsIndex) -> int | None:
        """Return the physical frame behind the page at an address of the window.

        None without the privilege. Raises IndexError if the address is not of the window,
        AccessError if the page is not the machine's at present, ClosedError.
        """
        address, window = integer(gpa, "gpa"), self.window
        if not window.base <= address < window.end:
            raise OutOfBounds(
                f"gpa {shown(address, '#x')} is not within {self.name}'s window, "
                f"{window.base:#x}..{window.end:#x}"
            )
        page = Extent(window.offset(address, 0) // PAGE_SIZE, 1)
        with self._turns.telling, self._turns.lock, self._turns.change:
            if self.closed:
                raise ClosedError(f"{self.name} has been closed")
            ledger = self.exchange.ledger
            if not self.peer.alive or not ledger.holds(self.number, page, READABLE):
                raise AccessError(f"the page at gpa {address:#x} is not {self.name}'s at present")
            return frame_number(self.peer.window.address(page.page))

    def outcome(self) -> dict[str, Any]:
        """Return how it ended, as an object for `--json`."""
        return {
            "name": self.name,
            "exit_code": self.exit_code,
            "fault": None if self.fault is None else self.fault.as_json(),
            "messages_sent": self.peer.sent,
            "messages_received": self.peer.received,
        }

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Machine cannot be copied or pickled")

    def __repr__(self) -> str:
        closed = ", closed" if self.closed else ""
        return f"<{type(self).__name__} {self.number} {self.name!r} {self.state.value}{closed}>"
