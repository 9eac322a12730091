"""Every libc mapping call of the project, and memory regions made of them.

Host addresses are plain ints here. Two rules hold for each function that changes an address range
in use: it replaces what is there in one system call (`MAP_FIXED`), so that no hole ever opens in
which another mapping of this process could land under a guest's memslot; and it raises `OSError`
naming the call.

Thread-safety: the functions are; a `Mapping` is closed once, by its owner.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Sequence
from types import TracebackType
from typing import NoReturn

from vmm.errors import ResourceError
from vmm.kvm import forks
from vmm.kvm.given import MAP_FAILED as _MAP_FAILED
from vmm.kvm.given import GivenMapping, opened
from vmm.kvm.given import libc_mmap as _mmap
from vmm.memory import maps

_libc = ctypes.CDLL(None, use_errno=True)

_madvise = _libc.madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_mremap = _libc.mremap
_mremap.restype = ctypes.c_void_p
_mremap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_void_p,
)
_mprotect = _libc.mprotect
_mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_mincore = _libc.mincore
_mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
_fallocate = _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)
_pwrite = _libc.pwrite
_pwrite.restype = ctypes.c_ssize_t
_pwrite.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long)
_write = _libc.write
_write.restype = ctypes.c_ssize_t
_write.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)

# Not in the mmap module of Python 3.11 (mman-common.h, mman-linux.h, falloc.h).
_PROT_NONE = 0
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_MAP_POPULATE = 0x8000
_MAP_FIXED_NOREPLACE = 0x100000  # EEXIST if anything is there (Linux 4.17)
_MREMAP = 0x01 | 0x02 | 0x04  # MAYMOVE, FIXED, DONTUNMAP
_MADV_DONTNEED = 4
_MADV_DONTFORK = 10
_MADV_DOFORK = 11
_MADV_HUGEPAGE = 14
_MADV_POPULATE_WRITE = 23
_MADV_GUARD_INSTALL, _MADV_GUARD_REMOVE = 102, 103
_FALLOC_FL_KEEP_SIZE = 0x01
_FALLOC_FL_PUNCH_HOLE = 0x02

_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
_HIDDEN = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
_SHOWN, _HOLE = mmap.MAP_SHARED | _MAP_FIXED, _HIDDEN | _MAP_FIXED

_NOWHERE = 1 << 62  # where nothing can be mapped, nor read

HUGE = 2 << 20  # bytes in a huge page
GIANT = 1 << 30  # bytes that mremap moves in one step, from a multiple to a multiple


def _fail(what: str) -> NoReturn:
    code = ctypes.get_errno()
    raise OSError(code, f"{what}: {os.strerror(code)}")


def show(
    address: int,
    size: int,
    fd: int,
    offset: int,
    *,
    writable: bool = True,
    populate: bool = False,
) -> None:
    """Map `size` bytes of the file at `offset` over whatever is at `address`, shared, readable and,
    if it is to be so, writable.

    populate   whether the kernel is to map its pages at once, rather than as each is touched; as
               far as it can: there is no error if it has no memory for some

    All three are multiples of the page size. A guest running on the range sees the change at once:
    the kernel shoots its translations down before mmap returns.
    """
    protection = _READ_WRITE if writable else mmap.PROT_READ
    flags = _SHOWN | _MAP_POPULATE if populate else _SHOWN
    if _mmap(address, size, protection, flags, fd, offset) == _MAP_FAILED:
        _fail(f"mmap of {size} bytes for a window")


def hide(address: int, size: int) -> None:
    """Replace whatever is at `address` with reserved, inaccessible address space."""
    if _mmap(address, size, _PROT_NONE, _HOLE, -1, 0) == _MAP_FAILED:
        _fail(f"mmap of {size} bytes for a window's hole")


def copy(
    address: int,
    size: int,
    fd: int,
    offset: int = 0,
    *,
    replace: bool,
    into: GivenMapping | None = None,
) -> bool:
    """Map `size` bytes of a file at `address`, copy-on-write: what is written does not reach it.

    What is there is replaced; or, without `replace`, nothing is done and False returned.

    into   holds what has been mapped, where nothing is replaced
    """
    flags = mmap.MAP_PRIVATE | _MAP_NORESERVE | (_MAP_FIXED if replace else _MAP_FIXED_NOREPLACE)
    if replace:
        placed = _mmap(address, size, _READ_WRITE, flags, fd, offset)
    else:
        into = into or GivenMapping()
        placed = into.take(address, size, _READ_WRITE, flags, fd, offset)
    if placed == _MAP_FAILED:
        if not replace and ctypes.get_errno() == errno.EEXIST:
            return False
        _fail(f"mmap of {size} bytes for a machine's image")
    if into is not None and placed != address:  # before Linux 4.17 it is no more than a wish
        into.give_back()
    return bool(placed == address)


def move(source: int, target: int, size: int) -> None:
    """Move private anonymous memory over whatever is at `target`, its page-table entries as they
    are, whole huge pages included.

    What stays at `source` is the mapping, empty: it reads as zeros until it is hidden or moved to.
    A range that is several mappings to the kernel may be refused with EFAULT (mremap(2)).
    """
    if _mremap(source, size, size, _MREMAP, target) == _MAP_FAILED:
        _fail(f"mremap of {size} bytes")


def protect(address: int, size: int, *, writable: bool) -> None:
    """Let readable memory be written, or only read."""
    if _mprotect(address, size, _READ_WRITE if writable else mmap.PROT_READ) != 0:
        _fail(f"mprotect of {size} bytes")


def empty(address: int, size: int) -> None:
    """Give private anonymous pages back to the kernel; the range reads as zeros from now on."""
    if _madvise(address, size, _MADV_DONTNEED) != 0:
        _fail(f"madvise(DONTNEED) of {size} bytes")


def loosen(address: int, size: int) -> None:
    """Drop the translations of what is mapped shared from a file, nothing else: who touches it
    again faults once more. Never for private memory, which would be lost.
    """
    _madvise(address, size, _MADV_DONTNEED)


def guard(address: int, size: int) -> bool:
    """Make pages of a shared mapping inaccessible, and nothing else: what is behind them stays, and
    so does the mapping. False if the kernel cannot, or refuses: then they are as they were.

    As for `hide`, a guest that runs on them has lost them when this returns.
    """
    if _madvise(address, size, _MADV_GUARD_INSTALL) == 0:
        return True
    _madvise(address, size, _MADV_GUARD_REMOVE)  # as far as it came
    return False


def unguard(address: int, size: int) -> bool:
    """Undo `guard`. False if the kernel refuses."""
    return bool(_madvise(address, size, _MADV_GUARD_REMOVE) == 0)


def renew(address: int, size: int) -> None:
    """Map zeroed private memory over whatever is at `address`."""
    if _mmap(address, size, _READ_WRITE, _HOLE, -1, 0) == _MAP_FAILED:
        _fail(f"mmap of {size} bytes for zeros")


def blank(address: int, size: int) -> None:
    """Replace whatever is at `address` by memory of nobody's: zeros, or where the host does not let
    there be any (strict overcommit), by what is inaccessible.
    """
    if _mmap(address, size, _READ_WRITE, _HOLE, -1, 0) == _MAP_FAILED:
        hide(address, size)


def store(address: int, size: int, fd: int, offset: int) -> None:
    """Copy memory into a file. Raises OSError, with some of it written, where there is no room."""
    while size:
        written = _pwrite(fd, address, size, offset)
        if written <= 0:
            _fail(f"pwrite of {size} bytes")
        address, size, offset = address + written, size - written, offset + written


def overwrite(address: int, source: int, size: int) -> None:
    """Copy over private memory that may only be read here: as a debugger does, by proc(5)'s
    /proc/self/mem. Raises OSError, with some of it written.
    """
    with opened(os.open, "/proc/self/mem", os.O_WRONLY | os.O_CLOEXEC) as memory:
        store(source, size, memory.fileno(), address)


def clear(address: int, size: int) -> None:
    """Write zeros over memory that is there, and writable: there is no error to be raised."""
    ctypes.memset(address, 0, size)


def touch(address: int) -> None:
    """Read a byte, as the kernel does: what is not there, or hidden, is an OSError (EFAULT)."""
    with opened(os.memfd_create, "pageferry-touch", os.MFD_CLOEXEC) as file:
        if _write(file.fileno(), address, 1) != 1:
            _fail(f"reading at {address:#x}")


def resident(address: int) -> bool:
    """Whether the page at an address is in memory, or in its file's cache (mincore(2))."""
    found = ctypes.create_string_buffer(1)
    return _mincore(address, mmap.PAGESIZE, found) == 0 and bool(found.raw[0] & 1)


def punch(fd: int, offset: int, size: int) -> None:
    """Give the file's pages back to the kernel; the range reads as zeros from now on."""
    if _fallocate(fd, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, offset, size) != 0:
        _fail(f"fallocate(PUNCH_HOLE) of {size} bytes")


def advise_huge(address: int, size: int) -> None:
    """Ask for huge pages behind a range. Where the kernel has none this does nothing."""
    _madvise(address, size, _MADV_HUGEPAGE)


def own(address: int, size: int) -> None:
    """Copy at once what is mapped copy-on-write, not page by page as it is written. Before Linux
    5.14, and where there is no memory for it, this does nothing.
    """
    _madvise(address, size, _MADV_POPULATE_WRITE)


def keep_from_children(address: int, size: int) -> None:
    """Leave a range out of the processes that this one forks."""
    if _madvise(address, size, _MADV_DONTFORK) != 0:
        _fail(f"madvise(DONTFORK) of {size} bytes")


def leave_to_children(address: int, size: int) -> None:
    """Undo `keep_from_children`."""
    if _madvise(address, size, _MADV_DOFORK) != 0:
        _fail(f"madvise(DOFORK) of {size} bytes")


class Mapping:
    """An address range of this process, unmapped by `close()`.

    address   its first byte
    size      in bytes, a multiple of the page size
    ground    whether there is memory of nobody's where nothing else is
    """

    ground = False

    def __init__(self, address: int, size: int, given: GivenMapping | None = None) -> None:
        self.address = address
        self.size = size
        self._given = GivenMapping(address, size=size) if given is None else given  # the whole
        self._changes = False  # whether it is no plain memory of this process's own all the time
        self._parts: list[GivenMapping] | None = None  # all but what is kept, when it is closed
        forks.hold(self)

    @classmethod
    def reserve(cls, size: int) -> Mapping:
        """Reserve address space that nothing can touch: no memory, no commit charge.

        It begins at a multiple of HUGE, so that huge pages fit into it; of GIANT, if it is larger.
        """
        return cls._aligned(size, _PROT_NONE, "a window")

    @classmethod
    def viewable(cls, size: int) -> Mapping:
        """Reserve address space as `reserve` does, that can be touched all the same: it is memory
        of nobody's. Where the host does not let there be so much (strict overcommit) it cannot.
        """
        try:
            mapping = cls._aligned(size, _READ_WRITE, "a window")
        except ResourceError:
            return cls.reserve(size)
        mapping.ground = True
        return mapping

    @classmethod
    def park(cls, size: int) -> Mapping:
        """Map zeroed private memory as `anonymous` does, from a multiple as for `reserve` on."""
        return cls._aligned(size, _READ_WRITE, "parked pages")

    @classmethod
    def anonymous(cls, size: int, into: GivenMapping | None = None) -> Mapping:
        """Map zeroed private memory, populated when it is touched.

        into   holds it
        """
        return cls._make(size, _READ_WRITE, _HIDDEN, -1, "private memory", into)

    @classmethod
    def copied(cls, size: int, fd: int) -> Mapping:
        """Map a file's first `size` bytes, copy-on-write."""
        flags = mmap.MAP_PRIVATE | _MAP_NORESERVE
        return cls._make(size, _READ_WRITE, flags, fd, "private memory")

    @classmethod
    def shared(cls, size: int, fd: int, into: GivenMapping | None = None) -> Mapping:
        """Map a file's first `size` bytes, shared.

        into   holds it; if it does so already, it is not mapped again
        """
        flags = mmap.MAP_SHARED | _MAP_NORESERVE
        mapping = cls._make(size, _READ_WRITE, flags, fd, "the page pool", into)
        mapping._changes = True
        return mapping

    @classmethod
    def _aligned(cls, size: int, protection: int, what: str) -> Mapping:
        """Map as much more than is wanted as it is to be aligned to. What is too much stays: to
        unmap it would take two calls more, of which the kernel tells each VM.
        """
        align = GIANT if size > GIANT else HUGE
        mapping = cls._make(size, protection, _HIDDEN, -1, what, slack=align)
        mapping.address, mapping.size = -(-mapping.address // align) * align, size
        mapping._changes = True
        return mapping

    @classmethod
    def _make(
        cls,
        size: int,
        protection: int,
        flags: int,
        fd: int,
        what: str,
        into: GivenMapping | None = None,
        slack: int = 0,
    ) -> Mapping:
        given = GivenMapping() if into is None else into
        address = given.take(0, size + slack, protection, flags, fd, 0)
        if address != _MAP_FAILED:
            return cls(address, size, given)
        if ctypes.get_errno() == errno.ENOMEM:
            raise ResourceError(
                f"no address space for {what} of {size} bytes: "
                "use a smaller one, or raise the limits (ulimit -v, vm.max_map_count)"
            )
        _fail(f"mmap of {size} bytes for {what}")

    def view(self) -> memoryview:
        """Return the range as writable bytes. Raises ValueError if it has been closed.

        The view does not keep the mapping alive: its holder must drop it before close(), and must
        never let it cover a range that can be hidden.
        """
        if not self.size:
            raise ValueError("a view of a mapping that has been closed")
        array = (ctypes.c_ubyte * self.size).from_address(self.address)
        return memoryview(array).cast("B")

    def let_go(self) -> None:
        """Replace what is mapped by zeros in a process that was forked: views stay what they were,
        and are not the parent's.

        Of what is shared, changes, or is left out of children, only what was inherited is replaced:
        in between there may be the child's own by now. It is inaccessible there.
        """
        start, size = self._given.address, self._given.size
        self._given.forget()
        if not self._changes:
            # Strict overcommit: rather no memory than the parent's.
            if start and _mmap(start, size, _READ_WRITE, _HOLE, -1, 0) == _MAP_FAILED:
                hide(start, size)
            return
        self.address, self.size = _NOWHERE, 0
        if not start:
            return
        replace = blank if self.ground else hide  # where a view may be, or none is
        for area in maps.areas(start, start + size):
            if area.shared or not area.access:
                replace(area.start, area.end - area.start)

    def close(self) -> None:
        """Unmap the range, and forget where it was: it may be somebody else's from now on. Further
        calls do nothing.
        """
        self.address, self.size = _NOWHERE, 0
        if self._parts is None:
            self._given.give_back()
        else:
            self._given.forget()
            for part in self._parts:
                part.give_back()

    def close_around(self, kept: Sequence[tuple[int, int]]) -> None:
        """Close it but for some parts (address, size), in order, which are somebody else's."""
        if self._parts is None:
            ends = [self._given.address or 0, *(address + size for address, size in kept)]
            starts = [*(address for address, _ in kept), ends[0] + self._given.size]
            self._parts = [
                GivenMapping(end, size=start - end)
                for end, start in zip(ends, starts, strict=True)
                if start > end
            ]
        self.close()

    def __enter__(self) -> Mapping:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
