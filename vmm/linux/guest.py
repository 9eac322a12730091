"""A Linux program in its VM: what it is to be given, and its machine made."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

from vmm.engine.guest import Asked, Guest
from vmm.errors import GuestFault, Place
from vmm.guest import abi
from vmm.guest.blueprint import Shape
from vmm.guest.trap import Diagnosis
from vmm.guest.x86 import LARGE_PAGE
from vmm.kvm import Exit, Kvm, Vcpu
from vmm.kvm.given import Given as FromKernel
from vmm.kvm.given import give_back, noted
from vmm.linux import boot
from vmm.linux.boot import Layout, Processor
from vmm.linux.clock import Clock
from vmm.linux.crash import signalled
from vmm.linux.files.system import FileSystem
from vmm.linux.gate import Gate
from vmm.linux.kept import Kept
from vmm.linux.loader import Program, Segment
from vmm.linux.memory import Memory
from vmm.linux.output import Output
from vmm.linux.outset import Outset
from vmm.linux.process import Process
from vmm.linux.start import start_stack
from vmm.linux.trace import Record
from vmm.memory.movers import PROGRAM_SLOTS
from vmm.memory.private import Beginning


class Given(Protocol):
    """What one run of a program is given.

    path, argv, env    for its stack
    clock              its time
    on_call            what is told of its system calls
    """

    env: list[bytes]
    clock: Clock

    @property
    def path(self) -> bytes: ...

    @property
    def argv(self) -> list[bytes]: ...

    @property
    def on_call(self) -> Callable[[Record], object] | None: ...


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A program's machine as it is to be made; what a bare guest has in its blueprint.

    outset      the address space that it begins with
    template    what its private memory begins with: `laid_out` of the image's segments, too
    """

    image: Program
    interpreter: Program | None
    shape: Shape
    outset: Outset
    layout: Layout
    processor: Processor
    template: Beginning
    laid_out: tuple[Segment, ...]

    def enter(self, vcpu: Vcpu) -> None:
        """Nothing yet: the stack is not there."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Programs:
    """Where an instruction pointer lies, in a program or its interpreter."""

    image: Program
    interpreter: Program | None

    def place(self, rip: int) -> Place:
        """Return the symbol and the source line."""
        other = self.interpreter
        if other is not None and other.base <= rip < other.end:
            return other.place(rip)
        return self.image.place(rip)


class _Stopped(Diagnosis):
    """Of a program that is stopped from outside, maybe in a system call."""

    def __init__(self, process: Process | None, *about: Any) -> None:
        super().__init__(*about)
        self._process = process

    def fault(self, kind: str, reason: str, **known: Any) -> GuestFault:
        """Return a fault at `rip`, or where the program is, or has made its call."""
        process = self._process
        if process is not None and "rip" not in known:
            known = {**process.report(), **known}
        return super().fault(kind, reason, **known)


class LinuxGuest(Guest):
    """A VM with one vCPU that runs a program for Linux.

    process    the program
    kept       what it was when `keep` was last called; None if it was not, or failed
    """

    __slots__ = ("_given", "_space", "_told", "kept", "process")

    _aligned = True

    def __init__(
        self,
        kvm: Kvm,
        plan: Plan,
        number: int,
        name: str,
        given: Given,
        files: FileSystem,
        outputs: tuple[Output, Output],
        input_fd: int | None,
    ) -> None:
        """Make it, ready to be entered; `files` is closed with it. Raises ConfigError,
        ResourceError, OSError.
        """
        self._told: list[tuple[Output, int]] = []
        self.kept: Kept | None = None
        self._given: list[FromKernel] = []  # to keep that
        super().__init__(kvm, plan, number, name)  # type: ignore[arg-type]
        try:
            rsp = self._stack(plan, given)
            entered = plan.interpreter or plan.image
            boot.enter(self.vcpu, plan.layout, plan.processor, entered.entry, rsp)
            self.process = Process(
                Gate(self.vcpu),
                self._space,
                files,
                given.clock,
                outputs,
                fault=self._fault,
                stack_size=plan.shape.stack,
                input_fd=input_fd,
                on_call=given.on_call,
            )
            self.enter = self.process.run
        except BaseException:
            super().close()
            raise

    def _prepare(self, undo: contextlib.ExitStack) -> None:
        """Map the arena, and what is in no template."""
        plan: Plan = self._blueprint  # type: ignore[assignment]
        outset = plan.outset
        self._space = space = Memory(self.memory, outset.areas(), plan.layout.window, outset.tables)
        undo.callback(space.close)
        programs = [plan.image] if plan.interpreter is None else [plan.image, plan.interpreter]
        for segment in [segment for program in programs for segment in program.segments]:
            if segment.end - segment.start >= LARGE_PAGE:
                space.advise_huge(segment.start, segment.end)
            if segment not in plan.laid_out:
                space.fill(segment.start, segment.data)

    def _attach(self) -> None:
        self._space.attach(self.vm, PROGRAM_SLOTS)

    def _stack(self, plan: Plan, given: Given) -> int:
        """Put arguments and environment onto the stack; return the stack pointer."""
        top = plan.layout.stack.end
        start = start_stack(
            top,
            plan.shape.stack,
            plan.image,
            given.argv,
            given.env,
            random=given.clock.random(16),
            path=given.path,
            hwcap=plan.processor.hwcap,
            interpreter=plan.interpreter,
        )
        self._space.fill(start.rsp, start.data)
        return start.rsp

    def _fault(self, *about: Any, **known: Any) -> GuestFault:
        return self.diagnosis.fault(*about, **known)

    @property
    def base(self) -> int:
        """What has been added to the addresses that its file has."""
        return int(self._blueprint.image.base)  # type: ignore[attr-defined]

    @property
    def diagnosis(self) -> Diagnosis:
        plan: Plan = self._blueprint  # type: ignore[assignment]
        programs = _Programs(plan.image, plan.interpreter)
        process: Process | None = getattr(self, "process", None)
        return _Stopped(process, self.name, self.vcpu, self.memory, self.layout, programs)

    def keep(self) -> None:
        """Keep what it is, instead of what was kept before. Raises OSError, ResourceError: then
        nothing is kept.
        """
        self.forget()
        try:
            with noted(self._given):
                self.kept = Kept(self.process)
        except BaseException:
            self.forget()
            raise

    def forget(self) -> None:
        """Keep nothing any more. Further calls do nothing."""
        self.kept = None
        process: Process | None = getattr(self, "process", None)
        if process is not None:
            process.files.changes.since = None
        give_back(self._given)

    def takes(self, exit_: Exit | Asked) -> bool:
        return not isinstance(exit_, Asked) and self.process.takes(exit_)

    def untold(self, *, ended: bool = False) -> list[Callable[[], object]]:
        calls: list[Callable[[], object]] = []
        self._told = []
        for output in self.process.outputs:
            end, more = output.untold()
            calls += more
            self._told.append((output, end))
            if ended and output.ended is not None:
                calls.append(output.ended)
        return calls

    def tell(self) -> None:
        for output, end in self._told:
            output.tell(end)

    def explain(self, exit_: Exit, hold: Callable[[int], abi.Hold] | None = None) -> GuestFault:
        self.process.memory.take_lent()
        return signalled(super().explain(exit_, hold), self.process)

    def _unmap(self) -> None:
        self.forget()
        process: Process | None = getattr(self, "process", None)
        if process is None:
            self._space.close()
        else:
            process.close()
        super()._unmap()
