"""A descriptor is closed once, never used afterwards, and its errors say what failed."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmm.kvm import ClosedDescriptorError, Descriptor, Kvm
from vmm.kvm.uapi import Ioctl, SystemIoctl, VmIoctl


def null_fd() -> int:
    return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@pytest.fixture
def null() -> Iterator[Descriptor]:
    with Descriptor(null_fd()) as descriptor:
        yield descriptor


def test_close_gives_the_descriptor_back(null: Descriptor) -> None:
    fd = null.fileno()
    null.close()
    assert null.closed
    assert not is_open(fd)


def test_a_second_close_does_not_close_the_numbers_next_owner(null: Descriptor) -> None:
    fd = null.fileno()
    null.close()
    other = null_fd()
    try:
        assert other == fd  # the kernel hands out the lowest free number
        null.close()
        assert is_open(other)
    finally:
        os.close(other)


def test_the_number_is_forgotten_even_if_the_kernel_refuses_to_close(null: Descriptor) -> None:
    os.close(null.fileno())
    with pytest.raises(OSError, match="Bad file descriptor"):
        null.close()
    assert null.closed
    null.close()


def test_use_after_close_is_an_error_of_its_own(null: Descriptor) -> None:
    null.close()
    with pytest.raises(ClosedDescriptorError, match="file descriptor is closed"):
        null.fileno()
    with pytest.raises(ClosedDescriptorError):
        null._ioctl(SystemIoctl.KVM_GET_API_VERSION)
    with pytest.raises(ClosedDescriptorError), null:
        pass


def test_a_with_block_closes_also_when_it_fails() -> None:
    descriptor = Descriptor(null_fd())
    with pytest.raises(RuntimeError), descriptor:
        raise RuntimeError
    assert descriptor.closed


def test_an_unclosed_descriptor_is_warned_of_and_closed() -> None:
    descriptor = Descriptor(null_fd())
    fd = descriptor.fileno()
    with pytest.warns(ResourceWarning, match=f"unclosed <Descriptor fd {fd}>"):
        del descriptor  # counted references: gone at once
    assert not is_open(fd)


def test_a_refusal_names_the_request_the_object_and_the_errno() -> None:
    with Kvm(null_fd()) as not_kvm:
        with pytest.raises(OSError) as caught:  # noqa: PT011 - its text is checked below
            not_kvm.api_version()
        assert caught.value.errno == errno.ENOTTY
        assert caught.value.strerror == (
            f"KVM_GET_API_VERSION on kvm fd {not_kvm.fileno()}: Inappropriate ioctl for device"
        )


def test_a_request_the_kernel_does_not_know_names_the_missing_capability(null: Descriptor) -> None:
    with pytest.raises(OSError, match=r"KVM_CREATE_IRQCHIP .* \(needs KVM_CAP_IRQCHIP\)$"):
        null._ioctl(VmIoctl.KVM_CREATE_IRQCHIP)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOENT, FileNotFoundError),
        (errno.EEXIST, FileExistsError),
        (errno.EPERM, PermissionError),
        (errno.EINVAL, OSError),
    ],
)
def test_errors_have_the_class_of_their_errno(
    null: Descriptor, code: int, kind: type[OSError]
) -> None:
    error = null._error(VmIoctl.KVM_CREATE_VCPU, code)
    assert type(error) is kind
    assert error.errno == code


def test_a_positive_result_is_no_error() -> None:
    get_type = Ioctl(0xB703)  # NS_GET_NSTYPE returns a CLONE_* flag, here CLONE_NEWUTS
    with Descriptor(os.open("/proc/self/ns/uts", os.O_RDONLY | os.O_CLOEXEC)) as namespace:
        assert namespace._ioctl(get_type) == 0x04000000


def test_open_of_nothing_is_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Kvm.open(tmp_path / "kvm")


def test_open_does_not_let_the_descriptor_into_other_programs() -> None:
    with Kvm.open(os.devnull) as kvm:
        assert not os.get_inheritable(kvm.fileno())
