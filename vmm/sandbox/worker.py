"""The calls of functions in a machine, one at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from vmm.endpoint.calling import Desk
from vmm.endpoint.showing import Shown
from vmm.engine.machine import Machine, State
from vmm.errors import CallCrash, ClosedError, GuestError
from vmm.guest.abi import PAGE_SIZE
from vmm.linux import outside
from vmm.linux.errors import SysError
from vmm.linux.machine import LinuxMachine
from vmm.memory.runs import Extent
from vmm.monitor import Monitor
from vmm.sandbox import request
from vmm.sandbox.copies import Copies
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
        self._showing = desk.showing
        self.copies = copies
        self._rooms = rooms
        self._tag = 0

    def call(
        self,
        name: str,
        words: Words,
        seen: Sequence[Seen],
        copied: Sequence[Copied],
        until: float = math.inf,
        finish: Callable[[Result], T] = _as_it_is,
        handles: Sequence[Handle] = (),
    ) -> T:
        """Call a function, and return what `finish` makes of the result: it may look into the
        machine, which is still as the function has left it. What is to be copied back has been.

        until     time.monotonic() at which it is stopped
        handles   those among the arguments: of this machine

        Raises CallError, HandleError, GuestError for what cannot be shared, ConfigError; BusyError
        in a callback of the monitor's, or a signal's handler that has interrupted it.
        """
        self._monitor._check_idle()
        machine, until = self._begin(until)
        for handle in handles:
            handle.check(name, machine)
        call = partial(self._call, machine, name, words, seen, copied, until, finish)
        value = self._whatever_happens(machine, call)
        self.copies.trim()
        return value

    def _call(
        self,
        machine: LinuxMachine,
        name: str,
        words: Words,
        seen: Sequence[Seen],
        copied: Sequence[Copied],
        until: float,
        finish: Callable[[Result], T],
    ) -> T:
        laid, areas = request.laid_out(words, copied), request.areas(seen, self._rooms.end)
        copies, used, address = self.copies, None, 0
        if laid.memory:
            used = copies.room(machine, laid.memory)
        if used is not None or seen or machine.number in self._showing.seen:
            own = copies.extents(machine, used)
            shown = self._show(machine, name, [*own, *areas.extents])
            starts = {one.source: one.address for one in shown}
            words = request.pointed(words, seen, areas, starts)
            if used is not None:
                page = used.extent.page
                address = next(at for extent, at in starts.items() if extent.page == page)
        asked = request.asked(words, laid, address)
        self._whole = False
        try:
            fill = self._filling(machine, copies.fill(machine, used, asked, address), areas)
            least = request.RESULT_BYTES + laid.size
            payload = self._exchange(machine, name, asked.payload, fill, until, least)
            result, data = request.result(payload)
            if used is not None:
                copies.copy_back(used, laid)
            elif data:
                for one, at in laid.copies:
                    if not one.const:
                        one.data[:] = data[at : at + len(one.data)]
            value = finish(result)
            if self._fresh and not self.preparing:
                self._put_back(machine)
            self._whole = True
        finally:
            self._settle()
        return value

    def ask(self, name: str, payload: bytes, until: float, finish: Callable[[bytes], T]) -> T:
        """As `call`, where a payload is all that asks for it, and `finish` makes its result of the
        answer's.
        """
        self._monitor._check_idle()
        machine, until = self._begin(until)
        ask = partial(self._ask, machine, name, payload, until, finish)
        return self._whatever_happens(machine, ask)

    def _ask(
        self,
        machine: LinuxMachine,
        name: str,
        payload: bytes,
        until: float,
        finish: Callable[[bytes], T],
    ) -> T:
        if machine.number in self._showing.seen:  # what this call is not given
            self._show(machine, name, self.copies.extents(machine, None))
        self._whole = False
        try:
            fill = self.copies.wiping(machine) if self._fresh else None
            value = finish(
                self._exchange(machine, name, payload, fill, until, request.RESULT_BYTES)
            )
            if self._fresh and not self.preparing:
                self._put_back(machine)
            self._whole = True
        finally:
            self._settle()
        return value

    def _whatever_happens(self, machine: LinuxMachine, call: Callable[[], T]) -> T:
        """Make a call; what the machine is shown can be taken from it again however that ends."""
        try:
            try:
                return call()
            finally:
                self._showing.called.pop(machine.number, None)
        finally:  # once more, should a signal's handler raise just there
            self._showing.called.pop(machine.number, None)

    def _begin(self, until: float) -> tuple[LinuxMachine, float]:
        """Have a machine for a call; return when that is to be stopped as well: until a machine is
        ready is not the function's time.
        """
        before, began = self.machine, time.monotonic()
        machine = self.start()
        return machine, until if machine is before else until + time.monotonic() - began

    def _filling(
        self, machine: Machine, fill: Callable[[], object] | None, areas: Areas
    ) -> Callable[[], object] | None:
        """Return what is to be done in the turn in which a call is asked for, if anything."""
        if not areas.roomy:
            return fill

        def both() -> None:
            if fill is not None:
                fill()
            self._rooms.clear(areas.extents, machine.number, fresh=self._fresh)

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
        """Return the C string at an address of the machine's own memory, or of what the last call
        has been given; None if there is none of at most so many bytes. Called by `finish`, and
        within `look`.
        """
        machine = self.machine
        for one in () if machine is None else self._showing.seen.get(machine.number, ()):
            if one.address <= address < one.address + one.source.pages * PAGE_SIZE:
                return self._desk.text(one.source, address - one.address, limit)
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
        self.start()
        return act(self)

    def _show(
        self, machine: Machine, name: str, wanted: Sequence[tuple[Extent, bool]]
    ) -> Sequence[Shown]:
        """Let the machine see what a call is given. Raises GuestError: it knows of nothing then;
        CallCrash, and it is gone, if it does not wait for calls.
        """
        try:
            return self._showing.show(machine, wanted)
        except GuestError:
            if machine.state is State.STOPPED:  # it has been cancelled
                raise self._failure(machine, name, in_time=True) from None
            if machine.peer.queue:  # else it had taken that
                self._whole = False
                raise CallCrash(name, "it has not taken a message, which is no call") from None
            raise
        finally:
            self._settle()

    def _exchange(
        self,
        machine: Machine,
        name: str,
        payload: bytes,
        fill: Callable[[], object] | None,
        until: float,
        least: int,
    ) -> bytes:
        self._tag += 1
        desk = self._desk
        try:
            desk.ask(machine, self._tag, payload, fill)
        except GuestError:
            if machine.state is State.STOPPED:  # it has been cancelled
                raise self._failure(machine, name, in_time=True) from None
            self._whole = True  # it knows of nothing
            raise
        in_time = self._drive(machine, until)
        answer = desk.answer(machine, self._tag, least)
        if answer is None or not in_time or machine.state is not State.PARKED:
            raise self._failure(machine, name, in_time=in_time)
        if not self._showing.keeps(machine):  # not just what it was shown is there
            raise CallCrash(name, "it has returned memory that was shared for the call")
        return answer
