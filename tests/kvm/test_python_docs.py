"""The examples of docs/python.md and docs/linux.md, as they stand there, print what they say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from command import pageferry
from kvm.doc_examples import DOCS, examples, run_example
from linux_programs import busybox

import vmm

# Also so that its threads are there before they are counted.
NUMPY: Any = pytest.importorskip("numpy", reason="a nested lane has no more than the package needs")


PAGE = (DOCS / "python.md").read_text()
EXAMPLES = examples("python.md")

pytestmark = pytest.mark.not_in_lanes("examples of calls, which other tests make there")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the guest that the examples talk to."""
    folder = tmp_path_factory.mktemp("examples")
    (guest,) = examples("python.md", "c")
    (folder / "shout.c").write_text(guest)
    ended = pageferry("build", "shout.c", "-o", "shout.elf", cwd=folder)
    assert ended.code == 0, ended.err
    return folder


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_prints_what_it_says(
    example: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "busybox" in example:
        busybox()  # whether it is there
    monkeypatch.chdir(folder)
    run_example(example, "docs/python.md")


def test_the_errors_are_all_there() -> None:
    errors = {name for name in vmm.__all__ if name.endswith("Error")}
    assert errors - {"PageferryError"} <= set(re.findall(r"`(\w+Error)`", PAGE))
    assert "PageferryError" in PAGE
