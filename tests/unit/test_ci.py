"""The workflow and the Vagrantfile agree with what they run."""

import re
import runpy
import tomllib
from pathlib import Path

import pytest

from vmm.nested import lanes
from vmm.nested.packages import REQUIRED
from vmm.sizes import parse_size

ROOT = Path(__file__).resolve().parent.parent.parent
WORKFLOW = ROOT / ".github" / "workflows" / "test.yml"

needs_workflow = pytest.mark.skipif(not WORKFLOW.exists(), reason="not a clone: no .github")


@needs_workflow
def test_the_workflow_runs_every_stage_that_there_is() -> None:
    stages = runpy.run_path(str(ROOT / "scripts" / "stages.py"))["STAGES"]
    text = WORKFLOW.read_text()
    chosen = re.findall(r"PAGEFERRY_BACKENDS: (\w+)$", text, re.MULTILINE)
    matrix = re.findall(r"- \{ backend: (\w+),", text)
    assert sorted(chosen + matrix) == sorted(stages)
    assert "PAGEFERRY_BACKENDS: ${{ matrix.backend }}" in text


@needs_workflow
def test_the_lanes_packages_are_listed_in_one_place() -> None:
    words = set(re.findall(r"[\w.+-]+", WORKFLOW.read_text() + (ROOT / "Vagrantfile").read_text()))
    assert "vmm.nested.packages" in words
    assert not words & {package for names in REQUIRED.values() for package in names}


def test_ci_tests_once_with_the_lowest_versions_of_all_that_is_needed() -> None:
    minima = runpy.run_path(str(ROOT / "scripts" / "minima.py"))["minima"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lowest = minima(project, ["test"])
    assert lowest.keys() >= {"click", "rich", "pyelftools", "matplotlib", "pytest", "hatchling"}
    assert minima({**project, "dependencies": ["a[b] >= 1.2, <3"]}) == {"a": "1.2"}
    for need in ("a", "a<3", "a==1"):
        with pytest.raises(ValueError, match="no lower bound"):
            minima({**project, "dependencies": [need]})
    for runner in (path for path in (ROOT / ".ci" / "run", WORKFLOW) if path.exists()):
        assert "./scripts/test_minima\n" in runner.read_text()


def test_the_vagrant_machine_has_memory_for_both_lanes_side_by_side() -> None:
    qemu = lanes.qemu("file:output", result=False)
    bochs = lanes.bochs_files("mode=file, dev=output", result=False)["bochsrc"]
    inside = parse_size(qemu[qemu.index("-m") + 1])
    inside += int(re.findall(r"^megs: (\d+)$", bochs, re.MULTILINE)[0]) << 20
    memory = re.findall(r"^MEMORY = (\d+)", (ROOT / "Vagrantfile").read_text(), re.MULTILINE)
    # As much again: for the emulators, for the tests on the machine's own KVM, for its system.
    assert int(memory[0]) << 20 >= 2 * inside
