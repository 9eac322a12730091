"""Waiting for files: poll and select. No thread is held by it."""

from __future__ import annotations

import errno
import select
import struct
from typing import TYPE_CHECKING

from vmm.linux.calls.io import PATIENCE_NS, arrived
from vmm.linux.calls.table import Address, Int, Park, Size, Word, call
from vmm.linux.calls.time import timespec
from vmm.linux.errors import SysError
from vmm.linux.files.streams import OpenInput

if TYPE_CHECKING:
    from vmm.linux.process import Process


def _look(process: Process, fd: int, wanted: int) -> int:
    try:
        file = process.descriptors.get(fd)
    except SysError:
        return select.POLLNVAL
    events = file.events()
    if isinstance(file, OpenInput) and not file.input.ready:
        if wanted & select.POLLIN and arrived(process):
            file.input.fill()
        if not file.input.ready:
            events &= ~select.POLLIN
    return events & (wanted | select.POLLERR | select.POLLHUP | select.POLLNVAL)


def _wait(process: Process, ns: int | None) -> None:
    """Return if it is over; else come back then, or sooner if there may be something by then."""
    until = process.deadline(ns)
    if process.clock.frozen and until is not None:
        process.sleep(ns or 0)
        return
    now = process.now()
    if until is not None and now >= until:
        return
    soon = now + PATIENCE_NS / 1e9
    if process.input_fd is None:
        raise Park(until)
    raise Park(soon if until is None else min(soon, until))


@call
def sys_poll(process: Process, fds: Address, count: Word, timeout_ms: Int) -> int:
    return _poll(process, fds, count, None if timeout_ms < 0 else timeout_ms * 1_000_000)


@call
def sys_ppoll(
    process: Process, fds: Address, count: Word, timeout: Address, mask: Address, size: Size
) -> int:
    return _poll(process, fds, count, timespec(process, timeout) if timeout else None)


def _poll(process: Process, fds: int, count: int, ns: int | None) -> int:
    if count > process.descriptors.limit:
        raise SysError(errno.EINVAL)
    entries = list(struct.iter_unpack("<ihh", process.memory.read(fds, 8 * count)))
    found = [
        (fd, events, _look(process, fd, events & 0xFFFF) if fd >= 0 else 0)
        for fd, events, _ in entries
    ]
    ready = sum(bool(revents) for _, _, revents in found)
    if not ready:
        _wait(process, ns)
    process.memory.write(fds, b"".join(struct.pack("<iHH", f, e & 0xFFFF, r) for f, e, r in found))
    return ready


@call
def sys_select(
    process: Process, count: Int, reads: Address, writes: Address, rest: Address, timeout: Address
) -> int:
    ns = None
    if timeout:
        seconds, us = struct.unpack("<qq", process.memory.read(timeout, 16))
        if seconds < 0 or us < 0:
            raise SysError(errno.EINVAL)
        ns = min(seconds * 10**9 + us * 1000, (1 << 63) - 1)
    return _select(process, count, (reads, writes, rest), ns)


@call
def sys_pselect6(
    process: Process,
    count: Int,
    reads: Address,
    writes: Address,
    rest: Address,
    timeout: Address,
    mask: Address,
) -> int:
    ns = timespec(process, timeout) if timeout else None
    return _select(process, count, (reads, writes, rest), ns)


def _select(process: Process, count: int, sets: tuple[int, ...], ns: int | None) -> int:
    if count < 0:
        raise SysError(errno.EINVAL)
    count = min(count, process.descriptors.limit)
    size = -(-count // 64) * 8
    found, ready = [], 0
    for address, wanted in zip(sets, (select.POLLIN, select.POLLOUT, 0), strict=True):
        bits = int.from_bytes(process.memory.read(address, size), "little") if address else 0
        answer = 0
        for fd in range(count):
            if bits >> fd & 1:
                events = _look(process, fd, wanted)
                if events & select.POLLNVAL:
                    raise SysError(errno.EBADF)
                if wanted and events:
                    answer |= 1 << fd
                    ready += 1
        found.append((address, answer))
    if not ready:
        _wait(process, ns)
    for address, answer in found:
        if address:
            process.memory.write(address, answer.to_bytes(size, "little"))
    return ready
