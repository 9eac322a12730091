"""The columns of our own: machines that move pages, machines that copy, and the floor in C."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from vmm.bench.copying import CopyMover
from vmm.bench.floor import Floor
from vmm.bench.machines import Command, Kind, Pair, allow_machines, spawn_others
from vmm.bench.plan import Case, Column, Unavailable
from vmm.bench.results import CALLS, LINUX, LIVES
from vmm.bench.scene import MOVERS, scene
from vmm.ferry.events import Event
from vmm.guest.abi import PAGE_SIZE
from vmm.guest.bundled import bundled_guest
from vmm.memory.frames import LARGE
from vmm.memory.movers import Mover
from vmm.monitor import Monitor

_BATCH = 64
_LEAST_ROUNDS = 5
_LEAST_EXTENTS = 10  # the first of a round finds caches full of what the other columns did
SPAWNS = 100  # a round
_STREAM_EACH = 20_000  # messages a second that a stream is thought to have, to choose its length
_WARM = 3  # rounds before the first that counts


def columns(case: Case, stack: ExitStack) -> Mapping[str, Column]:
    """Return "ours", "floor" and "copy" of a row.

    What they need is made when they are first called, and is put on the stack, to be ended with
    the row.
    """
    if case.name in LINUX + CALLS:
        return {}
    if case.name in LIVES:
        return _life(case, stack)
    if case.name.startswith("rate_"):
        return _rate(case, stack)
    others = max(0, _alive(case) - 2)
    command, messages = _command(case)
    found = {
        "ours": _talk(stack, None, command, messages, others),
        "floor": _floor_talk(stack, command, messages, others),
    }
    if command.kind in (Kind.PAGES, Kind.PINGPONG, Kind.BATCH) and not others:
        # Copied, it is as much as the message is, and mapped once for all.
        copied = command._replace(pages=command.used or command.pages, used=0, populate=False)
        found["copy"] = _talk(stack, CopyMover, copied, messages, others)
    return found


def _alive(case: Case) -> int:
    """Return how many machines a row says that there are, if it says so."""
    kind, _, count = case.name.partition("_")
    return int(count) if kind in ("alive", "spawn", "close") and count.isdigit() else 0


def _command(case: Case) -> tuple[Command, int]:
    """Return what a row's sender is asked for, and how many messages one of its samples is."""
    rounds, pages = max(_LEAST_ROUNDS, case.samples), max(1, case.bytes // PAGE_SIZE)
    match case.name:
        case "pingpong_page":
            return Command(Kind.PINGPONG, rounds, touch=True), 1
        case "batch64_scattered" | "batch64_adjacent":
            gap = int(case.name == "batch64_scattered")
            rounds = max(_LEAST_ROUNDS, rounds // 16)
            return Command(Kind.BATCH, rounds, gap, _BATCH, True), _BATCH
        case "extent_untouched" | "extent_touched":
            touch = case.name == "extent_touched"
            rounds = max(_LEAST_EXTENTS, case.samples // 2)
            return Command(Kind.PINGPONG, rounds, pages, touch=touch), 2
        case "extent_populated" | "extent_in_huge":
            rounds = max(_LEAST_EXTENTS, case.samples // 2)
            if case.name == "extent_populated":
                return Command(Kind.PINGPONG, rounds, pages, touch=True, populate=True), 2
            return Command(Kind.PINGPONG, rounds, LARGE, touch=True, used=pages), 2
        case "lend_return":
            return Command(Kind.LEND, rounds, touch=True), 1
        case "share":
            return Command(Kind.SHARE, rounds, touch=True), 1
    if case.bytes < PAGE_SIZE:
        return Command(Kind.INLINE, rounds, depth=1), 1
    return Command(Kind.PAGES, min(rounds, 500), touch=True, depth=1), 1  # page, alive_*


@contextmanager
def on_one_processor() -> Iterator[None]:
    """Keep this thread, and what it starts, on one processor, as the other ways are measured."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def once(make: Callable[[], Column]) -> Column:
    """Return a column that makes itself when it is first called."""
    made: list[Column] = []

    def column() -> Sequence[float]:
        if not made:
            made.append(make())
        return made[0]()

    return column


# ---- Messages ----


def _talk(
    stack: ExitStack, mover: type[Mover] | None, command: Command, messages: int, others: int
) -> Column:
    def make() -> Column:
        pair = Pair(stack.enter_context(Monitor(mover=mover)), command, others)

        def round_() -> Sequence[float]:
            with on_one_processor():
                return [sample / messages for sample in pair.run(command)]

        for _ in range(_WARM):
            pair.run(command._replace(rounds=max(1, command.rounds // 10)))
        return round_

    return once(make)


def _floor_talk(stack: ExitStack, command: Command, messages: int, others: int) -> Column:
    def make() -> Column:
        allow_machines(2 * others + 4)
        floor = floor_of(stack, command, others)

        def round_() -> Sequence[float]:
            return [sample / messages for sample in floor.ask(command.line())]

        for _ in range(_WARM):
            floor.ask(command._replace(rounds=max(1, command.rounds // 10)).line())
        return round_

    return once(make)


def floor_of(stack: ExitStack, command: Command, others: int = 0) -> Floor:
    """Start the floor with a pair as ours is, that has not run, and a machine that exits; and with
    so many others, that never run.
    """
    with Monitor() as monitor:
        if monitor.mover not in MOVERS:
            raise Unavailable(f"the floor knows no {monitor.mover}")
        pair = Pair(monitor, command)
        leaver = monitor.spawn(bundled_guest("bench_exit"))
        machines = (pair.sender, pair.receiver, leaver)
        data = scene(machines, monitor.doorbell, monitor.mover, others)
    with on_one_processor():
        return stack.enter_context(closing(Floor(data)))


# ---- Messages a second ----


def _rate(case: Case, stack: ExitStack) -> Mapping[str, Column]:
    workers = 2 if case.name == "rate_2_workers" else 1
    command = Command(Kind.STREAM, max(1, int(case.seconds * _STREAM_EACH)))

    def per_second(samples: Sequence[float]) -> list[float]:
        return [command.rounds / sample * 1e6 for sample in samples]

    def make() -> Column:
        pair = Pair(stack.enter_context(Monitor(workers=workers)), command)

        def round_() -> Sequence[float]:
            if workers > 1:
                return per_second(pair.run(command))
            with on_one_processor():
                return per_second(pair.run(command))

        pair.run(command._replace(rounds=100))
        return round_

    def make_floor() -> Column:
        if workers > 1:
            raise Unavailable("the floor has one thread")
        floor = floor_of(stack, command)
        return lambda: per_second(floor.ask(command.line()))

    return {"ours": once(make), "floor": once(make_floor)}


# ---- Spawning and closing ----


def _life(case: Case, stack: ExitStack) -> Mapping[str, Column]:
    """Return the columns of machines made and run to their first exit, or closed after it."""
    count, guest, others = min(SPAWNS, case.samples), bundled_guest("bench_exit"), _alive(case)
    ending = case.name.startswith("close")

    def make() -> Column:
        allow_machines(others + 1)
        monitor = stack.enter_context(Monitor())
        spawn_others(monitor, others)
        exits: list[Event] = []
        monitor.trace.listen(exits.append)

        def round_() -> Sequence[float]:
            with on_one_processor():
                return [one_life(monitor, exits, guest)[ending] for _ in range(count)]

        round_()
        return round_

    def make_floor() -> Column:
        allow_machines(2 * others + 4)
        floor = floor_of(stack, Command(Kind.INLINE, 1), others)
        return lambda: floor.ask(f"{'close' if ending else 'spawn'} {count}")

    return {"ours": once(make), "floor": once(make_floor)}


def one_life(monitor: Monitor, events: list[Event], guest: Path) -> tuple[float, float]:
    """Return the microseconds from the call of spawn to the first exit, and those of remove."""
    events.clear()
    start = time.monotonic_ns()
    machine = monitor.spawn(guest)
    monitor.run()
    exited = next(event.ns for event in events if event.kind == "exit")
    stopped = time.monotonic_ns()
    monitor.remove(machine)
    return (exited - start) / 1e3, (time.monotonic_ns() - stopped) / 1e3
