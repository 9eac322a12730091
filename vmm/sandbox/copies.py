"""Where a call's arguments are copied to, if its message has no room: memory of the host's that the
machine sees.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

from vmm.endpoint.buffer import CHUNK, Buffer
from vmm.endpoint.host import HostEndpoint
from vmm.engine.machine import Machine
from vmm.errors import ClosedError, ResourceError
from vmm.ferry.rules import WRITABLE
from vmm.guest.abi import PAGE_SIZE
from vmm.guest.x86 import LARGE_PAGE
from vmm.memory import mapping
from vmm.memory.runs import Extent
from vmm.sandbox.arguments import address_of
from vmm.sandbox.ctype import round_up
from vmm.sandbox.request import Asked, Laid

T = TypeVar("T")

SCRATCH = 256 << 10  # bytes that a machine goes on seeing, once a call of its has needed them
_SPARE = 128 << 20  # bytes of memory for larger copies that are kept from one call to the next
# Bytes from which on they are in huge pages: to clear one takes less than the faults of what is in
# small pages.
_HUGE = 128 << 10


class Copies:
    """Memory for what one worker's calls copy, in its machine at the time and in the next ones: of
    `SCRATCH` bytes, and what is more in as much as it takes.

    A machine goes on seeing what it has been given, as it does arrays; with `fresh` the larger one
    for one call only. It finds zeros there when it is new, and with `fresh` in each call. Else it
    may find what its own earlier calls have left: it could have kept that anyway.

    tidy    frees the memory of arrays that are no more: it may be wanted
    others  has free workers give back theirs: whether any did

    One call at a time; `forget` at any time.
    """

    def __init__(self, host: HostEndpoint, tidy: Callable[[], object], *, fresh: bool) -> None:
        self._host = host
        self._tidy = tidy
        self.others: Callable[[], bool] = _nobody
        self._fresh = fresh
        self._turns = host._turns
        self._scratch: Buffer | None = None
        self._memory = memoryview(b"")  # of that: used in turns only, as it is not a view of it
        self._spare: Buffer | None = None
        self._keeper: Machine | None = None  # who has been given
        self._kept = False  # the scratch,
        self._size = 0  # and so much of the spare,
        self._clean = 0  # of which so much has nothing of another machine's

    def room(self, machine: Machine, least: int) -> Buffer:
        """Return memory for so many bytes, which the machine is to see from now on.

        Raises ResourceError, ClosedError.
        """
        if self._keeper is not machine:
            self._keeper, self._kept, self._size, self._clean = machine, False, 0, 0
        if least <= SCRATCH:
            if not self._kept:
                self._take()
                self._kept = True
            if self._scratch is not None:
                return self._scratch
        return self._large(least)

    def extents(self, machine: Machine, used: Buffer | None) -> list[tuple[Extent, bool]]:
        """Return what the machine is to see in a call that uses this, or none."""
        if self._keeper is not machine:
            return []
        found, scratch, spare = list[tuple[Extent, bool]](), self._scratch, self._spare
        if scratch is not None and self._kept:
            found.append((scratch.extent, True))
        size = self._size
        if used is not spare:  # a call that had it has been refused, perhaps, and not cleared it
            size = 0 if self._fresh else min(size, self._clean)
        if spare is not None and size:
            found.append((spare.extent._replace(pages=size // PAGE_SIZE), True))
        return found

    def fill(
        self, machine: Machine, used: Buffer | None, asked: Asked, address: int
    ) -> Callable[[], object] | None:
        """Put what a call copies into the memory that it uses, at an address of the machine's.

        Return what is left to be done in the turn in which the call is asked for, if anything.
        """
        if used is not None and used is not self._scratch:
            self._write(used, asked, address)
        elif used is not None:
            return partial(self._fill, asked, address)
        return self.wiping(machine) if self._fresh else None

    def wiping(self, machine: Machine) -> Callable[[], object] | None:
        """Return what is to be done in that turn with `fresh` if the call uses none of it: it sees
        that in any case.
        """
        return self._wipe if self._kept and self._keeper is machine else None

    def copy_back(self, used: Buffer, laid: Laid) -> None:
        """Copy what is not `const` back to where it came from. Raises ClosedError."""
        back = [(one.data, at) for one, at in laid.copies if not one.const]
        if not back:
            return
        if used is self._scratch:
            turns = self._turns
            with turns.telling, turns.lock, turns.change:
                for data, at in back:
                    data[:] = self._memory[at : at + len(data)]
            return
        for data, at in back:  # not by a copy, whose page faults would cost more than all else
            target, size = address_of(data), len(data)
            for done in range(0, size, CHUNK):
                used._copy_to(target + done, at + done, min(CHUNK, size - done))

    def trim(self) -> None:
        """Give back what is more than is kept from one call to the next."""
        if self._spare is not None and self._spare.size > _SPARE:
            self.drop()

    def drop(self) -> bool:
        """Give back the memory of larger copies. False if there is none."""
        self._turns.settle()  # what was cut off may have stored some
        buffer = self._spare
        there = buffer is not None and buffer._extent is not None  # else it was cut off after that
        if buffer is not None and there:
            self._host.release(buffer)
        self._spare, self._size, self._clean = None, 0, 0
        return there

    def forget(self) -> None:
        """Know of nothing any more: the monitor has been closed."""
        self._scratch = self._spare = self._keeper = None

    # ---- For what is small ----

    def _take(self) -> None:
        """Have the scratch: zeros. What other machines have left there is to be cleared."""
        self._turns.settle()  # one that was cut off may have stored what it did not get
        clear = self._scratch is not None
        if not clear:
            try:
                self._alloc(SCRATCH, self._store_scratch)
            except ResourceError:
                return
        buffer, turns = self._scratch, self._turns
        with turns.telling, turns.lock, turns.change:
            if buffer is not None:
                self._memory = buffer._window.view(buffer.extent, WRITABLE, 0, SCRATCH)
                if clear:
                    self._wipe()

    def _alloc(self, size: int, store: Callable[[Buffer | None], object]) -> None:
        """Have memory stored in the very turn in which it is the host's. Raises ResourceError."""
        self._tidy()
        found_or_had(lambda: self._host._alloc(size, store=store), self.others)

    def _store_scratch(self, buffer: Buffer | None) -> None:
        self._scratch = buffer

    def _wipe(self) -> None:
        mapping.clear(ctypes.addressof(ctypes.c_char.from_buffer(self._memory)), SCRATCH)

    def _fill(self, asked: Asked, address: int) -> None:
        """Put a call's copies into the scratch. In a turn."""
        memory = self._memory
        if self._fresh:
            self._wipe()
        for data, at in (*_placed(asked), *_pointers(asked, address)):
            memory[at : at + len(data)] = data

    # ---- For what is more ----

    def _large(self, least: int) -> Buffer:
        whole = round_up(least, LARGE_PAGE if least >= _HUGE else PAGE_SIZE)
        self._turns.settle()  # as above
        spare = self._spare
        if spare is None or spare._extent is None or spare.size < whole:
            self.drop()
            try:
                self._alloc(whole, self._store_spare)
            except ResourceError:
                whole = round_up(least, PAGE_SIZE)
                self._alloc(whole, self._store_spare)
            self._clean = whole
        if self._spare is None:
            raise ClosedError("the sandbox has been closed")
        self._size = whole if self._fresh else max(whole, self._size)
        return self._spare

    def _store_spare(self, buffer: Buffer | None) -> None:
        self._spare = buffer

    def _write(self, buffer: Buffer, asked: Asked, address: int) -> None:
        """Put a call's copies there, and zeros where others have left something."""
        clean, at = 0 if self._fresh else self._clean, 0
        for data, start in _placed(asked):
            _clear(buffer, max(at, clean), start)
            buffer.write(data, start)
            at = max(at, start + len(data))
        _clear(buffer, max(at, clean), self._size)
        for data, start in _pointers(asked, address):
            buffer.write(data, start)
        self._clean = max(self._size, self._clean)


def found_or_had(alloc: Callable[[], T], others: Callable[[], bool]) -> T:
    """Return memory, also if others have to give it back first. Raises ResourceError."""
    try:
        return alloc()
    except ResourceError:
        if not others():
            raise
        return alloc()


def _nobody() -> bool:
    return False


def _clear(buffer: Buffer, start: int, end: int) -> None:
    if end > start:
        buffer.write(bytes(end - start), start)


def _placed(asked: Asked) -> list[tuple[memoryview | bytes, int]]:
    """Return what is copied, and where to, in order."""
    return [(asked.head, 0), *((one.data, at) for one, at in asked.laid.copies)]


def _pointers(asked: Asked, address: int) -> Iterator[tuple[bytes, int]]:
    """Yield pointers that copies at an address of the machine's begin with, and where they are."""
    for one, at in asked.laid.copies:
        if one.pointers:
            words = [address + at + offset if offset else 0 for offset in one.pointers]
            yield struct.pack(f"<{len(words)}Q", *words), at
