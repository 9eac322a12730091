"""The doctor, on the host as it is and on one whose device is not what it should be."""

from __future__ import annotations

import grp
import json
import os
from pathlib import Path
from typing import Any

import pytest
from command import Ended, pageferry
from kvm.other_hosts import after, root_only

from vmm import GuestFault, GuestImageError, HostError, Monitor, host
from vmm.command.doctor import examine
from vmm.host.choice import DOORBELLS
from vmm.host.hugepages import huge_pages


def test_it_says_what_the_monitor_will_use() -> None:
    found = examine().as_json()
    with Monitor() as monitor:
        assert found["backend"] == monitor.backend
        assert found["ring"] == monitor.ring
        assert found["mover"] == monitor.mover
        assert found["copy_below"] == monitor.copy_below
    assert found["doorbells"][found["doorbell"]]
    assert found["ring0"] == ("native" if found["ring"] == 0 else "emulated")
    assert found["ring0_evidence"]
    assert set(found["doorbells"]) == set(DOORBELLS)
    assert set(found["why"]) == {"ring", "doorbell", "mover", "copy_below"}
    assert all(found["why"].values())
    assert found["exit_us"][f"ring {found['ring']} {found['doorbell']}"] > 0
    assert found["api_version"] == 12
    assert found["memslots"] >= 32
    assert found["demo_ms"] > 0
    assert found["driver"]
    assert found["permitted"]


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
    assert (found["copy_below"], found["why"]) == (None, {})
    (problem,) = found["problems"]
    assert what in problem["what"]
    assert problem["fix"]
    with pytest.raises(HostError) as refused:  # by whoever else opens it, in the same words
        host.open_kvm(str(path))
    assert (refused.value.what, refused.value.fix) == (problem["what"], problem["fix"])


def test_huge_pages_are_what_the_settings_promise() -> None:
    """The settings allow; only trying shows. What is forbidden must not have been seen."""
    folder = Path("/sys/kernel/mm/transparent_hugepage")
    pages = huge_pages()
    if not folder.exists() or "[never]" in (folder / "enabled").read_text():
        assert not pages.anonymous
    if not folder.exists() or "[never]" in (folder / "shmem_enabled").read_text():
        assert not pages.memfd


def test_capabilities_come_with_what_they_are_for() -> None:
    found = examine().as_json()["capabilities"]
    assert found["KVM_CAP_IMMEDIATE_EXIT"]["answer"] > 0
    assert found["KVM_CAP_NR_MEMSLOTS"]["answer"] == examine().kernel.memslots
    assert all(capability["purpose"] for capability in found.values())


@pytest.mark.parametrize(
    ("error", "what", "fix"),
    [
        (OSError(12, "Cannot allocate memory"), "Cannot allocate memory", "limits"),
        (GuestImageError("canary.elf: not built: install it"), "not built", "install it"),
        (GuestFault("access", "a", "read of 0x1"), "read of 0x1", "--trace FILE"),
        (HostError("no", "yes"), "no", "yes"),
    ],
    ids=["kernel", "image", "fault", "host"],
)
def test_a_demo_that_does_not_run_makes_the_host_unusable(
    monkeypatch: pytest.MonkeyPatch, error: Exception, what: str, fix: str
) -> None:
    def refuse(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("vmm.command.doctor.run_demo", refuse)
    found = examine().as_json()
    assert (found["verdict"], found["demo_ms"]) == ("unusable", None)
    assert found["backend"] is not None
    problem = found["problems"][0]
    assert problem["what"].startswith("the demo does not run: ")
    assert what in problem["what"]
    assert fix in problem["fix"]


def test_what_needs_root_is_told_and_who_may_what_is_tried() -> None:
    found = {item["what"].split(" (")[0]: item for item in examine().as_json()["needs_root"]}
    assert set(found) == {
        "physical frame numbers",
        "the parameters of KVM's modules",
        "the kernel's log",
    }
    assert all("sudo" in item["without"] for item in found.values())
    if os.geteuid() == 0:
        assert found["the kernel's log"]["available"]


# ---- The command ----


def test_the_command_exits_with_0_where_the_demo_runs_and_prints_the_same_as_json() -> None:
    shown, as_json = pageferry("doctor"), pageferry("doctor", "--json")
    assert (shown.code, shown.err, as_json.code, as_json.err) == (0, "", 0, "")
    assert pageferry("demo").code == 0
    found = json.loads(as_json.out)
    assert shown.out.startswith(f"{found['verdict']}: ")
    for quirk in found["quirks"]:
        assert quirk["evidence"] in shown.out
    for problem in found["problems"]:
        assert problem["what"] in shown.out
        assert problem["fix"] in shown.out
    for name in ("ring", "mover", "doorbell"):
        assert str(found[name]) in shown.out
    assert "copied: to exchange " in shown.out  # how much may differ, of a host that is busy


def unusable(ended: Ended, *words: str) -> None:
    """Check that all that can be known is shown, that these words are, and the way out."""
    assert (ended.code, ended.err) == (69, "")
    assert ended.out.startswith("unusable: ")
    lines = {line.split()[0] for line in ended.out.splitlines() if line.startswith("  ")}
    assert {"device", "kernel", "CPU", "KVM"} <= lines
    *_, last = ended.out.splitlines()
    assert "pageferry nested --lane npt" in last
    assert all(word in ended.out for word in words), ended.out


@root_only
def test_for_a_user_who_may_not_open_it_the_group_is_named() -> None:
    if Path("/dev/kvm").stat().st_mode & 0o006:
        pytest.skip("here everybody may")
    ended = after("", "doctor", nobody=True)
    unusable(ended, "no permission", "you may not", "usermod -aG ", "would need root", "sudo dmesg")


@root_only
def test_a_group_that_may_is_named_by_the_devices_own() -> None:
    names = [group.gr_name for group in grp.getgrall() if group.gr_gid == 1]
    words = (f"usermod -aG {names[0]} ",) if names else ("has no name here", "groupadd")
    setup = "mount -t tmpfs tmpfs /dev; mknod /dev/kvm c 10 232; chown 0:1 /dev/kvm"
    ended = after(f"{setup}; chmod 660 /dev/kvm", "doctor", nobody=True)
    unusable(ended, *words, "log in again")


HIDDEN = "mount -t tmpfs tmpfs /dev"


@pytest.mark.not_in_ept("what the doctor says where there is no device")
@root_only
@pytest.mark.parametrize(
    ("cpu", "misc", "words"),
    [
        ("GenuineIntel vmx", "", ("though the CPU has vmx", "modprobe kvm_intel")),
        ("AuthenticAMD svm", "", ("though the CPU has svm", "modprobe kvm_amd")),
        ("GenuineIntel fpu", "", ("neither vmx nor svm", "firmware", "VT-x")),
        ("AuthenticAMD fpu", "", ("neither vmx nor svm", "firmware", "SVM")),
        ("GenuineIntel hypervisor", "", ("in this VM", "outer hypervisor")),
        ("GenuineIntel vmx", "232 kvm", ("driver is loaded", "--device /dev/kvm")),
    ],
)
def test_what_to_do_without_a_device_goes_by_what_the_kernel_shows(
    tmp_path: Path, cpu: str, misc: str, words: tuple[str, ...]
) -> None:
    vendor, flag = cpu.split()
    (tmp_path / "cpuinfo").write_text(f"vendor_id\t: {vendor}\nflags\t\t: {flag}\n")
    (tmp_path / "misc").write_text(misc)
    shown = (
        f"mount --bind {tmp_path}/cpuinfo /proc/cpuinfo; mount --bind {tmp_path}/misc /proc/misc; "
    )
    unusable(after(shown + HIDDEN, "doctor"), "does not exist", *words)


@root_only
def test_the_findings_of_an_unusable_host_are_json_as_well() -> None:
    ended = after(HIDDEN, "doctor", "--json")
    found: dict[str, Any] = json.loads(ended.out)
    assert (ended.code, found["verdict"], found["ring0"]) == (69, "unusable", "absent")
    assert (found["doorbells"], found["exit_us"]) == (dict.fromkeys(DOORBELLS, False), {})
    assert found["kernel"]
    assert found["elsewhere"].startswith("pageferry nested")
