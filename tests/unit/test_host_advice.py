"""What to do about a host, from facts of hosts that are not at hand."""

from __future__ import annotations

import errno
import stat

import pytest

from vmm.host import advice
from vmm.host.advice import Problem
from vmm.host.node import KVM_NUMBER, Node
from vmm.host.system import System

INTEL = System("6.1", "GenuineIntel", frozenset({"vmx"}), driver=False, user="ann")
AMD = System("6.1", "AuthenticAMD", frozenset({"svm"}), driver=False, user="ann")
INTEL_WITHOUT = System("6.1", "GenuineIntel", driver=False)
AMD_WITHOUT = System("6.1", "AuthenticAMD", driver=False)
IN_A_VM = System("6.1", "GenuineIntel", frozenset({"hypervisor"}), driver=False)
CONTAINER = System("6.1", "GenuineIntel", frozenset({"vmx"}), driver=True)
UNKNOWN = System("6.1")


def device(permissions: int, group: str = "kvm", **more: bool) -> Node:
    return Node("/dev/kvm", stat.S_IFCHR | permissions, KVM_NUMBER, "root", group, **more)


def failed(node: Node, system: System, code: int) -> Problem:
    return advice.cannot_open(node, system, OSError(code, "as the kernel says"))


def says(problem: Problem, *words: str, never: tuple[str, ...] = ()) -> None:
    text = f"{problem.what}: {problem.fix}"
    assert all(word in text for word in words), text
    assert not any(word in text for word in never), text
    assert "\n" not in text


# ---- No device ----


@pytest.mark.parametrize(
    ("system", "words", "never"),
    [
        (INTEL, ("modprobe kvm_intel", "CONFIG_KVM_INTEL", "VT-x"), ("kvm_amd", "outer")),
        (AMD, ("modprobe kvm_amd", "CONFIG_KVM_AMD", "SVM"), ("kvm_intel", "outer")),
        (INTEL_WITHOUT, ("neither vmx nor svm", "firmware", "VT-x"), ("modprobe", "outer", "SVM")),
        (AMD_WITHOUT, ("neither vmx nor svm", "firmware", "SVM Mode"), ("modprobe", "VT-x")),
        (IN_A_VM, ("in this VM", "outer", "nested=1", "CPU model host"), ("modprobe", "firmware")),
        (CONTAINER, ("driver is loaded", "--device /dev/kvm", "mknod"), ("modprobe", "firmware")),
        (UNKNOWN, ("does not exist", "firmware", "outer", "modprobe kvm_intel"), ("neither",)),
    ],
    ids=["intel", "amd", "intel-off", "amd-off", "vm", "container", "unknown"],
)
def test_without_a_device_the_advice_goes_by_the_cpu_and_the_driver(
    system: System, words: tuple[str, ...], never: tuple[str, ...]
) -> None:
    says(failed(Node("/dev/kvm"), system, errno.ENOENT), "does not exist", *words, never=never)


@pytest.mark.parametrize(
    ("maker", "word"),
    [
        ("QEMU", "-cpu host"),
        ("Amazon EC2", ".metal"),
        ("Google", "--enable-nested-virtualization"),
        ("Microsoft Corporation", "ExposeVirtualizationExtensions"),
        ("VMware, Inc.", "vhv.enable"),
        ("innotek GmbH", "--nested-hw-virt"),
        ("Xen", "nestedhvm=1"),
        ("Somebody else", "CPU model host"),
        (None, "CPU model host"),
    ],
)
def test_in_a_vm_the_advice_is_for_the_hypervisor_that_made_it(
    maker: str | None, word: str
) -> None:
    system = System("6.1", "GenuineIntel", frozenset({"hypervisor"}), maker)
    says(failed(Node("/dev/kvm"), system, errno.ENOENT), "outer hypervisor", word)
    says(advice.emulated_ring(system), "ring 0 is emulated", "EPT or NPT", word)


def test_wsl_is_known_by_its_kernel() -> None:
    wsl = System("5.15.90.1-microsoft-standard-WSL2", "GenuineIntel", frozenset({"hypervisor"}))
    says(failed(Node("/dev/kvm"), wsl, errno.ENOENT), ".wslconfig")


# ---- No permission ----


def test_a_group_that_may_is_named() -> None:
    for group in ("kvm", "virt"):
        problem = failed(device(0o660, group), INTEL, errno.EACCES)
        says(problem, f"root {group}", f"usermod -aG {group} ann", "log in again", never=("chmod",))


def test_who_is_in_the_group_since_the_login_needs_to_log_in_again() -> None:
    problem = failed(device(0o660, listed=True), INTEL, errno.EACCES)
    says(problem, "log in again", "newgrp kvm", never=("usermod",))


@pytest.mark.parametrize("node", [device(0o600, "root"), device(0o660, "root"), device(0o600)])
def test_a_device_for_root_alone_gets_a_group_first(node: Node) -> None:
    """Nobody is to join the group root, nor one that may not use the device either."""
    problem = failed(node, INTEL, errno.EACCES)
    steps = ("groupadd -f -r kvm", "chgrp kvm", "chmod 660", "usermod -aG kvm ann", "udev")
    says(problem, *steps, "root alone", never=("usermod -aG root",))


def test_a_group_without_a_name_cannot_be_joined() -> None:
    problem = failed(device(0o660, "1234"), INTEL, errno.EACCES)
    says(problem, "1234 has no name here", "chgrp kvm", never=("usermod -aG 1234",))


def test_what_else_forbids_it_is_told_apart() -> None:
    says(failed(device(0o660), INTEL, errno.EPERM), "container", "--device /dev/kvm")
    says(failed(device(0o666, allowed=True), INTEL, errno.EACCES), "nodev", "SELinux")
    says(failed(device(0o660, member=True), INTEL, errno.EACCES), "getfacl")
    says(failed(Node("/dev/kvm"), INTEL, errno.EACCES), "searchable")


# ---- Something else at the path ----


def test_a_device_without_a_driver() -> None:
    other = Node("/dev/kvm", stat.S_IFCHR | 0o600, (240, 77), "root", "root")
    says(failed(other, INTEL, errno.ENXIO), "no driver", "240:77", "mknod", "c 10 232")
    says(failed(device(0o600), INTEL, errno.ENODEV), "no driver", "modprobe kvm_intel")
    says(failed(device(0o600), IN_A_VM, errno.ENXIO), "no driver", "outer", never=("modprobe",))


def test_what_is_no_device_at_all() -> None:
    folder = Node("/dev/kvm", stat.S_IFDIR | 0o755, owner="root", group="root", allowed=True)
    says(failed(folder, INTEL, errno.EISDIR), "Is a directory", "move it away", "c 10 232")
    says(advice.not_kvm(folder, "why"), "is not KVM (why)", "move it away")
    says(advice.not_kvm(device(0o600), "why"), "is not KVM (why)", "dmesg", never=("mknod",))
    says(failed(device(0o600), INTEL, errno.EIO), "cannot be opened", "dmesg", never=("mknod",))


# ---- What could be better ----


def test_where_paging_is_shadowed_though_the_cpu_could_do_better() -> None:
    with_ept = System("6.1", "GenuineIntel", frozenset({"vmx", "ept"}))
    says(advice.shadow_paging(with_ept), "modprobe kvm_intel ept=1")
    with_npt = System("6.1", "AuthenticAMD", frozenset({"svm", "npt"}))
    says(advice.shadow_paging(with_npt), "modprobe kvm_amd npt=1")
    says(advice.shadow_paging(INTEL), "a CPU with EPT", never=("modprobe",))


def test_an_emulated_ring_of_a_cpu_that_could_do_better_is_not_the_firmwares_fault() -> None:
    says(advice.emulated_ring(INTEL), "EPT or NPT", never=("firmware", "outer"))
    says(advice.emulated_ring(INTEL_WITHOUT), "EPT or NPT", "firmware")


def test_hypercalls_that_do_not_arrive() -> None:
    says(advice.no_hypercall((5, 10), offered=False), "5.14")
    says(advice.no_hypercall((6, 1), offered=False), "kernel", never=("5.14",))
    says(advice.no_hypercall((6, 1), offered=True), "outer hypervisor")


def test_each_kind_of_memory_without_huge_pages_is_a_problem_of_its_own() -> None:
    assert advice.no_huge_pages(True, True) == []
    assert len(advice.no_huge_pages(False, False)) == 2
    says(advice.no_huge_pages(False, True)[0], "anonymous", "/enabled")
    says(advice.no_huge_pages(True, False)[0], "memfd", "/shmem_enabled")


def test_another_file_than_kvms_is_not_to_be_made_or_moved_away() -> None:
    """Somebody who names /dev/null by mistake is not told to replace it."""
    never = ("mknod", "rm ", "move")
    null = Node("/dev/null", stat.S_IFCHR | 0o666, (1, 3), "root", "root", allowed=True)
    says(failed(null, INTEL, errno.ENXIO), "name KVM's device", "/dev/kvm", never=never)
    says(failed(Node("/nope"), INTEL, errno.ENOENT), "name KVM's device", never=never)
