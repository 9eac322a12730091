"""Programs with musl, built while other tests run: ziglang builds its libraries first, and that
takes a minute or two where it never has.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent

_started: list[subprocess.Popen[bytes]] = []


def begin() -> None:
    """Begin to build. A test that wants one of them before it is there builds it, too, and waits
    for what both need: ziglang's cache has locks.
    """
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    code = "import linux_programs; linux_programs.build_linux_programs(['musl'])"
    _started.append(
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    )


def end() -> None:
    """Let go of what has not been built by now: it is nobody's any more."""
    while _started:
        process = _started.pop()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()
