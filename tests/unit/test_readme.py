"""What the README names is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
README = (ROOT / "README.md").read_text()


def test_every_claim_has_a_test_of_the_name_that_the_table_gives() -> None:
    rows = re.findall(r"^\| (C\d.*?) \| .*? \| (.*) \|$", README, re.M)
    tests = "\n".join(path.read_text() for path in (ROOT / "tests/kvm").glob("test_*.py"))
    claims = " ".join(claim for claim, _ in rows)
    for claim in ("C1", "C3a", "C3b", "C3c", "C3d", "C4a", "C4b", "C5", "C6", "C7", "C8", "C10"):
        assert re.search(rf"\b{claim}\b", claims), claim
    for claim in ("C11", "C12", "C13", "C14", "C15", "C17", "C20"):
        assert re.search(rf"\b{claim}\b", claims), claim
    for claim, named in rows:
        names = re.findall(r"`(\w+)`", named)
        assert names or named == "the same", claim
        for name in names:
            assert f"def test_{name}(" in tests, f"{claim}: test_{name}"


def test_every_file_that_is_linked_exists() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_first_examples_are_of_the_librarys_names() -> None:
    import vmm

    use, machines, *_ = re.findall(r"^```python\n(.*?)```", README, re.S | re.M)
    for number, example in enumerate((use, machines)):
        compile(example, f"README.md, {number}", "exec")
    imported = re.search(r"^from vmm import (.*)$", use, re.M)
    assert imported is not None
    assert {"CallError", "Sandbox"} == set(imported[1].split(", ")) <= set(vmm.__all__)
    for name in ("spawn", "connect", "run"):
        assert f"m.{name}(" in machines
        assert hasattr(vmm.Monitor, name)
