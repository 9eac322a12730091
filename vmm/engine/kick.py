"""Kicks: making a thread's KVM_RUN return, without a race and without a signal handler.

A thread that runs vCPUs blocks the signal KICK; each vCPU unblocks it while it runs
(KVM_SET_SIGNAL_MASK). So a kick that comes too early stays pending and ends the next KVM_RUN at
once, and one that comes too late is taken off by `drain`. No handler is installed, and any thread
will do; what is set for the process is that the signal, where nobody blocks it, does nothing.
Source: KVM API, KVM_SET_SIGNAL_MASK.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import signal
import threading
from collections.abc import Iterator
from typing import Any

from vmm.errors import ResourceError

# A standard signal and not a real-time one: it needs no place in the queue of signals, which any of
# the user's processes may have filled (RLIMIT_SIGPENDING). The kernel itself never sends this one.
KICK = signal.SIGSTKFLT

_set_disposition = ctypes.CDLL(None).signal
_set_disposition.argtypes = (ctypes.c_int, ctypes.c_void_p)
_set_disposition.restype = ctypes.c_void_p
_SIG_IGN = 1

# Masks by libc, because Python makes each a set of enums: 10 us for what is done at every call of a
# sandbox's function. PyDLL, since nothing here is worth letting another thread run.
# With no types declared, a call costs half.
_Mask = ctypes.c_uint64 * 16  # sigset_t
_mask: Any = ctypes.PyDLL(None).pthread_sigmask
_ONLY_KICK = _Mask(1 << KICK - 1)
_UNKNOWN = (1 << 64) - 1  # no thread's mask: SIGKILL cannot be blocked
_BLOCK, _SET = int(signal.SIG_BLOCK), int(signal.SIG_SETMASK)


@functools.cache
def _disarm() -> None:
    """Let a kick that reaches a thread which is not kickable, or no longer, do nothing.

    By default it would end the process. Ignored signals are still kept pending where they are
    blocked, which is all that kicks need (Linux, sig_ignored). By libc, because Python's own
    signal.signal is for the main thread only.
    """
    _set_disposition(KICK, _SIG_IGN)


def masked_while_running() -> set[int]:
    """Return the signals to block while a vCPU runs: what this thread blocks, but not KICK."""
    return {int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())} - {int(KICK)}


class Kickable:
    """Makes the calling thread one that may be kicked, from `begin` to `end`. Of one thread.

    over    whether `end` has been called, and not been cut off by a signal's handler: call it again
    """

    __slots__ = ("_before", "over")

    def __init__(self) -> None:
        _disarm()
        self.over = False
        self._before = _Mask(_UNKNOWN)

    def begin(self) -> None:
        """Block the signal."""
        _mask(_BLOCK, _ONLY_KICK, self._before)  # one step: it is known as soon as it has changed

    def end(self) -> None:
        """Restore the thread's mask. What has come is ignored then, or taken off."""
        before = self._before[0]
        if before & _ONLY_KICK[0]:
            drain()
        if before != _UNKNOWN:
            _mask(_SET, self._before, None)
        self.over = True


@contextlib.contextmanager
def kickable() -> Iterator[None]:
    """Make the calling thread one that may be kicked, for the time of the block."""
    this = Kickable()
    try:
        try:
            this.begin()
            yield
        finally:
            this.end()
    finally:  # once more, should a signal's handler raise just there
        if not this.over:
            this.end()


def drain() -> None:
    """Take a pending kick off the calling thread."""
    while signal.sigtimedwait({KICK}, 0) is not None:
        pass


def kick(thread: int) -> None:
    """Make the KVM_RUN of a thread return, now or when it next begins.

    `thread` as threading.get_ident().
    """
    with contextlib.suppress(ProcessLookupError):
        signal.pthread_kill(thread, KICK)


def no_thread(what: str, error: RuntimeError) -> BaseException:
    """Return what to raise where the host lets this process have no more threads.

    A signal's handler that interrupts the start of one makes such an error of what it raises, too:
    that is returned, then.
    """
    if "start new thread" not in str(error):
        return error.__context__ or error
    return ResourceError(
        f"no thread for {what}: raise the limits on tasks (ulimit -u, the cgroup's pids.max), "
        "or end some"
    )


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Kick the calling thread, which is made kickable, if the block takes longer than this."""
    timer = threading.Timer(seconds, kick, (threading.get_ident(),))
    with kickable():
        drain()  # a kick from before the block is not its deadline
        try:
            try:
                timer.start()
            except RuntimeError as error:
                raise no_thread("a deadline", error) from None
            yield
        finally:
            timer.cancel()
            if timer.ident is not None:
                timer.join()
