"""A Linux program in its VM: what it is to be given, and its machine made."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vmm.engine.guest import Asked, Guest
from vmm.errors import GuestFault
from vmm.guest import abi
from vmm.guest.blueprint import Shape
from vmm.kvm import Exit, Kvm, Vcpu
from vmm.linux import boot
from vmm.linux.areas import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, Areas
from vmm.linux.boot import Layout, Processor
from vmm.linux.clock import Clock
from vmm.linux.crash import signalled
from vmm.linux.files.contents import Content
from vmm.linux.files.offering import Offered
from vmm.linux.files.streams import Input, Source
from vmm.linux.files.system import FileSystem
from vmm.linux.gate import Gate
from vmm.linux.loader import Program
from vmm.linux.memory import Memory
from vmm.linux.output import Lines, Output
from vmm.linux.process import Process
from vmm.linux.start import start_stack
from vmm.memory.movers import ARENA_SLOT, PRIVATE_SLOT
from vmm.memory.template import Template

PAGE, MIB = abi.PAGE_SIZE, 1 << 20
_ADDRESSES = 64 * MIB  # of the arena, besides what memory and stack take: reserved areas, holes
_FIXED = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/root"}


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What one run of a program is given.

    path         what it knows its file as
    args         what follows argv[0], which is the path's last part
    env          its environment
    files        what it may read, by absolute path
    root         a directory of the host's that it sees, and cannot change; or None
    executable   its file's contents
    stdin        bytes, or a binary file
    stdout, stderr   None: kept, for Python; else called with what is printed, bytes
    console      called with each line that is printed, instead; or None
    memory       bytes it may have, image and stack included
    disk         bytes it may write into files
    output       bytes of its outputs, each, that are kept
    """

    path: bytes
    args: Sequence[bytes]
    env: Mapping[bytes, bytes]
    files: Mapping[str, Offered]
    root: Path | None
    executable: Content
    stdin: bytes | Source
    stdout: Callable[[bytes], object] | None
    stderr: Callable[[bytes], object] | None
    memory: int
    disk: int
    output: int
    clock: Clock
    input_fd: int | None = None


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A program's machine as it is to be made; what a bare guest has in its blueprint."""

    image: Program
    shape: Shape
    layout: Layout
    processor: Processor
    template: Template
    entry: int

    def enter(self, vcpu: Vcpu) -> None:
        """Nothing yet: the stack is not there."""


def layout(program: Program, task: Task, shape: Shape) -> Layout:
    """Say where things are to lie. Raises ConfigError."""
    low = min(program.end + task.memory, abi.DOORBELL_GPA)
    arena = task.memory + _ADDRESSES + shape.stack
    return boot.plan(low, arena, shape.stack, shape.window)


class LinuxGuest(Guest):
    """A VM with one vCPU that runs a program for Linux."""

    __slots__ = ("_lines", "_told", "process")

    def __init__(self, kvm: Kvm, plan: Plan, number: int, name: str, task: Task) -> None:
        """Make it, ready to be entered. Raises ConfigError, ResourceError, OSError."""
        self._lines: tuple[Lines, ...] = ()
        self._told: list[tuple[Output, int]] = []
        super().__init__(kvm, plan, number, name)  # type: ignore[arg-type]
        try:
            self.process = self._process(plan, task)
        except BaseException:
            super().close()
            raise

    def _process(self, plan: Plan, task: Task) -> Process:
        files = FileSystem(
            task.files,
            root=task.root,
            limit=task.disk,
            executable=task.executable,
            now=task.clock.realtime_ns,
            random=task.clock.random,
            executable_path=task.path,
        )
        with contextlib.ExitStack() as undo:
            undo.callback(files.close)
            outputs = (
                Output(files.changes, task.output, task.stdout),
                Output(files.changes, task.output, task.stderr),
            )
            files.standard(Input(task.stdin), *outputs)
            memory = self._memory(plan, task)
            rsp = self._stack(memory, plan, task)
            boot.enter(self.vcpu, plan.layout, plan.processor, plan.entry, rsp)
            process = Process(
                Gate(self.vcpu),
                memory,
                files,
                task.clock,
                outputs,
                fault=self.diagnosis.fault,
                stack_size=plan.shape.stack,
                input_fd=task.input_fd,
            )
            undo.pop_all()
        return process

    def _memory(self, plan: Plan, task: Task) -> Memory:
        """Map the image and the stack; the machine's memslots are made of that."""
        layout = plan.layout
        areas = Areas(layout.low, layout.arena, task.memory, plan.shape.stack)
        areas.start_heap(plan.image.end)
        memory = Memory(self.memory, areas, layout.window)
        try:
            for segment in plan.image.segments:
                size = segment.end - segment.start
                memory.mmap(segment.start, size, segment.rights, _FIXED)
                memory.fill(segment.start, segment.data)
            memory.attach(self.vm, PRIVATE_SLOT, ARENA_SLOT)
        except BaseException:
            memory.close()
            raise
        return memory

    def _stack(self, memory: Memory, plan: Plan, task: Task) -> int:
        """Put arguments and environment onto the stack; return the stack pointer."""
        top = plan.layout.stack.end
        start = start_stack(
            top,
            plan.shape.stack,
            plan.image,
            [task.path.rsplit(b"/", 1)[-1], *task.args],
            [name + b"=" + value for name, value in task.env.items()],
            random=task.clock.random(16),
            path=task.path,
            hwcap=plan.processor.hwcap,
        )
        memory.fill(start.rsp, start.data)
        return start.rsp

    def _attach(self) -> None:
        """Its memory is not there yet."""

    def run(self) -> Exit | Asked:
        return self.process.run()

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
        return signalled(super().explain(exit_, hold), self.process)

    def _unmap(self) -> None:
        process: Process | None = getattr(self, "process", None)
        if process is not None:
            process.close()
        super()._unmap()
