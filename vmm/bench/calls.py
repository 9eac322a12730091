"""The columns of calls: functions of a sandbox's, by their floor, and in other ways (`rivals`).

The functions are in scripts/bench/sandbox; "host" is the same function called by ctypes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

import vmm
from vmm.bench import callee
from vmm.bench.floor import Floor
from vmm.bench.library import Library
from vmm.bench.machines import Command, Kind
from vmm.bench.ours import floor_of, on_one_processor, once
from vmm.bench.plan import Case, Column, Unavailable
from vmm.bench.results import CALLS
from vmm.bench.rivals import Rivals, array_of, child_process, column, of_child, timed
from vmm.bench.scene import waiting_scene
from vmm.errors import PageferryError
from vmm.guest.abi import PAGE_SIZE
from vmm.guest.compiler import work_directory
from vmm.linux.machine import LinuxMachine
from vmm.sandbox import request
from vmm.sandbox.library import Sandbox
from vmm.sandbox.request import Words

_MIB = 1 << 20
_MEMORY = "32M"  # of a machine: the functions need little
_SPIN = 20_000_000  # rounds of what a pool's items compute
_ITEMS = 8
_MACHINES = 2
_COLD = 20  # machines made in a round
_DECODED = 10  # pictures in a round


class Calls:
    """Measures them. Close it: that removes what was built."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._libraries: dict[str, Library] = {}

    def columns(self, case: Case, stack: ExitStack) -> Mapping[str, Column]:
        """Return the columns of a call's row; none for the others."""
        if case.name not in CALLS:
            return {}
        count = case.samples
        match case.name:
            case "restore":
                return {
                    "ours": once(lambda: self._restore(stack, case)),
                    "cold": once(lambda: self._cold(stack, min(_COLD, count))),
                }
            case "call_fresh":
                return {
                    "ours": column(lambda: self._dirty(stack, case, fresh=True), count),
                    "plain": column(lambda: self._dirty(stack, case, fresh=False), count),
                }
            case "call_1k_copied":
                return self._small(case, stack)
            case "pool_2":
                return {
                    "ours": once(lambda: self._pool(stack, _MACHINES)),
                    "host": once(lambda: self._threads(stack)),
                    "plain": once(lambda: self._pool(stack, 1)),
                }
            case "decoder":
                few = min(_DECODED, count)
                return {
                    "ours": column(lambda: self._decode(stack), few),
                    "host": once(lambda: self._decode_by_ctypes(stack, few)),
                }
        return self._call(case, stack)

    def _library(self, name: str, *libraries: str) -> Library:
        """Return a library, to be built where it is needed."""
        if name not in self._libraries:
            directory = self._stack.enter_context(work_directory("pageferry-bench-"))
            self._libraries[name] = Library(name, directory, libraries)
        return self._libraries[name]

    def _sandbox(self, stack: ExitStack, size: int = 0, **options: Any) -> Sandbox:
        pool = f"{4 * size // _MIB + 64}M"
        program = self._library("functions").program
        return stack.enter_context(Sandbox(program, memory=_MEMORY, pool=pool, **options))

    # ---- Calls ----

    def _call(self, case: Case, stack: ExitStack) -> Mapping[str, Column]:
        """Return the columns of a function that does nothing, or works on an array."""
        size, copied = case.bytes, case.name == "call_64m_copied"

        def ours() -> Callable[[], object]:
            lib = self._sandbox(stack, size)
            if not size:
                return lib["empty"]
            plain = array_of(size)
            array = plain if copied else lib.array(plain)
            return partial(lib["contrast"], array, size)

        rivals = Rivals(stack, self._library("functions"), size, case.samples)
        found = {
            "ours": column(ours, case.samples),
            "floor": once(lambda: self._floor(stack, case, copied=copied)),
            **rivals.columns(copied=copied),
        }
        if not size:
            found["bare"] = once(lambda: _bare(stack, case.samples))
        if copied:  # they take the same array, in the same way
            del found["executor"], found["wasm"]
        return found

    def _small(self, case: Case, stack: ExitStack) -> Mapping[str, Column]:
        """Return the columns of a call that copies more than its message takes, and of one that
        copies nothing.
        """
        size = case.bytes

        def ours() -> Callable[[], object]:
            return partial(self._sandbox(stack)["contrast"], array_of(size), size)

        return {
            "ours": column(ours, case.samples),
            **Rivals(stack, self._library("functions"), size, case.samples).columns(copied=True),
            "plain": column(lambda: self._sandbox(stack)["empty"], case.samples),
        }

    def _floor(self, stack: ExitStack, case: Case, *, copied: bool) -> Column:
        """Return the column of the C program: the same messages, and the same machine."""
        with ExitStack() as short:
            lib = self._sandbox(short)
            function = lib._program.prototypes["contrast" if case.bytes else "empty"]
            machine = _machine(lib)
            window = machine.peer.window.region.base  # what it sees is at the beginning
            general = [window, case.bytes] if case.bytes else []
            words = Words(lib._base + function.address, general, [], [])
            asked = request.asked(words, request.laid_out(words, ()))
            data = waiting_scene(machine)
        with on_one_processor():
            floor = stack.enter_context(closing(Floor(data, "floor_calls")))
        pages = case.bytes // PAGE_SIZE
        line = f"{pages} {int(copied)} {asked.payload.hex()}"
        floor.ask(f"call 3 {line}")
        return lambda: floor.ask(f"call {case.samples} {line}")

    # ---- Fresh machines ----

    def _dirty(self, stack: ExitStack, case: Case, *, fresh: bool) -> Callable[[], object]:
        return partial(self._sandbox(stack, fresh=fresh)["dirty"], case.bytes // PAGE_SIZE)

    def _restore(self, stack: ExitStack, case: Case) -> Column:
        """Return the column of what is done between two calls: pages put back."""
        lib = self._sandbox(stack)
        machine = _machine(lib)
        machine.keep()

        def one() -> float:
            lib["dirty"](case.bytes // PAGE_SIZE)
            return timed(machine.put_back, 1)[0]

        def round_() -> Sequence[float]:
            with on_one_processor():
                return [one() for _ in range(case.samples)]

        round_()
        return round_

    def _cold(self, stack: ExitStack, count: int) -> Column:
        """Return the column of what a machine costs that is made anew, until it can be called."""
        (worker,) = self._sandbox(stack)._crew.workers

        def one() -> float:
            worker._discard()
            return timed(worker.start, 1)[0]

        def round_() -> Sequence[float]:
            with on_one_processor():
                return [one() for _ in range(count)]

        return round_

    # ---- Pools ----

    def _pool(self, stack: ExitStack, machines: int) -> Column:
        """Return the column of an item's time, of several that are computed at a time."""
        _check_processors()
        pool_type: Any = getattr(vmm, "Pool", None)
        if pool_type is None:
            raise Unavailable("there is no Pool")
        program = self._library("functions").program
        pool = stack.enter_context(pool_type(program, machines=machines, memory=_MEMORY))
        list(pool.map(pool.spin, [1] * 2 * machines))
        return lambda: [_of_each(lambda: list(pool.map(pool.spin, [_SPIN] * _ITEMS)))]

    def _threads(self, stack: ExitStack) -> Column:
        """Return the same of as many threads that use ctypes: what this host's processors do."""
        _check_processors()
        spin = callee.native(str(self._library("functions").native)).spin
        threads = stack.enter_context(ThreadPoolExecutor(_MACHINES))
        return lambda: [_of_each(lambda: list(threads.map(spin, [_SPIN] * _ITEMS)))]

    # ---- A decoder ----

    def _decode(self, stack: ExitStack) -> Callable[[], object]:
        program = self._png().program
        lib = stack.enter_context(Sandbox(program, memory="64M"))
        file = _picture()
        pixels = lib.empty((lib["png_pixels"](file, len(file)), 4), "uint8")

        def call() -> None:
            if not lib["png_decode"](file, len(file), pixels, pixels.nbytes):
                raise PageferryError("the picture is not decoded: this is a bug")

        return call

    def _decode_by_ctypes(self, stack: ExitStack, count: int) -> Column:
        """Return the column of the same library in a process of Python's own: libraries that Python
        has loaded besides (Pillow's) are enough to make libpng break the process that it is in.
        """
        native, file = str(self._png().native), _picture()
        child = stack.enter_context(child_process())

        def round_() -> Sequence[float]:
            with on_one_processor():
                return of_child(child.submit(callee.decode, native, file, count))

        round_()
        return round_

    def _png(self) -> Library:
        if not Path("/usr/include/png.h").is_file():
            raise Unavailable("libpng is not installed (on Debian: apt install libpng-dev)")
        return self._library("png", "png", "z", "m")

    # ---- The end ----

    def close(self) -> None:
        """Remove what was built."""
        self._stack.close()
        self._libraries.clear()

    def __enter__(self) -> Calls:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _bare(stack: ExitStack, count: int) -> Column:
    """Return the floor of an inline message between two guests: two exits."""
    command = Command(Kind.INLINE, max(5, count), depth=1)
    floor = floor_of(stack, command)
    floor.ask(command.line())
    return lambda: floor.ask(command.line())


def _machine(lib: Sandbox) -> LinuxMachine:
    machine = lib._crew.workers[0].machine
    assert isinstance(machine, LinuxMachine)
    return machine


def _check_processors() -> None:
    if len(os.sched_getaffinity(0)) < _MACHINES:
        raise Unavailable(f"{_MACHINES} processors are needed")


def _of_each(work: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - start) / 1e3 / _ITEMS


@cache
def _picture() -> bytes:
    """Return a photograph as a PNG; matplotlib has one among its data."""
    if find_spec("matplotlib") is None:
        raise Unavailable("no picture: pip install 'pageferry[plot]'")
    with child_process() as child:
        return of_child(child.submit(callee.photograph))
