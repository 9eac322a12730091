"""What several tests need: sizes that a nested lane can bear, what this process holds."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import cache, lru_cache
from mmap import PAGESIZE
from pathlib import Path
from typing import Any

KVM_GET_API_VERSION = 0xAE << 8  # _IO(KVMIO, 0): asked here without the code under test
KVM_API_VERSION = 12

RESERVED = "bytes of reserved address space"

IN_LANE = "PAGEFERRY_LANE" in os.environ


@cache
def kvm_missing() -> str | None:
    """Why tests cannot use /dev/kvm, or None if they can."""
    try:
        fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"/dev/kvm: {os.strerror(error.errno or errno.EIO)}"
    try:
        version = fcntl.ioctl(fd, KVM_GET_API_VERSION)
    except OSError as error:
        return f"/dev/kvm: KVM_GET_API_VERSION: {os.strerror(error.errno or errno.EIO)}"
    finally:
        os.close(fd)
    return None if version == KVM_API_VERSION else f"/dev/kvm has API {version}, not 12"


def sized(full: Any, lane: Any) -> Any:
    """Return how much of something a test does, or how many of them: less in a nested lane.

    The test is marked `smaller_in_lanes`, with the reason.
    """
    return lane if IN_LANE else full


def held() -> Counter[str]:
    """Return what this process holds of the kernel, and how much of each.

    Descriptors, threads, mappings of memfds and of vCPUs, reserved address space; and the signals
    that this thread blocks. A mapping all of whose pages are guarded is as good as reserved space:
    a window's place, that is hidden.
    """
    found: Counter[str] = Counter()
    for fd in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with suppress(FileNotFoundError):  # the descriptor of this very listing
            found[f"descriptor {fd} of {os.readlink(f'/proc/self/fd/{fd}')}"] += 1  # noqa: PTH115
    found.update(f"thread {thread.name}" for thread in threading.enumerate())
    found.update(f"blocked {number!r}" for number in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    found["tasks"] = len(os.listdir("/proc/self/task"))  # noqa: PTH208
    for line in Path("/proc/self/maps").read_text().splitlines():
        for what, many in _held_by(line):
            if "pageferry-pool" not in line or not _is_guarded(line):
                found[what] += many
    return found


def _is_guarded(line: str) -> bool:
    """Whether nothing can be seen through a mapping (admin-guide/mm/pagemap, bit 58)."""
    low, high = (int(part, 16) // PAGESIZE for part in line.split()[0].split("-"))
    with Path("/proc/self/pagemap").open("rb", buffering=0) as file:
        file.seek(low * 8)
        for first in range(low, high, 65536):
            entries = file.read(8 * min(65536, high - first))
            if not all(byte & 4 for byte in entries[7::8]):
                return False
    return True


@lru_cache(1 << 12)  # from test to test most lines are the same
def _held_by(line: str) -> list[tuple[str, int]]:
    """Return what a line of /proc/self/maps counts for, if for anything."""
    addresses, protection, _, _, _, *name = line.split()
    if protection == "---p" and not name:
        low, high = (int(part, 16) for part in addresses.split("-"))
        return [(RESERVED, high - low)]
    return [(f"mappings of {k}", 1) for k in ("/memfd:", "anon_inode:kvm-") if k in line]


@contextlib.contextmanager
def descriptors_left(spare: int) -> Iterator[None]:
    """Let exactly `spare` more descriptors be opened in the block."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.dup(0) for _ in range(spare + 1)]
    for fd in taken:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[spare], limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
