"""What calls copy lies in memory that a machine keeps seeing: the call's, and nobody else's."""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cut_off import Tracer
from tests_support import sized

from vmm import CallCrash, CallError, GuestError, Pool, ResourceError, Sandbox
from vmm.guest.abi import PAGE_SIZE, Hold
from vmm.guest.x86 import LARGE_PAGE
from vmm.sandbox.copies import SCRATCH
from vmm.sandbox.worker import Worker

Elf = Callable[[str], Path]

EVERY = os.environ.get("PAGEFERRY_SWEEP") == "all"
SMALL = 1000  # bytes that do not fit a payload
PAGES = SCRATCH // PAGE_SIZE
LARGE = LARGE_PAGE // PAGE_SIZE
FIRST, LATER = 5, 7


@pytest.fixture
def lib(sandboxed: Elf) -> Iterator[Sandbox]:
    with Sandbox(sandboxed("cheats"), pool="16M", timeout=20, audit=True) as lib:
        yield lib
        assert lib.honest(1) == 1
        lib.monitor.audit(mappings=True)


def worker(lib: Sandbox) -> Worker:
    (found,) = lib._crew.workers
    return found


def borrowed(lib: Sandbox) -> int:
    """How many pages its machines have between calls that are not their own."""
    machines = [one.machine for one in lib._crew.workers if one.machine is not None]
    ledger = lib.monitor._exchange.ledger
    return sum(ledger.account(machine.number).loaned for machine in machines)


def fill(lib: Sandbox, size: int = SMALL, value: int = FIRST) -> None:
    """Have copied bytes written."""
    given = bytearray(size)
    lib.fills(given, size, value)
    assert given == bytes([value]) * size


def keeping(lib: Sandbox) -> int:
    """Return where the machine keeps seeing memory of the host's."""
    fill(lib)
    machine = worker(lib).machine
    assert machine is not None
    return worker(lib)._showing.seen[machine.number][0].address


def test_it_is_shared_once_and_nothing_else_is_left_with_a_machine_that_is_called(
    lib: Sandbox,
) -> None:
    assert borrowed(lib) == 0
    address = keeping(lib)
    assert borrowed(lib) == PAGES
    array = lib.alloc(3 * PAGE_SIZE)
    for _ in range(5):
        assert lib.where(bytes(SMALL)) == address
        lib.fills(array, array.size, FIRST)
        assert borrowed(lib) == PAGES + 3
        lib.honest(1)
        assert borrowed(lib) == PAGES
        fill(lib, 4 * SCRATCH)  # in memory of its own, which it goes on seeing as well
        assert borrowed(lib) == PAGES + LARGE
        worker(lib).copies.drop()
        assert borrowed(lib) == PAGES
    assert bytes(array) == bytes([FIRST]) * array.size


@pytest.mark.parametrize("less", [-1, 0, 1])
@pytest.mark.parametrize("size", [160, PAGE_SIZE, SCRATCH, 1 << 21])
def test_sizes_around_each_limit(lib: Sandbox, size: int, less: int) -> None:
    fill(lib, size - less, LATER)
    assert borrowed(lib) in (0, PAGES, LARGE, 2 * LARGE)


def test_a_new_machine_finds_zeros(lib: Sandbox) -> None:
    address = keeping(lib)
    fill(lib, SCRATCH)
    with pytest.raises(CallCrash):
        lib.pokes(8, 1, 0)
    assert keeping(lib) == address
    assert lib.finds(address, SCRATCH) == SMALL


def test_a_new_machine_whose_first_copies_are_refused_does_not_find_those_of_the_one_before(
    lib: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = lib.where(bytes([LATER]) * LARGE_PAGE)
    with pytest.raises(CallCrash):
        lib.pokes(8, 1, 0)
    lib.honest(1)  # a new one
    arrays = [lib.alloc(PAGE_SIZE) for _ in range(2)]
    ledger = lib.monitor._exchange.ledger
    with monkeypatch.context() as patch:
        patch.setattr(ledger, "ask_for_pieces", None)
        patch.setattr(ledger, "_pieces", ledger._pieces)
        ledger.allow(ledger.pieces_used())
        with pytest.raises(GuestError, match="cannot share memory"):
            lib.fills_both(bytearray(LARGE_PAGE), arrays[0], PAGE_SIZE, FIRST)
    lib.reads(arrays[1])
    assert borrowed(lib) == 1
    with pytest.raises(CallCrash, match="does not own"):
        lib.finds(address, LARGE_PAGE)


def test_with_fresh_each_call_finds_zeros_besides_its_own(sandboxed: Elf) -> None:
    with Sandbox(sandboxed("cheats"), pool="16M", timeout=20, fresh=True) as lib:
        address = keeping(lib)
        fill(lib, SCRATCH)
        assert lib.finds(address, SCRATCH) == 0
        lib.pokes(address, SCRATCH, LATER)
        assert lib.finds(address, SCRATCH) == 0
        lib.pokes(address, SCRATCH, LATER)
        found = bytearray(b"\1" * SMALL)
        lib.fills(found, SMALL - 1, 2)
        assert found == b"\2" * (SMALL - 1) + b"\1"
        lib.pokes(address, SCRATCH, LATER)
        assert lib.where(bytes(SMALL)) == address
        assert len(lib.monitor.machines) == 1  # put back, not made anew
        assert borrowed(lib) == PAGES


@pytest.mark.parametrize("audit", [False, True], ids=["posted", "served"])
def test_with_fresh_calls_of_numbers_only_find_zeros_too(sandboxed: Elf, audit: bool) -> None:
    with Sandbox(sandboxed("cheats"), pool="16M", timeout=20, fresh=True, audit=audit) as lib:
        pokes, finds = lib["pokes"], lib["finds"]
        assert pokes._typed.plain is not None
        assert finds._typed.plain is not None
        address = keeping(lib)
        fill(lib, SCRATCH)  # by the caller's bytes, and then by the machine's own hand
        for _ in range(2):
            assert finds(address, SCRATCH) == 0
            pokes(address, SCRATCH, LATER)
        assert len(lib.monitor.machines) == 1
        assert borrowed(lib) == PAGES


@pytest.mark.parametrize("pages", [1, PAGES])
def test_who_gives_it_back_has_not_answered_as_it_should(lib: Sandbox, pages: int) -> None:
    address = keeping(lib)
    with pytest.raises(CallCrash, match="memory"):
        lib.gives_back_what_it_keeps(address, pages)
    assert borrowed_by_next(lib) == PAGES


def test_as_many_pages_of_others_are_not_these(lib: Sandbox) -> None:
    address = keeping(lib)
    array = lib.alloc(3 * PAGE_SIZE)
    with pytest.raises(CallCrash, match="it has returned memory"):
        lib.swaps(address, array, worker(lib)._tag + 1)
    assert holds_of(lib) == {Hold.OWNED}  # of a machine that is no more
    array.write(bytes([LATER]) * array.size)
    assert borrowed_by_next(lib) == PAGES


def borrowed_by_next(lib: Sandbox) -> int:
    keeping(lib)
    return borrowed(lib)


def holds_of(lib: Sandbox) -> set[Hold]:
    ledger, host = lib.monitor._exchange.ledger, lib.monitor.host.peer.number
    return {run.hold for run in ledger.window(host)}


def test_where_there_is_no_room_for_it_less_is_shared(lib: Sandbox) -> None:
    buffer = lib.alloc((16 << 20) - 2 * PAGE_SIZE)
    fill(lib, 2 * PAGE_SIZE - 64)
    assert borrowed(lib) == 2
    lib.monitor.host.release(buffer)
    with pytest.raises(CallCrash):
        lib.pokes(8, 1, 0)
    fill(lib, 2 * PAGE_SIZE - 64)
    assert borrowed(lib) == PAGES


KEPT = 6 << 20  # bytes of copies that each of two machines keeps, of a pool of 16 MiB
LARGER = 12 << 20


def keep(pool: Pool) -> None:
    """Have two calls at a time copy so much."""
    meet = threading.Barrier(2)

    def one() -> None:
        meet.wait(60)
        fill(pool, KEPT)
        meet.wait(60)

    for future in [pool.submit(one) for _ in range(2)]:
        future.result()
    assert borrowed(pool) == 2 * KEPT // PAGE_SIZE


def test_what_machines_that_do_nothing_keep_for_copies_is_had_by_who_needs_it(
    sandboxed: Elf,
) -> None:
    with Pool(sandboxed("cheats"), machines=2, pool="16M", timeout=60) as pool:
        keep(pool)
        fill(pool, LARGER)  # more than is left beside what one keeps
        assert borrowed(pool) == LARGER // PAGE_SIZE
        buffer = pool.alloc(LARGER)
        assert borrowed(pool) == 0
        pool.monitor.host.release(buffer)
        keep(pool)
        with pytest.raises(ResourceError, match="make the pool larger"):
            fill(pool, 17 << 20)


@pytest.mark.not_in_lanes("a call with a tracer takes fifty times as long there")
@pytest.mark.timeout(3600 if EVERY else 60)
def test_who_needs_what_others_keep_is_cut_off_at_any_line(sandboxed: Elf) -> None:
    with Pool(sandboxed("cheats"), machines=2, pool="16M", timeout=60) as pool:
        keep(pool)
        with Tracer() as tracer:
            fill(pool, LARGER)
        step = 1 if EVERY else max(tracer.lines // 20, 1)
        for line in range(1 + random.randrange(step), tracer.lines + 1, step):
            pool.monitor.host.release(pool.alloc(LARGER))
            keep(pool)
            with Tracer(line) as tracer, contextlib.suppress(CallError):
                fill(pool, LARGER)
            fill(pool, LARGER, LATER)
            assert borrowed(pool) == LARGER // PAGE_SIZE, tracer.where
            pool.monitor.audit(mappings=True)


@pytest.mark.not_in_lanes("a call with a tracer takes fifty times as long there")
@pytest.mark.timeout(3600 if EVERY else 60)
def test_a_call_that_needs_more_than_there_was_is_cut_off_at_any_line(lib: Sandbox) -> None:
    fill(lib)

    def more() -> None:
        """Have memory for copies taken that is more than the last call of this kind had."""
        fill(lib, SCRATCH + 1)
        fill(lib, 3 << 20)

    def begin() -> None:
        fill(lib, SCRATCH + 1)
        worker(lib).copies.drop()
        books = lib.monitor.audit(mappings=True)
        assert books["owned"] + books["shared"] == PAGES

    with Tracer() as tracer:
        more()
    step = 1 if EVERY else max(tracer.lines // 20, 1)
    for line in range(1 + random.randrange(step), tracer.lines + 1, step):
        begin()
        with Tracer(line) as tracer, contextlib.suppress(CallError):
            more()
        more()
        assert len(lib.monitor.machines) == 1, tracer.where
    begin()


@pytest.mark.smaller_in_lanes("a call with a tracer takes fifty times as long there")
@pytest.mark.not_in_ept("a call with a tracer takes two hundred times as long there")
@pytest.mark.timeout(3600 if EVERY else 60)
@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("had", [False, True], ids=["first", "for another machine"])
def test_the_call_that_needs_it_first_is_cut_off_at_any_line(
    sandboxed: Elf, fresh: bool, had: bool
) -> None:
    with Sandbox(sandboxed("cheats"), pool="16M", timeout=20, fresh=fresh) as lib:

        def begin() -> None:
            """Have a machine that sees nothing, and memory for copies or none."""
            worker(lib)._discard()
            worker(lib).start()
            copies = worker(lib).copies
            if copies._scratch is not None and not had:
                lib.monitor.host.release(copies._scratch)
                copies._scratch = None

        fill(lib)
        begin()
        before = lib.monitor.audit(mappings=True)
        with Tracer() as tracer:
            fill(lib)
        step = 1 if EVERY else max(tracer.lines // sized(20, 4), 1)
        for line in range(1 + random.randrange(step), tracer.lines + 1, step):
            begin()
            with Tracer(line) as tracer, contextlib.suppress(CallError):
                fill(lib)
            fill(lib, value=LATER)
            assert borrowed(lib) == PAGES, tracer.where
            assert len(lib.monitor.machines) == 1, tracer.where
            begin()
            assert lib.monitor.audit(mappings=True) == before, tracer.where
