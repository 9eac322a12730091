"""What is made of the kernel's own words, and of the device as a file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from vmm.host.module import Backend, backend
from vmm.host.node import KVM_NUMBER, Node, look
from vmm.host.system import System, kernel_version, parse_cpuinfo, parse_misc, read_text

CPUINFO = """processor\t: 0
vendor_id\t: AuthenticAMD
flags\t\t: fpu svm npt hypervisor

processor\t: 1
vendor_id\t: AuthenticAMD
flags\t\t: fpu
"""


def test_the_first_cpu_speaks_for_all() -> None:
    assert parse_cpuinfo(CPUINFO) == (
        "AuthenticAMD",
        frozenset(("fpu", "svm", "npt", "hypervisor")),
    )
    assert parse_cpuinfo("") == (None, frozenset())


@pytest.mark.parametrize(
    ("text", "registered"),
    [("232 kvm\n183 hwrng\n", True), ("231 kvmish\n", False), ("", False), (None, None)],
)
def test_kvms_device_is_registered_where_misc_lists_it(
    text: str | None, registered: bool | None
) -> None:
    assert parse_misc(text) is registered


@pytest.mark.parametrize(
    ("release", "version"),
    [("6.18.44", (6, 18)), ("5.15.0-100-generic", (5, 15)), ("6.8-rc1", (6, 8)), ("odd", (0, 0))],
)
def test_a_kernels_release_has_a_version(release: str, version: tuple[int, int]) -> None:
    assert kernel_version(release) == version


@pytest.mark.parametrize(
    ("vendor", "flags", "modules", "module"),
    [
        ("GenuineIntel", "vmx", "kvm kvm_intel", "kvm_intel"),
        ("AuthenticAMD", "svm", "kvm kvm_amd", "kvm_amd"),
        ("HygonGenuine", "svm", "kvm kvm_amd", "kvm_amd"),
        # Built in, both are there whatever the CPU.
        ("AuthenticAMD", "svm", "kvm kvm_amd kvm_intel", "kvm_amd"),
        ("GenuineIntel", "vmx", "kvm kvm_amd kvm_intel", "kvm_intel"),
        ("GenuineIntel", "", "kvm kvm_pvm", "kvm_pvm"),
        ("GenuineIntel", "", "kvm kvm_intel kvm_pvm", "kvm_pvm"),
        ("GenuineIntel", "", "kvm kvm_intel", "kvm_intel"),
        (None, "", "kvm kvm_intel", "kvm_intel"),
        ("GenuineIntel", "vmx", "kvm", None),
        ("GenuineIntel", "", "", None),
    ],
)
def test_the_module_is_the_cpus_own_where_there_is_a_choice(
    vendor: str | None, flags: str, modules: str, module: str | None
) -> None:
    system = System("6.1", vendor, frozenset(flags.split()), modules=frozenset(modules.split()))
    assert system.module == module


@pytest.mark.parametrize(
    ("module", "parameters", "kind"),
    [
        ("kvm_intel", {"kvm_intel.ept": "Y"}, Backend.EPT),
        ("kvm_intel", {"kvm_intel.ept": "N"}, Backend.SHADOW),
        ("kvm_amd", {"kvm_amd.npt": "1"}, Backend.NPT),
        ("kvm_amd", {"kvm_amd.npt": "0", "kvm_intel.ept": "Y"}, Backend.SHADOW),
        ("kvm_amd", {"kvm_amd.npt": None}, Backend.SHADOW),
        ("kvm_pvm", {}, Backend.SHADOW),
        (None, {}, Backend.SHADOW),
    ],
)
def test_the_back_end_is_what_its_module_says(
    module: str | None, parameters: dict[str, str | None], kind: Backend
) -> None:
    assert backend(module, parameters) is kind


def test_a_device_is_looked_at_without_being_opened(tmp_path: Path) -> None:
    null = look("/dev/null")
    assert null.is_device
    assert null.allowed
    assert null.number != KVM_NUMBER
    assert null.permissions().startswith("crw-rw-rw- ")
    file = tmp_path / "file"
    file.write_bytes(b"")
    file.chmod(0o640)
    found = look(str(file))
    assert not found.is_device
    assert found.mode is not None
    assert stat.S_IMODE(found.mode) == 0o640
    assert found.member == (os.stat(file).st_gid in {os.getegid(), *os.getgroups()})  # noqa: PTH116


@pytest.mark.parametrize("path", ["missing", "file/below", "nul\0byte"])
def test_what_is_not_there_is_a_node_without_a_mode(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    path = str(tmp_path / path)
    assert look(path) == Node(path)
    assert Node(path).permissions() == ""


def test_a_text_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    assert read_text(tmp_path) is None
    (tmp_path / "text").write_bytes(b" Y\xff\n")
    assert read_text(tmp_path / "text") == "Y\N{REPLACEMENT CHARACTER}"
