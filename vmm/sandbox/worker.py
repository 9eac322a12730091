"""One machine that functions are called in; another takes its place when it is gone."""

from __future__ import annotations

import contextlib
import math
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from vmm.endpoint.buffer import CHUNK, Buffer
from vmm.endpoint.calling import Desk, Part, Shown
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
    GuestError,
    LimitError,
    ResourceError,
)
from vmm.guest.abi import CALL_READY, CALL_VERSION, PAGE_SIZE
from vmm.guest.x86 import LARGE_PAGE
from vmm.linux import outside
from vmm.linux.errors import SysError
from vmm.linux.machine import LinuxMachine
from vmm.linux.memory import Memory
from vmm.monitor import Monitor
from vmm.sandbox import request
from vmm.sandbox.arguments import address_of
from vmm.sandbox.ctype import round_up
from vmm.sandbox.handle import Handle
from vmm.sandbox.printed import Printed
from vmm.sandbox.request import Areas, Copied, Result, Seen, Spill, Words

T = TypeVar("T")

_VERSION = struct.Struct("<I")
_KEPT = 128 << 20  # bytes of memory for copies that a worker keeps from one call to the next
# Bytes from which on they are in huge pages: to clear one takes less than the faults of what is in
# small pages, each of which the machine finds anew in every call.
_HUGE = 128 << 10
TEXT_MAX = 1 << 20  # bytes of a C string that a function returns
_BEGIN = "the start"  # what is called when there is no function yet
_CANCELLED = "the call was cancelled"
_MOMENT = 0.001  # seconds, for a machine that another thread runs to come out


def _as_it_is(result: Any) -> Any:
    return result


class Worker:
    """A machine of a sandbox. One call at a time; `cancel` may be called by any thread.

    spawn       makes a machine of that name, which begins with the next call
    names       for machines: those of all workers
    alloc       returns memory for copies
    patience    seconds that it may take to be ready
    fresh       whether each call finds the machine as it was when it was ready first
    initialize  called once for each machine, before any other function: it may call some of this
                worker's. What it raises comes out of the call that needed a machine

    cancelled   whether the present call has been
    preparing   whether the machine is being initialized
    """

    def __init__(
        self,
        monitor: Monitor,
        desk: Desk,
        spawn: Callable[[str], Machine],
        names: Iterator[str],
        alloc: Callable[[int], Buffer],
        *,
        patience: float,
        fresh: bool,
    ) -> None:
        self._monitor = monitor
        self._desk = desk
        self._printed = Printed()
        self._spawn = spawn
        self._names = names
        self._alloc = alloc
        self._patience = patience
        self._fresh = fresh
        self._tag = 0
        self._scratch: Buffer | None = None
        self._seen_by: LinuxMachine | None = None  # that
        self._name = ""
        self._whole = False  # whether the machine is as a call that has returned leaves it
        self._prepared: LinuxMachine | None = None  # for which `initialize` has been called
        self.preparing = False
        self.initialize: Callable[[Worker], object] | None = None
        self._shown: Sequence[Shown] = ()  # to the present call, if anybody asks
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

    def call(
        self,
        name: str,
        words: Words,
        seen: Sequence[Seen],
        copied: Sequence[Copied],
        until: float = math.inf,
        finish: Callable[[Result], T] = _as_it_is,
        handles: Sequence[Handle] = (),
        texts: bool = False,
    ) -> T:
        """Call a function, and return what `finish` makes of the result: it may look into the
        machine, which is still as the function has left it. What is to be copied back has been.

        until     time.monotonic() at which it is stopped
        handles   those among the arguments: of this machine
        texts     whether `finish` asks for text that may be in what is shared for the call

        Raises CallError, HandleError, GuestError for what cannot be shared, ConfigError; BusyError
        in a callback of the monitor's, or a signal's handler that has interrupted it.
        """
        self._monitor._check_idle()
        if len(seen) + len(copied) > request.PLACES_MAX:
            most = request.PLACES_MAX
            raise ConfigError(f"{name}: at most {most} arguments can be pointers to memory")
        machine, until = self._begin(until)
        for handle in handles:
            handle.check(name, machine)
        shared = request.areas(seen)
        pointed = any(one.pointers for one in copied)  # which is known once they are shared
        inline = None if pointed else request.inline(words, seen, copied, shared)
        spill: Spill | None = None
        if inline is not None:
            parts, copies, size = inline
        else:
            parts, spill = self._spill(words, seen, copied, shared)
            copies, size = (), 0
        if seen:
            request.check(name, parts)
        self._whole = False
        try:
            least = request.RESULT_BYTES + size
            payload = self._exchange(machine, name, parts, until, least, texts, spill)
            result, data = request.result(payload)
            if spill is not None:
                self._copy_back(spill)
            for one, at in copies:
                if not one.const:
                    one.data[:] = data[at : at + len(one.data)]
            value = finish(result)
            if self._fresh and not self.preparing:
                self._put_back(machine)
            self._whole = True
        finally:
            self._settle()
        if self._scratch is not None and self._scratch.size > _KEPT:
            self._drop_scratch()
        return value

    def ask(self, name: str, payload: bytes, until: float, finish: Callable[[bytes], T]) -> T:
        """As `call`, where a payload is all that asks for it, and `finish` makes its result of the
        answer's.
        """
        self._monitor._check_idle()
        machine, until = self._begin(until)
        self._whole = False
        try:
            parts = (Part(payload),)
            value = finish(self._exchange(machine, name, parts, until, request.RESULT_BYTES))
            if self._fresh and not self.preparing:
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

    def _put_back(self, machine: LinuxMachine) -> None:
        """Let a machine be what it was; or another one, if it has got memory of the pool."""
        if self._desk.pages(machine):
            self._discard()
            return
        self._printed.take(machine, self._tag)
        try:
            machine.put_back()
        except ClosedError:  # it has been cancelled just now
            self._discard()

    def text(self, address: int, limit: int) -> bytes | None:
        """Return the C string at an address of the machine's own memory, or of what the call has
        been given; None if there is none of at most so many bytes. Called by `finish`.
        """
        for start, extent in self._shown:
            if start <= address < start + extent.pages * PAGE_SIZE:
                return self._desk.text(extent, address - start, limit)
        try:
            return outside.text(self.memory, address, limit)
        except SysError:
            return None

    @property
    def memory(self) -> Memory:
        """The present machine's. Raises ClosedError."""
        if self.machine is None:
            raise ClosedError("the sandbox has been closed")
        return self.machine.guest.process.memory

    def pointer(self, lasting: bool = False) -> Callable[[int], Handle]:
        """Return what makes handles of addresses in the present machine. Called by `finish`, and
        within `look`.

        lasting    what is there is not of one call, which is undone in a fresh sandbox
        """
        machine = self.machine
        assert machine is not None
        passing = self._fresh and not self.preparing and not lasting
        return partial(Handle.of, machine=None if passing else machine, name=machine.name)

    def look(self, act: Callable[[Worker], T]) -> T:
        """Return what `act` makes of this, with a machine that waits for calls. Raises as `start`
        does, and what `act` does.
        """
        self._monitor._check_idle()
        self.start()
        return act(self)

    def _exchange(
        self,
        machine: Machine,
        name: str,
        parts: Sequence[Part],
        until: float,
        least: int,
        texts: bool = False,
        spill: Spill | None = None,
    ) -> bytes:
        self._tag += 1
        desk = self._desk
        try:
            desk.ask(machine, self._tag, parts)
        except GuestError:
            if machine.state is State.STOPPED:  # it has been cancelled
                raise self._failure(machine, name, in_time=True) from None
            self._whole = True  # it knows of nothing
            raise
        pointed = spill is not None and any(one.pointers for one, _ in spill.copies)
        self._shown = desk.shown(machine, parts) if texts or pointed else ()
        if spill is not None and pointed:
            self._point(spill)
        in_time = self._drive(machine, until)
        payload = desk.answer(machine, self._tag, least)
        borrows = desk.pages(machine, borrowed=True)
        if payload is None or not in_time or machine.state is not State.PARKED:
            raise self._failure(machine, name, in_time=in_time)
        if borrows:  # it has answered, and not returned everything
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

    # ---- What is copied ----

    def _spill(
        self, words: Words, seen: Sequence[Seen], copied: Sequence[Copied], shared: Areas
    ) -> tuple[list[Part], Spill]:
        scratch, size = self._room(request.spilled_size(words, seen, copied))
        extent = scratch.extent._replace(pages=size // PAGE_SIZE)
        parts, spill = request.spilled(words, seen, copied, shared, extent)
        # What an earlier call has left there is nobody's but the machine's that had it.
        clears, self._seen_by = self._fresh or self._seen_by is not self.machine, self.machine
        at = 0
        placed = [(memoryview(spill.head), 0), *((one.data, at) for one, at in spill.copies)]
        for data, start in placed:
            if clears and start > at:
                scratch.write(bytes(start - at), at)
            scratch.write(data, start)
            at = max(at, start + len(data))
        if clears:
            scratch.write(bytes(size - at), at)
        return parts, spill

    def _room(self, least: int) -> tuple[Buffer, int]:
        """Return memory for copies, and how much of it to share. Raises ResourceError."""
        whole = round_up(least, LARGE_PAGE if least >= _HUGE else PAGE_SIZE)
        if self._scratch is None or self._scratch.size < whole:
            self._drop_scratch()
            try:
                self._scratch = self._alloc(whole)
            except ResourceError:
                whole = round_up(least, PAGE_SIZE)
                self._scratch = self._alloc(whole)
        return self._scratch, whole

    def _point(self, spill: Spill) -> None:
        """Let pointers within what is copied point to where that is in the machine."""
        scratch = self._scratch
        assert scratch is not None
        start = next(s.start for s in self._shown if s.extent.page == scratch.extent.page)
        for one, at in spill.copies:
            if one.pointers:
                values = [start + at + offset if offset else 0 for offset in one.pointers]
                scratch.write(struct.pack(f"<{len(values)}Q", *values), at)

    def _copy_back(self, spill: Spill) -> None:
        scratch = self._scratch
        if scratch is None:
            raise ClosedError("the sandbox has been closed")
        for one, at in spill.copies:
            if not one.const:  # not by a copy, whose page faults would cost more than all else
                target, size = address_of(one.data), len(one.data)
                for done in range(0, size, CHUNK):
                    scratch._copy_to(target + done, at + done, min(CHUNK, size - done))

    def _drop_scratch(self) -> None:
        scratch, self._scratch = self._scratch, None
        if scratch is not None:
            self._monitor.host.release(scratch)

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
        self.machine = self._scratch = None

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
