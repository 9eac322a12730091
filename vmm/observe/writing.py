"""Writing to a descriptor until all is written, also to one that does not block."""

from __future__ import annotations

import os
import select


def write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of the data, and wait where the descriptor takes no more for now.

    Whether a descriptor blocks is a property of the open file, which other processes share: it is
    not ours to change. Raises OSError.
    """
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            room = select.poll()
            room.register(descriptor, select.POLLOUT)
            room.poll()
