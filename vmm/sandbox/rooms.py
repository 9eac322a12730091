"""Arrays that have the rest of their last huge page to themselves.

A machine maps what is shared with it by huge pages only where whole ones are shared; what is left
costs it a fault for each 4 KiB, in every call. So an array of more than a few of these has memory
up to a multiple of 2 MiB, and a call that is given the end of it shares that as well. Nobody else's
bytes are ever there. It is zeros to a machine that has not been given the array before, and to each
call of one that is to be fresh.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakValueDictionary

from vmm.endpoint.buffer import Buffer
from vmm.endpoint.host import HostEndpoint
from vmm.errors import ResourceError
from vmm.ferry.rules import WRITABLE
from vmm.guest.abi import PAGE_SIZE
from vmm.guest.x86 import LARGE_PAGE
from vmm.memory import mapping
from vmm.memory.runs import Extent
from vmm.sizes import pages_for, parse_size

LEAST = 512 << 10  # bytes of such an array: it takes four times as much at most
_REST = 128 << 10  # bytes beyond whole huge pages whose faults are worth another one
_SEVERAL = -1  # machines
_LARGE = LARGE_PAGE // PAGE_SIZE


class Rooms:
    """The arrays of one sandbox that have such memory. Thread-safe.

    roomy    whether there are any: elsewhere there are no huge pages, or shared ones as well
    """

    def __init__(self, host: HostEndpoint, *, roomy: bool) -> None:
        self._host = host
        self._roomy = roomy
        # By the huge page that they end in. One that has been given back is not looked at.
        self._buffers: WeakValueDictionary[int, Buffer] = WeakValueDictionary()
        self._written: dict[int, int] = {}  # by which machine the rest may have been

    def alloc(self, count: int) -> Buffer:
        """Return memory for an array. Raises as `HostEndpoint.alloc` does."""
        count = parse_size(count, "buffer size")
        host, pages = self._host, -(-count // LARGE_PAGE) * _LARGE
        pays = self._roomy and count >= LEAST and count % LARGE_PAGE >= _REST
        if not pays or self._scarce(pages):
            return host._alloc(count)
        try:
            buffer = host._alloc(count, pages)
        except ResourceError:
            return host._alloc(count)
        if buffer.extent.page % _LARGE == 0:
            block = buffer.extent.end // _LARGE - 1
            self._written.pop(block, None)
            self._buffers[block] = buffer
        return buffer

    def _scarce(self, pages: int) -> bool:
        """Whether more than half of the pool would be in use."""
        ledger, number = self._host._exchange.ledger, self._host.peer.number
        return ledger.shares.available(number) - pages < ledger.pool.total // 2

    def _ending_in(self, block: int) -> Buffer | None:
        buffer = self._buffers.get(block)
        if buffer is None or buffer._extent is None or buffer._extent.end != (block + 1) * _LARGE:
            return None
        return buffer

    def end(self, first: int, end: int) -> int:
        """Return where pages of the host's window end that are to be shared in the place of
        first..end.
        """
        block = (end - 1) // _LARGE
        buffer = self._ending_in(block)
        if buffer is None or first > block * _LARGE:
            return end
        whole = buffer.extent
        return whole.end if end == whole.page + pages_for(buffer.size) else end

    def clear(self, extents: Sequence[tuple[Extent, bool]], machine: int, *, fresh: bool) -> None:
        """Let what is shared beyond arrays be zeros, if another machine may have written there, or
        the same in another call and is to be `fresh`. In the turn in which a call is asked for.
        """
        for extent, writable in extents:
            block = extent.end // _LARGE - 1
            buffer = self._ending_in(block) if extent.end % _LARGE == 0 else None
            if buffer is None:
                continue
            before = self._written.get(block)
            if before is not None and (fresh or before != machine):
                used = pages_for(buffer.size)
                rest = Extent(buffer.extent.page + used, buffer.extent.pages - used)
                mapping.clear(buffer._window.address(rest, WRITABLE), rest.pages * PAGE_SIZE)
            if writable:  # another one may be at it still, in a call of its own
                self._written[block] = machine if before in (None, machine) else _SEVERAL
