"""What a vCPU's page says of an exit, read by us: the page is memory of our own here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vmm.kvm import MmioRead, MmioWrite, uapi
from vmm.kvm.run_page import _MOST_KNOWN, RunPage

PAGE = 4096
DOORBELL = 0x1234000


@pytest.fixture
def page() -> Iterator[RunPage]:
    page = RunPage(-1, 3 * PAGE)
    yield page
    page.close()


def store(page: RunPage, address: int, data: bytes, beyond: bytes = b"") -> None:
    """Let the page describe a store, with what the kernel left beyond its length."""
    page.run.exit_reason = uapi.KVM_EXIT_MMIO
    page.mmio.phys_addr = address
    page.mmio.len = len(data)
    page.mmio.is_write = 1
    page.mmio.data[:8] = list((data + beyond).ljust(8, b"\0"))


def test_a_store_is_known_the_second_time(page: RunPage) -> None:
    store(page, DOORBELL, b"\1\0\0\0")
    first = page.decode()
    assert first == MmioWrite(DOORBELL, b"\1\0\0\0")
    assert page.decode() is first


def test_other_data_another_length_and_another_address_are_other_exits(page: RunPage) -> None:
    seen = []
    for address, data in (
        (DOORBELL, b"\1\0\0\0"),
        (DOORBELL, b"\2\0\0\0"),
        (DOORBELL, b"\1\0"),
        (DOORBELL, b"\1\0\0\0\0\0\0\0"),
        (DOORBELL + 4, b"\1\0\0\0"),
        (DOORBELL + (1 << 32), b"\1\0\0\0"),
    ):
        for _ in range(2):
            store(page, address, data)
            assert page.decode() == MmioWrite(address, data)
        seen.append(page.decode())
    assert len(set(seen)) == len(seen)


def test_what_lies_beyond_a_store_is_no_part_of_it(page: RunPage) -> None:
    store(page, DOORBELL, b"\1\0", beyond=b"\7\7")
    assert page.decode() == MmioWrite(DOORBELL, b"\1\0")


def test_a_load_is_not_taken_for_a_store_of_the_same_data(page: RunPage) -> None:
    store(page, DOORBELL, b"\1\0\0\0")
    page.decode()
    page.mmio.is_write = 0
    assert page.decode() == MmioRead(DOORBELL, 4)
    page.mmio.is_write = 1
    assert page.decode() == MmioWrite(DOORBELL, b"\1\0\0\0")


def test_what_is_known_is_bounded_whatever_a_guest_stores(page: RunPage) -> None:
    for value in range(3 * _MOST_KNOWN):
        data = value.to_bytes(4, "little")
        store(page, DOORBELL, data)
        assert page.decode() == MmioWrite(DOORBELL, data)
        assert len(page.known) <= _MOST_KNOWN
    store(page, DOORBELL, bytes(4))  # one of those that are forgotten
    assert page.decode() == MmioWrite(DOORBELL, bytes(4))


def test_each_page_knows_its_own(page: RunPage) -> None:
    store(page, DOORBELL, b"\1\0\0\0")
    page.decode()
    other = RunPage(-1, 3 * PAGE)
    try:
        assert not other.known
    finally:
        other.close()
