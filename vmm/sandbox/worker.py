"""The calls of functions in a machine, one at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from vmm.endpoint.calling import Desk, Part, Shown
from vmm.engine.machine import Machine, State
from vmm.errors import CallCrash, ClosedError, ConfigError, GuestError, ResourceError
from vmm.guest.abi import PAGE_SIZE
from vmm.linux import outside
from vmm.linux.errors import SysError
from vmm.linux.machine import LinuxMachine
from vmm.monitor import Monitor
from vmm.sandbox import request
from vmm.sandbox.copies import Call, Copies
from vmm.sandbox.handle import Handle
from vmm.sandbox.request import Areas, Copied, Result, Seen, Words
from vmm.sandbox.rooms import Rooms
from vmm.sandbox.station import Station

T = TypeVar("T")

TEXT_MAX = 1 << 20  # bytes of a C string that a function returns


def _as_it_is(result: Any) -> Any:
    return result


class Worker(Station):
    """A machine of a sandbox, and the calls in it. One call at a time; `cancel` may be called by
    any thread.

    copies    memory for what its calls copy
    rooms     arrays of which more is shared than they are

    For all else see Station.
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
        super().__init__(monitor, desk, spawn, names, patience=patience, fresh=fresh)
        self._copies = copies
        self._rooms = rooms
        self._tag = 0
        self._shown: Sequence[Shown] = ()  # to the present call, or look, if anybody asks

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
        shared = request.areas(seen, self._rooms.end)
        pointed = any(one.pointers for one in copied)
        inline = None if pointed else request.inline(words, seen, copied, shared)
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
            payload = self._exchange(machine, name, parts, fill, until, least, call, texts)
            result, data = request.result(payload)
            if call is not None:
                self._copies.copy_back(call)
            for one, at in copies:
                if not one.const:
                    one.data[:] = data[at : at + len(one.data)]
            value = finish(result)
            if self._fresh and not self.preparing:
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
        self._printed.take(machine, self._tag)
        try:
            machine.put_back()
        except ClosedError:  # it has been cancelled just now
            self._discard()

    def text(self, address: int, limit: int) -> bytes | None:
        """Return the C string at an address of the machine's own memory, or of what the call has
        been given; None if there is none of at most so many bytes. Called by `finish` of a call
        with `texts`, and within `look`.
        """
        for start, extent in self._shown:
            if start <= address < start + extent.pages * PAGE_SIZE:
                return self._desk.text(extent, address - start, limit)
        try:
            return outside.text(self.memory, address, limit)
        except SysError:
            return None

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
        machine = self.start()
        self._shown = self._desk.shown(machine, (), self._copies.kept(machine))
        return act(self)

    def _exchange(
        self,
        machine: Machine,
        name: str,
        parts: Sequence[Part],
        fill: Callable[[], object] | None,
        until: float,
        least: int,
        call: Call | None = None,
        texts: bool = False,
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
        points = call is not None and call.pointed
        if texts or points:
            self._shown = desk.shown(machine, parts, copies.kept(machine))
            if call is not None and points:
                copies.point(call, self._shown)
        in_time = self._drive(machine, until)
        payload = desk.answer(machine, self._tag, least)
        borrows = desk.borrows(machine, copies.kept(machine))
        if payload is None or not in_time or machine.state is not State.PARKED:
            raise self._failure(machine, name, in_time=in_time)
        if not borrows:  # it has answered, and not returned everything; or more than that
            raise CallCrash(name, "it has kept memory that was shared for the call")
        return payload
