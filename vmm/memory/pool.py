"""The page pool: the memory behind every window, one sparse memfd."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from vmm.guest.abi import PAGE_SIZE
from vmm.kvm import forks
from vmm.kvm.given import GivenDescriptor
from vmm.memory import mapping
from vmm.memory.guards import Guarded
from vmm.memory.journal import Journal
from vmm.memory.populating import Populating

_SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")


def _advised() -> bool:
    """Whether shared memory is to be advised: by the setting of 2 MiB pages, or of all sizes.

    Source: the kernel's admin-guide/mm/transhuge.
    """
    for name in ("hugepages-2048kB/shmem_enabled", "shmem_enabled"):
        try:
            setting = (_SETTINGS / name).read_text()
        except OSError:  # of an older kernel, or not mounted
            continue
        if "[inherit]" not in setting:
            return "[advise]" in setting
    return False


class PagePool:
    """`frames` pages of shared memory, populated when touched; frame n lies at offset n *
    PAGE_SIZE of `fd`.

    journal     the undo log of whatever changes with who has which frame
    populating  how much is mapped at once, for windows that want that
    advised     whether the kernel gives its mappings huge pages if, and only if, asked to
    guarded     which of its mappings hide what they map

    Thread-safety: as the system calls.
    """

    def __init__(self, frames: int) -> None:
        self.frames = frames
        self.journal = Journal()
        self.advised = _advised()
        self.guarded = Guarded()
        self.populating = Populating()
        self._given = GivenDescriptor()
        self.fd = self._given.take(os.memfd_create, "pageferry-pool", os.MFD_CLOEXEC)
        forks.hold(self)
        try:
            os.ftruncate(self.fd, frames * PAGE_SIZE)
        except BaseException:
            self.close()
            raise

    @property
    def fillable(self) -> bool:
        """Whether frames may be filled just now."""
        return True

    def fill(self, frame: int, address: int, size: int) -> None:
        """Copy whole pages into frames that are nobody's yet, from this one on.

        Raises OSError: they may hold some of it then, and have to be zeroed.
        """
        mapping.store(address, size, self.fd, frame * PAGE_SIZE)

    def fill_for_now(self, frame: int, address: int, size: int) -> None:
        """Fill frames as `fill` does, until the turn is rolled back."""
        self.journal.settled.append(partial(self.discard, frame, size))
        self.fill(frame, address, size)

    def discard(self, frame: int, size: int) -> None:
        """Give up what `fill` has put into frames."""
        mapping.punch(self.fd, frame * PAGE_SIZE, size)

    def zero(self, frames: Iterable[tuple[int, int]]) -> None:
        """Give runs of frames (first, count) back to the kernel.

        They read as zeros to their next owner.
        """
        for first, count in frames:
            mapping.punch(self.fd, first * PAGE_SIZE, count * PAGE_SIZE)

    def undo_moves(self) -> None:
        """Move back what has been moved in a turn that was cut off: pages of a memfd never are."""

    def recount(self) -> None:
        """Derive again what depends on tables that have been restored."""

    def let_go(self) -> None:
        """Close the memfd in a process that was forked."""
        PagePool.close(self)

    def close(self) -> None:
        """Close the memfd. Further calls do nothing."""
        self.fd = -1
        self._given.give_back()
