"""The examples of a page in docs/, which print what stands beside them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def examples(page: str, language: str = "python") -> list[str]:
    """Return a page's blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)```", (DOCS / page).read_text(), re.S | re.M)


def save_programs(sources: Iterable[str], folder: Path) -> Path:
    """Save programs under the names that their first lines say; return where."""
    for source in sources:
        named = re.match(r"/\* (\S+) \*/\n", source)
        assert named is not None
        (folder / named[1]).write_text(source)
    return folder


def run_example(example: str, page: str) -> None:
    """Run one where it is to run, and hold it to what it says that it prints."""
    said = re.findall(r"^ *print\(.*\)  # (.*)$", example, re.M)
    printed: list[str] = []
    names = {"print": lambda *values: printed.append(" ".join(map(str, values)))}
    exec(compile(example, page, "exec"), names)
    assert printed == said, f"{page} says {said}, and it printed {printed}"
    assert len(said) >= 1
