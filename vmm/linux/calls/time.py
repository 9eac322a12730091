"""Clocks, and waiting for them."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from vmm.linux.calls.table import Address, Int, Park, Word, call
from vmm.linux.errors import SysError

if TYPE_CHECKING:
    from vmm.linux.process import Process

_REALTIME, _TAI = (0, 5, 8), 11  # CLOCK_REALTIME, _COARSE, _ALARM
_MONOTONIC = (1, 4, 6, 7, 9)  # CLOCK_MONOTONIC, _RAW, _COARSE, CLOCK_BOOTTIME, _ALARM
_CPU = (2, 3)
_ABSTIME = 1
_LONGEST = (1 << 63) - 1


def time_of(process: Process, clock: int) -> int:
    """Return what a clock says, in ns. Raises EINVAL."""
    if clock in _REALTIME or clock == _TAI:
        return process.clock.realtime_ns()
    if clock in _MONOTONIC:
        return process.clock.monotonic_ns()
    if clock in _CPU:
        return process.cpu_ns()
    raise SysError(errno.EINVAL)


def timespec(process: Process, address: int) -> int:
    """Return a struct timespec in ns. Raises EFAULT, EINVAL."""
    seconds, ns = struct.unpack("<qq", process.memory.read(address, 16))
    if seconds < 0 or not 0 <= ns < 10**9:
        raise SysError(errno.EINVAL)
    return min(int(seconds) * 10**9 + int(ns), _LONGEST)


def packed(ns: int) -> bytes:
    """Return ns as a struct timespec."""
    return struct.pack("<qq", *divmod(ns, 10**9))


@call
def sys_clock_gettime(process: Process, clock: Int, address: Address) -> int:
    process.memory.write(address, packed(time_of(process, clock)))
    return 0


@call
def sys_clock_getres(process: Process, clock: Int, address: Address) -> int:
    time_of(process, clock)
    if address:
        process.memory.write(address, packed(1))
    return 0


@call
def sys_gettimeofday(process: Process, address: Address, zone: Address) -> int:
    if address:
        seconds, ns = divmod(process.clock.realtime_ns(), 10**9)
        process.memory.write(address, struct.pack("<qq", seconds, ns // 1000))
    if zone:
        process.memory.write(zone, bytes(8))
    return 0


@call
def sys_time(process: Process, address: Address) -> int:
    seconds = process.clock.realtime_ns() // 10**9
    if address:
        process.memory.write(address, struct.pack("<q", seconds))
    return seconds


@call
def sys_nanosleep(process: Process, wanted: Address, left: Address) -> int:
    process.sleep(timespec(process, wanted))
    return 0


@call
def sys_clock_nanosleep(
    process: Process, clock: Int, flags: Int, wanted: Address, left: Address
) -> int:
    if clock == _CPU[1]:  # a thread cannot wait for its own
        raise SysError(errno.EOPNOTSUPP)
    time_of(process, clock)
    length = timespec(process, wanted)
    if flags & _ABSTIME:
        length = max(length - time_of(process, clock), 0)
    process.sleep(length)
    return 0


@call
def sys_clock_settime(process: Process, clock: Int, address: Address) -> int:
    timespec(process, address)
    if clock not in _REALTIME[:1]:
        raise SysError(errno.EINVAL)
    raise SysError(errno.EPERM)


# ---- timers: there are none, so none is running ----


@call
def sys_alarm(process: Process, seconds: Word) -> int:
    if seconds:
        raise SysError(errno.ENOSYS)
    return 0


@call
def sys_getitimer(process: Process, which: Int, now: Address) -> int:
    _check_timer(which)
    process.memory.write(now, bytes(32))
    return 0


@call
def sys_setitimer(process: Process, which: Int, new: Address, old: Address) -> int:
    """Stop a timer. To start one is not served."""
    wanted = process.memory.read(new, 32) if new else bytes(32)
    _check_timer(which)
    if any(wanted[16:]):
        raise SysError(errno.ENOSYS)
    if old:
        process.memory.write(old, bytes(32))
    return 0


def _check_timer(which: int) -> None:
    if not 0 <= which <= 2:
        raise SysError(errno.EINVAL)


# ---- futexes ----

_FUTEX_WAIT, _FUTEX_WAKE, _FUTEX_WAIT_BITSET, _FUTEX_WAKE_BITSET = 0, 1, 9, 10
_FUTEX_FLAGS, _FUTEX_CLOCK_REALTIME = 0x180, 0x100


@call
def sys_futex(
    process: Process,
    word: Address,
    operation: Int,
    value: Word,
    timeout: Address,
    second: Address,
    bits: Word,
) -> int:
    """Nobody is there to wake anybody: a wait ends with its time, or never."""
    command = operation & ~_FUTEX_FLAGS
    if word % 4:
        raise SysError(errno.EINVAL)
    if command in (_FUTEX_WAIT_BITSET, _FUTEX_WAKE_BITSET) and not bits:
        raise SysError(errno.EINVAL)
    (found,) = struct.unpack("<I", process.memory.read(word, 4))
    if command in (_FUTEX_WAKE, _FUTEX_WAKE_BITSET):
        return 0
    if command not in (_FUTEX_WAIT, _FUTEX_WAIT_BITSET):
        raise SysError(errno.ENOSYS)
    if found != value:
        raise SysError(errno.EAGAIN)
    if not timeout:
        raise Park(None)
    length = timespec(process, timeout)
    if command == _FUTEX_WAIT_BITSET:  # until then, and not for so long
        length = max(length - time_of(process, 0 if operation & _FUTEX_CLOCK_REALTIME else 1), 0)
    process.sleep(length)
    raise SysError(errno.ETIMEDOUT)
