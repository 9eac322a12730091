"""A sandbox of several machines as an executor, as concurrent.futures has them."""

from __future__ import annotations

import itertools
import logging
import math
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import BrokenExecutor, Executor, Future
from functools import partial
from types import TracebackType
from typing import Any, Generic, NamedTuple, SupportsIndex, TypeVar

from vmm.endpoint import arguments
from vmm.errors import ClosedError
from vmm.sandbox.crew import Crew, Ticket, in_thread
from vmm.sandbox.library import Sandbox
from vmm.sandbox.worker import Worker
from vmm.sizes import integer

T = TypeVar("T")

_AHEAD = 4  # tasks of a map's for each machine that are submitted before the first has ended
_LEAST_AHEAD = 16
_LOG = logging.getLogger("concurrent.futures")
_Progress = Callable[[int, int | None], object]


class Pool(Sandbox, Executor):
    """Machines that run the functions of one library: a Sandbox, and a concurrent.futures.Executor.

        with Pool("decode.c", machines=4) as pool:
            for picture in pool.map(pool.decode, files):
                ...

    What is submitted is a function of the library's, its name, or any Python function: that runs in
    a thread of this process, and all functions of the library that it calls are called in one and
    the same machine. Called directly, `pool.decode(...)` runs in whichever machine is free.

    machines      by default as many as this process may use processors
    initializer   called with `initargs` for each machine, before all else, also for one that takes
                  the place of one that died: a function of the library's by its name, or a Python
                  function, whose calls reach that machine. If it raises, the pool is of no use any
                  more: BrokenExecutor

    Everything else is as for a Sandbox. A function of the library's that has the name of a method
    is `pool["map"]`.

    At the end of a `with` block, and of the program, what has been submitted is waited for, as by
    other executors; `close` ends it. Thread-safety: everything may be used from any thread.
    """

    def __init__(
        self,
        *sources: str | bytes | os.PathLike[str],
        machines: SupportsIndex | None = None,
        initializer: str | Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        **options: Any,
    ) -> None:
        self._shut = True
        if initializer is not None and not isinstance(initializer, str):
            arguments.function(initializer, "initializer")
        given = tuple(initargs)
        count = len(os.sched_getaffinity(0)) if machines is None else machines
        super().__init__(*sources, machines=count, **options)
        try:
            if initializer is not None:
                first = self[initializer] if isinstance(initializer, str) else initializer
                initialize = partial(_initialize, self._crew, partial(first, *given))
                for worker in self._crew.workers:
                    worker.initialize = initialize
        except BaseException:
            self.close()
            raise
        self._shut = False

    # ---- The executor ----

    def submit(self, fn: str | Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Have a function called; return its future.

        fn    a function of the pool's, its name, or a Python function

        Raises RuntimeError after `shutdown`, BrokenExecutor, KeyError for a name that there is not.
        """
        call = self[fn] if isinstance(fn, str) else arguments.function(fn, "fn")
        self._check_shut()
        return self._start(partial(call, *args, **kwargs))

    def _start(self, call: Callable[[], T]) -> Future[T]:
        return in_thread(self._threads, partial(_task, self._crew, call))

    def map(
        self,
        fn: str | Callable[..., T],
        *iterables: Iterable[Any],
        timeout: Any = None,
        chunksize: SupportsIndex = 1,
        progress: _Progress | None = None,
        return_exceptions: bool = False,
    ) -> Iterator[T]:
        """Return the results for all items, in their order, as `map` does.

        Some items are submitted now, and others as results are taken: so iterables may be long, or
        endless.

        timeout     seconds from now, after which TimeoutError is raised
        chunksize   items that one machine is given at a time
        progress    called in this thread with how many items have ended, and of how many; None if
                    that is not known: when a result is asked for
        return_exceptions   give exceptions as results, and go on; else the first one is raised, and
                            what has not begun is cancelled. Their notes say which item it was
        """
        call = self[fn] if isinstance(fn, str) else arguments.function(fn, "fn")
        limit = arguments.seconds(timeout, "timeout")
        size = integer(chunksize, "chunksize", 1, 1 << 30)
        arguments.flag(return_exceptions, "return_exceptions")
        if progress is not None:
            arguments.function(progress, "progress")
        self._check_shut()
        total = None
        if iterables and all(isinstance(one, Sized) for one in iterables):
            total = min(len(one) for one in iterables)  # type: ignore[arg-type]
        mapping = _Mapping(
            self._start,
            partial(_chunk, call, goes_on=return_exceptions),
            zip(*iterables, strict=False),
            size,
            math.inf if limit is None else time.monotonic() + limit,
            progress,
            total,
        )
        mapping.submit(max(_AHEAD * len(self._crew.workers), _LEAST_AHEAD))
        return mapping.results(return_exceptions)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more, and close everything when what has been submitted has ended.

        wait   until then; else another thread does
        cancel_futures   of what has not begun
        """
        self._shut = True
        if self._closed:
            return
        self._threads.shutdown(wait=False, cancel_futures=cancel_futures)
        if wait:
            self._threads.shutdown()
            self.close()
        else:
            threading.Thread(target=self.shutdown, name="pageferry-shutdown").start()

    def close(self) -> None:
        self._shut = True
        super().close()

    def _check_shut(self) -> None:
        if self._shut and not self._forked:
            raise RuntimeError("cannot schedule new futures after shutdown")
        self._crew.check()

    def __enter__(self) -> Pool:
        super().__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.shutdown()


def _initialize(crew: Crew, call: Callable[[], object], worker: Worker) -> None:
    """Initialize a machine: what goes wrong there ends the pool."""
    try:
        with crew.bound(worker):
            call()
    except Exception as error:
        if worker.cancelled or isinstance(error, ClosedError):
            raise  # that is the caller's doing
        _LOG.critical("Exception in initializer:", exc_info=True)
        broken = BrokenExecutor(
            "a machine's initializer has failed: the pool is not usable anymore"
        )
        broken.__cause__ = error
        crew.stop(broken)
        crew.check()


def _task(crew: Crew, call: Callable[[], T]) -> T:
    """Call something in this thread, with one machine for all that it calls there."""
    ticket = Ticket()
    try:
        worker = crew.take(ticket, "a task", math.inf)
        with crew.bound(worker):
            if worker.initialize is not None:
                worker.start()
            return call()
    finally:
        crew.leave(ticket)


class _Ended(NamedTuple, Generic[T]):
    """What has become of an item: its result, or what it has raised."""

    value: T | None
    error: Exception | None


def _chunk(
    call: Callable[..., T],
    items: Sequence[tuple[Any, ...]],
    first: int,
    ended: queue.SimpleQueue[int],
    *,
    goes_on: bool,
) -> list[_Ended[T]]:
    """Call a function for each of some items; up to the first that raises, if not `goes_on`."""
    results: list[_Ended[T]] = []
    for number, item in enumerate(items, first):
        try:
            results.append(_Ended(call(*item), None))
        except Exception as error:
            error.add_note(f"item {number} of the map")
            results.append(_Ended(None, error))
            if not goes_on:
                break
        finally:
            ended.put(1)
    return results


class _Mapping(Generic[T]):
    """A map that is under way: what has been submitted of it, and what is to come.

    submit_   has a call made
    chunk     makes a chunk's calls; see `_chunk`
    until     time.monotonic() at which it is too late
    """

    def __init__(
        self,
        submit: Callable[[Callable[[], list[_Ended[T]]]], Future[list[_Ended[T]]]],
        chunk: Callable[..., list[_Ended[T]]],
        items: Iterator[tuple[Any, ...]],
        size: int,
        until: float,
        progress: _Progress | None,
        total: int | None,
    ) -> None:
        self._submit = submit
        self._chunk = chunk
        self._items = items
        self._size = size
        self._until = until
        self._progress = progress
        self._total = total
        self._first = 0  # of the next chunk
        self._done = 0
        self._ended: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._futures: deque[tuple[Future[list[_Ended[T]]], int]] = deque()  # and how many items

    def submit(self, count: int) -> None:
        """Submit so many chunks more, if there are as many."""
        for _ in range(count):
            items = tuple(itertools.islice(self._items, self._size))
            if not items:
                return
            future = self._submit(partial(self._chunk, items, self._first, self._ended))
            self._futures.append((future, len(items)))
            future.add_done_callback(lambda _: self._ended.put(0))
            self._first += len(items)

    def results(self, exceptions: bool) -> Iterator[T]:
        """Yield the results. What has not begun when this ends, however it does, is cancelled."""
        number = 0
        try:
            while self._futures:
                future, count = self._futures[0]
                self._wait(future)
                try:
                    results = future.result()
                except Exception as error:  # there was no machine
                    error.add_note(f"item {number} of the map")
                    if not exceptions:
                        raise
                    results = [_Ended[T](None, error)] * count
                del self._futures[0], future
                self.submit(1)
                number += count
                results.reverse()
                while results:
                    yield self._result(results.pop(), exceptions)
        finally:
            while self._futures:
                self._futures.pop()[0].cancel()

    def _result(self, ended: _Ended[T], exceptions: bool) -> Any:
        if ended.error is None or exceptions:
            return ended.value if ended.error is None else ended.error
        try:
            raise ended.error
        finally:
            del ended  # or its traceback would be in a circle with this frame

    def _wait(self, future: Future[Any]) -> None:
        """Wait until a future is over, and tell how far all is meanwhile."""
        while not (future.done() and self._ended.empty()):
            left = self._until - time.monotonic()
            if left <= 0 and not future.done():
                raise TimeoutError("the map has not ended in time")
            try:
                ended = self._ended.get(timeout=min(max(left, 0), threading.TIMEOUT_MAX))
            except queue.Empty:
                continue
            self._done += ended
            if ended and self._progress is not None:
                self._progress(self._done, self._total)
