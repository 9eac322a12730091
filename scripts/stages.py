"""What became of the tests, back end by back end: counted from their reports, and as a table."""

from __future__ import annotations

import os
import subprocess
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vmm.host import DEVICE

LANES = ("npt", "ept")
STAGES = ("unit", "host", *LANES)
NO_TESTS = 5  # pytest's exit status when its arguments leave none


@dataclass
class Run:
    """One pytest, for one stage or a part of it.

    name     of its files: what it says, as text and as JUnit XML
    folder   that they are in
    tests    the files of tests or the folder that it runs, unless the user names others
    """

    name: str
    folder: Path
    tests: list[str]
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0

    @property
    def log(self) -> Path:
        """What it says, as text."""
        return self.folder / f"{self.name}.log"

    @property
    def report(self) -> Path:
        """The same as JUnit XML."""
        return self.folder / f"{self.name}.xml"

    @property
    def ended(self) -> bool:
        """Whether it has been started and is over."""
        return self.process is not None and self.process.poll() is not None

    @property
    def seconds(self) -> float:
        """How long it took: until it last said something."""
        return self.log.stat().st_mtime - self.started


@dataclass
class Stage:
    """The tests on one back end, and what became of them.

    runs      at least one
    missing   why it could not run at all
    about     the back end as the tests found it
    skipped   by reason; `smaller` counts the tests that did less than elsewhere, by reason
    """

    name: str
    runs: list[Run]
    missing: str = ""
    about: str = ""
    status: int = 0
    seconds: float = 0.0
    passed: int = 0
    failed: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    smaller: Counter[str] = field(default_factory=Counter)

    @property
    def broken(self) -> bool:
        """Whether it makes the whole run fail."""
        required = os.environ.get("PAGEFERRY_REQUIRE_KVM") == "1"
        # A host without any device has no back end of its own: that is said, and nobody's failure.
        hostless = self.name == "host" and not Path(DEVICE).exists()
        return bool(self.failed or self.status or (self.missing and required and not hostless))

    def count(self, run: Run) -> None:
        """Count the tests of a run that has ended, from the report that it wrote."""
        assert run.process is not None
        self.seconds += run.seconds
        status = run.process.returncode
        if not run.report.exists():
            self.status = status or 1
            return
        if status != NO_TESTS:  # the arguments leave it none, which is no failure of its own
            self.status = self.status or status
        root = ElementTree.parse(run.report).getroot()
        self.about = "".join(values(root, "back end"))
        for case in root.iter("testcase"):
            skipped = case.find("skipped")
            if skipped is not None:
                self.skipped[skipped.get("message", "no reason given")] += 1
            elif case.find("failure") is not None or case.find("error") is not None:
                self.failed += 1
            else:
                self.passed += 1
            self.smaller.update(values(case, "smaller"))

    def notes(self) -> list[str]:
        """Return what the numbers do not say: why something did not run, or not in full."""
        notes = [f"{number} skipped: {reason}" for reason, number in self.skipped.items()]
        notes += [f"{number} smaller: {reason}" for reason, number in self.smaller.items()]
        if self.missing:
            notes.append(f"did not run: {self.missing}")
        elif self.status and not self.failed:
            notes.append(f"ended with status {self.status}")
        return notes


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
