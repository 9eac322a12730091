#!/usr/bin/env python3
"""Qualify a host with somebody else's tests: the kernel's own KVM selftests.

    scripts/qualify [--lane npt|ept] [TEST…]

Those that exercise what pageferry relies on are fetched with the distribution's source package,
built, and run on this host's device or in a nested lane. The exit status is 0 if none of them
failed; see docs/qualify.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from selftests import Built, built, forget
from trials import TRIALS, Outcome, Trial, expected, run, too_large

from vmm.command.failure import EXIT_INTERRUPTED, Failure, expected_errors
from vmm.host import inspect, total_memory
from vmm.host.cache import cache_root
from vmm.nested.cache import Cache
from vmm.nested.errors import LaneError

# By how much longer a test may take in a lane. The clock of ept counts instructions, and so is as
# patient as the emulator is slow.
PATIENCE = {"npt": 4, "ept": 1}
_LANE_LIMIT = 3600  # seconds for all of a lane's tests, as a last resort
_MARK = "qualify: "  # of the lines that a lane has for us
_STYLES = {"passed": "green", "skipped": "yellow"}


@dataclasses.dataclass(frozen=True, slots=True)
class Device:
    """What the tests ran on.

    emulated  whether ring 0 is emulated there: what the canary found, which is a guest of ours
    """

    kernel: str
    backend: str
    emulated: bool


def device() -> Device:
    """Return what stands behind this machine's /dev/kvm. Raises HostError if it cannot be used."""
    host = inspect()
    return Device(platform.release(), host.backend.value, not host.native(0))


def choose(names: Sequence[str]) -> list[Trial]:
    """Return the trials of the tests that are named, in the table's order; all if none is named.

    Raises click.UsageError for a name that no trial has.
    """
    if unknown := [name for name in names if name not in {trial.test for trial in TRIALS}]:
        raise click.UsageError(f"no test is called {unknown[0]}: see --list")
    return [trial for trial in TRIALS if not names or trial.test in names]


def left_out(trials: Sequence[Trial], lane: str | None, named: Sequence[str]) -> list[Outcome]:
    """Return the outcomes of those trials that a lane is spared unless their test is named."""
    why = "not started: it takes over ten minutes in Bochs; name it to run it"
    heavy = [trial for trial in trials if trial.heavy and trial.test not in named]
    return [Outcome(trial.title, "skipped", 0.0, why) for trial in heavy if lane == "ept"]


def not_built(trials: Sequence[Trial], tests: Built) -> list[Outcome]:
    """Return the outcomes of those trials whose test could not be built."""
    return [
        Outcome(trial.title, "not built", 0.0, tests.missing.get(trial.test, "it is not there"))
        for trial in trials
        if trial.test not in tests.programs
    ]


def run_here(
    trials: Sequence[Trial], programs: dict[str, Path], patience: int
) -> Iterator[Device | Outcome]:
    """Give what the tests run on, then each trial's outcome as it ends."""
    yield device()
    memory = total_memory()
    for trial in trials:
        if trial.test in programs:
            yield too_large(trial, memory) or run(
                trial, programs[trial.test], trial.limit * patience
            )


def run_in_lane(lane: str, trials: Sequence[Trial], tests: Built) -> Iterator[Device | Outcome]:
    """Do what `run_here` does, in a lane that is booted once.

    Raises LaneError if the lane ends without having said all; it has said why on standard error.
    """
    names = list(dict.fromkeys(t.test for t in trials if t.test in tests.programs))
    files = [str(tests.programs[name]) for name in names]
    command = [sys.executable, "-m", "vmm", "nested", "--lane", lane, "--limit", str(_LANE_LIMIT)]
    inside = ["--", "python3", str(Path(__file__).resolve()), "--inside", *files]
    with _started([*command, *inside]) as lines:
        for line in lines:
            if (said := parse(line)) is not None:
                yield said


@contextlib.contextmanager
def _started(command: Sequence[str]) -> Iterator[Iterator[str]]:
    """Run a lane and give its lines; it ends when the block does, and its emulator with it."""
    lane = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace"
    )
    try:
        assert lane.stdout is not None
        yield lane.stdout
        if status := lane.wait():
            raise LaneError(f"the lane ended with status {status} before its tests had ended")
    finally:
        lane.terminate()  # it removes its files; that is a matter of moments
        try:
            lane.wait(10)
        except subprocess.TimeoutExpired:
            lane.kill()
        lane.wait()


def line_of(said: Device | Outcome) -> str:
    """Return the line by which a lane says something."""
    return _MARK + json.dumps({type(said).__name__: dataclasses.asdict(said)})


def parse(line: str) -> Device | Outcome | None:
    """Return what a lane's line says; None for lines of somebody else's."""
    if not line.startswith(_MARK):
        return None
    [(kind, fields)] = json.loads(line.removeprefix(_MARK)).items()
    return Device(**fields) if kind == "Device" else Outcome(**fields)


def collect(said: Iterator[Device | Outcome], outcomes: list[Outcome]) -> Device | None:
    """Add each outcome to `outcomes` as it comes, telling the user; return what they ran on."""
    found = None
    for each in said:
        if isinstance(each, Device):
            found = each
        else:
            outcomes.append(each)
            click.echo(f"{each.title}: {each.state} ({each.seconds:.1f} s)", err=True)
    return found


def table(outcomes: Sequence[Outcome], trials: Sequence[Trial], *, emulated: bool) -> Table:
    """Return the table of the outcomes, in the trials' order.

    emulated  whether they ran where ring 0 is emulated: then it says which failures are known there
    """
    by_title = {outcome.title: outcome for outcome in outcomes}
    shown = Table(title="the kernel's KVM selftests", title_justify="left", show_lines=True)
    for heading in ("test", "what it qualifies", "result", "seconds", "what it said"):
        shown.add_column(heading, overflow="fold")
    if emulated:
        shown.add_column("known of hosts that emulate ring 0", overflow="fold")
    for trial in trials:
        outcome = by_title.get(trial.title, Outcome(trial.title, "not run", 0.0, ""))
        cells = [trial.title, trial.qualifies, outcome.state, f"{outcome.seconds:.1f}"]
        cells += [outcome.detail, *([expected(trial, outcome) or ""] if emulated else [])]
        cells = [escape(cell) for cell in cells]
        style = _STYLES.get(outcome.state, "red")
        cells[2] = f"[{style}]{cells[2]}[/]"
        shown.add_row(*cells)
    return shown


def summary(outcomes: Sequence[Outcome]) -> str:
    """Return the numbers: how many passed, and how many ended in every other way there was."""
    states = [outcome.state for outcome in outcomes]
    others = [state for state in dict.fromkeys(states) if state not in ("passed", "failed")]
    return ", ".join(f"{states.count(state)} {state}" for state in ["passed", "failed", *others])


def status(outcomes: Sequence[Outcome], trials: Sequence[Trial]) -> int:
    """Return the exit status: 0 if every trial was run and none failed."""
    good = [outcome for outcome in outcomes if outcome.state in ("passed", "skipped")]
    return int(len(good) < len(trials))


def qualify(trials: Sequence[Trial], tests: Built, lane: str | None, named: Sequence[str]) -> int:
    """Run the trials, show the table, and return the exit status."""
    outcomes = left_out(trials, lane, named)
    done = {outcome.title for outcome in outcomes}
    rest = [trial for trial in trials if trial.title not in done]
    outcomes += not_built(rest, tests)
    said = run_in_lane(lane, rest, tests) if lane else run_here(rest, tests.programs, 1)
    found, error = None, None
    try:
        found = collect(said, outcomes)
    except LaneError as problem:
        if not outcomes:
            raise
        error = problem  # what has been seen is worth showing
    show(outcomes, trials, tests, found)
    if error:
        raise error
    return status(outcomes, trials)


def show(
    outcomes: Sequence[Outcome], trials: Sequence[Trial], tests: Built, found: Device | None
) -> None:
    """Print the table, what it was measured on, and the numbers."""
    emulated = found is not None and found.emulated
    console = Console(width=max(120, Console().width))
    console.print(table(outcomes, trials, emulated=emulated))
    if found:
        ring = "emulated" if emulated else "native"
        where = f"Linux {found.kernel}, {found.backend}, ring 0 {ring}"
        click.echo(f"selftests of Linux {tests.version} on {where}")
    click.echo(summary(outcomes))


class _Command(click.Command):
    """Ends with one line and an exit code whatever is expected to happen."""

    def invoke(self, ctx: click.Context) -> Any:
        with expected_errors():
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt as error:
                raise Failure("interrupted", EXIT_INTERRUPTED) from error


@click.command(cls=_Command)
@click.option(
    "--lane", type=click.Choice(list(PATIENCE)), help="Run in a nested lane, not on this host."
)
@click.option("--list", "listing", is_flag=True, help="Say which tests there are, and run none.")
@click.option("--rebuild", is_flag=True, help="Fetch and build the tests anew.")
@click.option("--sse", is_flag=True, help="Build guests with SSE in them, as the kernel does.")
@click.option("--inside", is_flag=True, hidden=True, help="In a lane: the programs are named.")
@click.argument("names", nargs=-1, metavar="[TEST…]")
def main(
    lane: str | None,
    listing: bool,
    rebuild: bool,
    sse: bool,
    inside: bool,
    names: tuple[str, ...],
) -> None:
    """Run the kernel's own KVM selftests, those that exercise what pageferry relies on."""
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)
    if inside:
        programs = {Path(name).name: Path(name) for name in names}
        patience = PATIENCE.get(os.environ.get("PAGEFERRY_LANE", ""), 1)
        for said in run_here(choose(list(programs)), programs, patience):
            print(line_of(said), flush=True)
        return
    trials = choose(names)
    if listing:
        for trial in trials:
            click.echo(f"{trial.title}: {trial.qualifies}")
        return
    if lane is None:
        inspect()  # a host that has no KVM need not wait for a build
    cache = Cache(cache_root(), lambda line: click.echo(f"pageferry: {line}", err=True))
    if rebuild:
        forget(cache)
    tests = built(cache, sorted({trial.test for trial in TRIALS}), sse=sse)
    sys.exit(qualify(trials, tests, lane, names))


def _end(number: int, frame: FrameType | None) -> None:
    """Let a signal end us in order: what runs is killed on the way out."""
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
