"""docs/guide.md, step by step: its programs are saved as it says, and print what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from command import Ended, pageferry
from kvm.doc_examples import DOCS, examples, run_example, save_programs
from unit.compilers import no_cc

import vmm

# Also so that its threads are there before they are counted.
NUMPY: Any = pytest.importorskip("numpy", reason="a nested lane has no more than the package needs")
EXAMPLES = examples("guide.md")
SOURCES = [*examples("guide.md", "c"), *examples("guide.md", "cpp")]

pytestmark = [
    pytest.mark.not_in_lanes("what the manual shows; no compiler there"),
    pytest.mark.skipif(no_cc, reason="the libraries that are linked are glibc's"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save the programs under the names that their first lines say."""
    return save_programs(SOURCES, tmp_path_factory.mktemp("guide"))


def title(example: str) -> str:
    """Return the heading that an example stands under."""
    before = (DOCS / "guide.md").read_text().partition(example)[0]
    return re.findall(r"^## (.*)$", before, re.M)[-1]


@pytest.mark.parametrize("example", EXAMPLES, ids=map(title, EXAMPLES))
def test_a_step_prints_what_it_says(
    example: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    run_example(example, "docs/guide.md")


def test_the_command_builds_what_the_guide_builds(folder: Path) -> None:
    (shown,) = re.findall(r"`pageferry (build --sandbox .*?)`", (DOCS / "guide.md").read_text())
    assert pageferry(*shown.split(), cwd=folder) == Ended(0, "compress.elf\n", "")
    with vmm.Sandbox(folder / "compress.elf") as lib:
        assert lib.pack(b"a" * 100, 100, bytearray(50), 50) < 20
