"""After very many calls that end in all ways, all is back: descriptors, threads, mappings, pages.

10,000 calls each with PAGEFERRY_SWEEP=all, a few hundred else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from kvm.sandbox_books import books
from tests_support import RESERVED, held, sized

from vmm import CallCancelled, CallCrash, CallError, CallExit, CallTimeout, Pool, Sandbox
from vmm.sandbox.crew import Ticket

np: Any = pytest.importorskip("numpy", reason="a nested lane has no more than the package needs")
Elf = Callable[[str], Path]

EVERY = os.environ.get("PAGEFERRY_SWEEP") == "all"
CALLS = 10_000 if EVERY else sized(300, 40)
SIZE = 5000

pytestmark = [
    pytest.mark.smaller_in_lanes("fewer calls: each new machine takes a second there"),
    pytest.mark.timeout(3600 if EVERY else 120),
]


class Chance:
    """Calls one function or another, each with what it is to end in."""

    def __init__(self, lib: Sandbox, seed: int) -> None:
        self.lib = lib
        self.random = random.Random(seed)
        self.array = lib.empty(SIZE, np.uint8)
        self.ended: Counter[str] = Counter()

    def draw(self) -> tuple[Any, tuple[Any, ...], type[CallError] | None]:
        lib, array = self.lib, self.array
        ways: list[tuple[Any, tuple[Any, ...], type[CallError] | None]] = [
            (lib.fill, (array, SIZE, 1), None),
            (lib.fill, (bytearray(SIZE), SIZE, 1), None),
            (lib.fill, (lib.empty(SIZE, np.uint8), SIZE, 1), None),
            (lib.sum, (bytes(SIZE), SIZE), None),
            (lib.add, (1, 2), None),
            (lib.nap, (0.001,), None),
            (lib.fill_and_crash, (array, SIZE, 1), CallCrash),
            (lib.quit, (3,), CallExit),
            (lib.spin.with_timeout(0.002), (), CallTimeout),
            (lib.nap.with_timeout(0.002), (100.0,), CallTimeout),
        ]
        return self.random.choices(ways, [20] * 6 + [1, 1, 1, 1])[0]

    def call(self) -> None:
        """Make a call in this thread; cancel it from another, at times."""
        function, arguments, error = self.draw()
        if self.random.random() < 0.02:
            ticket = Ticket()
            canceller = threading.Timer(self.random.uniform(0, 0.004), ticket.cancel)
            canceller.start()
            with contextlib.suppress(CallCancelled):
                self.lib.nap._start((0.002,), {}, ticket)()
            canceller.join()
        self.array[:] = 7  # nobody else has it
        if error is None:
            function(*arguments)
        else:
            with pytest.raises(error):
                function(*arguments)
        self.ended[error.__name__ if error else "returned"] += 1

    async def await_(self) -> None:
        """The same in an event loop."""
        function, arguments, error = self.draw()
        if self.random.random() < 0.05:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.random.uniform(0, 0.004)):
                    await self.lib.nap.async_(0.002)
        self.array[:] = 7
        if error is None:
            await function.async_(*arguments)
        else:
            with pytest.raises(error):
                await function.async_(*arguments)
        self.ended[error.__name__ if error else "returned"] += 1


def in_threads(lib: Sandbox, threads: int, calls: int) -> Counter[str]:
    chances = [Chance(lib, random.randrange(1 << 30)) for _ in range(threads)]

    def work(chance: Chance) -> None:
        for _ in range(calls // threads):
            chance.call()

    with ThreadPoolExecutor(threads) as executor:
        list(executor.map(work, chances))
    return sum((chance.ended for chance in chances), Counter())


def in_a_loop(lib: Sandbox, tasks: int, calls: int) -> Counter[str]:
    chances = [Chance(lib, random.randrange(1 << 30)) for _ in range(tasks)]

    async def work(chance: Chance) -> None:
        for _ in range(calls // tasks):
            await chance.await_()

    async def main() -> None:
        await asyncio.gather(*map(work, chances))

    asyncio.run(main())
    return sum((chance.ended for chance in chances), Counter())


def in_a_pool(lib: Sandbox, tasks: int, calls: int) -> Counter[str]:
    assert isinstance(lib, Pool)
    chances = threading.local()

    def work(number: int) -> Counter[str]:
        if not hasattr(chances, "own"):
            chances.own = Chance(lib, number)
        chances.own.call()
        return chances.own.ended

    return sum(lib.map(work, range(calls), return_exceptions=False), Counter())


@pytest.mark.parametrize("way", [in_threads, in_a_loop, in_a_pool])
def test_nothing_is_left_of_calls_however_they_end(
    sandboxed: Elf, way: Callable[[Sandbox, int, int], Counter[str]]
) -> None:
    path = sandboxed("deeds")
    with Pool(path, machines=2, pool="16M", timeout=60, console=lambda *_: None) as lib:
        way(lib, 4, 40)  # now there are threads, and memory for copies
        begin(lib)
        before, pages = held(), books(lib)
        ended = way(lib, 4, CALLS)
        begin(lib)
        assert ended["returned"] > CALLS // 2
        assert books(lib) == pages
        assert totals(held()) == totals(before)
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
