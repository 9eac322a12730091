"""What the program may use, and has used: limits, times, processors, priorities."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from vmm.linux.calls.identity import PID, own
from vmm.linux.calls.table import Address, Int, Word, call
from vmm.linux.errors import SysError

if TYPE_CHECKING:
    from vmm.linux.process import Process

_STACK, _NOFILE, _AS, _DATA, _CORE = 3, 7, 9, 2, 4
_LIMITS = 16
_UNLIMITED = (1 << 64) - 1
_SCHED_OTHER = 0
_PRIORITIES = {0: (0, 0), 1: (1, 99), 2: (1, 99), 3: (0, 0), 5: (0, 0), 6: (0, 0)}


@call
def sys_prlimit64(process: Process, pid: Int, which: Word, new: Address, old: Address) -> int:
    """Tell limits, and set them. That of descriptors holds; the others are `memory`'s and so on."""
    if which >= _LIMITS:
        raise SysError(errno.EINVAL)
    own(pid)
    before = _limit(process, which)
    if new:
        soft, hard = process.memory.words(new, 2)
        if soft > hard:
            raise SysError(errno.EINVAL)
        if hard > before[1]:
            raise SysError(errno.EPERM)
        changes = process.files.changes
        changes.put(process.limits, which, (soft, hard))
        if which == _NOFILE:
            changes.set(process.descriptors, "limit", soft)
    if old:
        process.memory.write(old, struct.pack("<QQ", *before))
    return 0


@call
def sys_getrlimit(process: Process, which: Word, old: Address) -> int:
    return sys_prlimit64(process, 0, which, 0, old)


@call
def sys_setrlimit(process: Process, which: Word, new: Address) -> int:
    return sys_prlimit64(process, 0, which, new, 0)


def _limit(process: Process, which: int) -> tuple[int, int]:
    if which in process.limits:
        return process.limits[which]
    soft = hard = _UNLIMITED
    if which == _STACK:
        soft = process.stack_size
    elif which == _NOFILE:
        soft = hard = process.descriptors.limit
    elif which in (_AS, _DATA):
        soft = hard = process.memory.areas.limit
    elif which == _CORE:
        soft = 0
    return soft, hard


@call
def sys_getrusage(process: Process, who: Int, usage: Address) -> int:
    if who not in (-1, 0, 1):
        raise SysError(errno.EINVAL)
    seconds, ns = divmod(0 if who == -1 else process.cpu_ns(), 10**9)
    process.memory.write(usage, struct.pack("<qq", seconds, ns // 1000) + bytes(128))
    return 0


@call
def sys_times(process: Process, buffer: Address) -> int:
    if buffer:
        process.memory.write(buffer, struct.pack("<4q", process.cpu_ns() // 10**7, 0, 0, 0))
    return process.clock.monotonic_ns() // 10**7


@call
def sys_sysinfo(process: Process, info: Address) -> int:
    limit = process.memory.areas.limit
    uptime = process.clock.monotonic_ns() // 10**9
    fields = struct.pack("<q3Q6QHH", uptime, 0, 0, 0, limit, limit, 0, 0, 0, 0, 1, 0)
    process.memory.write(info, fields + bytes(4) + struct.pack("<QQI", 0, 0, 1) + bytes(4))
    return 0


@call
def sys_sched_yield(process: Process) -> int:
    return 0


@call
def sys_sched_getaffinity(process: Process, pid: Int, size: Word, mask: Address) -> int:
    own(pid)
    if size < 8 or size % 8:
        raise SysError(errno.EINVAL)
    process.memory.write(mask, struct.pack("<Q", 1))
    return 8


@call
def sys_sched_setaffinity(process: Process, pid: Int, size: Word, mask: Address) -> int:
    own(pid)
    return 0


@call
def sys_getcpu(process: Process, cpu: Address, node: Address) -> int:
    for address in (cpu, node):
        if address:
            process.memory.write(address, bytes(4))
    return 0


@call
def sys_sched_getscheduler(process: Process, pid: Int) -> int:
    if pid < 0:
        raise SysError(errno.EINVAL)
    own(pid)
    return _SCHED_OTHER


@call
def sys_sched_getparam(process: Process, pid: Int, priority: Address) -> int:
    if pid < 0 or not priority:
        raise SysError(errno.EINVAL)
    own(pid)
    process.memory.write(priority, bytes(4))
    return 0


@call
def sys_sched_get_priority_max(process: Process, policy: Int) -> int:
    if policy not in _PRIORITIES:
        raise SysError(errno.EINVAL)
    return _PRIORITIES[policy][1]


@call
def sys_sched_get_priority_min(process: Process, policy: Int) -> int:
    if policy not in _PRIORITIES:
        raise SysError(errno.EINVAL)
    return _PRIORITIES[policy][0]


@call
def sys_getpriority(process: Process, which: Int, who: Int) -> int:
    _check_who(which, who)
    return 20


@call
def sys_setpriority(process: Process, which: Int, who: Int, priority: Int) -> int:
    _check_who(which, who)
    return 0


def _check_who(which: int, who: int) -> None:
    """Refuse who is not there: PRIO_PROCESS, PRIO_PGRP, PRIO_USER."""
    if not 0 <= which <= 2:
        raise SysError(errno.EINVAL)
    if who not in ((0,) if which == 2 else (0, PID)):
        raise SysError(errno.ESRCH)
