"""One machine that functions are called in; another takes its place when it is gone."""

from __future__ import annotations

import contextlib
import math
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from vmm.endpoint.calling import Desk, Part
from vmm.engine.machine import Machine, State
from vmm.errors import (
    BusyError,
    CallCancelled,
    CallCrash,
    CallError,
    CallExit,
    CallTimeout,
    ClosedError,
    ConfigError,
    GuestError,
    ResourceError,
)
from vmm.guest.abi import CALL_READY, CALL_VERSION
from vmm.linux.errors import SysError
from vmm.linux.machine import LinuxMachine
from vmm.monitor import Monitor
from vmm.sandbox import request
from vmm.sandbox.copies import Call, Copies
from vmm.sandbox.request import Areas, Copied, Result, Seen, Words
from vmm.sandbox.rooms import Rooms

T = TypeVar("T")

_VERSION = struct.Struct("<I")
_BEGIN = "the start"  # what is called when there is no function yet
_CANCELLED = "the call was cancelled"
_MOMENT = 0.001  # seconds, for a machine that another thread runs to come out


def _as_it_is(result: Any) -> Any:
    return result


class Worker:
    """A machine of a sandbox. One call at a time; `cancel` may be called by any thread.

    spawn       makes a machine of that name, which begins with the next call
    names       for machines: those of all workers
    copies      memory for what its calls copy
    rooms       arrays of which more is shared than they are
    patience    seconds that it may take to be ready
    fresh       whether each call finds the machine as it was when it was ready first
    initialize  called once for each machine, before any other function: it may call some of this
                worker's. What it raises comes out of the call that needed a machine

    cancelled   whether the present call has been
    """

    def __init__(
        self,
        monitor: Monitor,
        desk: Desk,
        spawn: Callable[[str], Machine],
        names: Iterator[str],
        copies: Copies,
        rooms: Rooms,
        *,
        patience: float,
        fresh: bool,
    ) -> None:
        self._monitor = monitor
        self._desk = desk
        self._spawn = spawn
        self._names = names
        self._copies = copies
        self._rooms = rooms
        self._patience = patience
        self._fresh = fresh
        self._tag = 0
        self._name = ""
        self._whole = False  # whether the machine is as a call that has returned leaves it
        self._prepared: LinuxMachine | None = None  # for which `initialize` has been called
        self._preparing = False
        self.initialize: Callable[[Worker], object] | None = None
        self.machine: LinuxMachine | None = None
        self.cancelled = False

    def boot(self) -> LinuxMachine:
        """Have a machine that waits for calls. Raises CallError, and what `spawn` does."""
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
        if self._preparing:
            if self.machine is None or not self._whole:
                raise CallCrash(_BEGIN, "the machine that is being initialized has gone")
            return self.machine
        machine = self.boot()
        if self._prepared is not machine:
            try:
                self._preparing = True
                if self.initialize is not None:
                    self.initialize(self)
                if self.machine is not machine or machine.state is State.STOPPED:
                    raise CallCrash(_BEGIN, "the machine has gone while it was initialized")
                if self._fresh:
                    machine.keep()
                self._prepared = machine
            finally:
                self._preparing = False
                self._whole = self._whole and self._prepared is machine
                self._settle()
        return machine

    def call(
        self,
        name: str,
        words: Words,
        seen: Sequence[Seen],
        copied: Sequence[Copied],
        until: float = math.inf,
        finish: Callable[[Result], T] = _as_it_is,
    ) -> T:
        """Call a function, and return what `finish` makes of the result: it may look into the
        machine, which is still as the function has left it. What is to be copied back has been.

        until   time.monotonic() at which it is stopped

        Raises CallError, GuestError for what cannot be shared, ConfigError; BusyError in a callback
        of the monitor's, or a signal's handler that has interrupted it.
        """
        self._monitor._check_idle()
        if len(seen) + len(copied) > request.PLACES_MAX:
            most = request.PLACES_MAX
            raise ConfigError(f"{name}: at most {most} arguments can be pointers to memory")
        machine, until = self._begin(until)
        shared = request.areas(seen, self._rooms.end)
        inline = request.inline(words, seen, copied, shared)
        call: Call | None = None
        self._whole = False
        try:
            if inline is not None:
                parts, copies, size = inline
            else:
                call = self._placed(machine, words, seen, copied, shared)
                parts, copies, size = call.parts, (), 0
            fill = self._filling(machine, call, shared)
            least = request.RESULT_BYTES + size
            payload = self._exchange(machine, name, parts, fill, until, least)
            result, data = request.result(payload)
            if call is not None:
                self._copies.copy_back(call)
            for one, at in copies:
                if not one.const:
                    one.data[:] = data[at : at + len(one.data)]
            value = finish(result)
            if self._fresh and not self._preparing:
                self._put_back(machine)
            self._whole = True
        finally:
            self._settle()
        if call is not None:
            self._copies.trim()
        return value

    def ask(self, name: str, payload: bytes, until: float, finish: Callable[[bytes], T]) -> T:
        """As `call`, where a payload is all that asks for it, and `finish` makes its result of the
        answer's.
        """
        self._monitor._check_idle()
        machine, until = self._begin(until)
        self._whole = False
        try:
            fill = self._copies.fill(machine, None) if self._fresh else None
            parts, least = (Part(payload),), request.RESULT_BYTES
            value = finish(self._exchange(machine, name, parts, fill, until, least))
            if self._fresh and not self._preparing:
                self._put_back(machine)
            self._whole = True
        finally:
            self._settle()
        return value

    def _begin(self, until: float) -> tuple[LinuxMachine, float]:
        """Have a machine for a call; return when that is to be stopped as well: until a machine is
        ready is not the function's time.
        """
        before, began = self.machine, time.monotonic()
        machine = self.start()
        return machine, until if machine is before else until + time.monotonic() - began

    def _placed(
        self,
        machine: Machine,
        words: Words,
        seen: Sequence[Seen],
        copied: Sequence[Copied],
        shared: Areas,
    ) -> Call:
        try:
            return self._copies.place(machine, words, seen, copied, shared)
        except ResourceError:
            self._whole = True  # the machine knows of nothing
            raise

    def _filling(
        self, machine: Machine, call: Call | None, shared: Areas
    ) -> Callable[[], object] | None:
        """Return what is to be done in the turn in which a call is asked for, if anything."""
        fill = self._copies.fill(machine, call)
        if not shared.roomy:
            return fill

        def both() -> None:
            if fill is not None:
                fill()
            clear, number, fresh = self._rooms.clear, machine.number, self._fresh
            clear(shared.const, number, writable=False, fresh=fresh)
            clear(shared.writable, number, writable=True, fresh=fresh)

        return both

    def _put_back(self, machine: LinuxMachine) -> None:
        """Let a machine be what it was; or another one, if it has got memory of the pool."""
        if self._desk.pages(machine):
            self._discard()
            return
        try:
            machine.put_back()
        except ClosedError:  # it has been cancelled just now
            self._discard()

    def text(self, address: int, limit: int) -> bytes | None:
        """Return the C string at an address of the machine's own memory; None if there is none of
        at most so many bytes. Called by `finish`.
        """
        if self.machine is None:
            raise ClosedError("the sandbox has been closed")
        try:
            return self.machine.guest.process.memory.text(address, limit)
        except SysError:
            return None

    def _exchange(
        self,
        machine: Machine,
        name: str,
        parts: Sequence[Part],
        fill: Callable[[], object] | None,
        until: float,
        least: int,
    ) -> bytes:
        self._tag += 1
        desk, copies = self._desk, self._copies
        try:
            desk.ask(machine, self._tag, parts, fill)
        except GuestError:
            if machine.state is State.STOPPED:  # it has been cancelled
                raise self._failure(machine, name, in_time=True) from None
            self._whole = True  # it knows of nothing
            raise
        in_time = self._drive(machine, until)
        payload = desk.answer(machine, self._tag, least)
        borrows = desk.borrows(machine, copies.kept(machine))
        if payload is None or not in_time or machine.state is not State.PARKED:
            raise self._failure(machine, name, in_time=in_time)
        if not borrows:  # it has answered, and not returned everything; or more than that
            raise CallCrash(name, "it has kept memory that was shared for the call")
        return payload

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
        self.machine = None
        self._copies.forget()

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
        self.machine = None  # not before: what was cut off is done again
