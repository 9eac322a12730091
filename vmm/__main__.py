"""The `pageferry` command, also as `python -m vmm`."""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # without typing, whose import takes longer than all of this
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn


INTERRUPTED = 130


def main() -> None:
    """Run the command; what happens while it is being loaded ends in one line as well."""
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, _interrupted)
    command = _load()
    try:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        command(prog_name="pageferry")
    except KeyboardInterrupt:  # before the command hears of it itself
        _end("interrupted", INTERRUPTED)


def _interrupted(number: int, frame: object) -> None:
    """End at once: nothing is open yet, and an import may swallow an exception."""
    try:
        os.write(2, b"pageferry: interrupted\n")
    finally:
        os._exit(INTERRUPTED)


def _load() -> Callable[..., Any]:
    try:
        from vmm.command.cli import main as command
    except ModuleNotFoundError as error:
        _end(f"cannot be loaded: {error}: install the package again (pip install .)", 1)
    except (MemoryError, OSError, ImportError, SystemError) as error:
        # A library that finds no room is an ImportError; a module, at times, a SystemError.
        short = isinstance(error, MemoryError | SystemError)
        why = "out of memory" if short else getattr(error, "strerror", None) or error
        _end(f"cannot be loaded: {why}: raise the limits (ulimit)", 1)
    return command


def _end(line: str, code: int) -> NoReturn:
    try:
        if sys.stderr is not None:
            print(f"pageferry: {line}", file=sys.stderr)
    except OSError:
        pass  # nobody can be told
    sys.exit(code)


if __name__ == "__main__":
    main()
