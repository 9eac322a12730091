"""A place for a machine that functions are called in: another takes it when that is gone."""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

from vmm.endpoint.calling import Desk
from vmm.engine.machine import Machine, State
from vmm.errors import (
    ADVICE,
    BusyError,
    CallCancelled,
    CallCrash,
    CallError,
    CallExit,
    CallTimeout,
    ClosedError,
    ConfigError,
    LimitError,
)
from vmm.guest.abi import CALL_READY, CALL_VERSION
from vmm.linux.machine import LinuxMachine
from vmm.linux.memory import Memory
from vmm.monitor import Monitor
from vmm.sandbox.printed import Printed

_VERSION = struct.Struct("<I")
_BEGIN = "the start"  # what is called when there is no function yet
_CANCELLED = "the call was cancelled"
_MOMENT = 0.001  # seconds, for a machine that another thread runs to come out


class Station:
    """A machine of a sandbox, which waits for calls, and the one after it. For one thread at a
    time; `cancel` may be called by any.

    spawn       makes a machine of that name, which begins with the next call
    names       for machines: those of all stations
    patience    seconds that it may take to be ready
    fresh       whether each call finds the machine as it was when it was ready first
    initialize  called once for each machine, before any other function: it may call some. What it
                raises comes out of the call that needed a machine

    cancelled   whether the present call has been
    preparing   whether the machine is being initialized
    """

    def __init__(
        self,
        monitor: Monitor,
        desk: Desk,
        spawn: Callable[[str], Machine],
        names: Iterator[str],
        *,
        patience: float,
        fresh: bool,
    ) -> None:
        self._monitor = monitor
        self._desk = desk
        self._printed = Printed()
        self._spawn = spawn
        self._names = names
        self._patience = patience
        self._fresh = fresh
        self._name = ""
        self._whole = False  # whether the machine is as a call that has returned leaves it
        self._prepared: LinuxMachine | None = None  # for which `initialize` has been called
        self.preparing = False
        self.initialize: Callable[[Any], object] | None = None
        self.machine: LinuxMachine | None = None
        self.cancelled = False

    def boot(self) -> LinuxMachine:
        """Have a machine that waits for calls. Raises CallError; ResourceError if the host has not
        what it takes to run one; and what `spawn` does.
        """
        machine = self.machine
        if machine is not None and self._whole and machine.state is not State.STOPPED:
            return machine
        self._discard()
        self._whole = False
        try:
            self._name = next(self._names)  # so that it is found, should its making be cut off
            spawned = self._spawn(self._name)
            if not isinstance(spawned, LinuxMachine):
                raise ConfigError(
                    f"{spawned.name} is a guest, and no program whose functions are called"
                )
            machine = self.machine = spawned
            self._get_ready(machine)
            self._whole = True
        finally:
            self._settle()
        return machine

    def _get_ready(self, machine: Machine) -> None:
        until = time.monotonic() + self._patience
        in_time = self._drive(machine, until)
        answer = self._desk.answer(machine, CALL_READY, _VERSION.size)
        if answer is None or not in_time or machine.state is not State.PARKED:
            ending = machine.ending
            if ending is not None and ending.code in ADVICE and not self.cancelled:
                raise LimitError(f"a machine for calls: {ending.reason}", ending.code)
            raise self._failure(machine, _BEGIN, in_time=in_time)
        (version,) = _VERSION.unpack_from(answer)
        if version != CALL_VERSION:
            raise ConfigError(
                f"{machine.name} was built with version {version} of the calls' runtime, "
                f"and this is {CALL_VERSION}: build it again"
            )

    def start(self) -> LinuxMachine:
        """Have a machine that is ready for calls, and has been initialized. Raises as `boot`, and
        what `initialize` does.
        """
        if self.preparing:
            if self.machine is None or not self._whole:
                raise CallCrash(_BEGIN, "the machine that is being initialized has gone")
            return self.machine
        machine = self.boot()
        if self._prepared is not machine:
            try:
                self.preparing = True
                if self.initialize is not None:
                    self.initialize(self)
                if self.machine is not machine or machine.state is State.STOPPED:
                    raise CallCrash(_BEGIN, "the machine has gone while it was initialized")
                if self._fresh:
                    machine.keep()
                    self._printed.begin(machine)
                self._prepared = machine
            finally:
                self.preparing = False
                self._whole = self._whole and self._prepared is machine
                self._settle()
        return machine

    @property
    def memory(self) -> Memory:
        """The present machine's. Raises ClosedError."""
        if self.machine is None:
            raise ClosedError("the sandbox has been closed")
        return self.machine.guest.process.memory

    def _drive(self, machine: Machine, until: float) -> bool:
        """Run the machine until it waits for a message, as it does when it has answered. False if
        it was out of time.
        """
        if self.cancelled:  # perhaps before there was a machine to be stopped
            self._monitor.kill(machine, _CANCELLED)
        return self._monitor._drive(machine, until)

    def _failure(self, machine: Machine, name: str, *, in_time: bool) -> CallError:
        """Return why a call has not been answered."""
        fault = machine.fault
        if self.cancelled:
            return CallCancelled(name, _CANCELLED)
        if fault is not None:
            return CallCrash(name, str(fault).removeprefix(f"{machine.name}: "), fault)
        if machine.exit_code is not None:
            return CallExit(name, machine.exit_code)
        if not in_time:
            with contextlib.suppress(ClosedError):
                self._monitor.kill(machine, "it took longer than it may")
            where = "" if machine.fault is None else str(machine.fault.place)
            at = f" at {where}" if where else ""
            return CallTimeout(
                name, f"it took longer than it may, and was stopped{at}", machine.fault
            )
        return CallCrash(name, "it waits for what nobody sends")

    # ---- What is printed ----

    @property
    def stdout(self) -> bytes:
        """What the machine has printed so far, and the last that those before it have."""
        return self._printed.stdout + self._present("stdout")

    @property
    def stderr(self) -> bytes:
        """The same of standard error."""
        return self._printed.stderr + self._present("stderr")

    def _present(self, name: str) -> bytes:
        machine = self.machine
        if machine is None or self._printed.gone(machine):
            return b""
        found: bytes = getattr(machine, name)
        return found

    # ---- The end ----

    def cancel(self) -> None:
        """Stop the machine: the call that is under way raises CallCancelled."""
        self.cancelled = True
        machine = self.machine
        if machine is not None:
            with contextlib.suppress(ClosedError):
                self._monitor.kill(machine, _CANCELLED)

    def _settle(self) -> None:
        """Remove the machine if it has been left in the midst of something."""
        try:
            if not self._whole:
                self._discard()
        finally:  # once more, should a signal's handler raise just there
            if not self._whole and self.machine is not None:
                self._discard()

    def forget(self) -> None:
        """Know of nothing any more: the monitor has been closed."""
        if self.machine is not None:
            self._printed.take(self.machine)
        self.machine = None

    def _discard(self) -> None:
        """Remove the machine, whatever it is doing: all that it borrows is let go of."""
        monitor = self._monitor
        machine = self.machine or monitor.machines.get(self._name)
        if machine is None:
            return
        try:
            while True:
                try:
                    monitor.remove(machine)
                    break
                except BusyError:  # somebody runs it
                    monitor.kill(machine)
                    time.sleep(_MOMENT)
            self._desk.forget(machine)
        except ClosedError:  # the monitor is: then nothing is left
            pass
        self._printed.take(machine)
        self.machine = None  # not before: what was cut off is done again
