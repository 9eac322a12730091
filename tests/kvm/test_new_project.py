"""What `pageferry new` makes works as its README says, with either compiler."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from command import environment, pageferry
from unit.compilers import no_cc, no_zig

pytest.importorskip("numpy", reason="a nested lane has no more than the package needs")
pytestmark = pytest.mark.not_in_lanes("what a user does; no compiler there")


# The first time, ziglang builds a C library.
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "compiler",
    [
        pytest.param("cc", marks=pytest.mark.skipif(no_cc, reason="no cc")),
        pytest.param("ziglang", marks=pytest.mark.skipif(no_zig, reason="no ziglang"), id="musl"),
    ],
)
def test_the_commands_of_its_readme_work(tmp_path: Path, compiler: str) -> None:
    assert pageferry("new", "pic", cwd=tmp_path).code == 0
    folder = tmp_path / "pic"
    commands = re.findall(r"^(?:python3|pageferry) .*$", (folder / "README.md").read_text(), re.M)
    printed = []
    for line in commands:
        program, *words = line.split()
        start = [sys.executable] if program == "python3" else [sys.executable, "-m", "vmm"]
        if "pip" in words:
            continue
        ended = subprocess.run(
            [*start, *words],
            cwd=folder,
            env={**environment(), "PAGEFERRY_CC": compiler},
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stderr
        printed.append(ended.stdout + ended.stderr)
    script, tests, build = printed
    assert "bytes copied: 0" in script
    assert re.search(r"mean: SIGSEGV: .* \(mean\+0x[0-9a-f]+ at pic.c:21\)", script)
    assert re.search(r"Ran 3 tests .*\n\nOK", tests)
    assert build == "pic.elf\n"
    assert (folder / "pic.elf").is_file()
