"""The emulator's process: started, watched and reaped, whatever happens to us."""

from __future__ import annotations

import contextlib
import os
import pty
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from vmm.errors import HostError
from vmm.nested.lanes import EMULATOR_LOG

_PATIENCE = 5.0  # seconds for the kernel to end a killed process


class Emulator:
    """A running emulator; not for use by several threads."""

    def __init__(self, process: subprocess.Popen[bytes], screen: int | None) -> None:
        self._process = process
        self._screen = screen

    def ended(self) -> int | None:
        """Return how it ended, as `Popen.returncode`; None while it runs.

        To be called often: it also takes what the emulator draws on its screen, and an emulator
        that cannot draw stands still.
        """
        if self._screen is not None:
            with contextlib.suppress(OSError):
                os.read(self._screen, 1 << 16)
        return self._process.poll()

    def kill(self) -> None:
        """End it and reap it; all it has to keep is in its files already."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(_PATIENCE)


@contextlib.contextmanager
def emulator(command: Sequence[str], run: Path, *, screen: bool) -> Iterator[Emulator]:
    """Run an emulator in the directory `run`, in a session of its own.

    It never outlives the block, nor us.

    screen  whether it insists on a terminal to draw on
    """
    # Killed with us, even if we are killed by a signal that cannot be caught. setpriv is part of
    # util-linux.
    guard = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((run / EMULATOR_LOG).open("wb"))
        ours, theirs = _terminal(stack) if screen else (None, None)
        try:
            process = subprocess.Popen(
                [*guard, *command],
                cwd=run,
                env={**os.environ, "TERM": "linux", "LC_ALL": "C"},
                stdin=subprocess.DEVNULL if theirs is None else theirs,
                stdout=log if theirs is None else theirs,
                stderr=log,
                start_new_session=True,
            )
        except OSError as error:
            raise HostError(
                f"{command[0]} cannot be run ({error.strerror})", "install its package again"
            ) from error
        started = Emulator(process, ours)
        stack.callback(started.kill)
        yield started


def _terminal(stack: contextlib.ExitStack) -> tuple[int, int]:
    ours, theirs = pty.openpty()
    stack.callback(os.close, ours)
    stack.callback(os.close, theirs)
    os.set_blocking(ours, False)
    return ours, theirs
