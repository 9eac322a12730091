"""What scripts/test runs, where, and what it says of it in the end."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from vmm.errors import HostError

ROOT = Path(__file__).resolve().parents[2]
Ran = Callable[..., tuple[int, str]]
TESTS = """
import pytest

def test_good(): pass
def test_bad(): assert not "as it should be"
@pytest.mark.skip(reason="the moon is down")
def test_not_now(): pass
def test_less(record_property): record_property("smaller", "10 instead of 1,000")
"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """scripts/run_tests.py, with its results in a folder of the test's."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    module = importlib.import_module("run_tests")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    for name in ("PAGEFERRY_BACKENDS", "PAGEFERRY_REQUIRE_KVM"):
        monkeypatch.delenv(name, raising=False)
    return module


@pytest.fixture
def ran(
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> Ran:
    """Run a file of tests on some back ends; return the exit status and what was printed."""

    def run(tests: str, backends: str = "unit", *options: str) -> tuple[int, str]:
        path = tmp_path / "test_it.py"
        path.write_text(tests)
        monkeypatch.setenv("PAGEFERRY_BACKENDS", backends)
        status = script.main([str(path), "-p", "no:cacheprovider", *options])
        return status, capfd.readouterr().out

    return run


def refuse(name: str) -> None:
    raise HostError(f"the lane {name} needs a thing", "get the thing")


def words(script: ModuleType, name: str, *arguments: str) -> list[str]:
    """Return the command line of a stage's first run."""
    run = script.runs(name, whole=False)[0]
    command: list[str] = script.command(script.Stage(name, [run]), run, list(arguments))
    return command


def row(out: str, name: str) -> list[str]:
    """Return the cells of a back end's first line in the table."""
    line = next(line for line in out.splitlines() if line.startswith(f"│ {name} "))
    return [cell.strip() for cell in line.split("│")[1:-1]]


def test_all_back_ends_are_run_unless_some_are_chosen(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [stage.name for stage in script.chosen([])] == ["unit", "host", "npt", "ept"]
    monkeypatch.setenv("PAGEFERRY_BACKENDS", "ept, host")
    assert [stage.name for stage in script.chosen([])] == ["host", "ept"]
    monkeypatch.setenv("PAGEFERRY_BACKENDS", "host,sparc")
    with pytest.raises(SystemExit, match="sparc is none of unit, host, npt, ept"):
        script.chosen([])


def test_a_divided_lane_runs_every_test_once(script: ModuleType) -> None:
    for name in script.STAGES:
        parts = [run.tests for run in script.runs(name, whole=True)]
        if len(parts) > 1:
            files = [f"tests/kvm/{path.name}" for path in (ROOT / "tests/kvm").glob("test_*.py")]
            assert sorted(file for part in parts for file in part) == sorted(files)
        assert len(script.runs(name, whole=False)) == 1


def test_a_lanes_tests_are_the_same_command_in_the_lane(script: ModuleType) -> None:
    here, there = (words(script, name, "-x") for name in ("host", "npt"))
    assert here[3:4] == there[there.index("--") :][4:5] == ["tests/kvm"]
    assert there[1:6] == ["-m", "vmm", "nested", "--lane", "npt"]
    assert "-x" in here


def test_named_tests_take_the_place_of_the_folder_from_any_directory(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT / "tests")
    found = words(script, "host", "kvm/test_claims.py::test_c1", "-k", "c1")
    assert f"{ROOT}/tests/kvm/test_claims.py::test_c1" in found
    assert "tests/kvm" not in found


def test_the_table_counts_what_passed_failed_and_was_skipped_with_the_reasons(
    ran: Ran,
) -> None:
    status, out = ran(TESTS)
    assert status == 1
    assert row(out, "unit")[1:4] == ["2", "1", "1"]
    assert "1 skipped: the moon is down" in out
    assert "1 smaller: 10 instead of 1,000" in out
    assert out.splitlines()[-1] == "2 passed, 1 failed, 1 skipped"
    assert "as it should be" in out  # the tests' own words, above


def test_tests_that_hang_for_good_are_ended_and_say_where(
    script: ModuleType, ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "SILENCE", 3)
    status, out = ran("import signal\ndef test_hangs():\n    signal.pause()", "unit")
    assert status == 1
    assert "in test_hangs" in out
    assert "ended with status -6" in out


def test_a_back_end_that_cannot_run_is_in_the_table_with_the_reason_and_a_failure_if_required(
    script: ModuleType, ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script.packages, "check", refuse)
    status, out = ran("def test_good(): pass", "unit,npt")
    assert (status, row(out, "npt")[1:4]) == (0, ["0", "0", "0"])
    assert "does not run: the lane npt needs a thing: get the thing" in out
    assert "did not run: the lane npt needs" in row(out, "npt")[5]
    monkeypatch.setenv("PAGEFERRY_REQUIRE_KVM", "1")
    assert ran("def test_good(): pass", "unit,npt")[0] == 1


def test_a_host_without_any_device_is_nobodys_failure_but_one_it_may_not_use_is(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PAGEFERRY_REQUIRE_KVM", "1")
    stage = script.Stage("host", [], missing="no device")
    monkeypatch.setattr("stages.DEVICE", str(tmp_path / "kvm"))
    assert not stage.broken
    (tmp_path / "kvm").touch()
    assert stage.broken


def test_nothing_tested_is_no_success(ran: Ran) -> None:
    status, out = ran("def test_good(): pass", "unit", "-k", "zebra")
    assert (status, out.splitlines()[-1]) == (1, "0 passed, 0 failed, 0 skipped")


def test_tests_that_end_without_a_report_are_a_failure(
    ran: Ran,
) -> None:
    status, out = ran("import os\nos._exit(0)")
    assert status == 1
    assert "ended with status 1" in out
