"""What every test shares: the kvm marker, the check for leaks, the bundled guests."""

from __future__ import annotations

import gc
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import background
import pytest
from tests_support import IN_LANE, RESERVED, held, kvm_missing

from vmm.ferry import slices

# In the names of tests that want what takes long to build; how those end that run its programs.
_BUILT_MEANWHILE, _PROGRAMS = "musl", "musl]"

ROOT = Path(__file__).resolve().parent.parent
BUNDLED = ROOT / "vmm" / "_guests" / "bin"

KVM_TESTS = ROOT / "tests" / "kvm"

# The kernel takes a moment to let go of a thread that has been joined, or of a closed machine.
LEAK_PATIENCE_SECONDS = 2.0


def pytest_configure() -> None:
    """Take Ctrl-C, also where a shell has started the tests in the background, to ignore it.

    The commands that the tests start, and interrupt, would inherit that.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _BUILT_MEANWHILE in item.nodeid)  # by then it is there
    needs_kvm = cache(lambda path: path.is_relative_to(KVM_TESTS))
    for item in items:
        if needs_kvm(item.path):
            item.add_marker(pytest.mark.kvm)
        smaller = item.get_closest_marker("smaller_in_lanes")
        if smaller is not None and IN_LANE:  # for the table that scripts/test ends with
            item.user_properties.append(("smaller", smaller.args[0]))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin to build what takes long. Spare the collector what has been imported, which stays."""
    asked = session.config.option.collectonly
    if not IN_LANE and not asked and any(item.nodeid.endswith(_PROGRAMS) for item in session.items):
        background.begin()
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a kvm test where there is no KVM, or fail it where there has to be one.

    The lanes leave out what they would only say again, the slowest of them more than the other.
    """
    here = item.get_closest_marker("not_in_lanes")
    if here is not None and IN_LANE:
        pytest.skip(f"on the host only: {here.args[0]}")
    once = item.get_closest_marker("not_in_ept")
    if once is not None and os.environ.get("PAGEFERRY_LANE") == "ept":
        pytest.skip(f"on the host and in npt only: {once.args[0]}")
    reason = kvm_missing() if item.get_closest_marker("kvm") else None
    if reason and os.environ.get("PAGEFERRY_REQUIRE_KVM") == "1":
        pytest.fail(f"{reason} (and PAGEFERRY_REQUIRE_KVM=1)", pytrace=False)
    if reason:
        pytest.skip(reason)


def pytest_unconfigure() -> None:
    background.end()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Say at once what has failed: should the process end before the report does, it is known."""
    failed = call.excinfo
    if failed is not None and not isinstance(failed.value, pytest.skip.Exception):
        last = traceback.extract_tb(failed.tb)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        print(f"\n{item.nodeid}: {failed.typename} at {where}", file=sys.__stderr__, flush=True)


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Fail the test if the process holds more after it than before. Used by every kvm test."""
    before = held()
    before[RESERVED] = sys.maxsize  # a thread's heap stays, and looks like a window's hole
    yield
    deadline = time.monotonic() + LEAK_PATIENCE_SECONDS
    while (leaked := held() - before) and time.monotonic() < deadline:
        gc.collect()  # what a view has outlived a monitor with is freed then
        time.sleep(0.01)
    if leaked:
        pytest.fail("leaked: " + ", ".join(f"{n} x {what}" for what, n in leaked.items()))


@pytest.fixture(autouse=True)
def _kvm_tests_leak_nothing(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("kvm"):
        request.getfixturevalue("no_leaks")


@pytest.fixture(scope="session")
def guest_elf() -> Callable[[str], Path]:
    """Give the path of a bundled guest by its name: ``echo`` or ``faults/hlt``."""

    def path_of(name: str) -> Path:
        path = BUNDLED / f"{name}.elf"
        assert path.is_file(), f"{path} has not been built: use scripts/test"
        return path

    return path_of


@pytest.fixture(scope="session", autouse=True)
def _slices_do_not_end_by_the_clock() -> Iterator[None]:
    """A slow host makes no more slices of long work than there are by its size: tests count them.

    Those of the clock set it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slices, "LONG", math.inf)
        yield
