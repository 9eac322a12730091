"""Windows that memory is moved to: what the kernel says of them, and a host that refuses."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable
from pathlib import Path

from kvm.mappings import View, mappings, views

from vmm.guest.abi import PAGE_SIZE
from vmm.memory.movers import RemapWindow
from vmm.memory.movers.park import Park

FRAMES = 64
LARGE = 4  # frames that get anonymous memory
PROT_NONE = "---p"


def seen(window: RemapWindow) -> list[View]:
    return views(window, mappings())


def lines(address: int, size: int) -> list[str]:
    """Return the permissions of the mappings that an address range is made of."""
    found, end = [], address + size
    with Path("/proc/self/maps").open() as file:
        for line in file:
            bounds, permissions = line.split()[:2]
            low, high = (int(bound, 16) for bound in bounds.split("-"))
            if low < end and address < high:
                assert low <= address
                found.append(permissions)
                address = high
    assert address >= end, "a hole"
    return found


def homes(park: Park) -> list[str]:
    return lines(park.home(0), FRAMES * PAGE_SIZE)


def window_lines(window: RemapWindow) -> list[str]:
    return lines(window.mapping.address, window.mapping.size)


def write(window: RemapWindow, page: int, count: int = 1) -> None:
    """Write into each page its number."""
    for i in range(page, page + count):
        ctypes.memset(window.address(i), i + 1, PAGE_SIZE)


def read(window: RemapWindow, page: int, count: int = 1) -> list[int]:
    return [ctypes.string_at(window.address(i), 1)[0] for i in range(page, page + count)]


CALLS = ("show", "hide", "move", "protect", "store")


class Refusals:
    """Refuses calls of `mapping`, the `at`th ones."""

    def __init__(self, *at: int) -> None:
        self.at = at
        self.calls = 0
        self.armed = True

    def wrap(self, call: Callable[..., None]) -> Callable[..., None]:
        def ask(*args: object, **options: object) -> None:
            if self.armed:
                self.calls += 1
                if self.calls in self.at:
                    raise OSError(errno.ENOMEM, "refused by the test")
            call(*args, **options)

        return ask
