"""Events: what the monitor did, one by one, for whoever listens. Nobody listening costs nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple


class Event(NamedTuple):
    """One event: nanoseconds on the monotonic clock, its kind, and what belongs to it."""

    ns: int
    kind: str
    fields: dict[str, Any]


Listener = Callable[[Event], None]


class Trace:
    """The monitor's events, handed to every listener in order, on the thread on which they
    happened.

    A listener runs under the monitor's lock: it must be quick, and must not call the monitor. What
    it raises ends the run. `if trace:` tells whether anybody listens.
    """

    def __init__(self) -> None:
        self._listeners: list[Listener] = []
        self.on = False

    def __bool__(self) -> bool:
        return self.on

    def listen(self, listener: Listener) -> None:
        """Hand every event from now on to `listener`."""
        self._listeners.append(listener)
        self.on = True

    def emit(self, kind: str, **fields: Any) -> None:
        """Tell every listener. Callers on the hot path ask `if trace:` first."""
        event = Event(time.monotonic_ns(), kind, fields)
        for listener in self._listeners:
            listener(event)
