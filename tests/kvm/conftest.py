"""Fixtures of the tests that run machines.

Monitors that are always closed, the tests' own guests.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vmm import Monitor
from vmm.guest.build import BuildError, build_each, find_compiler
from vmm.guest.bundled import ROOT
from vmm.memory.movers import MOVERS
from vmm.trace import Event

TEST_GUESTS = Path(__file__).resolve().parent.parent / "guests"
TEST_ELFS = TEST_GUESTS.parent / "_guests"
Open = Callable[..., Monitor]


@pytest.fixture(params=sorted(MOVERS))
def mover(request: pytest.FixtureRequest) -> str:
    """Every mover in turn: each test that moves pages holds for all of them."""
    return str(request.param)


@pytest.fixture
def open_monitor() -> Iterator[Open]:
    """Open monitors that are closed when the test ends, however it ends.

    They log nothing by default.
    """
    with contextlib.ExitStack() as stack:

        def make(**options: object) -> Monitor:
            options.setdefault("console", lambda name, line: None)
            return stack.enter_context(Monitor(**options))  # type: ignore[arg-type]

        yield make


@pytest.fixture
def monitor(open_monitor: Open, mover: str) -> Monitor:
    """A monitor with a pool of 256 MiB, once per mover."""
    return open_monitor(mover=mover, pool="256M")


@pytest.fixture(scope="session")
def test_guests() -> Path:
    """Build the guests in tests/guests, as far as they have changed; return the folder of the ELFs.

    Where there is no compiler, as in a VM that the tests were copied into, those built before are
    used.
    """
    try:
        compiler = find_compiler()
    except BuildError:
        assert list(TEST_ELFS.glob("*.elf")), "no compiler, and no guests built before"
        return TEST_ELFS
    build_each(
        TEST_GUESTS,
        TEST_ELFS,
        include_dirs=[ROOT / "include"],
        library_dir=ROOT / "lib",
        compiler=compiler,
    )
    return TEST_ELFS


@pytest.fixture(scope="session")
def test_guest(test_guests: Path) -> Callable[[str], Path]:
    """Give the path of a test guest's ELF by its name.

    ``spin`` is built from tests/guests/spin.c.
    """
    return lambda name: test_guests / f"{name}.elf"


@pytest.fixture
def events(monitor: Monitor) -> list[Event]:
    """Every event of `monitor`, as it happens."""
    seen: list[Event] = []
    monitor.trace.listen(seen.append)
    return seen
