"""A Linux program as it runs: its system calls are taken, served and answered here.

Nothing of it is anybody else's, so it is served without the monitor's lock, by the thread that runs
the machine; only what concerns others (parking, ending, what it has printed) is asked of the
driver, as an exit (`Asked`).

**Nothing is lost, and nothing done twice.** Python may raise at any line. A call is taken, served
and answered in three steps. What is raised before the second has ended undoes it (`Changes`, and
`Memory.begin`), and the call is served again when the machine runs next; its end is one assignment,
that of its answer. It is only written after that, and may be written again.

A call costs what Python does between an exit and the next entry, and there each call of a function
costs a microsecond or two: so what is done for every call stands in as few functions as can be.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import signal
import time
from collections.abc import Callable, Iterable
from operator import add, and_, itemgetter, sub
from typing import Any, NamedTuple

from vmm.engine.guest import Asked
from vmm.errors import GuestFault
from vmm.kvm import Exit
from vmm.linux.calls import CALLS
from vmm.linux.calls.signals import NO_STACK
from vmm.linux.calls.table import Park
from vmm.linux.clock import Clock
from vmm.linux.errors import SysError
from vmm.linux.files.descriptors import Descriptors
from vmm.linux.files.live import LiveData
from vmm.linux.files.system import FileSystem
from vmm.linux.gate import R8, R9, R10, RAX, RDI, RDX, RSI, Gate
from vmm.linux.memory import Memory
from vmm.linux.numbers import name_of
from vmm.linux.output import Output
from vmm.linux.trace import Record, described

_ARGUMENTS = itemgetter(RDI, RSI, RDX, R10, R8, R9)
_LAST = 32  # calls that are remembered
_MOST_NAMES = 600  # that were not served: there are no more numbers with names


class Notes(NamedTuple):
    """Of a process, at one moment; see there."""

    serial: int
    cpu_ns: int
    last: list[Record]
    clock: dict[str, Any]
    last_ino: int


class Process:
    """One program. Not thread-safe: used by whoever runs its machine.

    memory, files, clock    its own
    descriptors             of `files`
    input_fd                a descriptor of the host's that tells when standard input has more
    stack_size              in bytes
    mapped                  what files are, or have been, mapped to be written
    not_served              how often each call was asked for that is not served, by name
    last                    its last calls, the last one last
    on_call                 called with each call that has been served, as a Record; or None

    Raised in a call: SysError (what it answers), Park (it waits).
    """

    def __init__(
        self,
        gate: Gate,
        memory: Memory,
        files: FileSystem,
        clock: Clock,
        outputs: tuple[Output, Output],
        *,
        fault: Callable[..., GuestFault],
        stack_size: int,
        input_fd: int | None = None,
        on_call: Callable[[Record], object] | None = None,
    ) -> None:
        self.gate = gate
        self.memory = memory
        self.files = files
        self.descriptors: Descriptors = files.descriptors
        self.clock = clock
        self.outputs = outputs
        self._handed_on = [output for output in outputs if output.handed_on]
        self.input_fd = input_fd
        self.stack_size = stack_size
        self.serial = 0
        self.comm = b""
        self.mask = 0
        self.limits: dict[int, tuple[int, int]] = {}  # that were set, of its resources
        self.pending = 0  # signals that came while they were blocked
        self.actions: dict[int, bytes] = {}
        self.mapped: tuple[LiveData, ...] = ()
        self.alternate_stack = NO_STACK
        self.not_served: dict[str, int] = {}
        self.last: collections.deque[Record] = collections.deque(maxlen=_LAST)
        self.on_call = on_call
        self._fault = fault
        self._called = False  # whether there is a call that has not been answered
        self._answer: int | None = None  # of the present call
        self._ending: Asked | None = None
        self._until: float | None = None  # when a wait of the present call is over
        self._cpu_ns = 0

    # ---- running ----

    def run(self) -> Exit | Asked:
        """Run until something happens that is not a system call, or the driver is asked."""
        gate = self.gate
        while True:
            if self._called:
                asked = self._serve()
                if asked is not None:
                    return asked
            self._answer = self._until = None
            self.serial += 1
            before = time.perf_counter_ns()
            exit_ = gate.run()
            self._cpu_ns += time.perf_counter_ns() - before
            if not gate.called(exit_):
                return exit_
            self._called = True

    def takes(self, exit_: Exit) -> bool:
        """Whether an exit, which this has not seen or not dealt with, is a system call. If so, it
        is served when the program is run.
        """
        if self._called:  # it is known; its registers may be the answer's by now
            return True
        self._called = self.gate.called(exit_)
        return self._called

    def _serve(self) -> Asked | None:
        """Serve the present call, and answer it; return what is to be asked of the driver first."""
        changes = self.files.changes
        if self._answer is None and self._ending is None:
            registers = self.gate.registers
            number, words = registers[RAX] & 0xFFFFFFFF, _ARGUMENTS(registers)
            known = CALLS.get(number)
            shown: tuple[int | bytes, ...] = words
            try:
                if known is None:
                    raise SysError(errno.ENOSYS)
                self.memory.begin(self.serial)
                if changes.log:
                    changes.undo()  # what was cut off, and its undoing
                more = known.more
                arguments: Iterable[Any] = map(
                    sub, map(and_, map(add, words, more), known.masks), more
                )
                if known.paths:
                    arguments = values = known.with_paths(self, arguments)
                    shown = known.shown(words, values)
                self._answer = answer = known.serve(self, *arguments)
            except SysError as error:
                changes.undo()
                if error.number == errno.ENOSYS:
                    self._count(number)
                self._answer = answer = -error.number
            except Park as park:
                changes.undo()
                return Asked(parks=True, until=park.until)
            except Exception as error:  # a fault of ours is this machine's, and nobody else's
                changes.undo()
                reason = f"{name_of(number)} could not be served: {type(error).__name__}: {error}"
                self._ending = Asked(fault=self._stopped("internal", reason))
                return self._ending
            except BaseException:
                if self._answer is None:
                    changes.undo()
                raise
            self.last.append(record := (number, shown, None if self._ending else answer))
            if self.on_call is not None:
                self.on_call(record)
        changes.log = []  # from here on it has been served: what it did, its answer has told
        if self._ending is not None:
            return self._ending
        self.gate.answer(self._answer or 0)
        self._called = False
        if self._handed_on and any(output.waits for output in self._handed_on):
            return Asked()
        return None

    def report(self) -> dict[str, Any]:
        """Return where it is, and what it did last: what a fault says of it."""
        registers = self.gate.stopped(self._answer)
        calls = [described(record) for record in self.last]
        if self._called:
            registers["rip"], registers["rflags"] = registers["rcx"], registers["r11"]
            number, *arguments = self.gate.arguments()
            calls.append(described((number & 0xFFFFFFFF, tuple(arguments), None)))
        return {
            "rip": registers["rip"],
            "registers": registers,
            "calls": calls,
            "printed": self.outputs[0].tail.lines(),
        }

    def _stopped(self, kind: str, reason: str, name: str | None = None) -> GuestFault:
        """Return why it ends in the present call."""
        return self._fault(kind, reason, signal=name, **self.report())

    def _count(self, number: int) -> None:
        name = name_of(number)
        if name in self.not_served or len(self.not_served) < _MOST_NAMES:
            self.not_served[name] = self.not_served.get(name, 0) + 1

    # ---- what it was ----

    def notes(self) -> Notes:
        """Return what it is, but for its files and all else that changes by `Changes` only."""
        clock = vars(self.clock).copy()
        return Notes(self.serial, self._cpu_ns, [*self.last], clock, self.files.last_ino)

    def go_back(self, notes: Notes) -> None:
        """Be what it was. The present call, if there is one, has not been. Again is fine."""
        self._called, self._answer, self._ending, self._until = False, None, None, None
        changes = self.files.changes
        if changes.log:
            changes.undo()
        self.gate.registers = []
        self.serial, self._cpu_ns = notes.serial, notes.cpu_ns
        self.last.clear()
        self.last.extend(notes.last)
        vars(self.clock).update(notes.clock)
        self.files.last_ino = notes.last_ino

    # ---- for calls ----

    def exit(self, code: int) -> int:
        """End the program."""
        self.files.changes.set(self, "_ending", Asked(exit_code=code & 0xFF))
        return 0

    def die(self, number: int) -> int:
        """End the program by a signal."""
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        fault = self._stopped("signal", name, name)
        self.files.changes.set(self, "_ending", Asked(fault=fault))
        return 0

    def broken_pipe(self) -> int:
        """Who writes where nobody reads gets SIGPIPE, unless it is ignored."""
        ignored = self.actions.get(signal.SIGPIPE, b"")[:1] == b"\x01"
        if ignored:
            raise SysError(errno.EPIPE)
        return self.die(signal.SIGPIPE)

    def now(self) -> float:
        """Return the time on the monotonic clock that waits are measured by, in seconds."""
        return time.monotonic()

    def deadline(self, ns: int | None) -> float | None:
        """Return when a wait of so many ns is over that the present call began; None for ever."""
        if ns is None:
            return None
        if self._until is None:
            self._until = self.now() + ns / 1e9
        return self._until

    def sleep(self, ns: int) -> None:
        """Wait. Returns when it is over."""
        if self.clock.frozen:
            self.clock.skip(ns)
            return
        until = self.deadline(ns)
        if until is not None and self.now() < until:
            raise Park(until)

    def cpu_ns(self) -> int:
        """Return how long it has run, in ns."""
        return 0 if self.clock.frozen else self._cpu_ns

    def set_base(self, register: int, address: int) -> None:
        """Set the FS or GS base, by its MSR."""
        self.gate.vcpu.set_msrs({register: address})

    def base(self, register: int) -> int:
        """Return the FS or GS base."""
        return self.gate.vcpu.get_msrs([register])[register]

    def close(self) -> None:
        """Let go of all it has. What was mapped of a file is in it then."""
        if self.mapped:
            with contextlib.suppress(OSError, ValueError):  # the VM has been closed
                self.memory.finish()
        for data in self.mapped:
            data.write_back(0, 1 << 64)
        self.mapped = ()
        self.files.close()
        self.memory.close()
