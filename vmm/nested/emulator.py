"""The emulator's process: started, watched and reaped, whatever happens to us."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import termios
import tty
from collections.abc import Iterator, Sequence
from pathlib import Path

from vmm.errors import HostError
from vmm.nested.lanes import EMULATOR_LOG

_PATIENCE = 5.0  # seconds for the kernel to end a killed process
_SCREEN = re.compile(rb'connected to screen "(/dev/pts/\d+)"')


class Emulator:
    """A running emulator; not for use by several threads.

    process  it
    log      the file with what it writes to its standard output and standard error
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log
        self._screen: int | None = None

    def ended(self) -> int | None:
        """Return how it ended, as `Popen.returncode`; None while it runs. To be called often."""
        self._clear_screen()
        return self._process.poll()

    def _clear_screen(self) -> None:
        """Throw away what the emulator has drawn, if it does draw.

        Bochs draws on a terminal that it makes for itself, and stands still once that is full.
        """
        if self._screen is None:
            found = _SCREEN.search(self._log.read_bytes())
            if found is None:
                return
            with contextlib.suppress(OSError):
                flags = os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
                self._screen = os.open(found[1], flags)
                tty.setraw(self._screen)
        if self._screen is not None:
            with contextlib.suppress(OSError, termios.error):
                termios.tcflush(self._screen, termios.TCIFLUSH)

    def kill(self) -> None:
        """End it and reap it; all it has to keep is in its files already."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(_PATIENCE)
        if self._screen is not None:
            os.close(self._screen)
            self._screen = None


@contextlib.contextmanager
def emulator(command: Sequence[str], run: Path) -> Iterator[Emulator]:
    """Run an emulator in the directory `run`, in a session of its own.

    It never outlives the block, nor us. Raises HostError if it cannot be run.
    """
    # Killed with us, even by a signal that cannot be caught. setpriv is part of util-linux.
    guard = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
    with (run / EMULATOR_LOG).open("wb") as log:
        try:
            process = subprocess.Popen(
                [*guard, *command],
                cwd=run,
                env={**os.environ, "TERM": "linux", "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        except OSError as error:
            raise HostError(
                f"{command[0]} cannot be run ({error.strerror})", "install its package again"
            ) from error
    started = Emulator(process, run / EMULATOR_LOG)
    try:
        yield started
    finally:
        started.kill()
