#!/usr/bin/env python3
"""Run the tests on every back end, and say at the end what ran where.

    scripts/run_tests.py [PYTEST-ARGUMENTS…]

The unit tests, and the tests that touch KVM: on this host's own device, and on NPT and on EPT, in
the nested lanes. They run side by side, as many as there are processors.

    $PAGEFERRY_BACKENDS      some of them, for example "host" or "npt,ept"
    $PAGEFERRY_REQUIRE_KVM   1: a back end that cannot run here is a failure, except that of a host
                             without any /dev/kvm

Whatever does not run is in the table with the reason. What each back end said is in results/, as
text and as JUnit XML.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from stages import LANES, STAGES, Run, Stage, show

from vmm.errors import HostError
from vmm.host import open_kvm
from vmm.nested import packages

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from guest_elfs import build_test_guests  # noqa: E402 - a module of the tests'
from linux_programs import build_linux_programs  # noqa: E402

RESULTS = ROOT / "results"
LANE_LIMIT = 3600  # seconds, of this host's, for the tests in a lane
# Seconds after which tests on this host that say nothing are ended. Each has a limit of its own,
# which raises in the test: that ends none whose clean-up then waits for ever.
SILENCE = 600
_POLL_SECONDS = 0.1

# What a lane runs in a second emulator, for which there is time while the first is at work: with
# one each, two processors are busy to the end. These tests start no commands.
APART = {
    "ept": (
        "test_claims.py",
        "test_kvm_*.py",
    )
}
# Tests start the command by the hundred: it is not to be compiled as often.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}

START_ORDER = ("ept", "ept-1", "unit", "host", "npt", "ept-2")


def chosen(arguments: list[str]) -> list[Stage]:
    """Return the stages to run, in order. Exits with a line if one is unknown."""
    names = [n.strip() for n in os.environ.get("PAGEFERRY_BACKENDS", "").split(",") if n.strip()]
    if unknown := sorted(set(names) - set(STAGES)):
        sys.exit(f"PAGEFERRY_BACKENDS: {unknown[0]} is none of {', '.join(STAGES)}")
    whole = not any(map(names_tests, arguments))
    return [Stage(name, runs(name, whole)) for name in STAGES if not names or name in names]


def runs(name: str, whole: bool) -> list[Run]:
    """Return the runs of a stage: one, unless it is the whole of a lane that is best divided."""
    folder = "tests/unit" if name == "unit" else "tests/kvm"
    if not (whole and name in APART):
        return [Run(name, RESULTS, [folder])]
    files = sorted((ROOT / folder).glob("test_*.py"))
    apart = [path for path in files if any(map(path.match, APART[name]))]
    parts = ([path for path in files if path not in apart], apart)
    return [
        Run(f"{name}-{number}", RESULTS, [str(path.relative_to(ROOT)) for path in part])
        for number, part in enumerate(parts, 1)
    ]


def why_missing(name: str) -> str:
    """Return why a stage cannot run on this host, and what helps; nothing if it can."""
    try:
        if name == "host":
            open_kvm().close()
        elif name in LANES:
            packages.check(name)
    except (HostError, OSError) as error:
        return str(error)
    return ""


def command(stage: Stage, run: Run, arguments: list[str]) -> list[str]:
    """Return the command line of a run."""
    words = [absolute(word) if names_tests(word) else word for word in arguments]
    tests = [] if any(map(names_tests, arguments)) else run.tests
    pytest = ["-m", "pytest", *tests, f"--junitxml={run.report}", "-q", *words]
    if stage.name not in LANES:
        return [sys.executable, *pytest]
    lane = ["-m", "vmm", "nested", "--lane", stage.name, "--limit", str(LANE_LIMIT)]
    return [sys.executable, *lane, "--output", str(RESULTS), "--", "python3", *pytest]


def names_tests(word: str) -> bool:
    """Return whether an argument names tests: a file or a folder, and maybe which ones in it."""
    return not word.startswith("-") and Path(word.partition("::")[0]).exists()


def absolute(word: str) -> str:
    """Return an argument that names tests with the whole path of their file."""
    path, colons, name = word.partition("::")
    return f"{Path(path).resolve()}{colons}{name}"


def start(stage: Stage, run: Run, arguments: list[str]) -> None:
    """Start a run; what it says goes to its log."""
    run.report.unlink(missing_ok=True)
    run.started = time.time()
    words = command(stage, run, arguments)
    with run.log.open("wb") as log:
        run.process = subprocess.Popen(words, cwd=ROOT, env=ENVIRONMENT, stdout=log, stderr=log)


def end_if_silent(run: Run) -> None:
    """End a run that has said nothing for too long; pytest then says where each thread was."""
    if run.name.startswith(LANES):  # a lane has its own limit, and an emulator to end
        return
    if run.process is not None and time.time() - run.log.stat().st_mtime > SILENCE:
        run.process.send_signal(signal.SIGABRT)  # a second one, should it need that, ends it anyhow


class Pool:
    """Runs of several stages, as many at a time as there are processors for them.

    They start in an order of their own: what takes longest first.
    """

    def __init__(self, stages: list[Stage], arguments: list[str]) -> None:
        pairs = [(stage, run) for stage in stages if not stage.missing for run in stage.runs]
        self._waiting = sorted(pairs, key=lambda pair: START_ORDER.index(pair[1].name))
        self._running: list[Run] = []
        self._arguments = arguments

    def follow(self, run: Run) -> None:
        """Show what a run says until it has ended; meanwhile start the others in their turn."""
        shown, ended = 0, False
        while not ended:
            self._fill()
            ended = run.ended  # before the last of it is read
            if run.process is not None:
                with run.log.open("rb") as log:
                    log.seek(shown)
                    shown += sys.stdout.buffer.write(log.read())
                sys.stdout.buffer.flush()
            if not ended:
                end_if_silent(run)
                time.sleep(_POLL_SECONDS)

    def _fill(self) -> None:
        self._running = [run for run in self._running if not run.ended]
        while self._waiting and len(self._running) < len(os.sched_getaffinity(0)):
            stage, run = self._waiting.pop(0)
            start(stage, run, self._arguments)
            self._running.append(run)

    def end(self) -> None:
        """End what is running."""
        for run in self._running:
            if run.process is not None and not run.ended:
                run.process.terminate()
                run.process.wait()


def run_stages(stages: list[Stage], arguments: list[str]) -> None:
    """Run the stages side by side, and show what they say one after the other."""
    for stage in stages:
        stage.missing = why_missing(stage.name)
    pool = Pool(stages, arguments)
    try:
        for stage in stages:
            print(f"\n== {stage.name}", flush=True)
            if stage.missing:
                print(f"does not run: {stage.missing}", flush=True)
                continue
            for run in stage.runs:
                pool.follow(run)
                stage.count(run)
    finally:
        pool.end()


def main(arguments: list[str]) -> int:
    """Run the stages; return 0 if all that had to hold did, and something was tested."""
    RESULTS.mkdir(exist_ok=True)
    stages = chosen(arguments)
    if any(stage.name in LANES for stage in stages):
        build_test_guests()
        build_linux_programs()
    run_stages(stages, arguments)
    show(stages)
    passed, failed = (sum(getattr(s, name) for s in stages) for name in ("passed", "failed"))
    skipped = sum(sum(stage.skipped.values()) for stage in stages)
    print(f"{passed} passed, {failed} failed, {skipped} skipped", flush=True)
    return int(any(stage.broken for stage in stages) or not passed)


def end(number: int, frame: FrameType | None) -> NoReturn:
    """End in order, and with us what we have started."""
    sys.exit(128 + number)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    sys.exit(main(sys.argv[1:]))
