"""Memory that calls share, and whose arrays are gone."""

from __future__ import annotations

from collections import deque
from typing import SupportsIndex

from vmm.endpoint import Buffer
from vmm.endpoint.host import HostEndpoint
from vmm.errors import ClosedError, GuestError, LiveViewError

Size = SupportsIndex | str


class Unused:
    """The memory of arrays that are no more; slices of them may be left. Any thread may use it."""

    def __init__(self) -> None:
        self._buffers: deque[Buffer] | None = deque()

    def note(self, buffer: Buffer) -> None:
        """Called by the garbage collector: whenever, and wherever."""
        if self._buffers is not None:
            self._buffers.append(buffer)

    def alloc(self, host: HostEndpoint, size: Size) -> Buffer:
        """Return memory, some of this perhaps. Raises as `host.alloc` does."""
        self.release(host)
        return host.alloc(size)

    def release(self, host: HostEndpoint) -> None:
        """Give back what nobody has a slice of."""
        for buffer in self._taken():
            try:
                host.release(buffer)
            except ClosedError:  # it has been
                pass
            except (LiveViewError, GuestError):  # a slice is left, or a call has it
                self.note(buffer)

    def _taken(self) -> list[Buffer]:
        buffers, found = self._buffers, list[Buffer]()
        while buffers:
            found.append(buffers.popleft())
        return found

    def close(self) -> None:
        """Know of none from now on: addresses are kept for as long as their buffers are."""
        self._buffers = None
