"""A kernel file descriptor with one owner, and the one place where KVM's ioctls are made."""

import ctypes
import errno
import os
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any, ClassVar, NoReturn

from . import forks
from .given import GivenDescriptor, noting
from .uapi import CAPABILITY_NAMES, Ioctl

# Called through ctypes rather than fcntl.ioctl for its errors by value: an interrupted KVM_RUN
# is no exception. ctypes releases the GIL around the call and keeps errno per thread.
libc_ioctl: Any = ctypes.CDLL(None, use_errno=True).ioctl
libc_ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
libc_ioctl.restype = ctypes.c_int


class ClosedDescriptorError(ValueError):
    """A descriptor was used after its ``close()``. A mistake of the caller, not of the kernel."""


class Descriptor:
    """Owns one file descriptor: closes it once, and never uses it afterwards.

    Closing twice is allowed; any other use after ``close()`` raises ClosedDescriptorError. A
    context manager. Requests may be made by several threads, as far as KVM allows it for the
    request; ``close()`` must not run while another thread is inside a call.
    """

    kind: ClassVar[str] = "file"
    """What error messages call this object."""

    def __init__(self, fd: int = -1) -> None:
        """Take ownership of ``fd``; without one it is closed until ``_take``."""
        self._owned = noting()  # who notes it warns, if it is dropped without close()
        self._given = GivenDescriptor() if fd < 0 else GivenDescriptor(fd)
        self._fd = fd
        forks.hold(self)

    def _take(self, call: Callable[..., int], *arguments: object) -> bool:
        """Own the descriptor that a function of C's returns; False if it returns -1.

        No signal's handler comes in between.
        """
        self._fd = self._given.take(call, *arguments)
        return self._fd >= 0

    def let_go(self) -> None:
        """Close it in a process that was forked."""
        self.close()

    @property
    def closed(self) -> bool:
        """Whether ``close()`` was called."""
        return self._fd < 0

    def fileno(self) -> int:
        """Return the descriptor's number. It stays owned by this object."""
        if self._fd < 0:
            raise ClosedDescriptorError(f"{self.kind} descriptor is closed")
        return self._fd

    def close(self) -> None:
        """Give the descriptor back to the kernel. Idempotent."""
        self._fd = -1
        self._given.give_back()

    def __enter__(self) -> "Descriptor":
        self.fileno()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        # Its copy would close it, too.
        raise TypeError(f"{self.kind} descriptors have one owner, and cannot be copied or pickled")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'closed' if self._fd < 0 else f'fd {self._fd}'}>"

    def __del__(self) -> None:
        # A net, not the way: close() or `with` is. The name is missing if __init__ never ran.
        given = getattr(self, "_given", None)
        if given is None or not given.held:
            return
        try:
            if not self._owned:
                warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
        finally:
            self.close()

    def _ioctl(self, request: Ioctl, argument: Any = 0) -> int:
        """Make a request, again for as long as a signal interrupts it; return what it returned.

        ``argument`` is an integer or ``ctypes.byref`` of a structure the caller holds. Any
        non-negative result is a success (it may be a descriptor or a count). Raises OSError.
        """
        while True:
            result: int = libc_ioctl(self.fileno(), request.request, argument)
            if result >= 0:
                return result
            code = ctypes.get_errno()
            if code != errno.EINTR:
                raise self._error(request, code)

    def _create(self, made: "Descriptor", request: Ioctl, argument: int) -> None:
        """Make a request that gives a descriptor: it is ``made``'s. As ``_ioctl`` otherwise."""
        while not made._take(libc_ioctl, self.fileno(), request.request, argument):
            code = ctypes.get_errno()
            if code != errno.EINTR:
                raise self._error(request, code)

    def _error(self, request: Ioctl, code: int) -> OSError:
        """Return the error for ``errno`` = ``code``, naming the request and this object."""
        text = f"{request.name} on {self.kind} fd {self._fd}: {os.strerror(code)}"
        if code == errno.ENOTTY and request.capability is not None:
            text += f" (needs {CAPABILITY_NAMES[request.capability]})"
        return OSError(code, text)
