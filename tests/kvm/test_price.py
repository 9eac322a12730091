"""What a message costs where no noise can reach: calls of Python functions, from the exit of who
sends to the entry of who is run next.

What a call costs after an exit is one to two microseconds on many hosts, and nothing else that the
monitor does there costs as much.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from vmm import Monitor
from vmm.bench.machines import Command, Kind, Pair
from vmm.engine.guest import HYPERCALLS
from vmm.ferry.doorbell import Doorbell
from vmm.guest import abi
from vmm.kvm import Vcpu

Open = Callable[..., Monitor]

ROUNDS = 60
IN_REGISTERS = 6  # calls more in each turn where a doorbell is a hypercall, to be answered

pytestmark = pytest.mark.not_in_lanes("slices end in the midst of it there, and others take turns")


class Turns:
    """Counts the calls in each turn: between the return of a KVM_RUN and the next one.

    python   of functions of Python's, by turn
    others   of functions in C, by turn
    batches  turns in which a whole ring was sent, by number
    """

    def __init__(self) -> None:
        self.python: list[int] = []
        self.others: list[int] = []
        self.batches: list[int] = []
        self._inside = True

    def __enter__(self) -> Turns:
        sys.setprofile(self._see)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _see(self, frame: FrameType, event: str, argument: Any) -> None:
        if frame.f_code is Vcpu.run.__code__:
            self._inside = event != "return"
            if event == "return":
                self.python.append(0)
                self.others.append(0)
        elif frame.f_code is Doorbell.batch.__code__ and argument == abi.TX_ENTRIES:
            self.batches.append(len(self.python) - 1)
        elif event in ("call", "c_call") and self.python and not self._inside:
            (self.python if event == "call" else self.others)[-1] += 1


def turns_of(monitor: Monitor, command: Command) -> Turns:
    pair = Pair(monitor, command)
    pair.run(command)
    with Turns() as turns:
        pair.run(command)
    return turns


@pytest.mark.parametrize(
    ("command", "most"),
    [
        (Command(Kind.INLINE, ROUNDS, depth=1), 6),
        (Command(Kind.PINGPONG, ROUNDS, touch=True), 15),
        (Command(Kind.PINGPONG, ROUNDS, 4096, touch=True), 23),
        (Command(Kind.LEND, ROUNDS, touch=True), 25),
        (Command(Kind.SHARE, ROUNDS, touch=True), 33),
    ],
    ids=["a payload", "a page", "16 MiB", "a page lent and returned", "a page shared and returned"],
)
def test_a_message_takes_few_calls_from_exit_to_entry(
    open_monitor: Open, command: Command, most: int
) -> None:
    """Both ways, there and back: of a payload, the other way is a wait."""
    monitor = open_monitor()
    turns = turns_of(monitor, command)
    if monitor.doorbell in HYPERCALLS:  # which has registers to be read, and answered
        most += IN_REGISTERS
    print(f"Python {statistics.mode(turns.python)}, C {statistics.mode(turns.others)}")
    usual = sorted(turns.python)[: len(turns.python) * 9 // 10]  # the rest starts, and ends it
    assert len(usual) > ROUNDS
    assert usual[-1] <= most, usual


def test_a_page_of_a_batch_takes_next_to_none(open_monitor: Open) -> None:
    batch = abi.TX_ENTRIES
    monitor = open_monitor(mover="memfd")
    turns = turns_of(monitor, Command(Kind.BATCH, ROUNDS, 0, batch, True))
    most = 2 * batch + (IN_REGISTERS if monitor.doorbell in HYPERCALLS else 0)
    assert len(turns.batches) == ROUNDS
    calls = statistics.median([turns.python[number] for number in turns.batches])
    print(f"{calls / batch:.2f} of Python for each")
    assert calls <= most
