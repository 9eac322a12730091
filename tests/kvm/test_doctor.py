"""The doctor, on the host as it is and on one whose device is not what it should be."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmm import Monitor
from vmm.doctor import examine
from vmm.host.hugepages import huge_pages


def test_it_says_what_the_monitor_will_use() -> None:
    found = examine().as_json()
    with Monitor() as monitor:
        assert found["backend"] == monitor.backend
        assert found["ring"] == monitor.ring
        assert found["mover"] == monitor.mover
    assert found["doorbells"][found["doorbell"]]
    assert found["ring0"] == ("native" if found["ring"] == 0 else "emulated")
    assert found["exit_us"][f"ring {found['ring']} {found['doorbell']}"] > 0
    assert found["api_version"] == 12
    assert found["memslots"] >= 32


def test_every_problem_comes_with_what_to_do_and_the_verdict_counts_them() -> None:
    found = examine().as_json()
    assert found["verdict"] == ("degraded" if found["problems"] else "ok")
    assert all(problem["what"] and problem["fix"] for problem in found["problems"])
    assert (found["ring0"] == "emulated") == any(
        "ring 0" in problem["what"] for problem in found["problems"]
    )


@pytest.mark.parametrize(
    ("device", "what"), [("missing", "does not exist"), ("file", "is not KVM"), ("null", "not KVM")]
)
def test_a_host_without_a_usable_device_is_unusable_and_says_why(
    tmp_path: Path, device: str, what: str
) -> None:
    path = tmp_path / "kvm"
    if device == "file":
        path.write_bytes(b"")
    elif device == "null":
        path = Path("/dev/null")
    found = examine(str(path)).as_json()
    assert found["verdict"] == "unusable"
    assert (found["backend"], found["ring0"], found["mover"]) == (None, "absent", None)
    (problem,) = found["problems"]
    assert what in problem["what"]
    assert problem["fix"]


def test_huge_pages_are_what_the_settings_promise() -> None:
    """The settings allow; only trying shows. What is forbidden must not have been seen."""
    folder = Path("/sys/kernel/mm/transparent_hugepage")
    pages = huge_pages()
    if not folder.exists() or "[never]" in (folder / "enabled").read_text():
        assert not pages.anonymous
    if not folder.exists() or "[never]" in (folder / "shmem_enabled").read_text():
        assert not pages.memfd
