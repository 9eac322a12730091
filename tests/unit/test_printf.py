"""The guests' printf, compiled for this system, and compared with the C library's."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from vmm.guest.build import build_program
from vmm.guest.compiler import Compiler

HERE = Path(__file__).resolve().parent
GUESTS = HERE.parents[1] / "guests"

# The first time, ziglang builds a C library.
pytestmark = pytest.mark.timeout(300)


def test_it_prints_what_the_c_library_prints(compiler: Compiler, tmp_path: Path) -> None:
    program = build_program(
        HERE / "printf_against_libc.c",
        tmp_path / "compare",
        include_dirs=[GUESTS / "lib", GUESTS / "include"],
        compiler=compiler,
    )
    ended = subprocess.run([program], capture_output=True, text=True, errors="replace")
    assert ended.returncode == 0, ended.stdout
    counts = re.fullmatch(r"(\d+) compared, 0 different\n", ended.stdout)
    assert counts is not None, ended.stdout
    assert int(counts[1]) > 600_000
