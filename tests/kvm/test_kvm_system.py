"""/dev/kvm itself: what it says of the host, and the VMs it makes."""

import ctypes
import errno
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmm.kvm import ClosedDescriptorError, Kvm, system, uapi
from vmm.kvm.structs import kvm_run

MSR_TSC = 0x10
MSR_SYSENTER_EIP = 0x176


@pytest.fixture
def kvm() -> Iterator[Kvm]:
    with Kvm.open() as opened:
        yield opened


def test_the_version_is_the_one_we_speak(kvm: Kvm) -> None:
    assert kvm.api_version() == uapi.KVM_API_VERSION


def test_the_run_page_has_room_for_the_structure(kvm: Kvm) -> None:
    assert kvm.vcpu_mmap_size() >= ctypes.sizeof(kvm_run)
    assert kvm.vcpu_mmap_size() % mmap.PAGESIZE == 0


def test_known_capabilities_are_there_and_unknown_ones_are_not(kvm: Kvm) -> None:
    assert kvm.check_extension(uapi.KVM_CAP_USER_MEMORY) > 0
    assert kvm.check_extension(uapi.KVM_CAP_NR_MEMSLOTS) >= 32
    assert kvm.check_extension(0x7FFFFFFF) == 0


def test_cpuid_names_the_hosts_vendor(kvm: Kvm) -> None:
    leaf = next(entry for entry in kvm.supported_cpuid() if entry.function == 0)
    vendor = struct.pack("<3I", leaf.ebx, leaf.edx, leaf.ecx).decode()
    assert f"vendor_id\t: {vendor}\n" in Path("/proc/cpuinfo").read_text()


def test_cpuid_has_each_leaf_once(kvm: Kvm) -> None:
    leaves = [(entry.function, entry.index) for entry in kvm.supported_cpuid()]
    assert len(leaves) == len(set(leaves))


def test_a_cpuid_buffer_too_small_grows(kvm: Kvm, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [(e.function, e.index) for e in kvm.supported_cpuid()]
    monkeypatch.setattr(system, "_FIRST_CPUID_ENTRIES", 1)
    assert [(e.function, e.index) for e in kvm.supported_cpuid()] == before


def test_cpuid_gives_up_where_no_size_is_enough(kvm: Kvm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "_FIRST_CPUID_ENTRIES", 1)
    monkeypatch.setattr(system, "_MAX_CPUID_ENTRIES", 1)
    with pytest.raises(OSError, match="KVM_GET_SUPPORTED_CPUID on kvm fd") as caught:
        kvm.supported_cpuid()
    assert caught.value.errno == errno.E2BIG


def test_the_msr_list_has_what_every_guest_has(kvm: Kvm) -> None:
    indices = kvm.msr_index_list()
    assert {MSR_TSC, MSR_SYSENTER_EIP} <= set(indices)
    assert len(indices) == len(set(indices))


def test_the_feature_msr_list_is_another_one(kvm: Kvm) -> None:
    features = kvm.msr_feature_index_list()
    assert features
    assert MSR_SYSENTER_EIP not in features


def test_a_vm_outlives_the_device_it_came_from() -> None:
    kvm = Kvm.open()
    with kvm.create_vm() as vm:
        kvm.close()
        assert vm.check_extension(uapi.KVM_CAP_USER_MEMORY) > 0


def test_a_machine_type_that_is_not_there_is_refused(kvm: Kvm) -> None:
    with pytest.raises(OSError, match=f"KVM_CREATE_VM on kvm fd {kvm.fileno()}: Invalid argument"):
        kvm.create_vm(type=0x7FFF)


def test_a_closed_device_makes_no_vm(kvm: Kvm) -> None:
    kvm.close()
    with pytest.raises(ClosedDescriptorError, match="kvm descriptor is closed"):
        kvm.create_vm()
