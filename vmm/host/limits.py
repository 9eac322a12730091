"""The kernel's limits on what a process may have: an error that says which, and what to do."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from vmm.errors import ADVICE, LimitError, PageferryError

_NO_THREAD = "can't start new thread"  # what CPython says, in a RuntimeError


@contextlib.contextmanager
def reported(what: str) -> Iterator[None]:
    """Raise a LimitError for a limit that is reached in the block; other errors are left alone.

    what    what is being made
    """
    try:
        yield
    except PageferryError:
        raise
    except OSError as error:
        code = error.errno or 0
        if code not in ADVICE:
            raise
        raise LimitError(f"{what}: {_words(error, code)}: {ADVICE[code]}", code) from error
    except RuntimeError as error:
        if str(error) != _NO_THREAD:
            raise
        code = errno.EAGAIN
        raise LimitError(f"{what}: no thread can be started: {ADVICE[code]}", code) from error


def _words(error: OSError, code: int) -> str:
    return " ".join((error.strerror or os.strerror(code)).split())
