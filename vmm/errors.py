"""What can go wrong, as types. Each message is one line: what was wrong, where, and what to do.

Kernel errors that nobody can act on stay `OSError`, with the ioctl and the object named (see
`vmm.kvm`).
"""

from __future__ import annotations

import dataclasses
import errno
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vmm.guest.abi import Status
from vmm.guest.text import printable

# What to do about a limit of the kernel's, by the errno that tells of it.
ADVICE = {
    errno.EMFILE: "close some files, or raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close some files in other programs, or raise fs.file-max",
    errno.ENOMEM: "free some memory, or use smaller sizes",
    errno.EAGAIN: (
        "raise the limits on threads, address space and locked memory (ulimit -u, -v, -l), "
        "and on the container's processes (pids.max)"
    ),
    errno.ENOSPC: "free some memory, or use smaller sizes",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
}


class PageferryError(Exception):
    """The base of every error that pageferry raises on its own account.

    Its text is printable, whatever the names in it are.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class HostError(PageferryError):
    """This host cannot run machines: no `/dev/kvm`, no permission, an old kernel.

    `fix` says what to do.
    """

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(f"{what}: {fix}")
        self.what = what
        self.fix = fix

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.what, self.fix)


class ConfigError(PageferryError, ValueError):
    """An argument that cannot be meant: a size that is no size, a name that is taken."""


class ArgumentTypeError(ConfigError, TypeError):
    """An argument of a type that cannot be meant: text for bytes, a float for a tag."""


class ArgumentRangeError(ConfigError, OverflowError):
    """A number that does not fit the C type that it is for."""


class HandleError(ConfigError):
    """An address that a function has returned, of a machine that is gone, or of another one."""


class GuestImageError(PageferryError):
    """A file that is not a guest this monitor can load."""


class ResourceError(PageferryError):
    """Memory, mappings or descriptors have run out; nothing was changed."""


class LimitError(ResourceError, OSError):
    """A limit of the kernel's has been reached. Also an OSError, with its `errno`."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.errno = code

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (*self.args, self.errno)


class GuestError(PageferryError):
    """An operation of the host's was refused with an ABI status, as a guest's would be.

    status    why, as a guest would see it
    """

    def __init__(self, message: str, status: Status) -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (*self.args, self.status)


class AccessError(PageferryError):
    """A buffer that cannot be read, or written, at present: lent, read-only, or reclaimed; or
    memory of a machine's that is not there, or that it cannot write.
    """


class LiveViewError(PageferryError, BufferError):
    """Memory that is to go has been given out: a memoryview or an array of it is alive."""


class ClosedError(PageferryError):
    """The monitor has been closed, the machine removed, or the buffer sent or released."""


class BusyError(PageferryError, RuntimeError):
    """The monitor is at work, and cannot do this now: a second `run`, or a `close` or anything else
    from a signal handler that has interrupted it.
    """


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where an instruction pointer lies in the guest's source; what is not known is None."""

    symbol: str | None = None
    offset: int = 0
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        parts = []
        if self.symbol is not None:
            parts.append(f"{self.symbol}+{self.offset:#x}")
        if self.file is not None:
            parts.append(f"{self.file}:{self.line}")
        return " at ".join(parts)


class GuestFault(PageferryError):
    """Why a machine was stopped, when it did not stop of its own accord.

    kind      "exception" (the guest's CPU raised one), "access" (a guest-physical address that is
              not the machine's: revoked, or never backed), "panic", "halt", "triple-fault",
              "port" (I/O to a port that is not the doorbell), "signal" (a Linux program ended
              itself by one), "timeout", "killed" or "internal"
    machine   the machine's name
    reason    the fault in words, without the machine's name
    vector    the exception's vector, error_code what the CPU pushed with it; else None
    address   the linear address of a page fault, or the guest-physical address of an access; else
              None
    access    "read", "write" or "execute", where it is known
    rip       the instruction pointer. For a store that KVM emulated it is that of the next
              instruction
    place     symbol and source line of `rip`, as far as the image has them. It is looked up when it
              is first asked for, as by `str` and `as_json`; that takes up to a second, if
              the image is made for it

    Of a Linux program, else None and empty:

    signal      what would have ended it there: "SIGSEGV"
    registers   the general registers at `rip`, by name
    calls       its last system calls, as text, the last one last
    printed     the last lines that it has printed, to either output
    """

    def __init__(
        self,
        kind: str,
        machine: str,
        reason: str,
        *,
        vector: int | None = None,
        error_code: int | None = None,
        address: int | None = None,
        access: str | None = None,
        rip: int | None = None,
        place: Place | Callable[[], Place] | None = None,
        signal: str | None = None,
        registers: Mapping[str, int] | None = None,
        calls: Sequence[str] = (),
        printed: Sequence[str] = (),
    ) -> None:
        super().__init__(kind, machine, reason)
        self.signal = signal
        self.registers = registers
        self.calls = tuple(map(printable, calls))
        self.printed = tuple(map(printable, printed))
        self.kind = kind
        self.machine = machine
        self.reason = printable(reason)
        self.vector = vector
        self.error_code = error_code
        self.address = address
        self.access = access
        self.rip = rip
        self._place = place or Place()

    @property
    def place(self) -> Place:
        """Where `rip` lies."""
        found = self._place
        if not isinstance(found, Place):
            found = self._place = found()
        return found

    def __str__(self) -> str:
        text = f"{self.machine}: {self.reason}"
        if self.rip is not None:
            text += f", rip {self.rip:#x}"
            if place := str(self.place):
                text += f" ({place})"
        return printable(text)

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(type(self), **{name: getattr(self, name) for name in _FIELDS}), ()

    def as_json(self) -> dict[str, Any]:
        """Return the fault as an object for `--json`."""
        return {
            "kind": self.kind,
            "machine": self.machine,
            "reason": self.reason,
            "vector": self.vector,
            "error_code": self.error_code,
            "address": self.address,
            "access": self.access,
            "rip": self.rip,
            "symbol": self.place.symbol,
            "file": self.place.file,
            "line": self.place.line,
            "signal": self.signal,
            "registers": None if self.registers is None else dict(self.registers),
            "calls": list(self.calls),
            "printed": list(self.printed),
        }

    def details(self) -> str:
        """Return what else is known of a Linux program's, as lines; nothing, if nothing is."""
        values = [f"{name:<6} {value:016x}" for name, value in (self.registers or {}).items()]
        rows = ["  ".join(values[at : at + 3]) for at in range(0, len(values), 3)]
        parts = ("registers", rows), ("last printed", self.printed), ("last calls", self.calls)
        return "\n".join(
            f"{title}:\n" + "\n".join(f"  {line}".rstrip() for line in lines)
            for title, lines in parts
            if lines
        )


class CallError(PageferryError):
    """A call of a function in a sandbox did not return. What it was given is the caller's again;
    the machine is gone with what it remembered, and the next call has a new one.

    function    the function's name
    fault       why its machine was stopped: with registers, symbol, source line, the last lines
                that it printed; None if there is no more to say
    """

    def __init__(self, function: str, reason: str, fault: GuestFault | None = None) -> None:
        super().__init__(f"{function}: {reason}")
        self.function = function
        self.reason = reason
        self.fault = fault
        self.__cause__ = fault

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.function, self.reason, self.fault)


class CallCrash(CallError):
    """The function crashed: a signal, a panic, an exception of the CPU's."""


class CallExit(CallError):
    """The function ended its program: `exit_code` says with what."""

    def __init__(self, function: str, exit_code: int) -> None:
        super().__init__(function, f"it called exit({exit_code})")
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.function, self.exit_code)


class CallTimeout(CallError, TimeoutError):
    """The function took longer than the call's `timeout`, and was stopped."""


class CallCancelled(CallError):
    """The call was cancelled while the function ran, which was stopped."""


_FIELDS = (
    *("kind", "machine", "reason", "vector", "error_code", "address", "access", "rip"),
    *("place", "signal", "registers", "calls", "printed"),
)
