"""The standard streams and the terminal's size, as whoever starts the command may have left them.

A stream that is closed is as /dev/null: what is opened later must not get its number, and be
written to. One that does not block is waited for. What cannot be written to standard output is an
error, once; what cannot be written to standard error is lost, since nobody could be told.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any, TextIO

from vmm.observe.writing import write_all

_NAMES = ("standard input", "standard output", "standard error")
_ANY = "backslashreplace"  # for what an encoding cannot say
_WIDEST = 4  # digits of a terminal's size that can be meant


class _Descriptor(io.RawIOBase):
    """A descriptor to write to that stays open. It fails once, and takes anything from then on."""

    def __init__(self, descriptor: int, *, lossy: bool) -> None:
        super().__init__()
        self._descriptor, self._lossy, self._broken = descriptor, lossy, False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any, /) -> int:
        if not self._broken:
            try:
                write_all(self._descriptor, data)
            except OSError as error:
                self._broken = True
                if not self._lossy:
                    name = _NAMES[self._descriptor]
                    raise OSError(error.errno, error.strerror, name) from error
        return len(data)


def prepare() -> None:
    """Make the streams of this process usable, and forget a terminal's size that is none."""
    for descriptor in range(3):
        _fill(descriptor)
    if sys.stdin is None:
        with contextlib.suppress(OSError):
            sys.stdin = open(0, closefd=False)  # noqa: SIM115 - it stays as long as we do
    # Others than the process's own are somebody's who has called us: a test's, say.
    if sys.stdout is sys.__stdout__:
        sys.stdout = _patient(1, sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _patient(2, sys.stderr)
    for name in ("COLUMNS", "LINES"):
        size = os.environ.get(name, "1")
        if not (size.isascii() and size.isdigit() and len(size) <= _WIDEST and int(size)):
            del os.environ[name]


def _fill(descriptor: int) -> None:
    """Open /dev/null in the place of a stream that is closed, for our children, too."""
    try:
        os.fstat(descriptor)
    except OSError:
        try:
            filled = os.open(os.devnull, os.O_RDWR)  # it gets the lowest number that is free
        except OSError:  # a container without it: something else that can do no harm
            filled = os.open("/", os.O_PATH)
        os.set_inheritable(filled, True)


def _patient(descriptor: int, stream: TextIO | None) -> TextIO:
    raw = _Descriptor(descriptor, lossy=descriptor == 2 or stream is None)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=_encoding(stream),
        errors=_ANY,
        line_buffering=descriptor == 2 or raw.isatty(),
    )


def _encoding(stream: TextIO | None) -> str:
    """Return a stream's encoding, or UTF-8 for one that is not for text (PYTHONIOENCODING=idna)."""
    encoding = stream.encoding if stream else "utf-8"
    try:
        "é: \udcff\n".encode(encoding, _ANY)
    except (LookupError, UnicodeError):
        return "utf-8"
    return encoding
