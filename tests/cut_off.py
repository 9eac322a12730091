"""Raises at the n-th line that the monitor executes, as Ctrl-C or an alarm may."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import vmm

_DEEP = 3  # frames of a finalizer's, at most
ROOT = str(Path(vmm.__file__).parent)


class CutOff(BaseException):
    """What is raised: none of ours."""


class Tracer:
    """Counts the lines of vmm in a `with` block, and raises CutOff at number `line`, if given.

    lines   how many there have been
    where   the file and the line at which it has raised

    threads   in all threads that are started in the block, instead of in this one
    under     counts the lines of this file, or folder, only
    """

    def __init__(self, line: int | None = None, *, threads: bool = False, under: str = "") -> None:
        self.line = line
        self.lines = 0
        self.where: tuple[str, int] | None = None
        self._threads = threads
        self._under = f"{ROOT}/{under}"
        # Kept: Python 3.11 frees it while it is about to call it, if a finalizer is run just then
        # (by the collector, as a frame is made for the call) and is cut off in its turn.
        self._trace = self._call

    def __enter__(self) -> Tracer:
        threading.settrace(self._trace) if self._threads else sys.settrace(self._trace)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        threading.settrace(None) if self._threads else sys.settrace(None)  # type: ignore[arg-type]
        return isinstance(value, CutOff)

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        # Called at any line, when garbage is collected. Python drops what is raised in it, and in
        # the little that it calls.
        within: FrameType | None = frame
        for _ in range(_DEEP):
            if within is None:
                break
            if within.f_code.co_name == "__del__":
                return None
            within = within.f_back
        return self._line if code.co_filename.startswith(self._under) else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line" and self.where is None:
            self.lines += 1
            if self.lines == self.line:
                name = frame.f_code.co_filename.removeprefix(ROOT + "/")
                self.where = name, frame.f_lineno
                raise CutOff(f"at {name}:{frame.f_lineno}")
        return self._line
