"""Somebody's terminal connected to a lane's: a pseudo-terminal is the lane's second serial port."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import sys
import termios
import tty
from collections.abc import Iterator

from vmm.errors import ConfigError
from vmm.nested.console import Watch

ESCAPE = b"\x1d"  # Ctrl-]
_POLL_SECONDS = 0.05


def check_terminal() -> None:
    """Raise ConfigError if there is nobody to type."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError("a shell needs a terminal: give a command instead, after --")


@contextlib.contextmanager
def serial_terminal() -> Iterator[tuple[int, str]]:
    """Make a pseudo-terminal for an emulator.

    Gives our side's descriptor, and the path of the other.
    """
    ours, theirs = pty.openpty()
    try:
        tty.setraw(theirs)
        yield ours, os.ttyname(theirs)
    finally:
        os.close(ours)
        os.close(theirs)


@contextlib.contextmanager
def _raw(descriptor: int) -> Iterator[None]:
    """Let every key through, Ctrl-C too, and put the terminal back afterwards."""
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def converse(watch: Watch, line: int) -> int:
    """Connect the terminal to the lane's line until its shell ends, or ESCAPE is typed.

    Returns the shell's exit status; 130 after ESCAPE.
    """
    keys, screen = sys.stdin.fileno(), sys.stdout.fileno()
    with _raw(keys):
        while True:
            status = watch.poll()
            ready = select.select(
                [keys, line], [], [], 0.0 if status is not None else _POLL_SECONDS
            )[0]
            if line in ready:
                _write(screen, os.read(line, 1 << 12))
            elif status is not None:
                return status
            if keys in ready:
                typed = os.read(keys, 1 << 10)
                if ESCAPE in typed or not typed:
                    return 130
                _write(line, typed)


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
