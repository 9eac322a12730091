"""What Python programs pass as streams of bytes."""

from __future__ import annotations

import io
from typing import Any

from vmm.endpoint.arguments import contiguous, wrong_type
from vmm.endpoint.buffer import Buffer


def source(value: Any, what: str) -> Any:
    """Return what bytes are read from: bytes, of anything that has the buffer protocol, or a binary
    file.
    """
    if hasattr(value, "read"):
        return stream(value, what)
    return bytes(contiguous(value, what))


def stream(value: Any, what: str) -> Any:
    """Return what may be a binary file: anything but a Buffer, whose `read` and `write` are of
    another kind, and a file that is open as text without bytes below.
    """
    if isinstance(value, Buffer) or (
        isinstance(value, io.TextIOBase) and not hasattr(value, "buffer")
    ):
        raise wrong_type(what, "a binary file", value)
    return value
