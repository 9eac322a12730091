"""docs/walkthrough.md: its cells, one after the other, print what stands below them."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
from kvm.doc_examples import DOCS

# Also so that its threads are there before they are counted.
NUMPY: Any = pytest.importorskip("numpy", reason="a nested lane has no more than the package needs")
CELLS = re.findall(
    r"^```python\n(.*?)```\n(?:\n```text\n(.*?)```)?",
    (DOCS / "walkthrough.md").read_text(),
    re.S | re.M,
)

pytestmark = pytest.mark.not_in_lanes("what the manual shows; no compiler there")


# Where ziglang is the only compiler, it builds a C library the first time.
@pytest.mark.timeout(900)
def test_its_cells_print_what_stands_below_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    session: dict[str, Any] = {}
    for number, (cell, shown) in enumerate(CELLS):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(cell, f"cell {number}", "exec"), session)
        assert printed.getvalue() == shown
    assert sum(bool(shown) for _, shown in CELLS) >= 6
