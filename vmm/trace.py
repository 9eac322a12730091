"""Events: what the monitor did, one by one, for whoever listens. Nobody listening costs nothing."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from vmm.errors import ResourceError


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


class TraceFile:
    """A listener that writes each event as a line of JSON; the first event is at time 0.

    Each line is in the file at once: whoever follows it, or finds it after a crash, sees them all.

    path   the file's; or an open descriptor, such as standard error's, which stays open

    Raises ResourceError, naming the file, if it cannot be written; also from close().
    """

    def __init__(self, path: str | Path | int) -> None:
        target = path if isinstance(path, int) else Path(path)
        self._name = f"descriptor {path}" if isinstance(path, int) else str(target)
        self._start: int | None = None
        try:
            if isinstance(target, Path):
                self._file = target.open("w", buffering=1, encoding="utf-8")
            else:
                self._file = os.fdopen(target, "w", buffering=1, encoding="utf-8", closefd=False)
        except OSError as error:
            raise self._failed(error) from error

    def __call__(self, event: Event) -> None:
        if self._start is None:
            self._start = event.ns
        line = {"us": (event.ns - self._start) / 1000, "event": event.kind, **event.fields}
        try:
            self._file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Write what is buffered. Further calls do nothing."""
        try:
            self._file.close()
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> ResourceError:
        return ResourceError(
            f"cannot write the trace to {self._name}: {error.strerror}: name another file"
        )

    def __enter__(self) -> TraceFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if value is None:
            self.close()
            return
        with contextlib.suppress(OSError):  # the error under way is the one to report
            self._file.close()
