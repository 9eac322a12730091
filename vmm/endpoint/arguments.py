"""What Python programs pass, made into what the monitor works with, or refused at the call.

Each function takes the argument and its name, which its error says. Raises ArgumentTypeError, which
is a TypeError, for what is of no fitting type, and ConfigError, a ValueError, for what cannot be
meant. They may call code of the caller's (`__index__`, `__float__`, `__buffer__`): never under the
monitor's lock.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Sequence
from typing import Any

from vmm.engine.machine import Machine
from vmm.errors import ArgumentTypeError, ConfigError, PageferryError
from vmm.ferry.exchange import Exchange


def wrong_type(what: str, wanted: str, value: object) -> ArgumentTypeError:
    """Return the error that says what an argument must be, and is not."""
    return ArgumentTypeError(f"{what} must be {wanted}, not {type(value).__name__}")


def contiguous(data: Any, what: str) -> memoryview:
    """Return the bytes of anything that has the buffer protocol, in C's order, as one row.

    The view is of the object itself where its format allows that, else of a copy. Raises
    BufferError if it is not contiguous, cannot be read, or holds objects or pointers: addresses are
    no guest's business.
    """
    if isinstance(data, str):
        raise ArgumentTypeError(f"{what} is text, not bytes: encode it ({what}.encode())")
    try:
        view = memoryview(data)
    except TypeError:
        wanted = "bytes, or have the buffer protocol"
        raise wrong_type(what, wanted, data) from None
    except (BufferError, ValueError, PageferryError) as error:  # it may be a Buffer
        raise BufferError(f"{what} cannot be read: {error}") from error
    if "O" in view.format or "P" in view.format:
        raise BufferError(f"{what} holds references of this process, not bytes: convert it first")
    if not view.c_contiguous:
        raise BufferError(f"{what} is not contiguous: copy it first (numpy.ascontiguousarray)")
    try:
        return view.cast("B") if view.nbytes else memoryview(b"")
    except (TypeError, ValueError):  # a structure, or of the other byte order
        return memoryview(view.tobytes())


def seconds(value: Any, what: str) -> float | None:
    """Return a time in seconds from whatever has `__float__`; None for None and what is for ever.

    0 is one; NaN and what is negative are refused.
    """
    if value is None:
        return None
    try:
        if isinstance(value, bool | str | bytes | bytearray):
            raise TypeError
        number = float(value)
    except TypeError:
        raise wrong_type(what, "a number of seconds or None", value) from None
    except OverflowError:
        number = math.inf if value > 0 else -math.inf
    except ValueError:
        number = math.nan
    if not number >= 0:
        raise ConfigError(f"{what} {number} is not a number of seconds: give 0, or more")
    return None if number > threading.TIMEOUT_MAX else number


def flag(value: Any, what: str) -> bool:
    """Return True or False, which is all that is taken."""
    if not isinstance(value, bool):
        raise wrong_type(what, "True or False", value)
    return value


def text(value: Any, what: str) -> str:
    """Return text: a plain str, whatever a subclass would do."""
    if not isinstance(value, str):
        raise wrong_type(what, "text", value)
    return str.__str__(value)


def one_line(value: Any, what: str) -> str:
    """Return text as one line of what can be printed."""
    words = " ".join(text(value, what).split())
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words)


def choice(value: Any, what: str, choices: Sequence[str]) -> str:
    """Return one of several names."""
    name = text(value, what)
    if name not in choices:
        raise ConfigError(f"{what} {name!r} is none of {', '.join(choices)}")
    return name


def file_path(value: Any, what: str, *, plain: bool = False) -> str:
    """Return the path that text, bytes or a path object are.

    plain   whether it is to be of characters that can be printed, as those of devices are
    """
    try:
        path = os.fsdecode(value)
    except TypeError:
        raise wrong_type(what, "a path", value) from None
    if not path:
        raise ConfigError(f"{what} is empty: give the path of a file")
    if "\0" in path:
        raise ConfigError(f"{what} {path!r} has a zero byte in it, which no path has")
    if plain and not path.isprintable():
        raise ConfigError(f"{what} {path!r} cannot be the path of one")
    return path


def function(value: Any, what: str) -> Any:
    """Return what can be called."""
    if not callable(value):
        raise wrong_type(what, "a function", value)
    return value


def check_machine(value: Any, what: str, exchange: Exchange) -> None:
    """Raise an error if it is no machine, or one of another monitor, which has another exchange."""
    if not isinstance(value, Machine):
        raise wrong_type(what, "a vmm.Machine", value)
    if value.exchange is not exchange:
        raise ConfigError(f"{what} {value.name!r} is a machine of another monitor")
