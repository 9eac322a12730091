"""From an ELF file, and what a user says of it, to a machine: a bare guest or a Linux program."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import SupportsIndex, TypeVar

from vmm import host
from vmm.endpoint import arguments
from vmm.endpoint.host import HostEndpoint
from vmm.endpoint.loans import FileLoans
from vmm.endpoint.registry import Registry
from vmm.endpoint.streams import source, stream
from vmm.engine.guest import Guest
from vmm.engine.machine import Machine
from vmm.errors import ConfigError
from vmm.ferry.turns import Turns
from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE
from vmm.guest.blueprint import Blueprints, Shape
from vmm.guest.image import Room
from vmm.guest.x86 import LARGE_PAGE
from vmm.kvm import Kvm
from vmm.kvm.given import Given, give_back, noted
from vmm.linux.blueprints import Blueprints as ProgramBlueprints
from vmm.linux.guest import LinuxGuest
from vmm.linux.loader import Program, load
from vmm.linux.machine import LinuxMachine
from vmm.linux.spawning import CLOCKS, Console, Options, Order, memory_of
from vmm.sizes import format_size, integer, parse_size

_MAX_PRIVATE = abi.DOORBELL_GPA // LARGE_PAGE * LARGE_PAGE
_MAX_STACK = _MAX_PRIVATE // 2
_MAX_WINDOW = 256 << 30
_MAX_QUEUE = 1 << 20

_T = TypeVar("_T")
_Size = SupportsIndex | str


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """What `Monitor.spawn` takes for every machine; see there."""

    name: str | None
    window: _Size
    memory: _Size | None
    stack: _Size | None
    queue: SupportsIndex
    quota: _Size | None
    populate: bool


@dataclasses.dataclass(frozen=True, slots=True)
class _Limits:
    """The same, checked. Pages, but for the window: bytes."""

    window: int
    queue: int
    quota: int
    populate: bool


class Spawning:
    """Makes the machines of a monitor; it may be called from any thread.

    ring, doorbell   of bare guests
    give_up   called with a machine that has joined, and is not to be after all; it may be running
    """

    def __init__(
        self,
        kvm: Kvm,
        blueprints: Blueprints,
        programs: ProgramBlueprints,
        registry: Registry,
        host: HostEndpoint,
        turns: Turns,
        ring: int,
        doorbell: abi.Doorbell,
        console: Console,
        give_up: Callable[[Machine], object],
    ) -> None:
        self._kvm = kvm
        self._blueprints = blueprints
        self._programs = programs
        self._registry = registry
        self._host = host
        self._turns = turns
        self._ring = ring
        self._doorbell = doorbell
        self._console = console
        self._give_up = give_up

    def spawn(self, path: object, wanted: Wanted, options: Options) -> Machine:
        """Make a machine; see `Monitor.spawn`. The options' `files` may be Buffers, too."""
        file, name, limits, options = _checked(path, wanted, options)
        # What it is says the file, and how much it may have depends on that.
        shape, wrong = _tried(lambda: self._shape(wanted, limits.window))
        most, _ = _tried(lambda: memory_of(wanted.memory))
        room = None if shape is None else Room(shape.private, shape.stack)
        with host.reported(f"no machine of {file} can be made"):
            image = load(file, room, most, rooted=options.root is not None)
            name = Path(file).stem if name is None else name
            if isinstance(image, Program):
                loans = FileLoans(self._host, options.files, options.writable_files)
                if loans.files is not options.files:
                    options = dataclasses.replace(options, files=loans.files)
                order = Order(
                    image, file, options, wanted.memory, wanted.stack, limits.window, loans.size
                )
                order.print_to(self._console, name)
                return self._spawn_program(order, loans, file, name, limits)
            options.refuse(file)
            if shape is None:
                raise wrong or AssertionError
            turns, registry = self._turns, self._registry
            with self._blueprints.prepared(image, shape), turns.telling, turns.lock, turns.change:
                registry.check_name(name)  # before there is anything to be undone
                blueprint = self._blueprints.get(image, shape)
                make = partial(Guest, self._kvm, blueprint, next(registry.numbers), name)
                return registry.join(
                    name,
                    make,
                    Machine,
                    file,
                    limits.queue,
                    limits.quota,
                    populate=limits.populate,
                )

    def _spawn_program(
        self, order: Order, loans: FileLoans, path: str, name: str, limits: _Limits
    ) -> Machine:
        """Make a machine of a program, as far as possible without the lock."""
        turns, registry = self._turns, self._registry
        turns.check_open()  # or it would be the kernel's descriptors that are found closed
        made: list[Given] = []
        guest: LinuxGuest | None = None
        number = next(registry.numbers)
        try:
            with noted(made):
                guest = ready = order.make(self._kvm, self._programs, number, name)
            with turns.telling, turns.lock, turns.change:
                registry.check_name(name)
                machine = registry.join(
                    name,
                    lambda: ready,
                    LinuxMachine,
                    path,
                    limits.queue,
                    limits.quota,
                    populate=limits.populate,
                    waits=bool(loans),
                )
            if loans:
                assert isinstance(machine, LinuxMachine)
                loans.lend(machine, partial(registry.begin, machine))
            return machine
        except BaseException:
            turns.settle()  # whether it has joined, or has not
            joined = registry.by_number.get(number)
            if joined is not None:
                loans.take_back()
                self._give_up(joined)
                raise
            if guest is not None:
                guest.close()
            give_back(made)
            raise

    def _shape(self, wanted: Wanted, window: int) -> Shape:
        """Return what a bare guest is to be like. Raises ConfigError."""
        private = "16M" if wanted.memory is None else wanted.memory
        stack = "256K" if wanted.stack is None else wanted.stack
        return Shape(
            privilege=self._ring,
            doorbell=self._doorbell,
            private=_rounded(private, "memory", PAGE_SIZE, _MAX_PRIVATE, least=PAGE_SIZE),
            stack=_rounded(stack, "stack", PAGE_SIZE, _MAX_STACK, least=PAGE_SIZE),
            window=window,
        )


def _checked(
    path: object, wanted: Wanted, options: Options
) -> tuple[str, str | None, _Limits, Options]:
    """Return the file, the name if there is one, the limits, and the options. Raises ConfigError,
    ArgumentTypeError.
    """
    file = arguments.file_path(path, "path")
    name = None if wanted.name is None else arguments.text(wanted.name, "name")
    queue = integer(wanted.queue, "queue", 1, _MAX_QUEUE)
    window = _rounded(wanted.window, "window", LARGE_PAGE, _MAX_WINDOW)
    quota = window if wanted.quota is None else parse_size(wanted.quota, "quota")
    populate = arguments.flag(wanted.populate, "populate")
    root = options.root
    options = dataclasses.replace(
        options,
        root=None if root is None else arguments.file_path(root, "root"),
        stdin=source(options.stdin, "stdin"),
        stdout=stream(options.stdout, "stdout"),
        stderr=stream(options.stderr, "stderr"),
        clock=arguments.choice(options.clock, "clock", CLOCKS),
    )
    return file, name, _Limits(window, queue, quota // PAGE_SIZE, populate), options


def _tried(make: Callable[[], _T]) -> tuple[_T | None, ConfigError | None]:
    """Return what is made, or why it cannot be."""
    try:
        return make(), None
    except ConfigError as error:
        return None, error


def _rounded(size: _Size, what: str, unit: int, limit: int, *, least: int = 0) -> int:
    given = parse_size(size, what)
    if given < least:
        raise ConfigError(
            f"{what} of {given} bytes is less than a page: give {least} or more, or a unit, as 8K"
        )
    value = -(-given // unit) * unit
    if value > limit:
        raise ConfigError(
            f"{what} of {format_size(value)} is over the limit of {format_size(limit)}"
        )
    return value
