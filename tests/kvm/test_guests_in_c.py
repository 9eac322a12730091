"""What C promises, in a guest.

printf, constructors, thread-local variables, the compiler's own functions, and a stack that ends in
a fault and nowhere else; with the compiler of this system, and with ziglang.
"""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from guest_elfs import SOURCES
from tests_support import IN_LANE
from unit.compilers import no_zig

from vmm import Monitor
from vmm.engine.machine import Machine
from vmm.guest.build import build_each
from vmm.guest.bundled import ROOT
from vmm.guest.compiler import find_compiler

Elf = Callable[[str], Path]
Open = Callable[..., Monitor]
GUESTS = ("prints", "long_text", "around_main", "runtime", "frames")
LOG_MAX = 4096


@pytest.fixture(
    scope="module",
    params=[
        "found",
        pytest.param("ziglang", marks=pytest.mark.skipif(no_zig, reason="no ziglang wheel")),
    ],
)
def elf(
    request: pytest.FixtureRequest, test_guest: Elf, tmp_path_factory: pytest.TempPathFactory
) -> Elf:
    """The tests' guests, as they are, and built with ziglang."""
    if request.param == "found":
        return test_guest
    folder = tmp_path_factory.mktemp("zig")
    for name in GUESTS:
        shutil.copy(SOURCES / f"{name}.c", folder)
    built = build_each(
        folder,
        folder,
        include_dirs=[ROOT / "include"],
        library_dir=ROOT / "lib",
        compiler=find_compiler("ziglang"),
    )
    assert len(built) == len(GUESTS)
    return lambda name: folder / f"{name}.elf"


class Ran:
    """A machine that has run alone, and what it has printed."""

    def __init__(self, open_monitor: Open, image: Path, name: str, **sizes: str) -> None:
        self.lines: list[str] = []
        monitor = open_monitor(console=lambda _, line: self.lines.append(line))
        self.machine: Machine = monitor.spawn(image, name=name, window="2M", **sizes)
        monitor.run(60)
        self.fault = self.machine.fault

    def parts(self) -> list[list[str]]:
        """Its lines, divided at those that are "--"."""
        parts: list[list[str]] = [[]]
        for line in self.lines:
            if line == "--":
                parts.append([])
            else:
                parts[-1].append(line)
        return parts


@pytest.mark.not_in_ept("what is printed")
def test_printf_prints_what_the_compiler_lets_through(open_monitor: Open, elf: Elf) -> None:
    source = (SOURCES / "prints.c").read_text()
    expected = []
    for macro, seen in re.findall(r'^    (LINE|MINE)\(("(?:[^"\\]|\\.)*"),', source, re.M):
        expected += ["1:"] * (macro == "MINE") + [ast.literal_eval(seen)]
    assert len(expected) > 15
    ran = Ran(open_monitor, elf("prints"), "a")
    assert (ran.lines, ran.machine.exit_code) == (expected, 0)


@pytest.mark.not_in_ept("what is printed")
def test_long_texts_arrive_whole_in_pieces_of_whole_characters_and_lines(
    open_monitor: Open, elf: Elf
) -> None:
    ran = Ran(open_monitor, elf("long_text"), "a")
    assert ran.machine.exit_code == 0
    formatted, logged, printed, lines, wide = ran.parts()
    assert "".join(formatted) == "<" + "0123456789" * 1000 + "|7>"
    assert [len(piece) for piece in formatted] == [LOG_MAX, LOG_MAX, 10004 - 2 * LOG_MAX]
    for pieces in (logged, printed):
        assert "".join(pieces) == "x" + "é€" * 1800
        assert len(pieces) == 3
        assert all(LOG_MAX - 3 < len(p.encode()) <= LOG_MAX for p in pieces[:-1])
    assert lines == ["a line"] * 1000
    assert "".join(wide) == "wide".rjust(9000) + "1.500"


@pytest.mark.parametrize("by", ["return", "pf_exit"])
def test_constructors_and_destructors_run_around_main_by_priority(
    open_monitor: Open, elf: Elf, by: str
) -> None:
    lines: list[str] = []
    monitor = open_monitor(console=lambda name, line: lines.append(line) if name == "a" else None)
    if by == "return":  # of two machines the second one's number is even
        monitor.spawn(elf("runtime"), name="before", window="2M")
    machine = monitor.spawn(elf("around_main"), name="a", window="2M")
    monitor.run(60)
    assert lines == [
        *("first 5", "second 6", "third 7", "main 8 0 7 0 ab", "1 a that is all"),
        *("eighth 10", "ninth 11", "tenth 12"),
    ]
    assert machine.exit_code == 12


def test_thread_local_variables_are_each_machines_own(open_monitor: Open, elf: Elf) -> None:
    lines: dict[str, list[str]] = {"a": [], "b": []}
    monitor = open_monitor(console=lambda name, line: lines[name].append(line))
    for name in lines:
        monitor.spawn(elf("around_main"), name=name, window="2M")
    monitor.run(60)
    assert lines["a"][4] == "1 a that is all"
    assert [line.replace(" b ", " a ") for line in lines["b"]] == lines["a"]
    assert len(lines["a"]) == 8


def test_what_compilers_call_is_linked(open_monitor: Open, elf: Elf) -> None:
    ran = Ran(open_monitor, elf("runtime"), "a")
    square = 1 << 64
    assert ran.lines == [
        "bits 32",
        f"quotient {square // (1 << 28)}",
        f"remainder -{(square + 1) % 1000003}",
        f"float {square}.0",
    ]
    assert ran.machine.exit_code == 0


@pytest.mark.parametrize(
    ("name", "symbol"),
    [
        ("frame-400", "frame"),
        ("frame-3000", "frame"),
        ("mega-1028", "fixed"),
        ("unprobed-1200", "unprobed"),
        ("deep-4", "descend"),
        ("deep-300", "descend"),
    ],
)
def test_a_stack_overflow_by_frames_of_any_size_is_stopped_and_said(
    open_monitor: Open, elf: Elf, name: str, symbol: str
) -> None:
    ran = Ran(open_monitor, elf("frames"), name)
    assert ran.fault is not None
    assert ran.fault.kind == "exception"
    # A probe is an OR with 0: QEMU's fault is that of its read.
    assert ran.fault.access in ("write", "read" if IN_LANE else "write")
    assert "stack overflow" in ran.fault.reason
    assert ran.fault.place.symbol == symbol
    assert ran.machine.exit_code is None
    layout = ran.machine.guest.layout
    assert ran.fault.address is not None
    assert layout.guard.base <= ran.fault.address < layout.stack.base


@pytest.mark.parametrize("name", ["fits-200", "fits-900", "mega-1028"])
def test_a_frame_that_fits_the_stack_that_was_asked_for_is_none_of_it(
    open_monitor: Open, elf: Elf, name: str
) -> None:
    ran = Ran(open_monitor, elf("frames"), name, memory="18M", stack="1100K")
    assert (ran.fault, ran.machine.exit_code) == (None, 0)
    assert ran.lines == [f"{name} was no more than the stack"]
