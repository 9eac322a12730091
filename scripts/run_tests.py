#!/usr/bin/env python3
"""Run the tests on every back end, and say at the end what ran where.

    scripts/run_tests.py [PYTEST-ARGUMENTS…]

The unit tests run first, then the tests that touch KVM: on this host's own device, and then on NPT
and on EPT, in the nested lanes, side by side where there are two processors for them.

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
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.console import Console
from rich.table import Table

from vmm.errors import HostError
from vmm.host import DEVICE, open_kvm
from vmm.nested import packages

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from guest_elfs import build_test_guests  # noqa: E402 - a module of the tests'

RESULTS = ROOT / "results"
LANES = ("npt", "ept")
STAGES = ("unit", "host", *LANES)
LANE_LIMIT = 1200  # seconds, of this host's, for the tests in a lane
NO_TESTS = 5  # pytest's exit status when its arguments leave none
_POLL_SECONDS = 0.1


@dataclass
class Stage:
    """A run of the tests on one back end, and what became of it.

    missing   why it could not run at all
    about     the back end as the tests found it
    skipped   by reason; `smaller` counts the tests that did less than elsewhere, by reason
    """

    name: str
    missing: str = ""
    about: str = ""
    status: int = 0
    seconds: float = 0.0
    passed: int = 0
    failed: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    smaller: Counter[str] = field(default_factory=Counter)
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0

    @property
    def log(self) -> Path:
        """What the tests said, as text."""
        return RESULTS / f"{self.name}.log"

    @property
    def report(self) -> Path:
        """The same as JUnit XML."""
        return RESULTS / f"{self.name}.xml"

    @property
    def broken(self) -> bool:
        """Whether it makes the whole run fail."""
        required = os.environ.get("PAGEFERRY_REQUIRE_KVM") == "1"
        # A host without any device has no back end of its own: that is said, and nobody's failure.
        hostless = self.name == "host" and not Path(DEVICE).exists()
        return bool(self.failed or self.status or (self.missing and required and not hostless))

    def notes(self) -> list[str]:
        """Return what the numbers do not say: why something did not run, or not in full."""
        notes = [f"{number} skipped: {reason}" for reason, number in self.skipped.items()]
        notes += [f"{number} smaller: {reason}" for reason, number in self.smaller.items()]
        if self.missing:
            notes.append(f"did not run: {self.missing}")
        elif self.status and not self.failed:
            notes.append(f"ended with status {self.status}")
        return notes


# ---- Running ----


def chosen() -> list[Stage]:
    """Return the stages to run, in order. Exits with a line if one is unknown."""
    names = [n.strip() for n in os.environ.get("PAGEFERRY_BACKENDS", "").split(",") if n.strip()]
    if unknown := sorted(set(names) - set(STAGES)):
        sys.exit(f"PAGEFERRY_BACKENDS: {unknown[0]} is none of {', '.join(STAGES)}")
    return [Stage(name) for name in STAGES if not names or name in names]


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


def command(stage: Stage, arguments: list[str]) -> list[str]:
    """Return the command line of a stage."""
    words = [absolute(word) if names_tests(word) else word for word in arguments]
    named = any(map(names_tests, arguments))
    folder = [] if named else ["tests/unit" if stage.name == "unit" else "tests/kvm"]
    pytest = ["-m", "pytest", *folder, f"--junitxml={stage.report}", "-q", *words]
    if stage.name not in LANES:
        return [sys.executable, *pytest]
    lane = ["-m", "vmm.nested", "--lane", stage.name, "--limit", str(LANE_LIMIT)]
    return [sys.executable, *lane, "--output", str(RESULTS), "--", "python3", *pytest]


def names_tests(word: str) -> bool:
    """Return whether an argument names tests: a file or a folder, and maybe which ones in it."""
    return not word.startswith("-") and Path(word.partition("::")[0]).exists()


def absolute(word: str) -> str:
    """Return an argument that names tests with the whole path of their file."""
    path, colons, name = word.partition("::")
    return f"{Path(path).resolve()}{colons}{name}"


def start(stage: Stage, arguments: list[str]) -> None:
    """Start a stage, if it can run here; what it says goes to its log."""
    stage.missing = why_missing(stage.name)
    if stage.missing:
        return
    stage.report.unlink(missing_ok=True)
    stage.started = time.time()
    with stage.log.open("wb") as log:
        stage.process = subprocess.Popen(
            command(stage, arguments), cwd=ROOT, stdout=log, stderr=log
        )


def follow(stage: Stage) -> None:
    """Show what a stage says until it has ended, and count its tests."""
    print(f"\n== {stage.name}", flush=True)
    if stage.process is None:
        print(f"does not run: {stage.missing}", flush=True)
        return
    with stage.log.open("rb") as log:
        ended = False
        while not ended:
            ended = stage.process.poll() is not None  # before the last of it is read
            sys.stdout.buffer.write(log.read())
            sys.stdout.buffer.flush()
            if not ended:
                time.sleep(_POLL_SECONDS)
    stage.status = stage.process.returncode
    stage.seconds = stage.log.stat().st_mtime - stage.started
    count(stage)


def run(stages: list[Stage], arguments: list[str]) -> None:
    """Run the stages one after the other; the lanes, which are emulators, side by side."""
    lanes = [stage for stage in stages if stage.name in LANES]
    together = len(os.sched_getaffinity(0)) > 1
    try:
        for stage in stages:
            for each in lanes if stage in lanes and together else [stage]:
                if each.process is None and not each.missing:
                    start(each, arguments)
            follow(stage)
    finally:
        for stage in stages:
            if stage.process is not None and stage.process.poll() is None:
                stage.process.terminate()
                stage.process.wait()


# ---- Reporting ----


def count(stage: Stage) -> None:
    """Count a stage's tests, from the report that it wrote."""
    if not stage.report.exists():
        stage.status = stage.status or 1
        return
    if stage.status == NO_TESTS:  # the arguments leave it none, which is no failure of its own
        stage.status = 0
    root = ElementTree.parse(stage.report).getroot()
    stage.about = "".join(values(root, "back end"))
    for case in root.iter("testcase"):
        skipped = case.find("skipped")
        if skipped is not None:
            stage.skipped[skipped.get("message", "no reason given")] += 1
        elif case.find("failure") is not None or case.find("error") is not None:
            stage.failed += 1
        else:
            stage.passed += 1
        stage.smaller.update(values(case, "smaller"))


def values(element: ElementTree.Element, name: str) -> list[str]:
    """Return the values of a report's properties of a name, below an element."""
    found = (entry for entry in element.iter("property") if entry.get("name") == name)
    return [entry.get("value", "") for entry in found]


def show(stages: list[Stage]) -> None:
    """Print the table: back end, passed, failed, skipped and why."""
    table = Table(title="tests by back end", title_justify="left", show_lines=True)
    for heading in ("back end", "passed", "failed", "skipped", "seconds", "notes"):
        table.add_column(heading, overflow="fold")
    for stage in stages:
        table.add_row(
            f"{stage.name}\n{stage.about}" if stage.about else stage.name,
            *map(str, (stage.passed, stage.failed, sum(stage.skipped.values()))),
            f"{stage.seconds:.0f}",
            "\n".join(stage.notes()),
        )
    Console(width=max(100, Console().width)).print(table)


def main(arguments: list[str]) -> int:
    """Run the stages; return 0 if all that had to hold did, and something was tested."""
    RESULTS.mkdir(exist_ok=True)
    stages = chosen()
    if any(stage.name in LANES for stage in stages):
        build_test_guests()
    run(stages, arguments)
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
