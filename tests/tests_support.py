"""What several tests need: sizes that a nested lane can bear, what this process holds."""

from __future__ import annotations

import errno
import fcntl
import os
from functools import cache
from pathlib import Path
from typing import Any

KVM_GET_API_VERSION = 0xAE << 8  # _IO(KVMIO, 0): asked here without the code under test
KVM_API_VERSION = 12

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


def sized(full: int, lane: int) -> int:
    """Return how much of something a test does: less in a nested lane.

    The test is marked `smaller_in_lanes`, with the reason.
    """
    return lane if IN_LANE else full


def held() -> dict[str, Any]:
    """Return descriptors, threads, and mappings that are ours.

    Memfds, vCPUs, reserved and private memory.
    """
    listing = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)
    try:
        descriptors = set(os.listdir(listing)) - {str(listing)}  # noqa: PTH208 - of a descriptor
    finally:
        os.close(listing)
    maps = Path("/proc/self/maps").read_text().splitlines()
    names = ("pageferry", "kvm-vcpu", "kvm-")
    return {
        "descriptors": descriptors,
        "threads": len(list(Path("/proc/self/task").iterdir())),
        "mappings": sum(any(name in line for name in names) for line in maps),
        "address space": _large(maps),
    }


def _large(maps: list[str]) -> int:
    """Return the bytes of anonymous mappings of at least 2 MiB.

    Windows and private memory, no heap arenas.
    """
    total = 0
    for line in maps:
        fields = line.split()
        low, high = (int(part, 16) for part in fields[0].split("-"))
        if len(fields) == 5 and "-p" in fields[1] and "---" in fields[1]:
            total += high - low
    return total
