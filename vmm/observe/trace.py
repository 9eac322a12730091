"""A trace written to a file: each event a line of JSON."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from types import TracebackType

from vmm.errors import ResourceError
from vmm.ferry.events import Event
from vmm.observe.writing import write_all


def cannot_write(name: str, error: OSError) -> ResourceError:
    """Return the error of a trace that cannot be written."""
    return ResourceError(f"cannot write the trace to {name}: {error.strerror}: name another file")


class TraceFile:
    """A listener that writes each event as a line of JSON; the first event is at time 0.

    Each line is in the file at once: whoever follows it, or finds it after a crash, sees them all.
    One that does not block is waited for.

    path   the file's; or an open descriptor, such as standard error's, which stays open
    name   what errors call it; by default as `path` says

    Raises ResourceError, naming the file, if it cannot be written; also from close().
    """

    def __init__(self, path: str | Path | int, name: str | None = None) -> None:
        self._start: int | None = None
        self._failed: ResourceError | None = None
        self._ours = not isinstance(path, int)
        if isinstance(path, int):
            self._name = name or f"descriptor {path}"
            self._descriptor = path
            return
        self._name = name or str(Path(path))
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        try:
            self._descriptor = os.open(Path(path), flags, 0o666)
        except OSError as error:
            raise cannot_write(self._name, error) from error

    def __call__(self, event: Event) -> None:
        if self._start is None:
            self._start = event.ns
        line = {"us": (event.ns - self._start) / 1000, "event": event.kind, **event.fields}
        try:
            write_all(self._descriptor, (json.dumps(line) + "\n").encode())
        except OSError as error:
            self._failed = cannot_write(self._name, error)
            raise self._failed from error

    def close(self) -> None:
        """Close the file, which is not whole if a line could not be written. Further calls do
        nothing.
        """
        if self._ours and self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed

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
        with contextlib.suppress(ResourceError):  # the error under way is the one to report
            self.close()
