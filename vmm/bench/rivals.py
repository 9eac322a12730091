"""What a call costs in the ways that there were: ctypes, another process, WebAssembly.

A column works on an array of NumPy's that is there before, and has the result in an array after.
"""

from __future__ import annotations

import importlib
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from typing import Any, TypeVar

from vmm.bench import callee
from vmm.bench.elsewhere import segment
from vmm.bench.library import Library
from vmm.bench.ours import on_one_processor, once
from vmm.bench.plan import Column, Unavailable
from vmm.guest.compiler import uninterrupted

T = TypeVar("T")

_CONTEXT = multiprocessing.get_context("spawn")
_WARM = 2  # calls before the first that counts
_WASM_PAGE = 1 << 16
_FEW = 8  # one call in so many, where each takes long


def timed(call: Callable[[], object], count: int) -> list[float]:
    """Return what calls take, in microseconds."""
    samples = []
    for _ in range(count):
        start = time.perf_counter_ns()
        call()
        samples.append((time.perf_counter_ns() - start) / 1e3)
    return samples


def column(make: Callable[[], Callable[[], object]], count: int, *, alone: bool = True) -> Column:
    """Return the column of what is called, which is made when it is first wanted.

    alone   on one processor
    """

    def made() -> Column:
        call = make()
        timed(call, _WARM)

        def round_() -> Sequence[float]:
            if not alone:
                return timed(call, count)
            with on_one_processor():
                return timed(call, count)

        return round_

    return once(made)


def array_of(size: int) -> Any:
    """Return an array of bytes. Raises Unavailable without NumPy."""
    try:
        import numpy as np
    except ImportError:
        raise Unavailable("NumPy is not installed: pip install numpy") from None
    return np.full(size, 7, np.uint8)


def child_process() -> ProcessPoolExecutor:
    """Return another process, to be closed."""
    return ProcessPoolExecutor(1, _CONTEXT)


def of_child(future: Future[T]) -> T:
    """Return what another process was asked for."""
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise Unavailable("its process has ended") from error


class Rivals:
    """The columns of one row: `size` bytes to work on, or 0 for the function that does nothing."""

    def __init__(self, stack: ExitStack, library: Library, size: int, count: int) -> None:
        self._stack = stack
        self._library = library
        self._size = size
        self._count = count

    def columns(self, *, copied: bool) -> dict[str, Column]:
        """Return them by their names.

        copied   the array is the caller's own: it is not in shared memory between calls
        """
        found = {
            "host": column(self._ctypes, self._count),
            "shared_memory": column(lambda: self._shared(copied=copied), self._count),
            "executor": column(self._executor, max(3, self._count // _FEW), alone=False),
            "wasm": column(self._wasm, self._count),
        }
        if not self._size:
            del found["shared_memory"]
        return found

    def _ctypes(self) -> Callable[[], object]:
        native = callee.native(str(self._library.native))
        if not self._size:
            return lambda: native.empty()
        array = array_of(self._size)
        return lambda: native.contrast(array)

    def _executor(self) -> Callable[[], object]:
        """ProcessPoolExecutor.submit, and its result."""
        path = str(self._library.native)
        child = self._stack.enter_context(child_process())

        def call() -> object:
            if not self._size:
                return of_child(child.submit(callee.empty, path))
            return of_child(child.submit(callee.contrast, path, array))

        array = array_of(self._size)
        return call

    def _shared(self, *, copied: bool) -> Callable[[], object]:
        """Shared memory by hand: a process that has it works on it when it is told to."""
        import numpy as np

        array = array_of(self._size)
        memory = segment(self._size)
        self._stack.callback(_remove, memory)
        ours, theirs = _CONTEXT.Pipe()
        order = (str(self._library.native), memory.name, self._size, theirs)
        child = _CONTEXT.Process(target=callee.serve, args=order, daemon=True)
        resource_tracker.ensure_running()  # as for a Channel
        with uninterrupted():
            child.start()
            theirs.close()
        self._stack.callback(child.join)
        self._stack.callback(ours.close)
        buffer: Any = memory.buf
        place = np.frombuffer(buffer, np.uint8, self._size)
        del buffer
        self._stack.callback(_forget, holder := [place])
        np.copyto(place, array)
        del place

        def call() -> object:
            try:
                if copied:
                    np.copyto(holder[0], array)
                ours.send_bytes(b"1")
                ours.recv_bytes()
                if copied:
                    np.copyto(array, holder[0])
            except (EOFError, ConnectionError) as error:
                raise Unavailable("its process has ended") from error
            return None

        return call

    def _wasm(self) -> Callable[[], object]:
        """WebAssembly: copied into linear memory, and out."""
        try:
            wasmtime = importlib.import_module("wasmtime")
        except ImportError:
            raise Unavailable("wasmtime is not installed: pip install 'pageferry[bench]'") from None
        store = wasmtime.Store(wasmtime.Engine())
        module = wasmtime.Module.from_file(store.engine, str(self._library.wasm))
        exports = wasmtime.Instance(store, module, []).exports(store)
        if not self._size:
            nothing = exports["empty"]
            return lambda: nothing(store)
        import numpy as np

        array, contrast = array_of(self._size), exports["contrast"]
        memory, start = exports["memory"], exports["__heap_base"].value(store)
        memory.grow(store, -(-self._size // _WASM_PAGE) + 1)
        place = np.frombuffer(memory.get_buffer_ptr(store, self._size, start), np.uint8)

        def call() -> None:
            np.copyto(place, array)
            contrast(store, start, self._size)
            np.copyto(array, place)

        return call


def _forget(holder: list[Any]) -> None:
    """Let go of a view, without which shared memory cannot be closed."""
    holder.clear()


def _remove(memory: SharedMemory) -> None:
    memory.close()
    memory.unlink()
