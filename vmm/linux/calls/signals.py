"""Signals: handlers are noted, and never called; what would end a program ends it."""

from __future__ import annotations

import errno
import signal
import struct
from typing import TYPE_CHECKING

from vmm.linux.calls.identity import PID
from vmm.linux.calls.table import Address, Int, Park, Size, call
from vmm.linux.errors import SysError

if TYPE_CHECKING:
    from vmm.linux.process import Process

_SIGNALS = 64
_SET = 8  # bytes of a sigset_t
_ACTION = 32  # bytes of the kernel's struct sigaction
_IGNORED = {int(s) for s in (signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH)}
_SIG_IGN = 1
_FIXED = {int(signal.SIGKILL), int(signal.SIGSTOP)}
_SS_DISABLE = 2


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
        process.files.changes.put(process.actions, number, new)
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
        fixed = sum(1 << number - 1 for number in _FIXED)
        process.files.changes.set(process, "mask", wanted & ~fixed)
    if old:
        process.memory.write(old, struct.pack("<Q", before))
    return 0


@call
def sys_rt_sigpending(process: Process, pending: Address, size: Size) -> int:
    process.memory.write(pending, bytes(_SET))
    return 0


@call
def sys_sigaltstack(process: Process, new: Address, old: Address) -> int:
    before = process.alternate_stack
    if new:
        wanted = process.memory.read(new, 24)
        process.files.changes.set(process, "alternate_stack", wanted)
    if old:
        process.memory.write(old, before)
    return 0


@call
def sys_pause(process: Process) -> int:
    raise Park(None)


@call
def sys_rt_sigsuspend(process: Process, mask: Address, size: Size) -> int:
    raise Park(None)


@call
def sys_kill(process: Process, pid: Int, number: Int) -> int:
    if pid not in (0, -1, PID, -PID):
        raise SysError(errno.ESRCH)
    return _raise(process, number)


@call
def sys_tkill(process: Process, pid: Int, number: Int) -> int:
    if pid != PID:
        raise SysError(errno.ESRCH)
    return _raise(process, number)


@call
def sys_tgkill(process: Process, group: Int, pid: Int, number: Int) -> int:
    if (group, pid) != (PID, PID):
        raise SysError(errno.ESRCH)
    return _raise(process, number)


def _raise(process: Process, number: int) -> int:
    if not number:
        return 0
    check(number)
    handler, *_ = struct.unpack_from("<Q", process.actions.get(number, bytes(_ACTION)))
    if handler == _SIG_IGN or (not handler and number in _IGNORED):
        return 0
    return process.die(number)


NO_STACK = struct.pack("<QiiQ", 0, _SS_DISABLE, 0, 0)
"""The alternate signal stack at first: none."""
