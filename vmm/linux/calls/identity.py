"""Who the program is, what it may use, and how it ends."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from vmm.linux.calls.table import Address, Int, Size, Word, call
from vmm.linux.errors import SysError

if TYPE_CHECKING:
    from vmm.linux.process import Process

PID, PARENT = 1000, 1  # alone in its world, but not init
_ARCH_SET_GS, _ARCH_SET_FS, _ARCH_GET_FS, _ARCH_GET_GS = 0x1001, 0x1002, 0x1003, 0x1004
_MSR = {_ARCH_SET_FS: 0xC0000100, _ARCH_GET_FS: 0xC0000100}
_MSR |= {_ARCH_SET_GS: 0xC0000101, _ARCH_GET_GS: 0xC0000101}
_USER_END = 1 << 47

_RSEQ = 32  # bytes, and their alignment

_STACK, _NOFILE, _AS, _DATA, _CORE = 3, 7, 9, 2, 4
_LIMITS = 16
_UNLIMITED = (1 << 64) - 1

_SCHED_OTHER = 0
_PRIORITIES = {0: (0, 0), 1: (1, 99), 2: (1, 99), 3: (0, 0), 5: (0, 0), 6: (0, 0)}
_WAIT4 = 0xE000000B  # WNOHANG, WUNTRACED, WCONTINUED, __WALL and so on
_WAITID_EVENTS = 0xE  # WSTOPPED, WEXITED, WCONTINUED
_WAITID = _WAIT4 & ~2 | _WAITID_EVENTS | 0x01000000  # WNOWAIT

_PR_SET_NAME, _PR_GET_NAME, _PR_SET_VMA = 15, 16, 0x53564D41
_PR_GET_DUMPABLE, _PR_GET_NO_NEW_PRIVS = 3, 39
# PDEATHSIG, DUMPABLE, NO_NEW_PRIVS: what they can be set to, which changes nothing
_PR_SET = {1: range(65), 4: range(2), 38: range(1, 2)}


@call
def sys_getpid(process: Process) -> int:
    return PID


@call
def sys_gettid(process: Process) -> int:
    return PID


@call
def sys_getppid(process: Process) -> int:
    return PARENT


@call
def sys_getpgrp(process: Process) -> int:
    return PID


@call
def sys_getpgid(process: Process, pid: Int) -> int:
    return _own(pid)


@call
def sys_getsid(process: Process, pid: Int) -> int:
    return _own(pid)


@call
def sys_setpgid(process: Process, pid: Int, group: Int) -> int:
    if pid < 0 or group < 0:
        raise SysError(errno.EINVAL)
    _own(pid)
    if group not in (0, PID):
        raise SysError(errno.EPERM)
    return 0


@call
def sys_setsid(process: Process) -> int:
    raise SysError(errno.EPERM)  # it leads its group


def _own(pid: int) -> int:
    if pid not in (0, PID):
        raise SysError(errno.ESRCH)
    return PID


@call
def sys_getuid(process: Process) -> int:
    return 0


@call
def sys_geteuid(process: Process) -> int:
    return 0


@call
def sys_getgid(process: Process) -> int:
    return 0


@call
def sys_getegid(process: Process) -> int:
    return 0


@call
def sys_getgroups(process: Process, size: Int, groups: Address) -> int:
    if size < 0:
        raise SysError(errno.EINVAL)
    return 0


@call
def sys_getresuid(process: Process, real: Address, effective: Address, saved: Address) -> int:
    for address in (real, effective, saved):
        process.memory.write(address, bytes(4))
    return 0


@call
def sys_getresgid(process: Process, real: Address, effective: Address, saved: Address) -> int:
    for address in (real, effective, saved):
        process.memory.write(address, bytes(4))
    return 0


@call
def sys_setuid(process: Process, uid: Word) -> int:
    return _root(uid)


@call
def sys_setgid(process: Process, gid: Word) -> int:
    return _root(gid)


def _root(number: int) -> int:
    """There is nobody else to become."""
    if number:
        raise SysError(errno.EPERM)
    return 0


@call
def sys_umask(process: Process, mask: Int) -> int:
    return process.files.umask(mask)


@call
def sys_uname(process: Process, buffer: Address) -> int:
    fields = (b"Linux", b"pageferry", b"6.1.0-pageferry", b"#1", b"x86_64", b"(none)")
    process.memory.write(buffer, b"".join(field.ljust(65, b"\0") for field in fields))
    return 0


@call
def sys_arch_prctl(process: Process, code: Int, address: Address) -> int:
    if code not in _MSR:
        raise SysError(errno.EINVAL)
    if code in (_ARCH_SET_FS, _ARCH_SET_GS):
        if address >= _USER_END:
            raise SysError(errno.EPERM)
        process.set_base(_MSR[code], address)
    else:
        process.memory.write(address, struct.pack("<Q", process.base(_MSR[code])))
    return 0


@call
def sys_set_tid_address(process: Process, address: Address) -> int:
    return PID


@call
def sys_set_robust_list(process: Process, head: Address, length: Size) -> int:
    if length != 24:
        raise SysError(errno.EINVAL)
    return 0


@call
def sys_rseq(process: Process, area: Address, size: Word, flags: Int, signature: Word) -> int:
    """Tell it that it is on CPU 0, where it stays: nothing is ever restarted."""
    if flags & ~1 or size < _RSEQ or area % _RSEQ:
        raise SysError(errno.EINVAL)
    if not flags & 1:
        process.memory.write(area, bytes(8))
    return 0


@call
def sys_prctl(
    process: Process, option: Int, second: Size, third: Size, fourth: Size, fifth: Size
) -> int:
    if option == _PR_SET_NAME:
        room = process.memory.room(second, 16)
        name, end, _ = process.memory.read(second, room).partition(b"\0")
        if room < 16 and not end:
            raise SysError(errno.EFAULT)
        process.files.changes.set(process, "comm", name[:15])
    elif option == _PR_GET_NAME:
        process.memory.write(second, process.comm.split(b"\0")[0].ljust(16, b"\0"))
    elif option in (_PR_GET_DUMPABLE, _PR_GET_NO_NEW_PRIVS):
        return 1
    elif second not in _PR_SET.get(option, ()):
        raise SysError(errno.EINVAL)
    return 0


@call
def sys_prlimit64(process: Process, pid: Int, which: Word, new: Address, old: Address) -> int:
    """Tell limits, and set them. That of descriptors holds; the others are `memory`'s and so on."""
    if which >= _LIMITS:
        raise SysError(errno.EINVAL)
    _own(pid)
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
    _own(pid)
    if size < 8 or size % 8:
        raise SysError(errno.EINVAL)
    process.memory.write(mask, struct.pack("<Q", 1))
    return 8


@call
def sys_sched_setaffinity(process: Process, pid: Int, size: Word, mask: Address) -> int:
    _own(pid)
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
    _own(pid)
    return _SCHED_OTHER


@call
def sys_sched_getparam(process: Process, pid: Int, priority: Address) -> int:
    if pid < 0 or not priority:
        raise SysError(errno.EINVAL)
    _own(pid)
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


@call
def sys_personality(process: Process, persona: Word) -> int:
    return 0


@call
def sys_wait4(process: Process, pid: Int, status: Address, options: Int, usage: Address) -> int:
    if options & ~_WAIT4:
        raise SysError(errno.EINVAL)
    raise SysError(errno.ECHILD)  # it never has any


@call
def sys_waitid(
    process: Process, kind: Int, who: Int, info: Address, options: Int, usage: Address
) -> int:
    if options & ~_WAITID or not options & _WAITID_EVENTS or not 0 <= kind <= 3:
        raise SysError(errno.EINVAL)
    raise SysError(errno.ECHILD)


@call
def sys_getrandom(process: Process, buffer: Address, size: Size, flags: Word) -> int:
    if flags & ~7 or flags & 6 == 6:
        raise SysError(errno.EINVAL)
    length = min(size, 1 << 20)
    room = process.memory.room(buffer, length, write=True) if length else 0
    if length and not room:
        raise SysError(errno.EFAULT)
    process.memory.write(buffer, process.clock.random(room))
    return room


@call
def sys_membarrier(process: Process, command: Int, flags: Word, cpu: Int) -> int:
    """Nothing of it: MEMBARRIER_CMD_QUERY tells that there are no commands."""
    if command or flags:
        raise SysError(errno.EINVAL)
    return 0


@call
def sys_exit(process: Process, code: Int) -> int:
    return process.exit(code)


@call
def sys_exit_group(process: Process, code: Int) -> int:
    return process.exit(code)
