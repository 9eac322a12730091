#!/usr/bin/env python3
"""Run every test on every back end, and say at the end what ran where.

    scripts/run_tests.py [PYTEST-OPTIONS…]

The unit tests run first, then the tests that touch KVM: on this host's own device, then on NPT and
on EPT in the nested lanes. $PAGEFERRY_BACKENDS (for example "host" or "npt,ept") chooses some of
them. A back end that cannot run here is in the table with the reason; with PAGEFERRY_REQUIRE_KVM=1
that is a failure, except for a host that has no /dev/kvm at all. The results are in results/, as
JUnit XML.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
STAGES = ("unit", "host", "npt", "ept")
LANE_LIMIT = "1500"  # seconds


@dataclass
class Outcome:
    """What became of one stage; `missing` is why it could not run at all."""

    stage: str
    seconds: float = 0.0
    passed: int = 0
    failed: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    missing: str = ""
    status: int = 0

    @property
    def broken(self) -> bool:
        """Whether this stage makes the whole run fail."""
        required = os.environ.get("PAGEFERRY_REQUIRE_KVM") == "1"
        return bool(self.failed or self.status or (self.missing and required))


def stages() -> list[str]:
    """Return the stages to run, in order."""
    chosen = os.environ.get("PAGEFERRY_BACKENDS")
    if not chosen:
        return list(STAGES)
    names = [name.strip() for name in chosen.split(",")]
    unknown = set(names) - set(STAGES)
    if unknown:
        sys.exit(f"PAGEFERRY_BACKENDS: no stage is called {', '.join(sorted(unknown))}")
    return [stage for stage in STAGES if stage in names]


def command(stage: str, options: list[str]) -> list[str]:
    """Return the command line of a stage."""
    folder = "tests/unit" if stage == "unit" else "tests/kvm"
    report = f"--junitxml=results/{stage}.xml"
    pytest = ["-m", "pytest", folder, report, "-q", *options]
    if stage in ("unit", "host"):
        return [sys.executable, *pytest]
    lane = ["-m", "vmm.nested", "--lane", stage, "--limit", LANE_LIMIT, "--output", "results"]
    return [sys.executable, *lane, "--", "python3", *pytest]


def run(stage: str, options: list[str]) -> Outcome:
    """Run one stage, its output straight to ours."""
    outcome = Outcome(stage)
    if stage == "host" and not Path("/dev/kvm").exists():
        outcome.missing = "this host has no /dev/kvm"
        return outcome
    if stage in ("npt", "ept"):
        outcome.missing = missing_packages(stage)
        if outcome.missing:
            return outcome
    (RESULTS / f"{stage}.xml").unlink(missing_ok=True)
    print(f"\n== {stage}", flush=True)
    start = time.monotonic()
    outcome.status = subprocess.run(command(stage, options), cwd=ROOT, check=False).returncode
    outcome.seconds = time.monotonic() - start
    count(outcome)
    return outcome


def missing_packages(stage: str) -> str:
    """Return what is to be installed before a lane can run, or nothing."""
    from vmm.nested.packages import missing

    names = missing(stage)
    return f"apt-get install {' '.join(names)}" if names else ""


def count(outcome: Outcome) -> None:
    """Count a stage's tests, from the report that it wrote."""
    report = RESULTS / f"{outcome.stage}.xml"
    if not report.exists():
        outcome.status = outcome.status or 1
        return
    for case in ElementTree.parse(report).iter("testcase"):
        skipped = case.find("skipped")
        if skipped is not None:
            outcome.skipped[skipped.get("message", "no reason given")] += 1
        elif case.find("failure") is not None or case.find("error") is not None:
            outcome.failed += 1
        else:
            outcome.passed += 1


def show(outcomes: list[Outcome]) -> None:
    """Print the table: back end, passed, failed, skipped and why."""
    table = Table(title="tests by back end", title_justify="left")
    for heading in ("back end", "passed", "failed", "skipped", "seconds", "not run, and why"):
        table.add_column(heading, overflow="fold")
    for outcome in outcomes:
        why = [f"{number} x {reason}" for reason, number in outcome.skipped.items()]
        if outcome.missing:
            why = [f"none of it: {outcome.missing}"]
        elif outcome.status and not outcome.failed:
            why.append(f"ended with status {outcome.status}")
        table.add_row(
            outcome.stage,
            str(outcome.passed),
            str(outcome.failed),
            str(sum(outcome.skipped.values())),
            f"{outcome.seconds:.0f}",
            "; ".join(why),
        )
    Console(width=max(100, Console().width)).print(table)


def main(options: list[str]) -> int:
    """Run the stages; return 0 if all that had to hold did."""
    RESULTS.mkdir(exist_ok=True)
    outcomes = [run(stage, options) for stage in stages()]
    show(outcomes)
    passed, failed = (sum(getattr(o, name) for o in outcomes) for name in ("passed", "failed"))
    skipped = sum(sum(outcome.skipped.values()) for outcome in outcomes)
    print(f"{passed} passed, {failed} failed, {skipped} skipped", flush=True)
    # A host without any device has no back end of its own; that is said, and is nobody's failure.
    hostless = [o for o in outcomes if o.stage == "host" and o.missing]
    return int(any(outcome.broken for outcome in outcomes if outcome not in hostless))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
