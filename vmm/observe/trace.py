"""A trace written to a file: each event a line of JSON."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from types import TracebackType

from vmm.errors import ResourceError
from vmm.ferry.events import Event


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
