"""Ctrl-C and SIGTERM at any moment: one line or none, the right code, and nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from command import TIMEOUT, Ended, members, started
from tests_support import sized

Elf = Callable[[str], Path]
MOMENTS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 1.1, 1.5)
WHILE_THEY_SPIN = sized(MOMENTS[::2], (0.02, 0.2, 0.65))
SMALLER = pytest.mark.smaller_in_lanes("4 MiB instead of 100: a guest hashes 2 MiB/s there")


def struck(folder: Path, signals: Sequence[tuple[float, int]], *arguments: str | Path) -> Ended:
    """Run a command, send its group signals, each after seconds; check that nothing is left."""
    with started(folder, *arguments) as process:
        for seconds, number in signals:
            time.sleep(seconds)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        out, err = process.communicate(timeout=TIMEOUT)
    assert members(process.pid) == []
    return Ended(process.returncode, out, err)


@pytest.fixture
def temporary(tmp_path: Path) -> Iterator[Path]:
    """A folder for temporary files, empty again in the end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "file"
    path.write_bytes(bytes(range(256)) * sized(400 << 10, 16 << 10))
    return path


@pytest.mark.not_in_ept("when a signal comes to the command")
@SMALLER
@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_ends_the_demo_at_any_moment(large: Path, temporary: Path, moment: float) -> None:
    ended = struck(temporary, [(moment, signal.SIGINT)], "demo", large, "--json")
    # It was done before that, or at the very moment, or was closing: the result is whole then.
    if ended.out:
        assert json.loads(ended.out)["digest_ok"]
        assert ended.code in (0, 130, -signal.SIGINT)
        assert ended.err in ("", "pageferry: interrupted\n")
    else:
        assert ended == Ended(130, "", "pageferry: interrupted\n")
    assert moment > 0.2 or ended.code == 130


@pytest.mark.smaller_in_lanes("three moments instead of six: guests that spin take all its time")
@pytest.mark.parametrize("moment", WHILE_THEY_SPIN)
@pytest.mark.parametrize("workers", ["1", "3"])
def test_ctrl_c_ends_guests_that_never_would(
    guest_elf: Elf, temporary: Path, moment: float, workers: str
) -> None:
    guests = [guest_elf("faults/endless_loop")] * 3
    ended = struck(temporary, [(moment, signal.SIGINT)], "run", *guests, "--workers", workers)
    assert ended == Ended(130, "", "pageferry: interrupted\n")


def test_ctrl_c_again_and_again_ends_it_too(guest_elf: Elf, temporary: Path) -> None:
    strikes = [(0.5, signal.SIGINT), *[(0.001, signal.SIGINT)] * 20]
    ended = struck(temporary, strikes, "run", guest_elf("faults/endless_loop"))
    assert ended.code in (130, -signal.SIGINT)
    assert ended.err in ("pageferry: interrupted\n", "")


def test_ctrl_c_keeps_the_events_so_far(guest_elf: Elf, temporary: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    guests = [guest_elf("faults/endless_loop"), guest_elf("echo_client")]
    with started(temporary, "run", *guests, "--trace", trace) as process:
        until = time.monotonic() + TIMEOUT
        while not (trace.exists() and "exit" in trace.read_text()):
            assert time.monotonic() < until
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(TIMEOUT) == 130
    events = [json.loads(line)["event"] for line in trace.read_text().splitlines()]
    assert events[:2] == ["spawn", "spawn"]
    assert "exit" in events


@pytest.mark.not_in_ept("when a signal comes to the command")
@SMALLER
@pytest.mark.parametrize("moment", MOMENTS[1::4])
def test_sigterm_ends_it_at_once(
    large: Path, guest_elf: Elf, temporary: Path, moment: float
) -> None:
    strikes = [(moment, signal.SIGTERM)]
    ended = struck(temporary, strikes, "run", guest_elf("faults/endless_loop"))
    assert ended == Ended(-signal.SIGTERM, "", "")
    ended = struck(temporary, strikes, "demo", large, "--json")
    assert (ended.code in (0, -signal.SIGTERM), ended.err) == (True, "")


def test_who_asked_for_no_interrupts_gets_none(guest_elf: Elf, temporary: Path) -> None:
    # As `nohup`, or a shell's background job without job control.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        guest = guest_elf("faults/endless_loop")
        ended = struck(temporary, [(0.3, signal.SIGINT)], "run", guest, "--timeout", "0.5")
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.code == 124
