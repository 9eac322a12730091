"""Native code that is not trusted, as a library: its functions run in virtual machines."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import weakref
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

from vmm import host
from vmm.endpoint import Buffer, arguments
from vmm.endpoint.arrays import layout, numpy
from vmm.endpoint.calling import Desk
from vmm.endpoint.opened import Opened
from vmm.engine.driver import Console
from vmm.engine.machine import Machine
from vmm.errors import ClosedError, GuestImageError
from vmm.guest.abi import PAGE_SIZE
from vmm.guest.x86 import LARGE_PAGE
from vmm.memory.movers import MOVERS, Mover
from vmm.memory.movers.in_place import InPlaceMover
from vmm.monitor import Monitor, print_line
from vmm.sandbox.caller import Caller, Stats
from vmm.sandbox.copies import Copies, found_or_had
from vmm.sandbox.crew import Crew
from vmm.sandbox.function import Function
from vmm.sandbox.globals import Globals
from vmm.sandbox.inside import Inside
from vmm.sandbox.names import missing
from vmm.sandbox.program import program
from vmm.sandbox.rooms import Rooms
from vmm.sandbox.unused import Unused
from vmm.sandbox.worker import Worker
from vmm.sizes import integer

if TYPE_CHECKING:
    import numpy as np
    from typing_extensions import Buffer as Bytes  # whatever has the buffer protocol

Size = SupportsIndex | str

_MOST_MACHINES = 1024
_PATIENCE = 30.0  # seconds that a machine may take until it waits for calls
_WINDOW_MOST = 256 << 30
_NAME_MAX = 20  # bytes of a machine's name, before its number


class Sandbox(Opened):
    """A library of C functions that run in virtual machines of their own.

        with Sandbox("blur.c") as lib:
            picture = lib.empty((2160, 3840, 3), np.uint8)
            lib.blur(picture, 3840, 2160, sigma=1.5)

    It is as `ctypes.CDLL`, but that the code can reach nothing besides what a call gives it: no
    memory, file or network of this process. `lib.blur`, or `lib["blur"]`, is a Function. After a
    crash, a time-out or an `exit` the call raises CallError, and the next one has a new machine:
    what the library remembered is gone.

    sources    C and C++ (`extern "C"`) files, objects and archives, which are compiled and linked
               with a C library; or one program, built by `pageferry build --sandbox`. Archives
               alone are linked with all that is in them; without any source so are `libraries`
    fresh      each call finds the machine as it was before the first: nothing is remembered
    machines   how many calls can be under way at a time, each in a machine of its own
    timeout    of a call, in seconds, if it says nothing else
    header     what declares the functions, as C includes it ("png.h"), where there is no debug
               information about them: of a library that was compiled without -g
    cflags     options of the compiler's, `libraries` its -l, `includes` its -I, `library_dirs` its
               -L; `cc` the compiler, by default the system's, or that of the ziglang package
    memory     private memory of a machine, a limit; `stack` of its stack
    files, root, env, disk, clock, seed, stdout, stderr   as for `Monitor.spawn`
    pool       memory for arrays, as for Monitor; `console`, `audit` and `device`, too
    name       of its machines; by default the first source's

    stats      what has been called and copied so far
    globals    its global variables, by name; see Globals

    Raises GuestImageError for what cannot be built, with what the compiler says, HostError where
    there is no KVM, ConfigError and ResourceError; CallError if a machine does not become ready.

    Thread-safety: everything may be used from any thread; `close` ends calls that are under way.
    """

    _forked = False  # whether it is another process's

    def __init__(
        self,
        *sources: str | bytes | os.PathLike[str],
        fresh: bool = False,
        machines: SupportsIndex = 1,
        timeout: Any = None,
        header: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] = (),
        cflags: Iterable[str] = (),
        includes: Iterable[str | os.PathLike[str]] = (),
        libraries: Iterable[str] = (),
        library_dirs: Iterable[str | os.PathLike[str]] = (),
        cc: str | None = None,
        memory: Size = "256M",
        stack: Size | None = None,
        files: Mapping[str, Any] | None = None,
        root: str | bytes | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        disk: Size = "256M",
        clock: str = "real",
        seed: SupportsIndex = 0,
        stdout: Any = None,
        stderr: Any = None,
        pool: Size | None = None,
        console: Console = print_line,
        audit: bool = False,
        device: str | bytes | os.PathLike[str] = host.DEVICE,
        name: str | None = None,
    ) -> None:
        arguments.flag(fresh, "fresh")
        count = integer(machines, "machines", 1, _MOST_MACHINES)
        limit = arguments.seconds(timeout, "timeout")
        wanted = None if name is None else arguments.text(name, "name")
        self._functions: dict[str, Function] = {}
        self._unused = Unused()
        try:
            self._program = program(
                sources,
                header,
                cflags,
                cc,
                wanted,
                includes=includes,
                libraries=libraries,
                library_dirs=library_dirs,
            )
        except GuestImageError as error:  # what the compiler says: it matters not where of ours
            raise error.with_traceback(None) from None
        try:
            mover = _mover(device)
            self.monitor = Monitor(
                mover=mover, pool=pool, console=console, audit=audit, device=device
            )
            self._rooms = Rooms(self.monitor.host, roomy=mover is InPlaceMover)
            window = self.monitor.host.peer.window.region
            title = (wanted or self._program.path.stem).encode()[:_NAME_MAX]
            names = map(partial("{}-{}".format, title.decode(errors="ignore")), itertools.count(1))
            spawn = partial(
                _spawn,
                self.monitor,
                self._program.path,
                # So that all of the host's may be shared: half of a window may be one lender's.
                window=min(2 * window.size + LARGE_PAGE, _WINDOW_MOST),
                quota=PAGE_SIZE,
                memory=memory,
                stack=stack,
                files=files,
                root=root,
                env=env,
                disk=disk,
                clock=clock,
                seed=seed,
                stdout=stdout,
                stderr=stderr,
            )
            desk = Desk(self.monitor.host)
            endpoint = self.monitor.host
            tidy = partial(self._unused.release, endpoint)  # not its own: that is a cycle
            self._crew = Crew(
                [
                    Worker(
                        self.monitor,
                        desk,
                        spawn,
                        names,
                        Copies(endpoint, tidy, fresh=fresh),
                        self._rooms,
                        patience=_PATIENCE,
                        fresh=fresh,
                    )
                    for _ in range(count)
                ]
            )
            self._threads = ThreadPoolExecutor(count, "pageferry-call", self._crew.enlist)
            self._caller = Caller(self._crew, window, limit, self._threads)
            self._inside = Inside(self._crew, fresh)
            machine = self._crew.workers[0].boot()
            # What is added to the addresses that the program is linked at: in every machine.
            self._base: int = getattr(machine.guest, "base", 0)
            told, where = self._program.prototypes, self._program.path.stem
            self.globals = Globals(self._inside, told, self._base, where)
        except BaseException:
            self._close_all()
            raise
        self._note_opened()
        self._closed = False

    # ---- Functions ----

    def __getitem__(self, name: str) -> Function:
        """Return a function by its name in C. Raises NoSuchName: AttributeError, and KeyError."""
        found = self._functions.get(name)
        if found is None:
            try:
                prototype = self._program.prototypes[name]
            except KeyError:
                where = self._program.path.stem
                raise missing(name, "function", where, self._program.functions) from None
            made = Function(self._caller, prototype, self._base, self._program.lengths(name))
            found = self._functions.setdefault(name, made)
        return found

    def __getattr__(self, name: str) -> Function:
        if name.startswith("__") or "_program" not in self.__dict__:
            raise AttributeError(name)
        return self[name]

    def __dir__(self) -> Iterable[str]:
        return {*super().__dir__(), *self._program.functions}

    @property
    def stats(self) -> Stats:
        """What has been called and copied so far."""
        return self._caller.stats

    @property
    def warnings(self) -> str:
        """What the compiler said."""
        return self._program.said

    @property
    def stdout(self) -> bytes:
        """What the machines have printed so far; of those that are gone, and of calls that a fresh
        one has served, the last 64 KiB. It stays when the sandbox is closed.
        """
        return b"".join([worker.stdout for worker in self._crew.workers])

    @property
    def stderr(self) -> bytes:
        """The same of standard error."""
        return b"".join([worker.stderr for worker in self._crew.workers])

    # ---- Memory that calls share ----

    def alloc(self, size: Size) -> Buffer:
        """Return zeroed memory that calls share with a machine and do not copy: a Buffer, which has
        the buffer protocol. Give it back with `monitor.host.release`. Raises ResourceError.
        """
        return found_or_had(
            lambda: self._unused.alloc(self.monitor.host, size), self._crew.give_back
        )

    def empty(self, shape: Any, dtype: Any = float) -> np.ndarray[Any, Any]:
        """Return a zeroed NumPy array in such memory.

        It may be used like any other; its memory is freed when its last view is gone. One of half a
        MiB or more may have its last huge page to itself. Raises
        ResourceError if there is none, ConfigError, ImportError without NumPy.
        """
        kind, sizes = layout(dtype, shape, 0)
        size = math.prod(sizes) * kind.itemsize
        self._unused.release(self.monitor.host)
        buffer = found_or_had(lambda: self._rooms.alloc(max(size, 1)), self._crew.give_back)
        array: np.ndarray[Any, Any] = buffer.array(kind, sizes)
        # Not released there: that may be at any line of any thread, within a turn as well. Nor for
        # certain then: slices may be left.
        weakref.finalize(array, self._unused.note, buffer).atexit = False
        return array

    def array(self, values: Any, dtype: Any = None) -> np.ndarray[Any, Any]:
        """Return a copy of an array, or of what `numpy.asarray` takes, as `empty` makes them."""
        source = numpy().asarray(values, dtype)
        made = self.empty(source.shape, source.dtype)
        made[...] = source
        return made

    # ---- Memory of the machine's own ----

    def read(self, address: SupportsIndex, size: SupportsIndex) -> bytes:
        """Return bytes of the machine's own memory, where a function's result points to.

        Raises AccessError if they are not all there, HandleError for an address of a machine that
        is gone, ConfigError where it is not said which machine's: in a sandbox of several only a
        function that is submitted to a Pool may ask, for the machine that it has.
        """
        return self._inside.read(address, size)

    def write(self, address: SupportsIndex, data: Bytes) -> None:
        """Write bytes to the machine's own memory: all of them, or none. Raises as `read` does, and
        ConfigError if each call finds the machine fresh.
        """
        self._inside.write(address, data)

    # ---- The end ----

    def close(self) -> None:
        """End the calls that are under way, which raise ClosedError, and close everything. Further
        calls do nothing. Raises BusyError in a callback of the monitor's.
        """
        if self._closed:
            return
        with contextlib.suppress(ClosedError):  # by one that was cut off
            self.monitor._check_idle()
        self._close_all()
        self._closed = True

    def _close_all(self) -> None:
        """Close what there is, whatever of it has been closed. Not by `getattr`, which finds
        functions.
        """
        made = self.__dict__
        try:
            if "_crew" in made:
                self._crew.stop(ClosedError("the sandbox has been closed"))
            if "_threads" in made:  # what waits for them raises ClosedError
                self._threads.shutdown(wait=False)
            if "monitor" in made:
                self.monitor.close()
        finally:
            self._program.close()
            self._unused.close()
        if "_crew" in made:
            for worker in self._crew.workers:
                worker.forget()
        if "_threads" in made and not self._crew.enlisted:
            self._threads.shutdown()

    def _disown(self) -> None:
        self._closed = self._forked = True
        self._crew.disown("the sandbox is of the process that forked this one: make another here")
        self._program.disown()

    def __enter__(self) -> Sandbox:
        self._crew.check()
        return self

    def __repr__(self) -> str:
        count = len(self._crew.workers)
        what = "closed" if self._closed else f"of {count} machine{'s' * (count != 1)}"
        return f"<{type(self).__name__} {self._program.path.stem} {what}>"


def _spawn(monitor: Monitor, path: Path, name: str, **options: Any) -> Machine:
    return monitor.spawn(path, name=name, **options)


def _mover(device: str | bytes | os.PathLike[str]) -> str | type[Mover]:
    """Return what moves pages: as on this host, but that arrays are shared where they lie."""
    name = host.inspect(arguments.file_path(device, "device", plain=True)).mover
    return InPlaceMover if MOVERS[name] in InPlaceMover.__mro__ else name
