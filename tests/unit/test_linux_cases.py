"""What machines are compared with: programs that do the same twice on this system."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from busybox_cases import CASES as BUSYBOX_CASES
from linux_case import Case, run_here
from linux_programs import CASES, JOB_CASES, JOBS, LIBCS, PROGRAMS, busybox, linux_program

from vmm.linux import loader

# The first time, ziglang builds a C library, and one of C++.
pytestmark = pytest.mark.timeout(900)

GROUPS = [BUSYBOX_CASES[start : start + 25] for start in range(0, len(BUSYBOX_CASES), 25)]


def check(case: Case, program: Path, work: Path) -> None:
    places = work / "first", work / "second"
    for place in places:
        place.mkdir(parents=True)
    with ThreadPoolExecutor(2) as pool:
        outcome, again = pool.map(lambda place: run_here(case, program, place), places)
    assert outcome == again, case.name
    assert outcome.code == case.code, (case.name, outcome)
    assert str(work).encode() not in outcome.stdout + outcome.stderr, case.name


def test_every_program_has_a_case_and_a_name_of_its_own() -> None:
    not_compared = {"hostile", "lent"}  # they ask for what no two hosts have alike, or none has
    assert {case.name for case in CASES} == {*PROGRAMS} - not_compared
    assert {case.name for case in JOB_CASES} == {*JOBS}
    assert len({case.name for case in BUSYBOX_CASES}) == len(BUSYBOX_CASES) >= 80


@pytest.mark.parametrize("cases", GROUPS, ids=lambda cases: cases[0].name)
def test_busybox_does_the_same_twice(cases: Sequence[Case], tmp_path: Path) -> None:
    for number, case in enumerate(cases):
        check(case, busybox(), tmp_path / str(number))


@pytest.mark.parametrize("libc", LIBCS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_programs_do_the_same_twice(case: Case, libc: str, tmp_path: Path) -> None:
    program = linux_program(case.name, libc)
    check(case, program, tmp_path / "here")
    assert isinstance(loader.load(program), loader.Program)


@pytest.mark.parametrize("case", JOB_CASES, ids=lambda case: case.name)
def test_jobs_do_the_same_twice(case: Case, tmp_path: Path) -> None:
    program = linux_program(case.name)
    check(case, program, tmp_path / "here")
    assert isinstance(loader.load(program), loader.Program)


@pytest.mark.skipif(os.geteuid() != 0, reason="nobody else may change it")
def test_what_is_this_systems_cannot_be_changed(tmp_path: Path) -> None:
    mode = f"{stat.S_IMODE(Path('/dev/null').stat().st_mode):o}"  # what it is already
    outcome = run_here(Case("chmod", ("busybox", "chmod", mode, "/dev/null")), busybox(), tmp_path)
    assert outcome.stderr == b"chmod: /dev/null: Read-only file system\n"


def test_what_no_machine_serves_is_refused_here_too(tmp_path: Path) -> None:
    case = Case("pipe", ("busybox", "sh", "-c", "echo a | cat"))
    outcome = run_here(case, busybox(), tmp_path)
    assert outcome.code != 0
    assert b"Function not implemented" in outcome.stderr
    (tmp_path / "other").mkdir()
    other = Case("exec", ("busybox", "sh", "-c", "exec /bin/busybox echo started"))
    assert b"started" not in run_here(other, busybox(), tmp_path / "other").stdout
