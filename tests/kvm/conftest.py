"""Fixtures of the tests that run machines: monitors that are always closed, guests compiled from the test."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vmm import Monitor
from vmm.guest.build import build_guest, find_compiler
from vmm.guest.bundled import ROOT
from vmm.memory.movers import MOVERS
from vmm.trace import Event

Compile = Callable[[str], Path]
Open = Callable[..., Monitor]


@pytest.fixture(params=sorted(MOVERS))
def mover(request: pytest.FixtureRequest) -> str:
    """Every mover in turn: each test that moves pages holds for all of them."""
    return str(request.param)


@pytest.fixture
def open_monitor() -> Iterator[Open]:
    """Open monitors that are closed when the test ends, however it ends. They log nothing by default."""
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
def compile_guest(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Compile the body of a guest's C file; `#include "pf.h"` is put before it."""
    folder = tmp_path_factory.mktemp("guests")

    def compile_source(body: str) -> Path:
        text = f'#include "pf.h"\n{body}\n'
        name = f"guest_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        source, output = folder / f"{name}.c", folder / f"{name}.elf"
        if not output.exists():
            source.write_text(text)
            build_guest(
                [source],
                output,
                include_dirs=[ROOT / "include"],
                library_dir=ROOT / "lib",
                compiler=find_compiler(),
            )
        return output

    return compile_source


@pytest.fixture
def events(monitor: Monitor) -> list[Event]:
    """Every event of `monitor`, as it happens."""
    seen: list[Event] = []
    monitor.trace.listen(seen.append)
    return seen
