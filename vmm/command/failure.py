"""How the command ends when something goes wrong: one line that says what to do, an exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

import click

from vmm.command import streams
from vmm.errors import ADVICE, GuestFault, HostError, PageferryError
from vmm.guest.compiler import BuildError
from vmm.guest.text import printable

# Exit codes besides 0 and a guest's own; see docs/cli.md.
EXIT_FAILED = 1
EXIT_USAGE = 2  # as click says of a command line that is wrong
EXIT_HOST = 69  # sysexits.h EX_UNAVAILABLE: this host cannot run machines
EXIT_FAULT = 70  # EX_SOFTWARE: a guest was stopped by a fault
EXIT_TIMEOUT = 124  # as timeout(1)
EXIT_INTERRUPTED = 130  # as a shell says of SIGINT

# Of files that are written; what else the kernel refuses is limits'.
_ADVICE = ADVICE | {errno.ENOSPC: "free some space, or write elsewhere"}


class Failure(click.ClickException):
    """What ends the command: a line on standard error, and an exit code.

    details  the text of another program, such as a compiler: shown below, with its own lines
    """

    def __init__(self, message: str, code: int, details: str = "") -> None:
        super().__init__(printable(" ".join(message.split())))
        self.exit_code = code  # type: ignore[misc]  # click: a class's, unless set, as its own do
        self.details = "\n".join(map(printable, details.splitlines()))

    def show(self, file: Any = None) -> None:
        text = f"pageferry: {self.message}"
        click.echo(f"{text}\n{self.details}" if self.details else text, file=file or sys.stderr)


def failure(error: BaseException) -> Failure:
    """Return the failure that stands for an error."""
    if isinstance(error, HostError):
        return Failure(str(error), EXIT_HOST)
    if isinstance(error, GuestFault):
        return Failure(str(error), EXIT_TIMEOUT if error.kind == "timeout" else EXIT_FAULT)
    if isinstance(error, MemoryError):
        return Failure(f"out of memory: {ADVICE[errno.ENOMEM]}", EXIT_FAILED)
    if isinstance(error, RuntimeError):
        error = OSError(errno.EAGAIN, "cannot start a thread")
    if isinstance(error, BuildError):
        message, _, details = str(error).partition("\n")
        return Failure(message, EXIT_FAILED, details)
    if isinstance(error, OSError) and not isinstance(error, PageferryError):
        return Failure(_system(error), EXIT_FAILED)
    return Failure(str(error), EXIT_FAILED)


def _system(error: OSError) -> str:
    about = "" if error.filename is None else f"{_name(error.filename)}: "
    advice = _ADVICE.get(error.errno or 0)
    if error.errno == errno.ENOENT and not about and not _has_directory():
        about, advice = "the current directory: ", "change to one that is there"
    text = about + (error.strerror or str(error))
    return text if advice is None else f"{text}: {advice}"


def _name(file: str | bytes | int) -> str:
    return f"descriptor {file}" if isinstance(file, int) else os.fsdecode(file)


def _has_directory() -> bool:
    """Whether the directory that the command runs in is still there."""
    try:
        os.getcwd()  # noqa: PTH109 - which is all that Path.cwd does
    except OSError:
        return False
    return True


class _Interrupt:
    """Ctrl-C. The first one raises KeyboardInterrupt, and the process ends whatever comes of that.

    It is raised at any point, also inside what closes things: what else goes wrong then is not
    news, a thread left behind must not keep the process, and where Python swallows it (in the
    callback of a weak reference) it must be heard all the same. A second one ends the process at
    once; so does one when the command is done and the interpreter ends.
    """

    GRACE = 5  # seconds for closing what was interrupted

    def __init__(self) -> None:
        self.happened = False

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Handle SIGINT in the block, unless whoever runs us does, or wants it ignored."""
        if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield
            return
        signal.signal(signal.SIGINT, self._interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.happened = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGALRM, self._overdue)
        signal.alarm(self.GRACE)
        sys.unraisablehook = lambda _: None
        threading.excepthook = lambda _: None
        raise KeyboardInterrupt

    def _overdue(self, number: int, frame: FrameType | None) -> None:
        self.end()

    def end(self) -> NoReturn:
        """End the process with the line and the code of an interruption."""
        try:
            Failure("interrupted", EXIT_INTERRUPTED).show()
            sys.stdout.flush()
        finally:
            os._exit(EXIT_INTERRUPTED)


_interrupt = _Interrupt()


@contextlib.contextmanager
def expected_errors() -> Iterator[None]:
    """Raise every expected error as a Failure; what is left is a bug, and shows itself."""
    try:
        yield
    except BaseException as error:
        if _interrupt.happened:
            _interrupt.end()
        if _is_expected(error):
            raise failure(error) from error
        if isinstance(error, click.UsageError) and error.message:  # it may name a file
            error.message = printable(error.message)  # type: ignore[misc]  # as above
        raise


def _is_expected(error: BaseException) -> bool:
    if isinstance(error, BrokenPipeError):
        return False  # click ends quietly when its reader has gone
    if isinstance(error, RuntimeError):
        return str(error) == "can't start new thread"
    return isinstance(error, PageferryError | BuildError | MemoryError | OSError)


class Group(click.Group):
    """A command group that ends with one line and an exit code, whatever is expected to happen."""

    def main(self, *args: Any, **options: Any) -> Any:
        try:
            with _interrupt.heard():
                streams.prepare()
                return super().main(*args, **options)
        finally:
            if _interrupt.happened:
                _interrupt.end()

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        with expected_errors():
            return super().make_context(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        with expected_errors():
            return super().invoke(ctx)
