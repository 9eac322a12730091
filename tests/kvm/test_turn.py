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
from vmm.engine.machine import Machine
from vmm.engine.turn import Turn
from vmm.errors import GuestError
from vmm.ferry.layout import CONTROL_BYTES
from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, Bell, Flags, Hold, Operation, WaitFor

Open = Callable[..., Monitor]
Elf = Callable[[str], Path]

PLAYS = int(os.environ.get("PAGEFERRY_TURNS", sized(6, 1)))
SEED = int(os.environ.get("PAGEFERRY_TURNS_SEED", "1"))
ROUNDS = 40
DEPTHS = (1, 2, 8)
PATIENCE = 60

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


class Play:
    """Three machines that do what chance says, and always the same for a seed."""

    def __init__(self, monitor: Monitor, elf: Path, seed: int) -> None:
        self.monitor, self.random = monitor, random.Random(seed)
        self.fuzzers: list[Fuzzer] = []
        self.waits: Fuzzer
        for index, depth in enumerate(DEPTHS):
            fuzzer = Fuzzer(monitor, elf, "abc"[index], depth)
            for other in self.fuzzers:
                monitor.connect(fuzzer.machine, other.machine)
            self.fuzzers.append(fuzzer)
            monitor.run(PATIENCE)
            received = monitor.host.receive()
            assert received is not None
            fuzzer.desk = int.from_bytes(received.payload[:8], "little")

    def round(self) -> dict[str, Any]:
        """Let some of them do something; return all that there is to be seen then."""
        self.waits = self.random.choice(self.fuzzers)  # for what others send to it
        for fuzzer in (self.waits, *self.fuzzers):
            if fuzzer is self.waits or self.random.random() < 0.8:
                self._order(fuzzer)
            if fuzzer is self.waits:
                self.monitor.run(PATIENCE)
        self.monitor.run(PATIENCE)
        for fuzzer in self.fuzzers:  # who waits for a message gets one now and then
            if fuzzer.machine.peer.idle and self.random.random() < 0.8:
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

    def _order(self, fuzzer: Fuzzer) -> None:
        r, steps, descriptors = self.random, list[Step](), list[bytes]()
        if fuzzer is self.waits:
            steps.append(Step(bell=Bell.WAIT, set=TAKE_ALL, wait_timeout_us=abi.FOREVER))
        for _ in range(r.randrange(1, 7)):
            count = r.choice((0, 1, 1, 1, 1, 1, 1, 2, 3))
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
        if r.random() < 0.3:
            run = r.choice(runs) if runs else None
            if run is None or run.hold not in _PAGES or r.random() < 0.3:
                made.operation, made.extents[0].pages = Operation.ALLOC, r.randrange(1, 5)
            else:
                made.operation = r.choice(_PAGES[run.hold])
                first = r.randrange(run.pages)
                made.extents[0].gpa = machine.window.base + (run.page + first) * PAGE_SIZE
                made.extents[0].pages = r.randrange(1, run.pages - first + 1)
                if made.operation in (Operation.LEND, Operation.SHARE):
                    made.flags = r.choice((0, Flags.READONLY))
                made.length = r.randrange(made.extents[0].pages * PAGE_SIZE + 1)
            made.extent_count = 1
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
                "flags": (peer.idle, peer.entered, peer.full, sorted(peer.waiters), peer.parted),
                "counts": (peer.sent, peer.received, peer.refused),
            }
        for peer in monitor._exchange.roster:
            account = ledger.account(peer.number)
            found[f"account {peer.number}"] = (
                ledger.window(peer.number), account.charged, account.loaned, dict(account.loans),
            )  # fmt: skip
        # Where the host's window is is the kernel's choice.
        found["host"] = [message._replace(spans=()) for message in monitor.host.peer.queue]
        found["bonds"] = tuple(ledger._bonds)
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
@pytest.mark.parametrize("play", range(PLAYS))
def test_whatever_machines_do_all_is_the_same_with_the_short_cut_and_without(
    open_monitor: Open, test_guest: Elf, mover: str, play: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: Counter[str] = Counter()
    take, ready = Turn.take, Turn.ready

    def counted(turn: Turn, machine: Machine, *, hand_on: bool) -> Machine | State | None:
        done = take(turn, machine, hand_on=hand_on)
        kind = "goes on" if done is machine else "is handed on"
        kind = "waits" if done is State.PARKED else kind if done is not None else "is left"
        taken[kind] += 1
        return done

    monkeypatch.setattr(Turn, "take", counted)
    short = Play(open_monitor(mover=mover, pool="8M"), test_guest("fuzzer"), SEED + play)
    rounds = [short.round() for _ in range(ROUNDS)]
    monkeypatch.setattr(Turn, "take", lambda *_, **__: None)
    monkeypatch.setattr(Turn, "ready", lambda *_: False)
    long = Play(open_monitor(mover=mover, pool="8M"), test_guest("fuzzer"), SEED + play)
    for number, seen in enumerate(rounds):
        assert differences(seen, long.round()) == {}, f"round {number}"
    print(dict(taken))
    assert min(taken[kind] for kind in ("goes on", "is handed on", "waits", "is left")) > 0, taken
    assert ready is not Turn.ready
