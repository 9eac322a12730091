"""`pageferry new`, as a user runs it: what it makes is run by tests/kvm/test_new_project.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command import Ended, one_line, pageferry

NAMES = ["pic.c", "pic.py", "README.md", "test_pic.py"]


def test_a_directory_is_made_whose_files_are_named_after_it(tmp_path: Path) -> None:
    made = pageferry("new", "pic", cwd=tmp_path)
    assert made == Ended(0, "".join(f"pic/{name}\n" for name in NAMES), "")
    assert sorted(path.name for path in (tmp_path / "pic").iterdir()) == sorted(NAMES)
    for path in (tmp_path / "pic").iterdir():
        assert "NAME" not in path.read_text()


def test_a_directory_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "pic").mkdir()
    ended = pageferry("new", "pic", cwd=tmp_path)
    assert (ended.code, one_line(ended.err)) == (1, "pic: File exists")
    assert list((tmp_path / "pic").iterdir()) == []
    ended = pageferry("new", "none/pic", cwd=tmp_path)
    assert (ended.code, one_line(ended.err)) == (1, "none/pic: No such file or directory")


@pytest.mark.parametrize("name", ["a-b", "7up", "", "/", "é", "json", "class", "vmm", "no/a b"])
def test_what_can_be_no_module_is_an_error_of_the_command_lines(name: str, tmp_path: Path) -> None:
    ended = pageferry("new", name, cwd=tmp_path)
    assert (ended.code, ended.out, list(tmp_path.iterdir())) == (2, "", [])
    assert "Invalid value for 'NAME'" in ended.err


def test_its_python_has_no_complaints_of_checkers(tmp_path: Path) -> None:
    pytest.importorskip("ruff")
    pageferry("new", "pic", cwd=tmp_path)
    for words in (["check"], ["format", "--check"]):
        line = [sys.executable, "-m", "ruff", *words, "--isolated", "."]
        ended = subprocess.run(line, cwd=tmp_path, capture_output=True)
        assert ended.returncode == 0, ended.stdout
