"""Python processes that need not start: forked from one that has imported everything already.

For the nested lanes. On an emulated processor it is Python's own start, with all that the command
imports, that takes a test's time: ten seconds and more, against half a second for what is tested.

A process made here is what `python -c CODE ARGUMENTS…` would be: it runs CODE as its main program,
with the descriptors, the environment and the directory asked for, and ends as an interpreter ends.
Only what it has imported by then, it has not imported itself.

Run as a program, this file is the server: `forkserver.py SOCKET`, a descriptor.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import functools
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

_PRELOADED = ("vmm.command.cli",)
_REQUEST_BYTES = 1 << 20
_HIGH = 200  # descriptors from here on are out of the way of those that a process is to have
_PR_SET_CHILD_SUBREAPER = 36
_POLL_SECONDS = 0.005


# ---- The tests' side ----


class Process:
    """A process of `python -c`, with as much of subprocess.Popen as the tests use.

    It has no input. What it writes is collected in files, so that nobody has to read while it runs.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
        cwd: Path | None = None,
        pass_fds: Sequence[int] = (),
        start_new_session: bool = False,
    ) -> None:
        assert command[:2] == [sys.executable, "-c"], "only Python programs can be forked"
        self.returncode: int | None = None
        self._out, self._err = _sink(stdout), _sink(stderr)
        request = {
            "argv": ["-c", *command[3:]],
            "code": command[2],
            "env": dict(env),
            "cwd": str(cwd or Path.cwd()),
            "session": start_new_session,
            "ignore_sigint": signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
            "descriptors": [0, 1, 2, *pass_fds],
        }
        with Path(os.devnull).open() as null:
            fds = [null.fileno(), _descriptor(self._out), _descriptor(self._err), *pass_fds]
            self.pid = _ask(request, fds)

    def poll(self) -> int | None:
        """Return how it ended, None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def kill(self) -> None:
        """End it, if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises TimeoutExpired."""
        until = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired("python -c", timeout or 0)
            time.sleep(_POLL_SECONDS)
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end; return what it wrote, as text."""
        self.wait(timeout)
        return _text(self._out), _text(self._err)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        for sink in (self._out, self._err):
            if not isinstance(sink, int):
                sink.close()


def _sink(wanted: int) -> IO[bytes] | int:
    if wanted != subprocess.PIPE:
        return wanted
    return os.fdopen(os.memfd_create("collected", os.MFD_CLOEXEC), "r+b")


def _descriptor(sink: IO[bytes] | int) -> int:
    return sink if isinstance(sink, int) else sink.fileno()


def _text(sink: IO[bytes] | int) -> str:
    if isinstance(sink, int):
        return ""
    sink.seek(0)
    return sink.read().decode(errors="surrogateescape")


@functools.cache
def server() -> socket.socket:
    """Start the server, once for all tests: to be called before one that counts descriptors."""
    # Whom a forked process leaves behind comes to us, and not to init: so we can wait for them.
    if ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError("prctl(PR_SET_CHILD_SUBREAPER) was refused")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def _ask(request: dict[str, Any], fds: list[int]) -> int:
    """Have a process made; return its number. It is a child of ours by then."""
    socket.send_fds(server(), [json.dumps(request).encode()], fds)
    answer = server().recv(64)
    if not answer:
        raise RuntimeError("the fork server has ended")
    return int(answer)


# ---- The server's side ----


def _serve(tests: socket.socket) -> dict[str, Any]:
    """Make processes until the tests have ended; return, with what was asked, in each one made."""
    while True:
        text, fds, _, _ = socket.recv_fds(tests, _REQUEST_BYTES, 64)
        if not text:
            sys.exit(0)
        between = os.fork()
        if between == 0:
            _leave_an_orphan()
            request: dict[str, Any] = json.loads(text)
            _become(request, fds)
            tests.send(str(os.getpid()).encode())
            tests.close()
            return request
        for fd in fds:
            os.close(fd)
        os.waitpid(between, 0)


def _leave_an_orphan() -> None:
    """Fork again and end; return in the child once it has become one of the tests'."""
    between = os.getpid()
    if os.fork():
        os._exit(0)
    while os.getppid() == between:
        time.sleep(0.001)


def _become(request: dict[str, Any], fds: list[int]) -> None:
    """Be the process that was asked for, as far as the kernel and Python's own start see it."""
    if request["session"]:
        os.setsid()
    if request["ignore_sigint"]:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH) for fd in fds]
    for fd in fds:
        os.close(fd)
    for fd, wanted in zip(high, request["descriptors"], strict=True):
        os.dup2(fd, wanted)
        os.close(fd)
    for name, fd, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        errors = "backslashreplace" if fd == 2 else "surrogateescape"
        stream = open(fd, mode, encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.argv, sys.path[0] = request["argv"], ""


def _prepare() -> None:
    """Import what the command imports, and find out about the host, which stays as it is."""
    for name in _PRELOADED:
        importlib.import_module(name)
    with contextlib.suppress(Exception):  # a process will find the same, and say so
        importlib.import_module("vmm.host").inspect()
    gc.collect()
    gc.freeze()  # or each process would copy all of it, to count references


if __name__ == "__main__":
    _prepare()
    # From here on only a process that was made, and as its main program: it ends as that ends.
    wanted = _serve(socket.socket(fileno=int(sys.argv[1])))
    exec(compile(wanted["code"], "<string>", "exec"), {"__name__": "__main__"})
