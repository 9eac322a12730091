"""The one place where a program's pointers are checked: against its map, or its window's ledger."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator

from vmm.guest import abi, x86
from vmm.guest.abi import PAGE_SIZE
from vmm.linux.areas import Areas
from vmm.linux.backing import Backing
from vmm.linux.errors import SysError
from vmm.linux.plans import PROT_EXEC, PROT_READ, PROT_WRITE
from vmm.linux.spans import Area, Spans
from vmm.linux.window import ProgramWindow
from vmm.memory.region import Region

_ANY = PROT_READ | PROT_WRITE | PROT_EXEC  # x86 knows no right without that to read
_NOWHERE = Area(0, 0, 0)
_PIECE = 1 << 20  # bytes of the window that are copied in one turn

# What every program has besides: it may write what it finds there (a message's payload).
_CONTROL = next(
    Area(r.start, r.end, PROT_READ | PROT_WRITE)
    for r in x86.system_ranges(user=True)
    if r.start == abi.CONTROL_GPA
)


class Pointers:
    """A program's memory as its system calls read and write it.

    Addresses and sizes may be any numbers from 0 to 2**64-1; what is not all there, with the right
    that it takes, is EFAULT (SysError), and then nothing has been written. No bytes are no address:
    with a size of 0 all is well. Sizes are the caller's to limit. The program does not run
    meanwhile. Not thread-safe.

    window    what is in the window; None if there is none
    strayed   whether anything may have been written, or mapped, that the program could not write by
              its map: since `Memory.put_back`, or `keep`
    """

    window: ProgramWindow | None = None
    strayed = False

    def __init__(self, areas: Areas, backing: Backing) -> None:
        self.areas = areas
        self._backing = backing
        self._seen: Spans | None = None
        self._near = _NOWHERE  # the area that was asked for last, in the map seen last

    def read(self, address: int, size: int) -> bytes:
        """Return a copy of `size` bytes."""
        if self._windowed(address):
            return self._read_window(address, size)
        if self._check(address, size, _ANY):
            return b"".join(self._read(*part) for part in self._parts(address, size))
        return bytes(self._backing.view(address, size)) if size else b""

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Write `data`, of single bytes."""
        if self._windowed(address):
            self._write_window(address, data)
            return
        if self._check(address, len(data), PROT_WRITE):
            self._write_parts(address, data)
        elif len(data):
            self._backing.view(address, len(data))[:] = data

    def text(self, address: int, limit: int) -> bytes:
        """Return the bytes before the first NUL. ENAMETOOLONG if it is not among `limit` bytes."""
        found = b""
        while len(found) < limit:
            size = min(PAGE_SIZE - address % PAGE_SIZE, limit - len(found))
            part = self.read(address, size)
            end = part.find(0)
            if end >= 0:
                return found + part[:end]
            found, address = found + part, address + size
        raise SysError(errno.ENAMETOOLONG)

    def words(self, address: int, count: int) -> tuple[int, ...]:
        """Return 64-bit numbers, unsigned."""
        return struct.unpack(f"<{count}Q", self.read(address, count * 8))

    def view(self, address: int, size: int, *, write: bool = False) -> memoryview | None:
        """Return `size` bytes, to be read or, with `write`, to be written to, without a copy.

        None for the window and what shows pages of it, which may go at any time: use `read` and
        `write`. Let go of the view before the program runs on or changes its memory.
        """
        need, near = PROT_WRITE if write else _ANY, self._near
        known = (
            self.areas.spans is self._seen
            and near.start <= address
            and address + size <= near.end
            and near.prot & need
            and not near.delta
        )
        if not known and (self._windowed(address) or self._check(address, size, need)):
            return None
        view = self._backing.view(address, size) if size else memoryview(bytearray())
        return view if write else view.toreadonly()

    def room(self, address: int, size: int, *, write: bool = False) -> int:
        """Return how many of `size` bytes can be read, or written to, from `address` on.

        In the window, and where pages of it are shown: all of them or none.
        """
        if self._windowed(address):
            return size if self._window_ready(address, size, write=write) else 0
        need = PROT_WRITE if write else _ANY
        end, reached = address + size, address
        if _CONTROL.start <= address < _CONTROL.end:
            return min(end, _CONTROL.end) - address
        for area in self.areas.spans.within(address, end):
            if area.start > reached or not area.prot & need:
                break
            if area.delta:
                part = area.clip(address, end)
                size = part.end - part.start
                if not self._window_ready(part.start + area.delta, size, write=write):
                    break
            reached = area.end
        return min(end, reached) - address

    def fill(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Write `data` whatever the rights are: what an area shows at first."""
        self.raw(address, len(data))[:] = data

    def raw(self, address: int, size: int) -> memoryview:
        """Return writable bytes of areas, whatever their rights are. EFAULT where there is none."""
        self.strayed = True
        end, reached = address + size, address
        for area in self.areas.spans.within(address, end):
            if area.start > reached:
                break
            reached = area.end
        if reached < end:
            raise SysError(errno.EFAULT)
        return self._backing.view(address, size) if size else memoryview(bytearray())

    def lent(self, address: int) -> int | None:
        """Return where in the address space an address is, or one of the window, at which a page of
        the window is shown; None if none is.
        """
        for area in self.areas.spans:
            if area.delta and area.start <= address < area.end:
                return address
            if area.delta and area.start <= address - area.delta < area.end:
                return address - area.delta
        return None

    # ---- pages of the window that are shown elsewhere ----

    def _parts(self, address: int, size: int) -> Iterator[tuple[int, int, int]]:
        """Yield a range in pieces: address, bytes, the area's delta. It has been checked."""
        for area in self.areas.spans.within(address, address + size):
            part = area.clip(address, address + size)
            for start in range(part.start, part.end, _PIECE):
                yield start, min(_PIECE, part.end - start), part.delta

    def _read(self, address: int, size: int, delta: int) -> bytes:
        if delta:
            return self._read_window(address + delta, size)
        return bytes(self._backing.view(address, size))

    def _write_parts(self, address: int, data: bytes | bytearray | memoryview) -> None:
        for start, size, delta in self._parts(address, len(data)):
            if delta and not self._window_ready(start + delta, size, write=True):
                raise SysError(errno.EFAULT)
        for start, size, delta in self._parts(address, len(data)):
            piece = data[start - address : start - address + size]
            if delta:
                self._write_window(start + delta, piece)
            else:
                self._backing.view(start, size)[:] = piece

    # ---- checks ----

    def _check(self, address: int, size: int, need: int) -> bool:
        """Return whether any of a range is pages of the window. EFAULT if it is not all there."""
        spans = self.areas.spans
        if spans is not self._seen:
            self._near, self._seen = _NOWHERE, spans
        end, near = address + size, self._near
        if near.start <= address and end <= near.end and near.prot & need:
            return near.delta != 0
        if not size or (_CONTROL.start <= address and end <= _CONTROL.end):
            return False
        reached, shown = address, False
        for area in spans.within(address, end):
            if area.start > reached or not area.prot & need:
                break
            self._near, reached = area, area.end
            shown = shown or area.delta != 0
        if reached < end:
            raise SysError(errno.EFAULT)
        return shown

    def _windowed(self, address: int) -> bool:
        window = self.window
        return window is not None and window.region.base <= address < window.region.end

    def _region(self) -> tuple[ProgramWindow, Region]:
        assert self.window is not None  # it has been asked
        return self.window, self.window.region

    def _window_ready(self, address: int, size: int, *, write: bool) -> bool:
        window, region = self._region()
        return not size or (
            address + size <= region.end and window.ready(address, size, write=write)
        )

    def _read_window(self, address: int, size: int) -> bytes:
        window, region = self._region()
        if not size:
            return b""
        data = window.read(address, size) if address + size <= region.end else None
        if data is None:
            raise SysError(errno.EFAULT)
        return data

    def _write_window(self, address: int, data: bytes | bytearray | memoryview) -> None:
        window, region = self._region()
        inside = address + len(data) <= region.end
        if len(data) and not (inside and window.write(address, data)):
            raise SysError(errno.EFAULT)
