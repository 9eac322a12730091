"""The ways that two Python processes have today, between this one and a child for each.

A child is started when its channel is first used. It has none of this process's descriptors but
its end's, Ctrl-C is for the parent alone, and it ends when the parent does, in whatever way.

Both processes run on the same processor while latencies are measured. It is the quickest way at
every size, as neither has anything to do while the other has: no processor has to be woken. Left to
the scheduler they would be found so, and apart, at random.
"""

from __future__ import annotations

import abc
import contextlib
import multiprocessing
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from types import TracebackType

from vmm.bench.ends import Data, End, PipeEnd, SharedMemoryEnd, SocketEnd, Task, serve, touch
from vmm.bench.plan import Case, Column, Unavailable
from vmm.bench.results import RATE, TOUCHED
from vmm.guest.compiler import uninterrupted
from vmm.sizes import format_size

BATCH = 64
_WARM_UP = 2  # messages; one, where there are few of them, which are then large
_FEW = 10
_RATE_BYTES = 64
_WINDOW = 4096  # messages until the next acknowledgement
_SHARED = "/dev/shm"

# Spawned, not forked: a child of ours would have machines, and their locks, in whatever state.
_CONTEXT = multiprocessing.get_context("spawn")


class Channel(abc.ABC):
    """A way to a child process and back. One thread uses it; close it."""

    def __init__(self) -> None:
        ours, theirs = self._ends()
        self._control, control = _CONTEXT.Pipe()
        self._end = ours
        self._child = _CONTEXT.Process(
            target=serve,
            args=(theirs, control, os.getpid()),
            name=f"pageferry-{type(self).__name__}",
            daemon=True,
        )
        # The tracker of multiprocessing's is started before: it would let Ctrl-C through. What that
        # raises in `start` would leave a child with half of its orders, of which it complains.
        resource_tracker.ensure_running()
        with uninterrupted():
            self._child.start()
            control.close()
            theirs.close()
        ours.peer = self._child

    @abc.abstractmethod
    def _ends(self) -> tuple[End, End]:
        """Make both ends: ours, and the child's."""

    def measure(self, size: int, n: int, *, touched: bool, batch: int = 1) -> list[int]:
        """Return n latencies of a message, in nanoseconds: half of what there and back took.

        size     of a message, in bytes; there and back it is received whole
        touched  whether receivers read a byte of every 4 KiB of it, too
        batch    send so many before receiving any; the latency is of one of them

        Raises Unavailable if there is no room for such messages, or the child has gone.
        """
        times = []
        warm_up = _WARM_UP if n > _FEW else 1
        with self._task(Task(size, warm_up + n, batch, touched)):
            messages = _messages(size, batch)
            for _ in range(warm_up + n):
                start = time.perf_counter_ns()
                received = self._there_and_back(messages, touched)
                times.append((time.perf_counter_ns() - start) // (2 * batch))
            if received != messages:
                raise Unavailable("what came back is not what was sent")
        return times[warm_up:]

    def _there_and_back(self, messages: Sequence[Data], touched: bool) -> list[Data]:
        send, receive = self._end.send, self._end.receive
        slots = range(len(messages))
        for slot in slots:
            send(messages[slot], slot)
        received = [receive(slot) for slot in slots]
        if touched:
            for data in received:
                touch(data)
        return received

    def rate(self, seconds: float, *, processors: int = 1) -> list[float]:
        """Return how many messages of 64 bytes go one way in a second, several times.

        Each is of some thousand messages, until the child has said that it has them all.
        processors  1: both processes run on the same; 2: each has its own, if there are two
        Raises Unavailable as `measure` does.
        """
        (message,) = _messages(_RATE_BYTES, 1)
        rates: list[float] = []
        self._window(message, processors)  # to warm up
        until = time.perf_counter() + seconds
        while not rates or time.perf_counter() < until:
            rates.append(self._window(message, processors))
        return rates

    def _window(self, message: Data, processors: int) -> float:
        with self._task(Task(_RATE_BYTES, _WINDOW, 0), processors):
            start = time.perf_counter()
            for slot in range(_WINDOW):
                self._end.send(message, slot)
            self._end.receive(0)
            return _WINDOW / (time.perf_counter() - start)

    @contextlib.contextmanager
    def _task(self, task: Task, processors: int = 1) -> Iterator[None]:
        """Have both ends prepared for a task, and what they needed released."""
        try:
            with self._placed(processors), self._prepared(task) as prepared:
                self._control.send(prepared)
                self._end.prepare(prepared)
                self._control.recv()
                yield
                self._control.recv()
                self._end.release()
        except (EOFError, ConnectionError) as error:
            self._child.join(1)
            raise Unavailable(f"its process has ended ({self._child.exitcode})") from error
        except MemoryError as error:
            raise Unavailable(f"no memory for {format_size(task.size)}") from error

    @contextlib.contextmanager
    def _prepared(self, task: Task) -> Iterator[Task]:
        yield task

    @contextlib.contextmanager
    def _placed(self, processors: int) -> Iterator[None]:
        """Have this thread and the child run on as many processors. It is left where it was."""
        assert self._child.pid is not None
        allowed = os.sched_getaffinity(0)
        mine, *others = sorted(allowed, reverse=True)  # the first one serves most interrupts
        try:
            os.sched_setaffinity(0, {mine})
            os.sched_setaffinity(
                self._child.pid, {(others or [mine])[0] if processors > 1 else mine}
            )
            yield
        except ProcessLookupError as error:
            raise EOFError from error
        finally:
            os.sched_setaffinity(0, allowed)

    def close(self) -> None:
        """End the child, and wait for its end. Further calls do nothing."""
        if self._child.is_alive():
            self._child.kill()
        self._child.join()
        self._end.close()
        self._control.close()


class Pipe(Channel):
    """multiprocessing.Pipe."""

    def _ends(self) -> tuple[End, End]:
        there, back, both = _CONTEXT.Pipe(False), _CONTEXT.Pipe(False), _CONTEXT.Pipe()
        return PipeEnd(back[0], there[1], both[0]), PipeEnd(there[0], back[1], both[1])


class Socket(Channel):
    """A Unix stream socket."""

    def _ends(self) -> tuple[End, End]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        return SocketEnd(ours), SocketEnd(theirs)


class Shared(Channel):
    """multiprocessing.shared_memory: copied in by one process, and out by the other."""

    def _ends(self) -> tuple[End, End]:
        there, back = _CONTEXT.Semaphore(0), _CONTEXT.Semaphore(0)
        return SharedMemoryEnd(there, back), SharedMemoryEnd(back, there)

    @contextlib.contextmanager
    def _prepared(self, task: Task) -> Iterator[Task]:
        """Make the task's segment. Raises Unavailable if it cannot be had."""
        made = segment(task.slots * task.size)
        try:
            yield task._replace(segment=made.name)
        finally:
            made.unlink()
            self._end.release()
            made.close()


def segment(size: int) -> SharedMemory:
    """Make shared memory. Raises Unavailable if there is not so much."""
    try:
        space = os.statvfs(_SHARED)
        free = space.f_bavail * space.f_frsize
        if free < size:  # or writing it would be a bus error
            raise Unavailable(f"{_SHARED} has room for {format_size(free)} only")
        return SharedMemory(create=True, size=size)
    except OSError as error:
        raise Unavailable(f"{_SHARED}: {error.strerror}") from error


def _messages(size: int, batch: int) -> list[Data]:
    """Return messages that differ, so that one cannot be taken for another."""
    stamp = time.perf_counter_ns()
    messages: list[Data] = []
    for i in range(batch):
        pattern = ((stamp + i) % (1 << 64)).to_bytes(8, "little")
        messages.append((pattern * -(-size // 8))[:size])
    return messages


class Elsewhere:
    """The columns "pipe", "socket" and "shared_memory". Close it: that ends the children."""

    _KINDS: Mapping[str, type[Channel]] = {
        "pipe": Pipe,
        "socket": Socket,
        "shared_memory": Shared,
    }

    def __init__(self) -> None:
        self._channels: dict[str, Channel] = {}

    def columns(self, case: Case, stack: contextlib.ExitStack) -> Mapping[str, Column]:
        """Return the columns of a row; none for what there is only between machines.

        Both batches are the same to them: it does not matter where a copied message comes from. A
        worker of ours is a thread, and so the rate of one worker is that of one processor here.
        """
        if not case.name.startswith(("inline_", "page", "pingpong_", "batch", "extent_", "rate_")):
            return {}
        return {name: self._column(name, case) for name in self._KINDS}

    def _column(self, name: str, case: Case) -> Column:
        def numbers() -> Sequence[float]:
            if name not in self._channels:
                self._channels[name] = self._KINDS[name]()
            try:
                return _numbers(self._channels[name], case)
            except Unavailable:  # the ends no longer agree on what comes next: a new one, next time
                self._channels.pop(name).close()
                raise

        return numbers

    def close(self) -> None:
        """End all children."""
        while self._channels:
            self._channels.popitem()[1].close()

    def __enter__(self) -> Elsewhere:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _numbers(channel: Channel, case: Case) -> Sequence[float]:
    if case.unit == RATE:
        return channel.rate(case.seconds, processors=2 if case.name == "rate_2_workers" else 1)
    batch = BATCH if case.name.startswith("batch") else 1
    n = case.samples if batch == 1 else case.samples // 8
    times = channel.measure(case.bytes, n, touched=case.name in TOUCHED, batch=batch)
    ways = 2 if case.name == "pingpong_page" else 1
    return [ns * ways / 1000 for ns in times]
