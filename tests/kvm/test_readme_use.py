"""The README's first screen, as it is pasted: with a C compiler, and where there is none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from kvm.doc_examples import DOCS, run_example
from unit.compilers import no_cc, no_zig

from vmm.guest.compiler import find_compiler

# Also so that its threads are there before they are counted.
NUMPY: Any = pytest.importorskip("numpy", reason="a nested lane has no more than the package needs")
README = (DOCS.parent / "README.md").read_text()

pytestmark = pytest.mark.not_in_lanes("what a user does; no compiler there")


@pytest.fixture
def first_screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Save the C file that it shows; return the Python."""
    blocks = re.findall(r"^```(\w+)\n(.*?)```", README, re.S | re.M)
    (_, source), (_, example), *_ = blocks
    (tmp_path / "blur.c").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PAGEFERRY_CC", raising=False)
    return str(example)


@pytest.mark.skipif(no_cc, reason="no cc")
def test_it_runs_as_pasted(first_screen: str) -> None:
    assert find_compiler().family != "zig"
    run_example(first_screen, "README.md")


# The first time, ziglang builds a C library: musl, by whose name such tests are known.
@pytest.mark.timeout(900)
@pytest.mark.skipif(no_zig, reason="no ziglang")
@pytest.mark.parametrize("libc", ["musl"])
def test_it_runs_as_pasted_where_there_is_no_compiler(
    first_screen: str, libc: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_compiler().family == "zig"
    run_example(first_screen, "README.md")
