"""Fixtures of the tests that run machines.

Monitors that are always closed, the tests' own guests.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
from guest_elfs import build_test_guests
from kvm import mappings
from kvm.puppets import Stage
from kvm.ways import WAYS, named
from tests_support import kvm_missing

from vmm import Monitor, host
from vmm.ferry.events import Event
from vmm.memory.movers import RemapMover

Open = Callable[..., Monitor]

_monitors: WeakSet[Monitor] = WeakSet()


@pytest.fixture(scope="session", autouse=True)
def _monitors_are_known() -> Iterator[None]:
    """Keep track of all monitors; look at each before it closes, wherever it was opened."""
    opened, close = Monitor.__init__, Monitor.close

    @functools.wraps(opened)
    def note(self: Monitor, **options: Any) -> None:
        opened(self, **options)
        _monitors.add(self)

    @functools.wraps(close)
    def look_and_close(self: Monitor) -> None:
        try:
            if self in _monitors:
                _monitors.discard(self)
                mappings.check(self)
        finally:
            close(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Monitor, "__init__", note)
        patch.setattr(Monitor, "close", look_and_close)
        yield


@pytest.fixture(autouse=True)
def _audit_holds(_monitors_are_known: None) -> Iterator[None]:
    """The books balance, and the mappings are what they say, at the end of every test.

    Also in monitors that other tests go on with.
    """
    yield
    for monitor in list(_monitors):
        mappings.check(monitor)


@pytest.fixture(scope="session", autouse=True)
def _small_runs_are_remapped() -> Iterator[None]:
    """Let `remap` move anonymous memory for most of what the tests do, which is small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RemapMover, "large", 2)
        yield


@pytest.fixture(params=WAYS)
def mover(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every mover in turn: each test that moves pages holds for all of them."""
    with named(request.param) as name:
        yield name


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
    """Build the guests in tests/guests, if need be; return the folder of the ELFs."""
    return build_test_guests()


@pytest.fixture(scope="session", autouse=True)
def _back_end(record_testsuite_property: Callable[[str, object], None]) -> None:
    """Put into the report what it is that the tests ran on."""
    if kvm_missing() is None:
        facts = host.inspect()
        about = f"{facts.backend.value}, ring {facts.ring}, Linux {os.uname().release}"
        record_testsuite_property("back end", about)


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


# ---- Puppets ----


@pytest.fixture(scope="module", params=WAYS)
def theatre(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Three puppets that are connected with each other, once per mover and file of tests."""
    with named(request.param) as name, Monitor(mover=name, pool="64M") as monitor:
        yield Stage(monitor, "abc", queue=128)


def _cleared(stage: Stage) -> Iterator[Stage]:
    before = stage.monitor.audit()
    yield stage
    stage.clear()
    assert stage.monitor.audit() == before


@pytest.fixture
def stage(theatre: Stage) -> Iterator[Stage]:
    """These, as they were: what a test leaves is cleared away, and no page may be lost by then."""
    yield from _cleared(theatre)


@pytest.fixture(scope="module")
def studio() -> Iterator[Stage]:
    """The same with this host's mover."""
    with Monitor(pool="64M") as monitor:
        yield Stage(monitor, "abc", queue=128)


@pytest.fixture
def one(studio: Stage) -> Iterator[Stage]:
    """A stage with one mover, where it makes no difference which."""
    yield from _cleared(studio)


# ---- Sandboxes ----


@pytest.fixture(scope="session")
def sandboxed(test_guests: Path) -> Callable[[str], Path]:
    """Give the path of a library's program by its name: tests/sandboxed/NAME.c."""
    return lambda name: test_guests / "sandboxed" / f"{name}.elf"
