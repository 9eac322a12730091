"""The `pageferry` command, also as `python -m vmm`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any, NoReturn


def main() -> None:
    """Run the command; what happens while it is being loaded ends in one line as well."""
    try:
        _load()(prog_name="pageferry")
    except KeyboardInterrupt:  # before the command hears of it itself
        _end("interrupted", 130)


def _load() -> Callable[..., Any]:
    try:
        from vmm.command.cli import main as command
    except ModuleNotFoundError as error:
        _end(f"cannot be loaded: {error}: install the package again (pip install .)", 1)
    except (MemoryError, OSError, ImportError, SystemError) as error:
        # A library that finds no room is an ImportError; a module, at times, a SystemError.
        why = "out of memory" if isinstance(error, MemoryError | SystemError) else error
        _end(f"cannot be loaded: {why}: raise the limits (ulimit)", 1)
    return command


def _end(line: str, code: int) -> NoReturn:
    with contextlib.suppress(OSError):
        if sys.stderr is not None:
            print(f"pageferry: {line}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
