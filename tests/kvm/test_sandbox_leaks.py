"""After very many calls that end in all ways, all is back: descriptors, threads, mappings, pages,
processes, memory, objects; and views that have outlived a call's machine are what they were.

10,000 calls each with PAGEFERRY_SWEEP=all, a few hundred else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from kvm import health
from kvm.sandbox_books import books
from tests_support import IN_LANE, RESERVED, held, sized

from vmm import (
    Buffer,
    CallCancelled,
    CallCrash,
    CallError,
    CallExit,
    CallTimeout,
    Pool,
    Sandbox,
)
from vmm.errors import LiveViewError
from vmm.sandbox.crew import Ticket

np: Any = pytest.importorskip("numpy", reason="a nested lane has no more than the package needs")
Elf = Callable[[str], Path]

EVERY = os.environ.get("PAGEFERRY_SWEEP") == "all"
CALLS = 10_000 if EVERY else sized(300, 40)
VIEWED = 0.05 if EVERY else 0.2  # of calls, with what outlives them
SIZE = 5000

pytestmark = [
    pytest.mark.smaller_in_lanes("fewer calls: each new machine takes a second there"),
    pytest.mark.timeout(3600 if EVERY else 120),
]


Way = tuple[Any, tuple[Any, ...], type[CallError] | None]


class Kept:
    """Views that have outlived a call, or its machine: each goes on being what it was."""

    def __init__(self, lib: Sandbox, rng: random.Random) -> None:
        self._lib = lib
        self._random = rng
        self._views: list[tuple[Any, int, Buffer | None]] = []

    def made(self) -> tuple[Any, Buffer | None]:
        """Return new memory: a slice of an array that nobody else has, or a view of a buffer."""
        if self._random.random() < 0.5:
            return self._lib.empty(3 * SIZE, np.uint8)[SIZE : 2 * SIZE], None
        buffer = self._lib.alloc(SIZE)
        return memoryview(buffer)[100:SIZE], buffer

    def keep(self, view: Any, value: int, buffer: Buffer | None) -> None:
        """Keep a view that is full of a value; let go of another one, at times."""
        self._views.append((view, value, buffer))
        del view
        while len(self._views) > self._random.randrange(1, 12):
            self._drop(self._random.randrange(len(self._views)))

    def check(self) -> None:
        """Nobody has written to them, and they can be written."""
        for number, (view, value, buffer) in enumerate(self._views):
            array = np.asarray(view)
            assert (array == value).all()
            array[:] = number
            self._views[number] = view, number, buffer

    def _drop(self, number: int) -> None:
        view, _, buffer = self._views.pop(number)
        if buffer is not None:
            with pytest.raises(LiveViewError):
                self._lib.monitor.host.release(buffer)
            view.release()
            self._lib.monitor.host.release(buffer)

    def close(self) -> None:
        self.check()
        while self._views:
            self._drop(0)


class Chance:
    """Calls one function or another, each with what it is to end in.

    common   an array that all have, which machines see while others of them die
    """

    def __init__(self, lib: Sandbox, seed: int, common: Any) -> None:
        self.lib = lib
        self.random = random.Random(seed)
        self.array = lib.empty(SIZE, np.uint8)
        self.common = common
        self.kept = Kept(lib, self.random)
        self.ended: Counter[str] = Counter()

    def draw(self) -> Way:
        lib, array = self.lib, self.array
        ways: list[Way] = [
            (lib.fill, (array, SIZE, 1), None),
            (lib.fill, (bytearray(SIZE), SIZE, 1), None),
            (lib.fill, (lib.empty(SIZE, np.uint8), SIZE, 1), None),
            (lib.sum, (bytes(SIZE), SIZE), None),
            (lib.sum, (self.common, SIZE), None),
            (lib.add, (1, 2), None),
            (lib.nap, (0.001,), None),
            (lib.fill_and_crash, (array, SIZE, 1), CallCrash),
            (lib.sum_and_crash, (self.common, SIZE), CallCrash),
            (lib.quit, (3,), CallExit),
            (lib.spin.with_timeout(0.002), (), CallTimeout),
            (lib.nap.with_timeout(0.002), (100.0,), CallTimeout),
        ]
        return self.random.choices(ways, [20] * 7 + [1] * 5)[0]

    def draw_for(self, view: Any, value: int) -> Way:
        """The same of a view that outlives the call, and mostly its machine."""
        lib, given = self.lib, (view, len(view), value)
        ways: list[Way] = [
            (lib.fill, given, None),
            (lib.fill_and_crash, given, CallCrash),
            (lib.fill_and_quit, given, CallExit),
            (lib.fill_and_spin.with_timeout(0.1), given, CallTimeout),
            (lib.fill_and_nap.with_timeout(0.1), (*given, 100.0), CallTimeout),
        ]
        return self.random.choices(ways, [4, 4, 2, 1, 1])[0]

    def over(self, error: type[CallError] | None) -> None:
        self.ended[error.__name__ if error else "returned"] += 1
        self.array[:] = 7  # nobody else has it
        assert (self.common == 3).all()

    def viewed(
        self, view: Any, value: int, buffer: Buffer | None, error: type[CallError] | None
    ) -> None:
        self.ended[f"viewed, {error.__name__ if error else 'returned'}"] += 1
        if error is CallTimeout:
            self.cut_short(view, value, buffer)
        else:
            self.kept.keep(view, value, buffer)

    def cut_short(self, view: Any, value: int, buffer: Buffer | None) -> None:
        """What was stopped has been filled, or a part of it; and is one's own again."""
        assert set(bytes(view)) <= {0, value}
        np.asarray(view)[:] = value
        self.kept.keep(view, value, buffer)

    def call(self) -> None:
        """Make a call in this thread; cancel one from another, at times."""
        if self.random.random() < 0.02:
            view, buffer = self.kept.made()
            ticket = Ticket()
            canceller = threading.Timer(self.random.uniform(0, 0.004), ticket.cancel)
            canceller.start()
            given = view, len(view), 9, 0.002
            with contextlib.suppress(CallCancelled):
                self.lib.fill_and_nap._start(given, {}, ticket)()
            canceller.join()
            self.cut_short(view, 9, buffer)
        if self.random.random() < VIEWED:
            view, buffer = self.kept.made()
            value = self.random.randrange(1, 256)
            function, arguments, error = self.draw_for(view, value)
            check(function, arguments, error)
            self.viewed(view, value, buffer, error)
        self.kept.check()
        function, arguments, error = self.draw()
        check(function, arguments, error)
        self.over(error)

    async def await_(self) -> None:
        """The same in an event loop."""
        if self.random.random() < 0.05:
            view, buffer = self.kept.made()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.random.uniform(0, 0.004)):
                    await self.lib.fill_and_nap.async_(view, len(view), 9, 0.002)
            self.cut_short(view, 9, buffer)
        if self.random.random() < VIEWED:
            view, buffer = self.kept.made()
            value = self.random.randrange(1, 256)
            function, arguments, error = self.draw_for(view, value)
            await awaited(function, arguments, error)
            self.viewed(view, value, buffer, error)
        self.kept.check()
        function, arguments, error = self.draw()
        await awaited(function, arguments, error)
        self.over(error)


def check(function: Any, arguments: tuple[Any, ...], error: type[CallError] | None) -> None:
    with pytest.raises(error) if error else contextlib.nullcontext():
        function(*arguments)


async def awaited(function: Any, arguments: tuple[Any, ...], error: type[CallError] | None) -> None:
    with pytest.raises(error) if error else contextlib.nullcontext():
        await function.async_(*arguments)


def some(lib: Sandbox, count: int) -> list[Chance]:
    common = lib.array(np.full(SIZE, 3, np.uint8))
    return [Chance(lib, random.randrange(1 << 30), common) for _ in range(count)]


def ended(chances: list[Chance]) -> Counter[str]:
    for chance in chances:
        chance.kept.close()
    return sum((chance.ended for chance in chances), Counter())


def in_threads(lib: Sandbox, threads: int, calls: int) -> Counter[str]:
    chances = some(lib, threads)

    def work(chance: Chance) -> None:
        for _ in range(calls // threads):
            chance.call()

    with ThreadPoolExecutor(threads) as executor:
        list(executor.map(work, chances))
    return ended(chances)


def in_a_loop(lib: Sandbox, tasks: int, calls: int) -> Counter[str]:
    """In tasks of one event loop; exceptions that nobody sees are errors."""
    chances, unseen = some(lib, tasks), list[dict[str, Any]]()

    async def work(chance: Chance) -> None:
        for _ in range(calls // tasks):
            await chance.await_()

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
        await asyncio.gather(*map(work, chances))

    asyncio.run(main())
    assert unseen == []
    return ended(chances)


def in_a_pool(lib: Sandbox, tasks: int, calls: int) -> Counter[str]:
    assert isinstance(lib, Pool)
    chances = some(lib, tasks)
    free = deque(chances)

    def work(_: int) -> None:
        chance = free.pop()
        chance.call()
        free.append(chance)

    list(lib.map(work, range(calls)))
    return ended(chances)


@pytest.mark.parametrize("way", [in_threads, in_a_loop, in_a_pool])
def test_nothing_is_left_of_calls_however_they_end(
    sandboxed: Elf, way: Callable[[Sandbox, int, int], Counter[str]]
) -> None:
    path = sandboxed("deeds")
    with Pool(path, machines=2, pool="16M", timeout=60, console=lambda *_: None) as lib:
        way(lib, 4, sized(100, 40))  # now there are threads, and memory for copies
        begin(lib)
        before, pages = held(), books(lib)
        healthy = health.look()
        found = way(lib, 4, CALLS)
        begin(lib)
        assert found["returned"] > CALLS // 2
        assert found["viewed, CallCrash"] or IN_LANE
        assert books(lib) == pages
        assert totals(held()) == totals(before)
        print(dict(found))
        health.check(healthy)
        assert len(lib.monitor.machines) == 2


def begin(lib: Pool) -> None:
    """Have both machines run, and nothing else."""
    both = threading.Barrier(2)

    def call() -> None:
        both.wait(20)
        lib.sum(bytes(SIZE), SIZE)
        lib.add(1, 2)

    for task in [lib.submit(call) for _ in range(2)]:
        task.result()


def totals(found: Counter[str]) -> Counter[str]:
    """Return how much of each there is, whatever the descriptors' numbers are; but no address
    space, which the C library reserves for each thread that allocates.
    """
    sums: Counter[str] = Counter()
    for what, many in found.items():
        if what != RESERVED and not what.startswith("thread "):
            sums[what.split(" of ", 1)[-1] if what.startswith("descriptor") else what] += many
    return sums
