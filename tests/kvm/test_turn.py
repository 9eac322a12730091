"""The usual turn is a short cut, and no second truth: whatever machines ask for, all is as it would
be without it, to the last byte.

PAGEFERRY_TURNS says how many programs are played, PAGEFERRY_TURNS_SEED which ones.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kvm import mappings
from kvm.test_fuzz import TAKE_ALL, Fuzzer, Step
from tests_support import sized

from vmm import Monitor, State
from vmm.engine import work
from vmm.engine.driver import Driver
from vmm.engine.guest import Asked
from vmm.engine.machine import Machine
from vmm.engine.turn import Turn
from vmm.errors import GuestError
from vmm.ferry.layout import CONTROL_BYTES
from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, Bell, Flags, Hold, Operation, WaitFor
from vmm.kvm import Exit, Intr
from vmm.memory.frames import LARGE
from vmm.memory.movers.park import Park
from vmm.memory.runs import Run

Open = Callable[..., Monitor]
Elf = Callable[[str], Path]

PLAYS = int(os.environ.get("PAGEFERRY_TURNS", sized(6, 1)))
SEED = int(os.environ.get("PAGEFERRY_TURNS_SEED", "1"))
ROUNDS = 15
DEPTHS = (1, 2, 8)
PATIENCE = 60
WINDOW, QUOTA = "12M", 8 << 20
KINDS = {"SEND with none", *(f"{name} with pages" for name in ("SEND", "LEND", "SHARE", "RETURN"))}

_PAGES = {
    Hold.OWNED: (
        Operation.SEND,
        Operation.SEND,
        Operation.LEND,
        Operation.SHARE,
        Operation.EXCHANGE,
    ),
    Hold.SHARED: (Operation.SHARE, Operation.RECLAIM),
    Hold.LENT: (Operation.RECLAIM, Operation.SEND),
    Hold.BORROWED: (Operation.RETURN, Operation.RETURN, Operation.SEND),
    Hold.VIEWED: (Operation.RETURN, Operation.RETURN, Operation.LEND),
    Hold.REVOKED: (Operation.RELEASE,),
}


_LOANS = (Hold.BORROWED, Hold.VIEWED)


class Play:
    """Three machines that do what chance says, and always the same for a seed."""

    def __init__(self, monitor: Monitor, elf: Path, seed: int) -> None:
        self.monitor, self.random = monitor, random.Random(seed)
        self.fuzzers: list[Fuzzer] = []
        self.waits: Fuzzer
        for index, depth in enumerate(DEPTHS):
            fuzzer = Fuzzer(monitor, elf, "abc"[index], depth, WINDOW, QUOTA)
            for other in self.fuzzers:
                monitor.connect(fuzzer.machine, other.machine)
            self.fuzzers.append(fuzzer)
            monitor.run(PATIENCE)
            received = monitor.host.receive()
            assert received is not None
            fuzzer.desk = int.from_bytes(received.payload[:8], "little")

    def round(self) -> dict[str, Any]:
        """Let some of them do something; return all that there is to be seen then."""
        for _ in range(2):
            self.talk()
        idle = [fuzzer for fuzzer in self.fuzzers if fuzzer.machine.peer.idle]
        self.waits = self.random.choice(idle or self.fuzzers)  # for what others send to it
        if not idle:
            self._order(self.waits)
            self.monitor.run(PATIENCE)
        for fuzzer in self.fuzzers:
            if fuzzer is not self.waits and self.random.random() < 0.8:
                self._order(fuzzer)
        self.monitor.run(PATIENCE)
        for fuzzer in self.fuzzers:  # who waits for a message gets one now and then
            if fuzzer.machine.peer.idle and self.random.random() < 0.3:
                self.monitor.host.send(fuzzer.machine, payload=b"awake")
        self.monitor.run(PATIENCE)
        while self.monitor.host.peer.queue and self.random.random() < 0.9:
            received = self.monitor.host.receive()
            for buffer in () if received is None else received.buffers:
                borrowed = buffer.hold in (Hold.BORROWED, Hold.VIEWED)
                with contextlib.suppress(GuestError):  # its owner's queue is full
                    host = self.monitor.host
                    (host.give_back if borrowed else host.release)(buffer)
        return self.seen()

    def meanwhile(self, machine: Machine) -> None:
        """Something may come for a machine while it runs."""
        if self.random.random() < 0.1 and machine.peer.queue.room:
            self.monitor.host.send(machine, payload=b"meanwhile")

    def talk(self) -> None:
        """Let one of them wait for what another sends, and that one for the answer."""
        r = self.random
        for fuzzer in self.fuzzers:
            while fuzzer.machine.state is State.PARKED and fuzzer.machine.peer.idle:
                self.monitor.host.send(fuzzer.machine, payload=b"awake")
                self.monitor.run(PATIENCE)
        one, other = r.sample(self.fuzzers, 2)
        waits = Step(set=TAKE_ALL, wait_timeout_us=abi.FOREVER)
        waits.bell = Bell.WAIT
        other.tell(self.monitor, [waits], b"")
        self.monitor.run(PATIENCE)
        asks = Step(bell=Bell.TRANSMIT_WAIT, descriptors=1, set=TAKE_ALL)
        asks.wait_timeout_us = abi.FOREVER
        for sender, to in ((one, other), (other, one)):
            if not self._runs(sender, *_PAGES):
                alloc = abi.Descriptor(operation=Operation.ALLOC, extent_count=1)
                alloc.extents[0].pages = r.choice((*range(1, 9), LARGE, LARGE + 9))
                sender.tell(self.monitor, [Step(bell=Bell.TRANSMIT, descriptors=1)], bytes(alloc))
                self.monitor.run(PATIENCE)
            made = abi.Descriptor(operation=Operation.SEND, receiver=to.machine.number)
            made.payload_length = r.choice((0, 7, 192))
            made.payload[:] = r.randbytes(192)
            loans = self._runs(sender, *_LOANS)
            runs = loans or self._runs(sender, Hold.OWNED, Hold.OWNED)
            if runs and r.random() < 0.9:
                self._name(made, sender.machine, r.choice(runs))
            sender.tell(self.monitor, [asks], bytes(made))
            self.monitor.run(PATIENCE)

    def _runs(self, fuzzer: Fuzzer, *holds: Hold) -> list[Run]:
        window = self.monitor._exchange.ledger.window(fuzzer.machine.number)
        return [run for run in window if run.hold in holds]

    def _name(self, made: abi.Descriptor, machine: Machine, run: Run) -> None:
        """Let a descriptor ask for something that fits a run, for all of it or a part."""
        r = self.random
        made.operation = r.choice(_PAGES[run.hold])
        first = r.choice((0, r.randrange(run.pages)))
        made.extents[0].gpa = machine.window.base + (run.page + first) * PAGE_SIZE
        left = run.pages - first
        made.extents[0].pages = r.choice((left, r.randrange(1, left + 1)))
        made.extent_count = 1
        if made.operation in (Operation.LEND, Operation.SHARE):
            made.flags = r.choice((0, Flags.READONLY))
        if made.operation is Operation.RETURN:
            made.receiver = next(iter(self.monitor._exchange.ledger.bonds([run]))).owner
        made.length = r.randrange(made.extents[0].pages * PAGE_SIZE + 1)

    def _order(self, fuzzer: Fuzzer) -> None:
        r, steps, descriptors = self.random, list[Step](), list[bytes]()
        if fuzzer is self.waits:
            steps.append(Step(bell=Bell.WAIT, set=TAKE_ALL, wait_timeout_us=abi.FOREVER))
        for _ in range(r.randrange(1, 5)):
            count = r.choice((0, *[1] * 8, 2, 3))
            step = Step(bell=r.choice((Bell.TRANSMIT, *[Bell.TRANSMIT_WAIT] * 3)))
            if not count and r.random() < 0.7:
                step.bell = Bell.WAIT
            step.set = r.choice((0, *[TAKE_ALL] * 4))
            step.first, step.descriptors = len(descriptors), count
            step.wait_for = r.choice(
                (0, WaitFor.MESSAGE, WaitFor.ROOM, WaitFor.ROOM, r.randrange(8))
            )
            step.wait_peer = r.choice((*fuzzer.machine.peer.table, *fuzzer.machine.peer.table, 99))
            step.wait_timeout_us = r.choice((*[abi.FOREVER] * 5, 0))
            descriptors += [self._descriptor(fuzzer.machine) for _ in range(count)]
            steps.append(step)
        fuzzer.tell(self.monitor, steps, b"".join(descriptors))

    def _descriptor(self, machine: Machine) -> bytes:
        r, table = self.random, list(machine.peer.table)
        made = abi.Descriptor(
            operation=Operation.SEND, receiver=r.choice(table), tag=r.getrandbits(64)
        )
        made.status, made.sender = r.randrange(-30, 2), r.getrandbits(32)
        made.payload_length = r.choice((0, 1, 64, 192))
        made.payload[:] = r.randbytes(192)
        runs = self.monitor._exchange.ledger.window(machine.number)
        if r.random() < 0.4:
            run = r.choice(runs) if runs else None
            if run is None or run.hold not in _PAGES or r.random() < 0.2:
                made.operation, made.extents[0].pages = Operation.ALLOC, r.randrange(1, 5)
                made.extent_count = 1
            else:
                self._name(made, machine, run)
        if r.random() < 0.1:
            name, value = r.choice(
                (
                    ("operation", 99), ("flags", 1), ("receiver", 99), ("receiver", machine.number),
                    ("length", 1 << 40), ("extent_count", 17), ("payload_length", 193),
                    ("reserved0", 1),
                )
            )  # fmt: skip
            setattr(made, name, value)
        return bytes(made)

    def seen(self) -> dict[str, Any]:
        """All that a turn may change."""
        monitor, found = self.monitor, dict[str, Any]()
        ledger = monitor._exchange.ledger
        for fuzzer in self.fuzzers:
            machine, peer = fuzzer.machine, fuzzer.machine.peer
            control = machine.guest.memory.read(abi.CONTROL_GPA, CONTROL_BYTES)
            found[machine.name] = {
                "control": control,
                "desk": bytes(fuzzer.results()),
                "state": (machine.state, machine.wait, machine.deadline, machine.exit),
                "rings": (machine.guest.control.tx_tail, machine.guest.control.rx_head),
                "messages": (tuple(peer.queue), tuple(peer.untaken), peer.queue.room),
                "flags": (
                    peer.idle,
                    peer.entered,
                    peer.full,
                    sorted(peer.waiters),
                    set(peer.parted),
                ),
                "counts": (peer.sent, peer.received, peer.refused),
            }
        for peer in monitor._exchange.roster:
            account = ledger.account(peer.number)
            found[f"account {peer.number}"] = (
                ledger.window(peer.number), account.charged, account.loaned, dict(account.loans),
            )  # fmt: skip
        # Where the host's window is is the kernel's choice.
        found["host"] = [message._replace(spans=()) for message in monitor.host.peer.queue]
        found["bonds"] = tuple(ledger.bonds_by_frame)
        found["free"] = ledger.pool.runs
        found["mapped"] = mappings.check(monitor)
        return found


def differences(short: dict[str, Any], long: dict[str, Any]) -> dict[str, Any]:
    """What is not the same, as short as it can be said."""
    found: dict[str, Any] = {}
    for key, one in short.items():
        other = long[key]
        if isinstance(one, dict) and isinstance(other, dict):
            found |= {f"{key} {at}": what for at, what in differences(one, other).items()}
        elif isinstance(one, bytes) and isinstance(other, bytes):
            at = [(i, a, b) for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]
            found |= {key: at} if at else {}
        elif one != other:
            found[key] = one, other
    return found


@pytest.fixture
def no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """No slice is ever over, so that who runs when does not depend on the host."""
    monkeypatch.setattr(work, "SLICE", 1000.0)
    monkeypatch.setattr(work, "_LONG", 1000.0)


@pytest.mark.usefixtures("no_hurry")
def test_whatever_machines_do_all_is_the_same_with_the_short_cut_and_without(
    open_monitor: Open, test_guest: Elf, mover: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mover != "memfd" and os.environ.get("PAGEFERRY_LANE") == "ept":
        pytest.skip("on the host and in npt only: one mover takes a minute there")
    taken: Counter[str] = Counter()
    take, ready, move = Turn.take, Turn.ready, Park.move
    execute = Driver.execute
    within, playing = list[Turn](), list[Play]()

    def moved(park: Park, source: int, target: int, size: int) -> None:
        if within:
            taken["moves its memory"] += 1
        move(park, source, target, size)

    def counted(turn: Turn, machine: Machine, *, hand_on: bool) -> Machine | State | None:
        within.append(turn)
        there = bool(machine.peer.queue)
        done = take(turn, machine, hand_on=hand_on)
        within.clear()
        kind = "is left" if done is None else "waits" if done is State.PARKED else "goes on"
        if there and done is machine:
            kind = "takes what is there"
        if isinstance(done, Machine) and done is not machine:
            message = done.peer.untaken[-1]
            kind = f"{message.operation.name} with {'pages' if message.spans else 'none'}"
        taken[kind] += 1
        return done

    def executed(driver: Driver, machine: Machine) -> Exit | Asked:
        exit_ = execute(driver, machine)
        if playing and not isinstance(exit_, Intr):
            playing[0].meanwhile(machine)
        return exit_

    monkeypatch.setattr(Park, "move", moved)
    monkeypatch.setattr(Driver, "execute", executed)
    for play in range(SEED, SEED + PLAYS):
        monkeypatch.setattr(Turn, "take", counted)
        monkeypatch.setattr(Turn, "ready", ready)
        with open_monitor(mover=mover, pool="32M") as monitor:
            playing[:] = [short := Play(monitor, test_guest("fuzzer"), play)]
            rounds = [short.round() for _ in range(ROUNDS)]
        playing.clear()
        monkeypatch.setattr(Turn, "take", lambda *_, **__: None)
        monkeypatch.setattr(Turn, "ready", lambda *_: False)
        with open_monitor(mover=mover, pool="32M") as monitor:
            playing[:] = [long := Play(monitor, test_guest("fuzzer"), play)]
            for number, seen in enumerate(rounds):
                assert differences(seen, long.round()) == {}, f"round {number} of play {play}"
        playing.clear()
    print(dict(taken))
    always = {"is left", "waits", "goes on"}
    own = {"moves its memory"} if mover == "remap" else set()
    # One play is too short for all of them, as chance is another in each process.
    assert set(taken) >= sized(always | {"takes what is there", *KINDS, *own}, always)
