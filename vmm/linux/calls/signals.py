"""Signals: handlers are noted, and never called; what would end a program ends it."""

from __future__ import annotations

import errno
import signal
import struct
from typing import TYPE_CHECKING

from vmm.linux.calls.identity import PID
from vmm.linux.calls.table import Address, Int, Park, Size, call
from vmm.linux.calls.time import timespec
from vmm.linux.errors import SysError

if TYPE_CHECKING:
    from vmm.linux.process import Process

_SIGNALS = 64
_SET = 8  # bytes of a sigset_t
_ACTION = 32  # bytes of the kernel's struct sigaction
_IGNORED = {int(s) for s in (signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH)}
_SIG_IGN = 1
_FIXED = {int(signal.SIGKILL), int(signal.SIGSTOP)}
_UNBLOCKED = sum(1 << number - 1 for number in _FIXED)  # whatever the mask says
_SS_ONSTACK, _SS_DISABLE, _SS_AUTODISARM = 1, 2, 1 << 31
_LEAST_STACK = 2048  # MINSIGSTKSZ
_SI_USER, _INFO = 0, 128


def check(number: int) -> None:
    """Raise EINVAL if that is no signal."""
    if not 1 <= number <= _SIGNALS:
        raise SysError(errno.EINVAL)


@call
def sys_rt_sigaction(
    process: Process, number: Int, action: Address, old: Address, size: Size
) -> int:
    check(number)
    if size != _SET or (action and number in _FIXED):
        raise SysError(errno.EINVAL)
    before = process.actions.get(number, bytes(_ACTION))
    new = process.memory.read(action, _ACTION) if action else None
    if old:
        process.memory.write(old, before)
    if new is not None:
        changes = process.files.changes
        changes.put(process.actions, number, new)
        if _ignored(process, number):
            changes.set(process, "pending", process.pending & ~_bit(number))
    return 0


@call
def sys_rt_sigprocmask(process: Process, how: Int, new: Address, old: Address, size: Size) -> int:
    if size != _SET:
        raise SysError(errno.EINVAL)
    before = process.mask
    if new:
        (bits,) = process.memory.words(new, 1)
        wanted = {0: before | bits, 1: before & ~bits, 2: bits}.get(how)
        if wanted is None:
            raise SysError(errno.EINVAL)
        process.files.changes.set(process, "mask", wanted & ~_UNBLOCKED)
    if old:
        process.memory.write(old, struct.pack("<Q", before))
    _deliver(process)
    return 0


@call
def sys_rt_sigpending(process: Process, pending: Address, size: Size) -> int:
    if size > _SET:
        raise SysError(errno.EINVAL)
    process.memory.write(pending, struct.pack("<Q", process.pending)[:size])
    return 0


@call
def sys_rt_sigtimedwait(
    process: Process, wanted: Address, info: Address, timeout: Address, size: Size
) -> int:
    if size != _SET:
        raise SysError(errno.EINVAL)
    (bits,) = process.memory.words(wanted, 1)
    length = timespec(process, timeout) if timeout else None
    there = process.pending & bits & ~_UNBLOCKED
    if there:
        number = (there & -there).bit_length()
        if info:
            told = struct.pack("<iiixxxxiI", number, 0, _SI_USER, PID, 0)
            process.memory.write(info, told.ljust(_INFO, b"\0"))
        process.files.changes.set(process, "pending", process.pending & ~_bit(number))
        return number
    if length is None:
        raise Park(None)
    process.sleep(length)
    raise SysError(errno.EAGAIN)


@call
def sys_sigaltstack(process: Process, new: Address, old: Address) -> int:
    before = process.alternate_stack
    if new:
        wanted = process.memory.read(new, 24)
        _, flags, size = struct.unpack("<QixxxxQ", wanted)
        if flags & ~_SS_AUTODISARM not in (0, _SS_ONSTACK, _SS_DISABLE):
            raise SysError(errno.EINVAL)
        if flags & _SS_DISABLE:
            wanted = struct.pack("<QixxxxQ", 0, flags, 0)
        elif size < _LEAST_STACK:
            raise SysError(errno.ENOMEM)
        process.files.changes.set(process, "alternate_stack", wanted)
    if old:
        process.memory.write(old, before)
    return 0


@call
def sys_pause(process: Process) -> int:
    raise Park(None)


@call
def sys_rt_sigsuspend(process: Process, mask: Address, size: Size) -> int:
    if size != _SET:
        raise SysError(errno.EINVAL)
    (bits,) = process.memory.words(mask, 1)
    if _deliver(process, bits & ~_UNBLOCKED):
        return 0
    raise Park(None)


@call
def sys_kill(process: Process, pid: Int, number: Int) -> int:
    if pid not in (0, -1, PID, -PID):
        raise SysError(errno.ESRCH)
    return _raise(process, number)


@call
def sys_tkill(process: Process, pid: Int, number: Int) -> int:
    _check_thread(pid)
    return _raise(process, number)


@call
def sys_tgkill(process: Process, group: Int, pid: Int, number: Int) -> int:
    _check_thread(group)
    _check_thread(pid)
    return _raise(process, number)


def _check_thread(number: int) -> None:
    if number != PID:
        raise SysError(errno.EINVAL if number <= 0 else errno.ESRCH)


def _raise(process: Process, number: int) -> int:
    if not number:
        return 0
    check(number)
    if process.mask & _bit(number):
        process.files.changes.set(process, "pending", process.pending | _bit(number))
        return 0
    return 0 if _ignored(process, number) else process.die(number)


def _bit(number: int) -> int:
    return 1 << number - 1


def _ignored(process: Process, number: int) -> bool:
    handler, *_ = struct.unpack_from("<Q", process.actions.get(number, bytes(_ACTION)))
    return handler == _SIG_IGN or (not handler and number in _IGNORED)


def _deliver(process: Process, mask: int | None = None) -> bool:
    """Let what has been sent, and is no longer blocked, do what it does; say whether it ends it."""
    there = process.pending & ~(process.mask if mask is None else mask)
    if not there:
        return False
    process.files.changes.set(process, "pending", process.pending & ~there)
    for number in range(1, _SIGNALS + 1):
        if there & _bit(number) and not _ignored(process, number):
            process.die(number)
            return True
    return False


NO_STACK = struct.pack("<QiiQ", 0, _SS_DISABLE, 0, 0)
"""The alternate signal stack at first: none."""
