"""The page pool: sparse memory, and zeros for whoever gets a page next."""

from __future__ import annotations

import ctypes
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmm.guest.abi import PAGE_SIZE
from vmm.memory import pool as pool_module
from vmm.memory.mapping import Mapping
from vmm.memory.pool import PagePool

FRAMES = 8


@pytest.fixture
def pool() -> Iterator[PagePool]:
    pool = PagePool(FRAMES)
    yield pool
    pool.close()


def populated(pool: PagePool) -> int:
    """How many of the pool's pages have memory behind them."""
    return os.fstat(pool.fd).st_blocks * 512 // PAGE_SIZE


def test_a_fresh_pool_is_all_there_and_costs_nothing(pool: PagePool) -> None:
    assert os.fstat(pool.fd).st_size == FRAMES * PAGE_SIZE
    assert populated(pool) == 0
    assert os.pread(pool.fd, FRAMES * PAGE_SIZE, 0) == bytes(FRAMES * PAGE_SIZE)


def test_zeroed_pages_read_as_zeros_and_the_others_as_before(pool: PagePool) -> None:
    with Mapping.shared(FRAMES * PAGE_SIZE, pool.fd) as mapped:
        view = mapped.view()
        view[:] = b"\xff" * len(view)
        pool.zero([(1, 2), (6, 1)])
        first_bytes = [view[frame * PAGE_SIZE] for frame in range(FRAMES)]
        assert first_bytes == [255, 0, 0, 255, 255, 255, 0, 255]
        assert bytes(view[PAGE_SIZE : 3 * PAGE_SIZE]) == bytes(2 * PAGE_SIZE)
        assert bytes(view[:PAGE_SIZE]) == b"\xff" * PAGE_SIZE
        view.release()


def test_zeroed_pages_go_back_to_the_kernel_and_come_again_when_touched(pool: PagePool) -> None:
    os.pwrite(pool.fd, b"\xff" * (FRAMES * PAGE_SIZE), 0)
    assert populated(pool) == FRAMES
    pool.zero([(0, 3)])
    assert populated(pool) == FRAMES - 3
    assert os.fstat(pool.fd).st_size == FRAMES * PAGE_SIZE
    os.pwrite(pool.fd, b"x", PAGE_SIZE)
    assert populated(pool) == FRAMES - 2


def test_the_pool_is_not_handed_to_child_processes(pool: PagePool) -> None:
    assert fcntl.fcntl(pool.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


def test_closing_again_does_nothing() -> None:
    pool = PagePool(1)
    fd = pool.fd
    pool.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    stranger = os.open("/dev/null", os.O_RDONLY)  # most likely the same number
    pool.close()
    os.fstat(stranger)
    os.close(stranger)


def test_a_pool_beyond_what_a_file_can_be_leaks_nothing() -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises((OSError, OverflowError)):
        PagePool(1 << 51)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@pytest.mark.parametrize(
    ("files", "advised"),
    [
        ({}, False),
        ({"shmem_enabled": "always within_size [advise] never deny force"}, True),
        ({"shmem_enabled": "[always] within_size advise never deny force"}, False),
        ({"hugepages-2048kB/shmem_enabled": "always [inherit] advise never",
          "shmem_enabled": "always [advise] never"}, True),
        ({"hugepages-2048kB/shmem_enabled": "always inherit [advise] never",
          "shmem_enabled": "always advise [never]"}, True),
        ({"hugepages-2048kB/shmem_enabled": "always inherit advise [never]",
          "shmem_enabled": "always [advise] never"}, False),
    ],
)  # fmt: skip
def test_mappings_are_advised_where_that_makes_the_difference(
    files: dict[str, str], advised: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, setting in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(setting + "\n")
    monkeypatch.setattr(pool_module, "_SETTINGS", tmp_path)
    pool = PagePool(1)
    assert pool.advised is advised
    pool.close()


def test_what_fills_frames_is_what_they_hold_and_nothing_else_is_touched(pool: PagePool) -> None:
    with Mapping.anonymous(2 * PAGE_SIZE) as memory:
        ctypes.memset(memory.address, 7, PAGE_SIZE)
        ctypes.memset(memory.address + PAGE_SIZE, 8, PAGE_SIZE)
        pool.fill(3, memory.address, 2 * PAGE_SIZE)
    expected = bytes(3 * PAGE_SIZE) + b"\7" * PAGE_SIZE + b"\10" * PAGE_SIZE + bytes(3 * PAGE_SIZE)
    assert os.pread(pool.fd, FRAMES * PAGE_SIZE, 0) == expected
    assert populated(pool) == 2
