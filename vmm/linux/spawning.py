"""From what a user gives a program to its machine."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, SupportsIndex

from vmm.errors import ArgumentTypeError, ConfigError
from vmm.guest import abi
from vmm.guest.blueprint import Shape
from vmm.guest.elf import Source
from vmm.kvm import Kvm
from vmm.linux.blueprints import Beginning, Blueprints, laid_out
from vmm.linux.clock import Clock, FrozenClock
from vmm.linux.errors import SysError
from vmm.linux.files.contents import HostFile
from vmm.linux.files.offering import Offered
from vmm.linux.files.streams import Input
from vmm.linux.files.streams import Source as InputSource
from vmm.linux.files.system import FileSystem
from vmm.linux.guest import LinuxGuest, Plan
from vmm.linux.loader import Program, read_interpreter
from vmm.linux.output import Lines, Output, Tail
from vmm.linux.trace import Record, described
from vmm.sizes import integer, parse_size

MEMORY = "256M"
"""What a program may have, unless told otherwise: a limit, not a cost."""
STACK = "8M"
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/root"}
"""The environment, unless another one is given."""

_LEAST_MEMORY = 1 << 20
_MOST_MEMORY = 64 << 30
_OUTPUT = 64 << 20  # bytes of each output that are kept
CLOCKS = ("real", "frozen")

Text = str | bytes | os.PathLike[str]
Sink = Callable[[bytes], object]
Console = Callable[[str, str], None]


_NOTHING: dict[str, tuple[object, ...]] = {  # besides the defaults
    "args": ((), []),
    "env": (None, {}),
    "files": (None, {}),
    "writable_files": ((), []),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """What `Monitor.spawn` takes for programs only; see there. Checked by `checked`."""

    args: Iterable[Text] = ()
    env: Mapping[str, str] | None = None
    files: Mapping[str, Offered] | None = None
    root: Text | None = None
    stdin: bytes | InputSource = b""
    stdout: Any = None
    stderr: Any = None
    disk: SupportsIndex | str = "256M"
    clock: str = "real"
    seed: SupportsIndex = 0
    writable_files: Iterable[str] = ()
    strace: Callable[[str], object] | None = None

    def refuse(self, path: str) -> None:
        """Raise ConfigError if there is anything here: what is spawned takes none of it."""
        for field in dataclasses.fields(self):
            value, nothing = getattr(self, field.name), _NOTHING.get(field.name, (field.default,))
            if not any(type(value) is type(each) and value == each for each in nothing):
                raise ConfigError(
                    f"{path} is a bare guest, which takes no {field.name}: that is for programs "
                    "for Linux (pageferry build --libc makes one)"
                )


class Order:
    """A program, and all it is given: what its machine is made of. Made without any lock.

    size_of_window    in bytes
    """

    def __init__(
        self,
        program: Program,
        path: str,
        options: Options,
        memory: SupportsIndex | str | None,
        stack: SupportsIndex | str | None,
        window: int,
        lent: int = 0,
    ) -> None:
        """Check it; `lent` bytes of its files are pages of its window. Raises ConfigError,
        ArgumentTypeError, LimitError.
        """
        self.program = program
        self._file = Path(path).absolute()
        root = None if options.root is None else Path(os.fsdecode(options.root)).resolve()
        self._root = root
        self._path = _inside(self._file, root) or os.fsencode(self._file)
        self._options = options
        self.memory = memory_of(memory)
        stack_size = _size(STACK if stack is None else stack, "stack", 64 << 10, self.memory)
        self._lent = lent
        self.shape = Shape(3, abi.Doorbell.MMIO, 0, stack_size, window)
        self.args = [_bytes(arg, "args") for arg in _list(options.args, "args")]
        self.env = _USUAL if options.env is None else _environment(options.env)
        seed = integer(options.seed, "seed")
        self.clock: Clock = Clock() if options.clock == "real" else FrozenClock(seed)
        self.disk = parse_size(options.disk, "disk")
        if options.strace is not None and not callable(options.strace):
            kind = type(options.strace).__name__
            raise ArgumentTypeError(f"strace must be a function of a text, not {kind}")
        self._input = Input(options.stdin)
        self._input_fd = _descriptor(options.stdin)
        self._sinks: list[Sink | None] = []

    def print_to(self, console: Console, name: str) -> None:
        """Say which console is meant by "console". Raises ArgumentTypeError."""
        streams = (self._options.stdout, "stdout"), (self._options.stderr, "stderr")
        self._sinks = [_sink(stream, what, name, console) for stream, what in streams]

    def make(self, kvm: Kvm, blueprints: Blueprints, number: int, name: str) -> LinuxGuest:
        """Open what it may read, and make its machine. Raises ConfigError, OSError …"""
        files = FileSystem(
            self._options.files or {},
            root=self._root,
            limit=self.disk,
            executable=HostFile.open(self._file),
            now=self.clock.realtime_ns,
            random=self.clock.random,
            executable_path=self._path,
        )
        try:
            self._go_to(files)
            tail = Tail()
            outputs = tuple(Output(files.changes, _OUTPUT, sink, tail) for sink in self._sinks)
            files.standard(self._input, *outputs)
            interpreter = self._interpreter(files)
            outset = blueprints.outset(
                self.program, interpreter, self.memory, self.shape, self._lent
            )
            plan = Plan(
                self.program,
                interpreter,
                self.shape,
                outset,
                outset.layout,
                blueprints.processor,
                Beginning(blueprints, self.program),
                laid_out(self.program),
            )
            return LinuxGuest(
                kvm, plan, number, name, self, files, (outputs[0], outputs[1]), self._input_fd
            )
        except BaseException:
            files.close()
            raise

    def _interpreter(self, files: FileSystem) -> Program | None:
        """Return what is entered in a dynamic program's place: a file of its own system's."""
        path = self.program.interpreter
        if path is None:
            return None
        try:
            data = files.contents(path)
        except SysError as error:
            raise ConfigError(
                f"{self.program.name}: its interpreter {os.fsdecode(path)} is not in root "
                f"{self._root} ({error}): give the root of the system that it was made for"
            ) from error
        return read_interpreter(Source.of(data), os.fsdecode(path))

    def _go_to(self, files: FileSystem) -> None:
        """Begin in the user's directory, if the program can see it."""
        here = None if self._root is None else _inside(Path.cwd(), self._root)
        if here is not None:
            with contextlib.suppress(SysError):
                files.chdir(None, here)
                files.changes.commit()

    @property
    def on_call(self) -> Callable[[Record], object] | None:
        """What is told of each call."""
        tell = self._options.strace
        return None if tell is None else lambda record: tell(described(record))

    @property
    def argv(self) -> list[bytes]:
        """Its arguments, its own name first."""
        return [os.fsencode(self._file.name), *self.args]  # not that of what it is a link to

    @property
    def path(self) -> bytes:
        """What it knows its file as."""
        return self._path


def _inside(path: Path, root: Path | None) -> bytes | None:
    """Return what a path of the host's is to who sees `root`; None if it is not in there."""
    if root is None or not path.resolve().is_relative_to(root):
        return None
    return b"/" + os.fsencode(path.resolve().relative_to(root))


def memory_of(memory: SupportsIndex | str | None) -> int:
    """Return the limit of a program's memory, in bytes."""
    return _size(MEMORY if memory is None else memory, "memory", _LEAST_MEMORY, _MOST_MEMORY)


def _size(value: SupportsIndex | str, what: str, least: int, most: int) -> int:
    size = -(-parse_size(value, what) // abi.PAGE_SIZE) * abi.PAGE_SIZE
    if not least <= size <= most:
        raise ConfigError(f"{what} of {value} is not between {least} and {most} bytes")
    return size


_TEXTS = (str, bytes, bytearray, memoryview, os.PathLike)  # one of these is no list of them


def _list(value: object, what: str) -> list[Any]:
    if isinstance(value, _TEXTS) or not isinstance(value, Iterable):
        raise ArgumentTypeError(f"{what} must be a list of texts, not {type(value).__name__}")
    return list(value)


def _bytes(value: object, what: str) -> bytes:
    if isinstance(value, str | bytes | os.PathLike):
        return os.fsencode(value)
    raise ArgumentTypeError(f"{what} must be texts, not {type(value).__name__}")


def _variable(name: object, value: object) -> bytes:
    left, right = _bytes(name, "env"), _bytes(value, "env")
    if not left or b"=" in left:
        raise ConfigError(f"env: {name!r} is no name of a variable")
    return left + b"=" + right


def _environment(env: object) -> list[bytes]:
    if not isinstance(env, Mapping):
        raise ArgumentTypeError(f"env must be a mapping, not {type(env).__name__}")
    return [_variable(name, value) for name, value in env.items()]


_USUAL = _environment(ENVIRONMENT)


def _descriptor(source: object) -> int | None:
    """Return what tells, by poll(2), whether a source has more; None if nothing does."""
    try:
        number = source.fileno()  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):
        return None
    return number if isinstance(number, int) and number >= 0 else None


def _sink(stream: Any, what: str, name: str, console: Console) -> Sink | None:
    """Return what output is handed to; None if it is kept."""
    if stream is None:
        return None
    if isinstance(stream, str) and stream == "console":
        return Lines(lambda line: console(name, line))
    raw = getattr(stream, "buffer", stream)
    write = getattr(raw, "write", None)
    if not callable(write) or isinstance(raw, io.TextIOBase):
        raise ArgumentTypeError(
            f'{what} must be None, "console" or a binary file, not {type(stream).__name__}'
        )
    return _Writer(write)


class _Writer:
    """Writes all of what it is given, as a file may take less."""

    def __init__(self, write: Callable[[bytes], Any]) -> None:
        self._write = write

    def __call__(self, data: bytes) -> None:
        while data:
            taken = self._write(data)
            data = data[taken:] if isinstance(taken, int) else b""
