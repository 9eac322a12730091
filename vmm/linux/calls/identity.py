"""Who the program is, what it knows of its machine, and how it ends."""

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
    return own(pid)


@call
def sys_getsid(process: Process, pid: Int) -> int:
    return own(pid)


@call
def sys_setpgid(process: Process, pid: Int, group: Int) -> int:
    if pid < 0 or group < 0:
        raise SysError(errno.EINVAL)
    own(pid)
    if group not in (0, PID):
        raise SysError(errno.EPERM)
    return 0


@call
def sys_setsid(process: Process) -> int:
    raise SysError(errno.EPERM)  # it leads its group


def own(pid: int) -> int:
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
