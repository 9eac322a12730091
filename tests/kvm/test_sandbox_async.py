"""Calls that an event loop waits for: no thread for each, and cancelled with their task."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests_support import sized

from vmm import CallCrash, CallTimeout, ClosedError, Sandbox

np: Any = pytest.importorskip("numpy", reason="a nested lane has no more than the package needs")
Elf = Callable[[str], Path]


@pytest.fixture
def lib(sandboxed: Elf) -> Iterator[Sandbox]:
    with Sandbox(sandboxed("deeds"), machines=2, pool="16M", timeout=30) as lib:
        yield lib


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run it; whatever goes wrong unseen is an error."""
    said: list[dict[str, Any]] = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
        await main

    asyncio.run(watched())
    gc.collect()
    assert said == []


def test_a_hundred_calls_wait_in_two_threads(lib: Sandbox) -> None:
    count = sized(100, 10)

    async def main() -> None:
        before = threading.active_count()
        calls = asyncio.gather(*(lib.add.async_(n, 1) for n in range(count)))
        await asyncio.sleep(0.001)
        assert threading.active_count() <= before + 2
        assert await calls == [n + 1 for n in range(count)]

    run(main())


def test_the_loop_goes_on_meanwhile(lib: Sandbox) -> None:
    async def main() -> None:
        nap = asyncio.ensure_future(lib.nap.async_(0.3))
        ticks = 0
        while not nap.done():
            await asyncio.sleep(0.01)
            ticks += 1
        assert ticks >= 5
        assert await nap == 0

    run(main())


def test_what_a_call_raises_is_raised_where_it_is_awaited(lib: Sandbox) -> None:
    async def main() -> None:
        with pytest.raises(TypeError):
            await lib.add.async_("x", 1)
        with pytest.raises(CallCrash):
            await lib.crash.async_()
        with pytest.raises(CallTimeout):
            await lib.spin.async_(timeout=0.05)
        results = await asyncio.gather(
            *(lib.crash.async_() if n % 2 else lib.add.async_(n, n) for n in range(6)),
            return_exceptions=True,
        )
        assert [r for r in results if not isinstance(r, CallCrash)] == [0, 4, 8]

    run(main())


@pytest.mark.parametrize("where", ["in the machine", "in line for a machine", "not begun"])
def test_a_task_that_is_cancelled_has_its_arrays_back(lib: Sandbox, where: str) -> None:
    array = lib.empty(5000, np.uint8)
    blockers = {"in the machine": 0, "in line for a machine": 2, "not begun": 2}[where]

    async def main() -> None:
        if where == "in line for a machine":  # which threads of the program's have
            others = [threading.Thread(target=lib.nap, args=(0.5,)) for _ in range(blockers)]
            for other in others:
                other.start()
            while len(lib._crew._owners) < blockers:
                await asyncio.sleep(0.001)
        else:
            others = [asyncio.ensure_future(lib.nap.async_(0.5)) for _ in range(blockers)]
        await asyncio.sleep(0.05)
        call = asyncio.ensure_future(lib.nap.async_(100.0))
        filling = asyncio.ensure_future(lib.fill.async_(array, 5000, 1)) if blockers else None
        await asyncio.sleep(0.05)
        start = time.monotonic()
        for one in (call, filling):
            if one is not None:
                one.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert time.monotonic() - start < 0.4  # it has not waited for the others
        array[:] = 7
        for other in others:
            other.join() if isinstance(other, threading.Thread) else await other
        assert (array == 7).all()
        assert await lib.sum.async_(array, 5000) == 35000

    run(main())


@pytest.mark.parametrize("begun", [True, False])
def test_a_call_that_is_cancelled_lets_go_of_what_it_was_given_without_the_collector(
    lib: Sandbox, begun: bool
) -> None:
    buffer = lib.alloc(5000)

    async def main() -> None:
        others = [asyncio.ensure_future(lib.nap.async_(0.3)) for _ in range(0 if begun else 2)]
        await asyncio.sleep(0.05)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(lib.fill_and_nap.async_(buffer, 5000, 1, 100.0), 0.05)
        lib.monitor.host.release(buffer)
        await asyncio.gather(*others)

    gc.disable()
    try:
        run(main())
    finally:
        gc.enable()


@pytest.mark.parametrize("how", ["crash", "timeout"])
def test_a_call_that_fails_lets_go_of_what_it_was_given_without_the_collector(
    lib: Sandbox, how: str
) -> None:
    buffer = lib.alloc(5000)

    async def main() -> None:
        with contextlib.suppress(CallCrash, CallTimeout):
            if how == "crash":
                await lib.fill_and_crash.async_(buffer, 5000, 1)
            else:
                await lib.fill_and_spin.async_(buffer, 5000, 1, timeout=0.1)
        lib.monitor.host.release(buffer)

    gc.disable()
    try:
        run(main())
        other = lib.alloc(5000)
        with contextlib.suppress(CallCrash):
            lib.fill_and_crash(other, 5000, 1)
        lib.monitor.host.release(other)
        third = lib.alloc(5000)
        lib.fill_and_crash.submit(third, 5000, 1).exception()
        lib.monitor.host.release(third)
    finally:
        gc.enable()


def test_a_timeout_of_asyncios_stops_the_function(lib: Sandbox) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await lib.spin.async_()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(lib.nap.async_(100), 0.05)
        assert not lib._crew._owners
        assert await lib.add.async_(1, 2) == 3

    run(main())


def test_one_that_is_cancelled_twice_waits_for_its_machine_all_the_same(lib: Sandbox) -> None:
    async def main() -> None:
        call = asyncio.ensure_future(lib.spin.async_())
        await asyncio.sleep(0.1)
        call.cancel()
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert not lib._crew._owners

    run(main())


def test_a_group_that_fails_takes_the_others_with_it(lib: Sandbox) -> None:
    async def main() -> None:
        with pytest.raises(ExceptionGroup) as raised:
            async with asyncio.TaskGroup() as group:
                group.create_task(lib.spin.async_())
                await asyncio.sleep(0.05)
                group.create_task(lib.crash.async_())
        assert [type(error) for error in raised.value.exceptions] == [CallCrash]
        assert not lib._crew._owners

    run(main())


def test_a_loop_that_is_closed_leaves_nothing_running(lib: Sandbox) -> None:
    loop = asyncio.new_event_loop()
    coroutine = lib.spin.async_()
    task = loop.create_task(coroutine)
    loop.run_until_complete(asyncio.sleep(0.1))
    task._log_destroy_pending = False
    loop.close()
    coroutine.close()
    until = time.monotonic() + 20
    while lib._crew._owners and time.monotonic() < until:
        time.sleep(0.001)
    assert not lib._crew._owners
    assert lib.add(1, 2) == 3


def test_who_awaits_a_call_of_a_sandbox_that_is_closed_is_told_so(lib: Sandbox) -> None:
    async def main() -> None:
        calls = [asyncio.ensure_future(lib.spin.async_()) for _ in range(5)]
        await asyncio.sleep(0.1)
        await asyncio.to_thread(lib.close)
        for result in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(result, ClosedError)
        with pytest.raises(ClosedError):
            await lib.add.async_(1, 2)

    run(main())
