"""Qualifying a host: what is made of the selftests' results. None is fetched or run here."""

from __future__ import annotations

import io
import signal
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
from rich.console import Console

from vmm.errors import HostError
from vmm.nested.cache import Cache

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
NAMES = ("qualify", "selftests", "trials")

# As a test of theirs fails: with addr2line, and where there is none.
PLAIN = """\
Random seed: 0x6b8b4567
==== Test Assertion Failure ====
  x86_64/some_test.c:102: !rc
  pid=3861 tid=4026 errno=22 - Invalid argument
     1\t0x0000000000401f24: main at some_test.c:102
     2\t0x0000000000402000: _start at ??:?
  Failed to set it (0x1fff)
Done with the rest
"""
BARE = """\
==== Test Assertion Failure ====
  lib/util.c:57: __a == __b
  pid=1 tid=1 errno=0 - Success
sh: addr2line: not found
  ASSERT_EQ(a, b) failed.
\ta is 0
\tb is 0x3
"""
SILENT = """\
==== Test Assertion Failure ====
  some_test.c:5: false
  pid=1 tid=1 errno=0 - Success
     1\t0x0000000000401f24: main at some_test.c:5
"""


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    """The scripts, which import each other as scripts do: from their own directory."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        yield {name: __import__(name) for name in NAMES}
    finally:
        sys.path.remove(str(SCRIPTS))
        for name in NAMES:
            sys.modules.pop(name, None)


@pytest.fixture
def qualify(modules: dict[str, ModuleType]) -> Any:
    return modules["qualify"]


@pytest.fixture
def selftests(modules: dict[str, ModuleType]) -> Any:
    return modules["selftests"]


@pytest.fixture
def trials(modules: dict[str, ModuleType]) -> Any:
    return modules["trials"]


@pytest.fixture
def trial(trials: Any) -> Any:
    known = trials.Known("failed", r"exit 17\b", "no int3")
    return trials.Trial("some_test", ("-b", "1M"), 9, "something", (known,))


def program(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "some_test"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


# ---- Results ----


@pytest.mark.parametrize(
    ("status", "output", "state", "detail"),
    [
        (0, "fine\n", "passed", ""),
        (4, "1..0 # SKIP - Requirement not met: vmx\n", "skipped", "Requirement not met: vmx"),
        (4, "", "skipped", "it did not say why"),
        (254, PLAIN, "failed", "some_test.c:102: Failed to set it (0x1fff)"),
        (254, BARE, "failed", "util.c:57: ASSERT_EQ(a, b) failed. a is 0 b is 0x3"),
        (254, SILENT, "failed", "some_test.c:5: false"),
        (1, "usage:\n  wrong  option\n\n", "failed", "wrong option"),
        (1, "", "failed", "it said nothing"),
        (-signal.SIGALRM, "Testing\n", "failed", "killed by SIGALRM: Testing"),
        (None, "Testing\n", "timed out", "killed after 7 s; its last line: Testing"),
        (None, "", "timed out", "killed after 7 s"),
    ],
)
def test_an_exit_status_and_output_become_an_outcome(
    trials: Any, trial: Any, status: int | None, output: str, state: str, detail: str
) -> None:
    outcome = trials.judge(trial, status, 7.0, output)
    assert (outcome.title, outcome.state) == ("some_test -b 1M", state)
    assert (outcome.seconds, outcome.detail) == (7.0, detail)


def test_a_programs_arguments_and_words_are_passed_on(
    trials: Any, trial: Any, tmp_path: Path
) -> None:
    outcome = trials.run(trial, program(tmp_path, 'echo "got $*" >&2; exit 3'), 20)
    assert (outcome.state, outcome.detail) == ("failed", "got -b 1M")


def test_a_program_that_hangs_is_killed_with_its_children(
    trials: Any, trial: Any, tmp_path: Path
) -> None:
    late = tmp_path / "late"
    text = f"(trap '' TERM; sleep 2; touch {late}) & sleep 60"
    start = time.monotonic()
    outcome = trials.run(trial, program(tmp_path, text), 0.3)
    assert outcome.state == "timed out"
    assert time.monotonic() - start < 10
    time.sleep(2.5)
    assert not late.exists()


def test_a_program_that_cannot_be_started_has_failed(
    trials: Any, trial: Any, tmp_path: Path
) -> None:
    outcome = trials.run(trial, tmp_path / "nothing", 5)
    assert outcome.state == "failed"
    assert "No such file" in outcome.detail


def test_a_test_too_large_for_the_machine_is_not_started(trials: Any) -> None:
    large = trials.Trial("some_test", (), 9, "something", memory=2 << 30)
    skipped = trials.too_large(large, 1 << 30)
    assert skipped.state == "skipped"
    assert "2 GiB" in skipped.detail
    assert trials.too_large(large, 2 << 30) is None


def test_only_a_failure_that_looks_like_the_known_one_is_called_known(
    trials: Any, trial: Any
) -> None:
    def known(state: str, detail: str) -> str | None:
        return trials.expected(trial, trials.Outcome(trial.title, state, 1.0, detail))

    assert known("failed", "INT3: exit 17 exception 1") == "no int3"
    assert known("failed", "INT3: exit 172 exception 1") is None
    assert known("failed", "something else") is None
    assert known("timed out", "exit 17") is None
    assert known("passed", "exit 17") is None


# ---- The choice ----


def test_every_trial_says_what_it_is_for_and_has_a_limit(trials: Any) -> None:
    titles = [trial.title for trial in trials.TRIALS]
    assert len(set(titles)) == len(titles)
    assert all(trial.qualifies and 0 < trial.limit <= 120 for trial in trials.TRIALS)


def test_tests_are_chosen_by_name_in_the_tables_order(qualify: Any, trials: Any) -> None:
    assert qualify.choose([]) == list(trials.TRIALS)
    some = qualify.choose(["state_test", "demand_paging_test"])
    assert {trial.test for trial in some} == {"state_test", "demand_paging_test"}
    assert some[-1].test == "state_test"
    assert len(some) > 2  # one test, run in several ways
    with pytest.raises(click.UsageError, match="nonsense"):
        qualify.choose(["state_test", "nonsense"])


def test_what_takes_bochs_long_is_left_out_there_unless_it_is_named(
    qualify: Any, trials: Any
) -> None:
    some = [trials.Trial(name, (), 9, "", heavy=name == "slow") for name in ("slow", "quick")]
    assert [o.title for o in qualify.left_out(some, "ept", [])] == ["slow"]
    assert qualify.left_out(some, "ept", ["slow"]) == []
    assert qualify.left_out(some, "npt", []) == qualify.left_out(some, None, []) == []


# ---- The table ----


def outcomes(trials: Any, *states: str) -> list[Any]:
    return [trials.Outcome(f"test{n}", state, 1.5, "[red]") for n, state in enumerate(states)]


def some_trials(trials: Any, count: int) -> list[Any]:
    known = trials.Known("failed", "", "seen before")
    return [trials.Trial(f"test{n}", (), 1, f"purpose {n}", (known,)) for n in range(count)]


def rendered(table: Any) -> str:
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(table)
    return console.export_text()


def test_the_table_has_every_trial_also_one_that_was_not_run(qualify: Any, trials: Any) -> None:
    table = qualify.table(outcomes(trials, "passed"), some_trials(trials, 2), emulated=False)
    text = rendered(table)
    assert "purpose 0" in text
    assert "purpose 1" in text
    assert text.count("not run") == 1
    assert "[red]" in text  # what a test says is no markup


def test_what_is_known_of_emulating_hosts_is_not_said_of_others(qualify: Any, trials: Any) -> None:
    failed, some = outcomes(trials, "failed"), some_trials(trials, 1)
    assert "seen before" in rendered(qualify.table(failed, some, emulated=True))
    assert "seen before" not in rendered(qualify.table(failed, some, emulated=False))


@pytest.mark.parametrize(
    ("states", "status", "summary"),
    [
        (("passed", "skipped"), 0, "1 passed, 0 failed, 1 skipped"),
        (("passed", "failed"), 1, "1 passed, 1 failed"),
        (("passed", "timed out"), 1, "1 passed, 0 failed, 1 timed out"),
        (("passed", "not built"), 1, "1 passed, 0 failed, 1 not built"),
        (("passed",), 1, "1 passed, 0 failed"),
    ],
)
def test_success_is_that_all_were_run_and_none_failed(
    qualify: Any, trials: Any, states: tuple[str, ...], status: int, summary: str
) -> None:
    found = outcomes(trials, *states)
    assert qualify.status(found, some_trials(trials, 2)) == status
    assert qualify.summary(found) == summary


def test_what_was_not_built_is_an_outcome_with_its_reason(qualify: Any, trials: Any) -> None:
    some = some_trials(trials, 2)
    tests = qualify.Built("6.1.0", {"test0": Path("/x")}, {"test1": "no such test"})
    assert [(o.title, o.state, o.detail) for o in qualify.not_built(some, tests)] == [
        ("test1", "not built", "no such test")
    ]


def test_a_lane_says_what_it_found_among_lines_of_others(qualify: Any, trials: Any) -> None:
    said = [qualify.Device("6.1", "npt", False), *outcomes(trials, "failed", "passed")]
    lines = [qualify.line_of(each) + "\n" for each in said]
    assert [qualify.parse(line) for line in lines] == said
    assert qualify.parse("some program's line\n") is None


# ---- The build ----


@pytest.mark.parametrize(
    ("member", "path"),
    [
        ("linux-source-6.1/Makefile", "Makefile"),
        ("./linux-6.8/tools/include/linux/types.h", "tools/include/linux/types.h"),
        ("linux/tools/testing/selftests/kvm/a.c", "tools/testing/selftests/kvm/a.c"),
        ("linux/drivers/net/a.c", None),
        ("linux/tools/include/../../../../etc/passwd", None),
        ("linux", None),
    ],
)
def test_only_what_the_tests_need_is_unpacked(
    selftests: Any, member: str, path: str | None
) -> None:
    assert selftests.wanted(member) == path


def tarball(path: Path, files: dict[str, str]) -> Path:
    with tarfile.open(path, "w:xz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"linux/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


def test_a_source_without_selftests_is_refused(selftests: Any, tmp_path: Path) -> None:
    top = "VERSION = 6\nPATCHLEVEL = 1\nSUBLEVEL = 192\nEXTRAVERSION =\n"
    kvm = "tools/testing/selftests/kvm/Makefile"
    whole = tarball(tmp_path / "a.tar.xz", {"Makefile": top, kvm: "", "drivers/a.c": ""})
    assert selftests.unpack(whole, tmp_path / "a") == "6.1.192"
    assert not (tmp_path / "a/drivers").exists()
    half = tarball(tmp_path / "b.tar.xz", {"Makefile": top})
    with pytest.raises(selftests.LaneError, match="no KVM selftests"):
        selftests.unpack(half, tmp_path / "b")


def test_guests_keep_to_the_general_registers_unless_told_otherwise(selftests: Any) -> None:
    assert selftests.compiler_flags("", sse=False) == ["-mno-sse"]
    assert selftests.compiler_flags("", sse=True) == []


def test_a_macros_later_name_is_given_only_to_headers_that_lack_it(selftests: Any) -> None:
    old, new = "#define ASSERT_EQ(a, b)", "#define TEST_ASSERT_EQ(a, b)"
    assert "-DTEST_ASSERT_EQ=ASSERT_EQ" in selftests.compiler_flags(old, sse=True)
    assert selftests.compiler_flags(new, sse=True) == []


def test_a_test_is_found_where_its_kernel_has_it(selftests: Any, tmp_path: Path) -> None:
    for name in ("common.c", "x86_64/old.c", "x86/new.c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [selftests.target(tmp_path, name) for name in ("common", "old", "new", "none")]
    assert found == ["common", "x86_64/old", "x86/new", None]


def test_why_a_test_was_not_built_is_its_own_error(selftests: Any) -> None:
    log = (
        "gcc -Wall a_test.c\n/src/b_test.c:7:1: error: no such thing\n"
        "/src/kvm/a_test.c:775: undefined reference to `X'\nmake: *** Error 1\n"
    )
    why = selftests.why_not_built
    assert why(log, "a_test") == "a_test.c:775: undefined reference to `X'"
    assert why(log, "c_test") == "b_test.c:7:1: error: no such thing"
    assert why("", "c_test") == "make did not say why"


def test_a_missing_compiler_is_named_with_the_command_that_helps(
    selftests: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    need = selftests.Need("/nowhere/gcc", "gcc")
    monkeypatch.setattr(selftests, "NEEDS", (need, need))
    monkeypatch.setattr(selftests, "find_program", lambda name: f"/usr/bin/{name}")
    with pytest.raises(HostError, match=r"\(gcc\).*apt-get install .*gcc$"):
        selftests.check()
    monkeypatch.setattr(selftests, "find_program", lambda name: None)
    with pytest.raises(HostError, match="no apt-get"):
        selftests.check()


def test_a_release_without_the_package_is_told_so(
    selftests: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selftests.apt, "known", lambda name: False)
    with pytest.raises(HostError, match=r"no package linux-source is known.*apt-get update"):
        selftests._package()


def test_what_is_in_the_cache_needs_no_compiler(
    selftests: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def build(into: Path, names: list[str], *, sse: bool) -> None:
        (into / "a_test").touch()
        (into / "facts.json").write_text('{"version": "6.1.0", "missing": {"b_test": "why"}}')

    cache = Cache(tmp_path, lambda line: None)
    with monkeypatch.context() as patch:
        patch.setattr(selftests, "build", build)
        patch.setattr(selftests, "check", lambda: None)
        first = selftests.built(cache, ["a_test", "b_test"], sse=False)
    assert (first.version, list(first.programs), first.missing) == (
        "6.1.0",
        ["a_test"],
        {"b_test": "why"},
    )
    monkeypatch.setattr(selftests, "NEEDS", (selftests.Need("/nowhere", "gcc"),))
    assert selftests.built(cache, ["a_test", "b_test"], sse=False) == first
    with pytest.raises(HostError, match="gcc"):
        selftests.built(cache, ["a_test", "b_test"], sse=True)


def test_a_cache_below_a_space_is_refused(selftests: Any, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "a b", lambda line: None)
    with pytest.raises(HostError, match="space"):
        selftests.built(cache, ["a_test"], sse=False)
