"""What many machines' private memories begin with: laid out once, shared until it is written.

A sealed memfd. Each machine maps it copy-on-write, so that a page takes memory of the machine's own
only when the machine, or the monitor for it, writes to it.
"""

from __future__ import annotations

import fcntl
import functools
import os
from collections.abc import Iterable
from pathlib import Path

from vmm.guest.abi import PAGE_SIZE
from vmm.kvm import forks
from vmm.kvm.given import GivenDescriptor, GivenMapping
from vmm.memory import mapping
from vmm.memory.mapping import Mapping

# Nothing changes it any more, not its size either: what is cut off a file under a mapping is a
# SIGBUS there (memfd_create(2), fcntl(2) "File Sealing").
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


@functools.cache
def _strict() -> bool:
    """Whether the kernel counts address space as memory."""
    try:
        return Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2"
    except OSError:
        return False


class Template:
    """Bytes from guest-physical address 0 on, which nobody can change once they are made.

    fd      the memfd
    size    its length in bytes, whole pages
    given   where there is anything but zeros, in whole pages: start and end, in order

    Thread-safety: as the system calls. Mappings of it outlive `close`.
    """

    def __init__(self, parts: Iterable[tuple[int, bytes | memoryview]], least: int = 0) -> None:
        """Lay out parts, given as (guest-physical address, bytes); zeros between and after them.

        least   how long it is to be; not where the kernel counts address space as memory: there it
                may refuse a page of the memfd's to whoever touches it

        Raises OSError.
        """
        self._given = GivenDescriptor()
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        self.fd = self._given.take(os.memfd_create, "pageferry-image", flags)
        forks.hold(self)
        try:
            self.size, self.given = self._fill(parts, 0 if _strict() else least)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            self.close()
            raise

    def _fill(
        self, parts: Iterable[tuple[int, bytes | memoryview]], least: int
    ) -> tuple[int, tuple[tuple[int, int], ...]]:
        end, given = 0, set[tuple[int, int]]()
        for gpa, data in parts:
            if data:
                first = gpa - gpa % PAGE_SIZE
                given.add((first, -(-(gpa + len(data)) // PAGE_SIZE) * PAGE_SIZE))
            left = memoryview(data)
            while left:
                written = os.pwrite(self.fd, left, gpa)
                left, gpa = left[written:], gpa + written
                end = max(end, gpa)
        size = -(-max(end, least) // PAGE_SIZE) * PAGE_SIZE
        os.ftruncate(self.fd, size)
        return size, tuple(sorted(given))

    def map(self, size: int, *, aligned: bool = False) -> Mapping:
        """Map a copy of it, made page by page where it is written, and zeros after that.

        size      of it all, no less than the template's
        aligned   whether it is to begin where a huge page can

        Raises OSError, ResourceError.
        """
        if aligned:
            return self._over(Mapping.park(size))
        if size == self.size:
            return Mapping.copied(size, self.fd)
        # To replace a mapping takes the kernel the longer the more VMs this process has: each is
        # told. And below what was mapped last there is nothing, as a rule.
        rest, below = GivenMapping(), GivenMapping()
        try:
            start = Mapping.anonymous(size - self.size, rest).address - self.size
            if mapping.copy(start, self.size, self.fd, replace=False, into=below):
                below.size, rest.size = size, 0  # adjacent: one call unmaps both
                return Mapping(start, size, below)
        except BaseException:
            below.give_back()
            rest.give_back()
            raise
        rest.give_back()
        return self._over(Mapping.anonymous(size))

    def _over(self, whole: Mapping) -> Mapping:
        try:
            mapping.copy(whole.address, self.size, self.fd, replace=True)
        except BaseException:
            whole.close()
            raise
        return whole

    def let_go(self) -> None:
        """Close the memfd in a process that was forked."""
        self.close()

    def close(self) -> None:
        """Close the memfd. Further calls do nothing."""
        self.fd = -1
        self._given.give_back()
