"""Where a call's arguments are copied to: memory that a machine keeps seeing, or for the call."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from vmm.endpoint.buffer import CHUNK, Buffer
from vmm.endpoint.calling import Desk, Kept, Part, Shown
from vmm.endpoint.host import HostEndpoint
from vmm.engine.machine import Machine
from vmm.errors import ClosedError, GuestError, ResourceError
from vmm.ferry.rules import WRITABLE
from vmm.guest.abi import PAGE_SIZE
from vmm.guest.x86 import LARGE_PAGE
from vmm.memory import mapping
from vmm.sandbox import request
from vmm.sandbox.arguments import address_of
from vmm.sandbox.ctype import round_up
from vmm.sandbox.request import Areas, Copied, Seen, Spill, Words

SCRATCH = 256 << 10  # bytes that each machine keeps seeing, once a call of its has needed them
_SPARE = 128 << 20  # bytes of memory for larger copies that are kept from one call to the next
# Bytes from which on they are in huge pages: to clear one takes less than the faults of what is in
# small pages, each of which the machine finds anew in every call.
_HUGE = 128 << 10


class Call(NamedTuple):
    """A call as its messages, and each Copied with where it is.

    kept    whether that is in memory that the machine keeps seeing
    """

    parts: list[Part]
    copies: Sequence[tuple[Copied, int]]
    kept: bool

    @property
    def pointed(self) -> bool:
        """Whether pointers in what is copied are to be written once it is known where that is."""
        return not self.kept and any(one.pointers for one, _ in self.copies)


class Copies:
    """Memory for what one worker's calls copy, in its machine at the time and in the next ones.

    What does not fit a payload goes into `SCRATCH` bytes that are shared with the machine once, and
    not again: sharing, the faults of what is shared, and taking back are most of a small call. What
    is more is shared for the time of the call.

    A machine that is new finds zeros there, and so does each call with `fresh`. Else a machine may
    find what its own earlier calls have left: it could have kept that anyway.

    tidy    frees the memory of arrays that are no more: it may be wanted

    One call at a time; `forget` at any time.
    """

    def __init__(
        self, host: HostEndpoint, desk: Desk, tidy: Callable[[], object], *, fresh: bool
    ) -> None:
        self._host = host
        self._desk = desk
        self._tidy = tidy
        self._fresh = fresh
        self._turns = host._turns
        self._scratch: Buffer | None = None
        self._memory = memoryview(b"")  # of that: used in turns only, as it is not a view of it
        self._keeper: Machine | None = None  # who sees that
        self._kept: Kept | None = None  # and where
        self._spare: Buffer | None = None
        self._seen_by: Machine | None = None  # the last one

    def kept(self, machine: Machine) -> Kept | None:
        """Return what a machine keeps seeing, if anything."""
        return self._kept if self._keeper is machine else None

    def place(
        self,
        machine: Machine,
        words: Words,
        seen: Sequence[Seen],
        copied: Sequence[Copied],
        shared: Areas,
    ) -> Call:
        """Return the messages of a call that does not fit them. If what it copies is for memory
        that is kept, it is to be put there by `fill`; else it is there.

        Raises ResourceError if there is no memory. What is raised otherwise, as Ctrl-C does, may
        have left the machine with something: it is to be removed.
        """
        copies, size = request.laid_out(copied)
        if size <= SCRATCH and request.fits(words, seen):
            kept = self.kept(machine) or self._keep(machine)
            if kept is not None:
                parts = request.kept(words, seen, copies, shared, kept.address)
                return Call(parts, copies, kept=True)
        buffer, size = self._room(request.spilled_size(words, seen, copied))
        extent = buffer.extent._replace(pages=size // PAGE_SIZE)
        parts, spill = request.spilled(words, seen, copied, shared, extent)
        self._write(machine, buffer, spill, size)
        return Call(parts, spill.copies, kept=False)

    def fill(self, machine: Machine, call: Call | None) -> Callable[[], object] | None:
        """Return what is to be called in the turn in which a call is asked for, if anything."""
        if call is not None and call.kept:
            return partial(self._fill, call.copies)
        if self._fresh and self.kept(machine) is not None:  # it sees that, whatever the call has
            return partial(self._fill, ())
        return None

    def point(self, call: Call, shown: Sequence[Shown]) -> None:
        """Let pointers in what is copied, and is shared for the call, point to where that is in the
        machine: the call has been asked for, and the machine has not run.
        """
        buffer = self._spare
        if buffer is None:
            raise ClosedError("the sandbox has been closed")
        page = buffer.extent.page
        start = next(each.start for each in shown if each.extent.page == page)
        for one, at in call.copies:
            if one.pointers:
                buffer.write(_words(one, start + at), at)

    def copy_back(self, call: Call) -> None:
        """Copy what is not `const` back to where it came from. Raises ClosedError."""
        back = [(one.data, at) for one, at in call.copies if not one.const]
        if not back:
            return
        if call.kept:
            turns = self._turns
            with turns.telling, turns.lock, turns.change:
                for data, at in back:
                    data[:] = self._memory[at : at + len(data)]
            return
        buffer = self._spare
        if buffer is None:
            raise ClosedError("the sandbox has been closed")
        for data, at in back:  # not by a copy, whose page faults would cost more than all else
            target, size = address_of(data), len(data)
            for done in range(0, size, CHUNK):
                buffer._copy_to(target + done, at + done, min(CHUNK, size - done))

    def trim(self) -> None:
        """Give back what is more than is kept from one call to the next."""
        if self._spare is not None and self._spare.size > _SPARE:
            self.drop()

    def forget(self) -> None:
        """Know of nothing any more: the monitor has been closed."""
        self._scratch = self._spare = None
        self._keeper = self._kept = self._seen_by = None

    # ---- What is kept ----

    def _keep(self, machine: Machine) -> Kept | None:
        """Have a machine that waits for a call see memory for copies; None if that cannot be."""
        try:
            self._take(clear=self._scratch is not None)
            if self._scratch is None:
                return None
            kept = self._desk.keep(machine, self._scratch.extent)
        except (ResourceError, GuestError):
            return None
        self._kept = kept
        self._keeper = machine
        return kept

    def _take(self, *, clear: bool) -> None:
        """Have memory to be kept: zeros. What other machines have left there is to be cleared."""
        if self._scratch is None:
            self._alloc(SCRATCH, self._store_scratch)
        buffer, turns = self._scratch, self._turns
        with turns.telling, turns.lock, turns.change:
            if buffer is not None:
                self._memory = buffer._window.view(buffer.extent, WRITABLE, 0, SCRATCH)
                if clear:
                    self._wipe()

    def _alloc(self, size: int, store: Callable[[Buffer | None], object]) -> None:
        """Have memory stored in the very turn in which it is the host's. Raises ResourceError."""
        self._tidy()
        self._host._alloc(size, store=store)

    def _store_scratch(self, buffer: Buffer | None) -> None:
        self._scratch = buffer

    def _wipe(self) -> None:
        mapping.clear(ctypes.addressof(ctypes.c_char.from_buffer(self._memory)), SCRATCH)

    def _fill(self, copies: Sequence[tuple[Copied, int]]) -> None:
        """Put copies where the machine keeps seeing them. In a turn."""
        memory = self._memory
        if self._fresh:
            self._wipe()
        for one, at in copies:
            memory[at : at + len(one.data)] = one.data
            if one.pointers and self._kept is not None:
                words = _words(one, self._kept.address + at)
                memory[at : at + len(words)] = words

    # ---- What is shared for a call ----

    def _write(self, machine: Machine, buffer: Buffer, spill: Spill, size: int) -> None:
        # What an earlier call has left there is nobody's but the machine's that had it.
        clears, self._seen_by = self._fresh or self._seen_by is not machine, machine
        at = 0
        placed = [(memoryview(spill.head), 0), *((one.data, at) for one, at in spill.copies)]
        for data, start in placed:
            if clears and start > at:
                buffer.write(bytes(start - at), at)
            buffer.write(data, start)
            at = max(at, start + len(data))
        if clears:
            buffer.write(bytes(size - at), at)

    def _room(self, least: int) -> tuple[Buffer, int]:
        """Return memory for copies, and how much of it to share. Raises ResourceError."""
        whole = round_up(least, LARGE_PAGE if least >= _HUGE else PAGE_SIZE)
        spare = self._spare
        if spare is None or spare._extent is None or spare.size < whole:
            self.drop()
            try:
                self._alloc(whole, self._store_spare)
            except ResourceError:
                whole = round_up(least, PAGE_SIZE)
                self._alloc(whole, self._store_spare)
        if self._spare is None:
            raise ClosedError("the sandbox has been closed")
        return self._spare, whole

    def _store_spare(self, buffer: Buffer | None) -> None:
        self._spare = buffer

    def drop(self) -> None:
        """Give back the memory of larger copies."""
        buffer = self._spare
        if buffer is not None and buffer._extent is not None:  # it was cut off just after that
            self._host.release(buffer)
        self._spare = None


def _words(one: Copied, address: int) -> bytes:
    """Return the pointers that something begins with which is at an address of the machine's."""
    values = [address + offset if offset else 0 for offset in one.pointers]
    return struct.pack(f"<{len(values)}Q", *values)
