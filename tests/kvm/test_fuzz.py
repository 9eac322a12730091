"""Random descriptors and doorbells, sense and nonsense: the books balance, and nobody else notices.

PAGEFERRY_FUZZ says how many descriptors, PAGEFERRY_FUZZ_SEED which ones.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kvm import mappings
from kvm.innocent import Innocent
from tests_support import sized

from vmm import Machine, Monitor, State
from vmm.endpoint import Buffer
from vmm.engine.guest import HYPERCALLS
from vmm.errors import GuestError
from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, Bell, Flags, Hold, Operation, Status
from vmm.memory.runs import Run

COUNT = int(os.environ.get("PAGEFERRY_FUZZ", sized(8_000, 100)))
SHARE = {"memfd": 0.4, "remap": 0.4, "slots": 0.2}  # of it: memslots take five times as long
SEED = int(os.environ.get("PAGEFERRY_FUZZ_SEED", "1"))
BATCH = abi.TX_ENTRIES
LOOK_EVERY = 25  # batches: at the mappings themselves

FUZZERS = 2
QUOTA = 96 * PAGE_SIZE
COPIED = 3 * PAGE_SIZE  # exchanges below it: some are, some are moved
ROUNDS = 2  # of the innocent, for each batch
PATIENCE = 60  # seconds for a batch

U16, U32, U64 = ((1 << bits) - 1 for bits in (16, 32, 64))
EXTENT, HEADER = struct.Struct("<QII"), struct.Struct("<HHiIIQQQHHI16x")

# ---- The guest's desk: tests/guests/fuzzer.c ----

SET_TX_HEAD, SET_RX_TAIL, TAKE_ALL, BY_REGISTERS = 1, 2, 4, 8
STEPS_MAX = 16


class Step(ctypes.LittleEndianStructure):
    """struct step of fuzzer.c."""

    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("bell", "set", "first", "descriptors")),
        *((name, ctypes.c_uint32) for name in ("tx_head", "rx_tail", "wait_for", "wait_peer")),
        *((name, ctypes.c_uint32) for name in ("notices_seen", "log_length")),
        *((name, ctypes.c_uint64) for name in ("wait_timeout_us", "log_gpa", "rbx", "rcx", "rdx")),
        ("rax", ctypes.c_int64),
        ("bell_status", ctypes.c_int32),
        ("answered", ctypes.c_uint32),
    )


class Desk(ctypes.LittleEndianStructure):
    """struct desk of fuzzer.c."""

    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("order", "done", "steps", "statuses")),
        ("step", Step * STEPS_MAX),
        ("status", ctypes.c_int32 * (STEPS_MAX * BATCH)),
        ("descriptors", abi.Descriptor * BATCH),
    )


class Fuzzer:
    """A machine that does nonsense. Replaced by `respawn` when it has stopped."""

    def __init__(
        self,
        monitor: Monitor,
        elf: Path,
        name: str,
        depth: int = 8,
        window: str = "2M",
        quota: int = QUOTA,
    ) -> None:
        self.machine = monitor.spawn(
            elf, name=name, window=window, memory="4M", quota=quota, queue=depth
        )
        self.orders = 0
        self.desk = 0

    @property
    def doomed(self) -> bool:
        """Whether it has stopped."""
        return self.machine.state is State.STOPPED

    def tell(self, monitor: Monitor, steps: list[Step], descriptors: bytes) -> None:
        """Give it a batch."""
        self.orders += 1
        memory = self.machine.guest.memory
        memory.write(self.desk + Desk.descriptors.offset, descriptors)
        memory.write(self.desk + Desk.step.offset, b"".join(bytes(step) for step in steps))
        memory.write(self.desk + Desk.steps.offset, struct.pack("<I", len(steps)))
        memory.write(self.desk, struct.pack("<I", self.orders))
        monitor.notice(self.machine, 1)

    def results(self) -> Desk:
        """Return its desk, without the descriptors, as it has left it."""
        size = Desk.descriptors.offset
        read = self.machine.guest.memory.read(self.desk, size)
        return Desk.from_buffer_copy(read.ljust(ctypes.sizeof(Desk), b"\0"))


# ---- What to ask for ----


class Nonsense:
    """Makes descriptors and doorbells: such as could be, and such as are a little off."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def number(self, mask: int) -> int:
        """Return a number that is small, or near a power of two, or anything."""
        r = self.random
        near = (1 << r.randrange(mask.bit_length() + 1)) + r.randrange(-2, 3)
        return r.choice((r.randrange(4), near, r.randrange(mask + 1), -r.randrange(1, 9))) & mask

    def address(self, machine: Machine) -> int:
        """Return an address where things may go wrong: about the ends of the window, and of all."""
        r, window = self.random, machine.window
        about = r.choice(
            (0, window.base, window.end, 1 << 63, 1 << 64, abi.CONTROL_GPA, abi.DOORBELL_GPA)
        )
        return (about + r.randrange(-3, 4) * PAGE_SIZE + r.choice((0, 0, 0, 1, 2048))) & U64

    def sense(self, fuzzer: Fuzzer, runs: tuple[Run, ...], owner: Callable[[Run], int]) -> _Made:
        """Make a descriptor that would be all right, if nothing else happened meanwhile."""
        r = self.random
        table = fuzzer.machine.peer.table.values()
        alive = [entry.peer.number for entry in table if entry.peer.alive]
        made = _Made(r.choice(alive))
        if not runs or r.random() < 0.2:
            made.operation, made.extents = Operation.ALLOC, [(0, r.randrange(1, 5), 0)]
        else:
            run = r.choice(runs)
            made.operation = r.choice(_FITTING[run.hold])
            first = r.randrange(run.pages)
            pages = r.randrange(1, min(8, run.pages - first) + 1)
            gpa = fuzzer.machine.window.base + (run.page + first) * PAGE_SIZE
            made.extents = [(gpa, pages, 0)]
            if made.operation is Operation.RETURN:
                made.receiver = owner(run)
            if made.operation in (Operation.LEND, Operation.SHARE):
                made.flags = r.choice((0, Flags.READONLY))
        if made.operation is Operation.SEND and r.random() < 0.2:
            made.extents = []
        made.length = r.randrange(sum(pages for _, pages, _ in made.extents) * PAGE_SIZE + 1)
        return made

    def spoil(self, fuzzer: Fuzzer, made: _Made, others: tuple[int, ...]) -> None:
        """Change one thing about a descriptor."""
        r, number = self.random, self.number
        extents = made.extents
        what = r.randrange(13)
        if what == 0:
            made.operation = r.choice((*Operation, number(U16)))
        elif what == 1:
            made.flags = number(U16)
        elif what == 2:
            made.receiver = r.choice((*others, 0, fuzzer.machine.number, number(U32)))
        elif what == 3:
            extents.append((self.address(fuzzer.machine), r.randrange(3), 0))
        elif what == 4 and extents:
            extents[-1] = (self.address(fuzzer.machine), *extents[-1][1:])
        elif what == 5 and extents:
            extents[-1] = (extents[-1][0], number(U32), 0)
        elif what == 6 and extents:
            extents[-1] = (*extents[-1][:2], number(U32))
        elif what == 7:
            extents += extents
        elif what == 8:
            extents.append((fuzzer.machine.window.base + r.randrange(600) * PAGE_SIZE, 1, 0))
        elif what == 9:
            made.count = number(U16)
        elif what == 10:
            made.payload = number(U16)
        elif what == 11:
            made.length = number(U64)
        else:
            made.reserved = number(U32)

    def step(self, machine: Machine, first: int, count: int) -> Step:
        """Make a doorbell that processes descriptors."""
        r = self.random
        bell = Bell.TRANSMIT if r.random() < 0.8 else Bell.TRANSMIT_WAIT
        step = Step(bell=bell, set=TAKE_ALL, first=first, descriptors=count)
        step.wait_timeout_us = r.randrange(50)
        step.wait_for = r.choice((0, self.number(U32), r.randrange(8)))
        step.wait_peer = r.choice((*machine.peer.table, self.number(U32)))
        step.notices_seen = self.number(U32)
        return step

    def odd_step(self, machine: Machine) -> Step:
        """Make a doorbell that nobody should ring."""
        r, number = self.random, self.number
        step = self.step(machine, 0, 0)
        step.bell = r.choice((*Bell, number(U32)))
        while step.bell in (Bell.EXIT, Bell.PANIC) and r.random() < 0.9:
            step.bell = number(U32)
        step.set = r.choice((0, SET_TX_HEAD, SET_RX_TAIL, SET_RX_TAIL | SET_TX_HEAD, BY_REGISTERS))
        step.tx_head, step.rx_tail = number(U32), number(U32)
        step.log_gpa = r.choice((self.address(machine), number(U64), 0x200000))
        step.log_length = r.choice((number(U32), r.randrange(100)))
        step.rbx, step.rcx = r.choice((self.address(machine), 0)), r.choice((1, number(U64)))
        step.rdx = r.choice((number(U64), Bell.DIRECT | number(U64) << 8 & U64))
        while step.rdx in (Bell.EXIT, Bell.PANIC):
            step.rdx = number(U64)
        return step


class _Made:
    """A descriptor in the making."""

    def __init__(self, receiver: int) -> None:
        self.operation: int = 0
        self.flags = 0
        self.receiver = receiver
        self.extents: list[tuple[int, int, int]] = []
        self.length = 0
        self.count: int | None = None
        self.payload = 0
        self.reserved = 0

    def packed(self, r: random.Random) -> bytes:
        """Return it as a guest has it in its ring; what the monitor stamps is anything."""
        extents = self.extents[: abi.EXTENTS_MAX]
        head = HEADER.pack(
            *(self.operation, self.flags, r.randrange(-30, 2), r.getrandbits(32), self.receiver),
            *(r.getrandbits(64), self.length, r.getrandbits(64)),
            len(extents) if self.count is None else self.count,
            *(self.payload, self.reserved),
        )
        rest = b"".join(EXTENT.pack(*extent) for extent in extents)
        return (head + rest).ljust(ctypes.sizeof(abi.Descriptor), b"\x5a")


_OWN = (Operation.SEND, Operation.LEND, Operation.SHARE, Operation.EXCHANGE, Operation.RELEASE)
_FITTING = {
    Hold.OWNED: (*_OWN, Operation.QUERY),
    Hold.SHARED: (Operation.SHARE, Operation.RECLAIM, Operation.QUERY),
    Hold.LENT: (Operation.RECLAIM, Operation.RECLAIM, Operation.QUERY),
    Hold.SENT: (Operation.QUERY, Operation.RELEASE),
    Hold.INCOMING: (Operation.QUERY, Operation.RETURN, Operation.RELEASE),
    Hold.BORROWED: (Operation.RETURN, Operation.RETURN, Operation.QUERY, Operation.SEND),
    Hold.VIEWED: (Operation.RETURN, Operation.RETURN, Operation.QUERY, Operation.LEND),
    Hold.REVOKED: (Operation.RELEASE, Operation.RELEASE, Operation.RETURN, Operation.SEND),
}


# ---- The scene ----


class Scene:
    """Fuzzers that know each other, the host and a dead machine; and a pair that knows nobody."""

    def __init__(self, monitor: Monitor, elf: Callable[[str], Path], seed: int) -> None:
        self.monitor = monitor
        self.elf = elf
        self.nonsense = Nonsense(seed)
        self.random = self.nonsense.random
        self.names = iter(f"f{index}" for index in range(1 << 30))
        self.fuzzers: list[Fuzzer] = []
        self.tally: Counter[str] = Counter()
        self.held: list[Buffer] = []
        # Every second of adjacent pages: each comes back by itself.
        self.lendable = [monitor.host.alloc(PAGE_SIZE) for _ in range(6)][::2]
        self.deaths = 0
        self.innocent = Innocent(monitor, elf)
        self.dead = monitor.spawn(elf("spin"), name="dead", window="2M", memory="4M")
        monitor.kill(self.dead)
        for _ in range(FUZZERS):
            self.add()

    def add(self) -> None:
        """Spawn a fuzzer."""
        new = Fuzzer(self.monitor, self.elf("fuzzer"), next(self.names))
        for machine in (self.dead, *(fuzzer.machine for fuzzer in self.fuzzers)):
            self.monitor.connect(new.machine, machine)
        self.fuzzers.append(new)
        self.monitor.run(PATIENCE)
        for received in self.receive():
            if received[0] == new.machine.number and not new.desk:
                (new.desk,) = struct.unpack("<Q", received[1])
        assert new.desk

    # ---- The host's part ----

    def receive(self) -> Iterator[tuple[int, bytes]]:
        """Take all messages for the host; what came with them is given back or released."""
        while (received := self.monitor.host.receive()) is not None:
            self.held += [b for b in received.buffers if b not in self.lendable]
            yield received.sender, received.payload
        kept = []
        for buffer in self.held:
            try:
                borrowed = buffer.hold in (Hold.BORROWED, Hold.VIEWED)
                (self.monitor.host.give_back if borrowed else self.monitor.host.release)(buffer)
            except GuestError:  # the owner's queue is full
                kept.append(buffer)
        self.held = kept

    def lend(self) -> None:
        """Lend or share something, or take it back."""
        host, r = self.monitor.host, self.random
        for buffer in self.lendable:
            if buffer.hold in (Hold.LENT, Hold.SHARED):
                host.reclaim(buffer)
            with contextlib.suppress(GuestError):  # its queue is full
                part = r.choice((host.lend, host.share))
                part(r.choice(self.fuzzers).machine, buffer, writable=r.random() < 0.5)

    # ---- Batches ----

    def batch(self, fuzzer: Fuzzer) -> None:
        """Let a fuzzer and the innocent do their part, and look at what has come of it."""
        nonsense, machine = self.nonsense, fuzzer.machine
        descriptors = b"".join(self.descriptors(fuzzer))
        half = self.random.randrange(BATCH + 1)
        steps = [
            nonsense.step(machine, 0, half),
            *(nonsense.odd_step(machine) for _ in range(self.random.randrange(6))),
            nonsense.step(machine, half, BATCH - half),
        ]
        fuzzer.tell(self.monitor, steps, descriptors)
        self.innocent.begin(ROUNDS)
        self.monitor.run(PATIENCE)
        self.monitor.audit()
        self.innocent.check([sender for sender, _ in self.receive()])
        self.count(fuzzer, steps)
        if fuzzer.doomed:
            self.fuzzers.remove(fuzzer)
            self.add()

    def descriptors(self, fuzzer: Fuzzer) -> Iterator[bytes]:
        """Yield a batch of descriptors."""
        nonsense, r, ledger = self.nonsense, self.random, self.monitor._exchange.ledger
        number = fuzzer.machine.number
        runs = ledger.window(number)
        others = tuple(machine.number for machine in (*self.innocent.machines, self.dead))

        def owner(run: Run) -> int:
            return ledger.describe(number, run.extent).owner or 0

        for _ in range(BATCH):
            made = nonsense.sense(fuzzer, runs, owner)
            for _ in range(r.choice((0, 0, 0, 1, 1, 2))):
                nonsense.spoil(fuzzer, made, others)
            yield made.packed(r)

    def count(self, fuzzer: Fuzzer, steps: list[Step]) -> None:
        results, machine = fuzzer.results(), fuzzer.machine
        self.tally.update(Status(status).name for status in results.status[: results.statuses])
        if fuzzer.doomed:
            self.deaths += 1
            panicked = machine.fault is not None and machine.fault.kind == "panic"
            assert machine.exit_code == 0 or panicked, machine.fault
            return
        assert results.done == fuzzer.orders
        assert machine.state is State.PARKED
        for step in results.step[: len(steps)]:
            self.tally[f"bell {Status(step.bell_status).name}"] += 1
            if step.set & BY_REGISTERS and self.monitor.doorbell in HYPERCALLS:
                self.tally[f"registers {step.rax}"] += 1

    @property
    def answered(self) -> int:
        """How many descriptors have been answered."""
        return sum(n for name, n in self.tally.items() if " " not in name)


@pytest.mark.smaller_in_lanes("each descriptor is made, and looked at, at a fiftieth of the speed")
def test_nonsense_upsets_no_books_and_nobody_else(
    open_monitor: Callable[..., Monitor], test_guest: Callable[[str], Path], mover: str
) -> None:
    monitor = open_monitor(mover=mover, pool="2M", copy_below=COPIED)
    scene = Scene(monitor, test_guest, SEED)
    batches, count = 0, COUNT * SHARE[mover]
    while scene.answered < count:
        scene.lend()
        scene.batch(scene.random.choice(scene.fuzzers))
        if batches % LOOK_EVERY == 0:
            mappings.check(monitor)
        batches += 1
    print(f"{mover}: {scene.answered} descriptors, {batches} batches, {scene.deaths} deaths,")
    print(dict(scene.tally.most_common()))
    assert scene.tally["OK"] > count / 10
