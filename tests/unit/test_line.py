"""Who is next, of those who stand in line."""

from __future__ import annotations

from typing import Any

import pytest

from vmm.engine.line import STALE, Line
from vmm.engine.machine import State

SLICE = 0.010


class Standee:
    """A machine, as far as a line looks at it."""

    def __init__(self, name: str, debt: float = 0.0) -> None:
        self.name = name
        self.state = State.READY
        self.place = 0
        self.debt = debt


def lined_up(*machines: Any) -> Line:
    line = Line()
    for machine in machines:
        line.add(machine)
    return line


def taken(line: Line, count: int) -> str:
    """Return who comes next, each being put at the end again."""
    names = ""
    for _ in range(count):
        machine: Any = line.take(SLICE)
        names += machine.name
        line.add(machine)
    return names


def test_each_has_its_turn() -> None:
    assert taken(lined_up(Standee("a"), Standee("b"), Standee("c")), 7) == "abcabca"


def test_who_has_had_slices_already_stands_behind_the_others_as_often() -> None:
    greedy = Standee("g", debt=2.5 * SLICE)
    assert taken(lined_up(greedy, Standee("a"), Standee("b")), 9) == "ababgabga"
    assert greedy.debt == pytest.approx(0.5 * SLICE)


def test_a_debt_keeps_nobody_waiting_for_nothing() -> None:
    alone: Any = Standee("g", debt=100 * SLICE)
    line = lined_up(alone)
    assert line.take(SLICE) is alone
    assert alone.debt == 100 * SLICE
    assert line.take(SLICE) is None


def test_who_runs_without_being_taken_is_no_longer_there() -> None:
    a: Any = Standee("a")
    b: Any = Standee("b", debt=SLICE)
    line = lined_up(a, b)
    a.state = State.RUNNING
    assert line.take(SLICE) is b  # alone
    a.state = State.READY
    assert line.take(SLICE) is None


def test_entries_that_are_over_do_not_pile_up() -> None:
    a: Any = Standee("a")
    line = lined_up(*[a] * 100 * STALE)
    assert len(line) <= 2 * STALE + 2
    assert line.take(SLICE) is a
