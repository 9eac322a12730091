"""Events: what the monitor did, one by one, for whoever listens. Nobody listening costs nothing.

Whoever is told anything (a listener of the trace, a console) is told without the monitor's lock, in
order, and by one thread at a time: so it may call the monitor, be slow, or raise.
"""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from vmm.errors import ArgumentTypeError

_MANY = 1024  # calls that may wait before machines that cause more have to wait as well


class Event(NamedTuple):
    """One event: nanoseconds on the monotonic clock, its kind, and what belongs to it."""

    ns: int
    kind: str
    fields: dict[str, Any]


Listener = Callable[[Event], None]


class Outbox:
    """Calls that are to be made when the lock has been released.

    waiting   those that may be made

    `put`, `seal` and `drop` are for the holder of the monitor's lock, the others for anybody else.
    """

    __slots__ = ("_baton", "_turn", "waiting")

    def __init__(self) -> None:
        self.waiting: collections.deque[Callable[[], object]] = collections.deque()
        self._turn: list[Callable[[], object]] = []  # of a turn that has not been committed
        self._baton: Any = threading.RLock()  # whose holder makes the calls

    def put(self, call: Callable[..., object], *arguments: object) -> None:
        """Make a call when the present turn has been committed."""
        self._turn.append(partial(call, *arguments))

    def seal(self) -> bool:
        """Let the calls of a turn that has been committed be made; return whether any wait."""
        if not self._turn:
            return bool(self.waiting)
        self.waiting.extend(self._turn)
        self._turn.clear()
        return True

    def leave(self, call: Callable[[], object]) -> None:
        """Have a call made when the turn is over that a signal's handler has interrupted."""
        self.waiting.append(call)

    def say(self, call: Callable[..., object], *arguments: object) -> None:
        """Make a call now, without the lock; or have it made by the thread that is at it."""
        self.waiting.append(partial(call, *arguments))
        self.flush(wait=self.crowded)

    def drop(self) -> None:
        """Forget the calls of a turn that has been rolled back."""
        self._turn.clear()

    def flush(self, *, wait: bool = False) -> None:
        """Make the calls that are waiting, or leave them to the thread that is at it.

        wait   until they have been made. Within such a call nobody waits

        Raises what a call raises, which is over then; those behind it stay.
        """
        while self.waiting and not self._baton._is_owned():
            try:
                try:
                    if not self._baton.acquire(blocking=wait):
                        return
                    while self.waiting:
                        self.waiting.popleft()()
                finally:
                    self._let_go()
            finally:  # once more, should a signal's handler raise just there
                self._let_go()

    def _let_go(self) -> None:
        if self._baton._is_owned():
            self._baton.release()

    @property
    def crowded(self) -> bool:
        """Whether so many are waiting that who causes them is to wait."""
        return len(self.waiting) > _MANY


class Trace:
    """The monitor's events, handed to every listener in order.

    A listener is called without the monitor's lock, as soon as what it is told of is done; it may
    call the monitor. What it raises ends the run, or comes out of the call that has caused it.
    `if trace:` tells whether anybody listens.

    outbox   what hands the events on; without one they are handed on at once
    """

    def __init__(self, outbox: Outbox | None = None) -> None:
        self._listeners: list[Listener] = []
        self._outbox = outbox
        self.on = False

    def __bool__(self) -> bool:
        return self.on

    def listen(self, listener: Listener) -> None:
        """Hand every event from now on to `listener`. Raises TypeError."""
        if not callable(listener):
            raise ArgumentTypeError(f"listener must be a function, not {type(listener).__name__}")
        self._listeners = [*self._listeners, listener]
        self.on = True

    def emit(self, kind: str, **fields: Any) -> None:
        """Tell every listener when the turn has ended. Callers on the hot path ask `if trace:`."""
        event = Event(time.monotonic_ns(), kind, fields)
        if self._outbox is None:
            self._tell(event)
        else:
            self._outbox.put(self._tell, event)

    def emit_now(self, kind: str, **fields: Any) -> None:
        """Tell every listener of what is no part of a turn; called without the lock."""
        event = Event(time.monotonic_ns(), kind, fields)
        if self._outbox is None:
            self._tell(event)
        else:
            self._outbox.say(self._tell, event)

    def _tell(self, event: Event) -> None:
        for name, value in event.fields.items():
            if callable(value):  # what takes its time: it is worked out here, without the lock
                event.fields[name] = value()
        for listener in self._listeners:
            listener(event)
