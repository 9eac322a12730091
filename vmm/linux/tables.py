"""Page tables of a Linux program, kept in a part of its memory that it cannot reach. Pure: bytes.

Linear addresses equal guest-physical ones, but for pages of the window that are shown elsewhere as
well. Every table has its place, which follows from the addresses that it maps: none is ever
allocated, none can run out. 2 MiB that have the same rights all over are one large page, which is
what a host needs to use huge pages of its own.

What a table says is always true, also of a table that no entry points to at present, since a large
page has taken its place: CPUs keep pointers to tables, and KVM reads ahead in them. So a table of
pages that has been filled once is kept up to date for ever.

A CPU that has used an entry may remember it. `set` says nothing about that: see
`vmm.linux.memory`. Source: Intel SDM volume 3, 4.5.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

from vmm.guest import abi, x86
from vmm.guest.x86 import LARGE, LARGE_PAGE, PAGE, TABLE_SPAN, Range
from vmm.linux.plans import PROT_EXEC, PROT_READ, PROT_WRITE
from vmm.memory.region import Region

_POINTER = x86.PRESENT | x86.WRITE | x86.USER | x86.ACCESSED
_ENTRIES = 512
_LOW_TABLES = TABLE_SPAN // LARGE_PAGE
_DOORBELL_BLOCK = abi.DOORBELL_GPA // LARGE_PAGE

# By protection: x86 knows no right without that to read.
_FLAGS = (0, *(
    Range(0, 0, write=bool(prot & PROT_WRITE), execute=bool(prot & PROT_EXEC)).flags()
    for prot in range(1, 8)
))  # fmt: skip
_RIGHTS = {flags: prot for prot, flags in enumerate(_FLAGS) if prot & PROT_READ}
_ADDRESS = (1 << 52) - PAGE
_WITH = [bytes(byte | 1 << prot for byte in range(256)) for prot in range(8)]

# What SYSCALL leads to (`vmm.linux.boot`). Ring 3 reaches it on kvm_pvm; ring 0 may use it, too.
ENTRY_PAGE = Range(x86.TRAP_STACK.end, x86.TRAP_STACK.end + PAGE, execute=True)


def tables_size(window: Region, arena: Region) -> int:
    """Return how many bytes the tables of a layout take: addresses; memory as they are filled."""
    directories = 1 + -(-window.size // TABLE_SPAN) + -(-arena.size // TABLE_SPAN)
    tables = 4 + directories + _LOW_TABLES + arena.size // LARGE_PAGE
    return tables * PAGE


class Filled(NamedTuple):
    """Tables as they are at some moment, to be laid out again at the same addresses.

    used, large, mixed    see Tables
    pages                 those that may have anything in them: where, in words, and what
    """

    used: bytes
    large: bytes
    mixed: bool
    pages: tuple[tuple[int, bytes], ...]


class Tables:
    """Two address spaces: all, and all but the window. Not thread-safe.

    root              CR3 of the whole space
    root_no_window    CR3 of the same without the window (see `vmm.guest.trap`)
    mixed             whether parts of what has been a large page have got rights that it had not:
                      to a host without hardware paging it is still one, until that is made to
                      forget all that it knows of the tables
    """

    def __init__(
        self,
        view: memoryview,
        base: int,
        window: Region,
        arena: Region,
        filled: Filled | None = None,
    ) -> None:
        """Fill `view`, zeros at first, which is at guest-physical `base`.

        window   a multiple of 2 MiB, from a multiple of 1 GiB on
        arena    both its ends are multiples of 2 MiB, and its base one of 1 GiB
        filled   what others were, of the same base, window and arena: then these are as they were
        """
        self._words = view.cast("Q")
        self._base = base
        self._arena = arena
        self.mixed = False
        self.root, self.root_no_window = base, base + PAGE
        self._low_directory = 4
        window_directory = 5
        self._arena_directory = window_directory - (-window.size // TABLE_SPAN)
        directories = self._arena_directory - (-arena.size // TABLE_SPAN)
        self._low_tables, self._arena_tables = directories, directories + _LOW_TABLES
        if filled is not None:
            self._used, self._large = bytearray(filled.used), bytearray(filled.large)
            self.mixed = filled.mixed
            for place, data in filled.pages:
                view[place * 8 : place * 8 + len(data)] = data
            return
        blocks = _LOW_TABLES + arena.size // LARGE_PAGE
        self._used = bytearray(blocks)  # whether their tables have been filled
        self._large = bytearray(blocks)  # bits: the rights that they have had as large pages
        for root in (0, 1):
            pointers = 2 + root
            self._point(root * _ENTRIES, pointers)
            self._point(pointers * _ENTRIES, self._low_directory)
            for at in range(-(-arena.size // TABLE_SPAN)):
                place = pointers * _ENTRIES + arena.base // TABLE_SPAN + at
                self._point(place, self._arena_directory + at)
        for at in range(-(-window.size // TABLE_SPAN)):
            place = 2 * _ENTRIES + window.base // TABLE_SPAN + at
            self._point(place, window_directory + at)
        flags = Range(window.base, window.end, write=True).flags() | LARGE
        self._fill(
            window_directory * _ENTRIES, window.base | flags, window.size // LARGE_PAGE, 2 << 20
        )
        for wanted in (*x86.system_ranges(user=True), ENTRY_PAGE):
            self._set(wanted.start, wanted.end, wanted.flags())

    def set(self, start: int, end: int, prot: int, delta: int = 0) -> None:
        """Let the pages of start..end be used as `prot` says (PROT_*), 0 for not at all.

        They are of the image's region, below the doorbell, or of the arena. With `delta`, what they
        lead to is so much further on.
        """
        if not (prot and delta):
            self._set(start, end, _FLAGS[prot])
            return
        for block in range(start & -LARGE_PAGE, end, LARGE_PAGE):
            first, stop = max(start, block), min(end, block + LARGE_PAGE)
            self._set_pages(block, first, stop, _FLAGS[prot], delta)

    def filled(self) -> Filled:
        """Return them as they are, for others to begin with."""
        first = self._low_tables * _ENTRIES
        pages = [(0, self._words[:first].tobytes())]
        number = self._used.find(1)
        while number >= 0:
            place = first + number * _ENTRIES
            pages.append((place, self._words[place : place + _ENTRIES].tobytes()))
            number = self._used.find(1, number + 1)
        return Filled(bytes(self._used), bytes(self._large), self.mixed, tuple(pages))

    def prot(self, address: int) -> int:
        """Return what the tables say of an address: PROT_*, with PROT_READ if there is any."""
        directory, table, _ = self._places(address)
        entry = self._words[directory]
        if entry & x86.PRESENT and not entry & LARGE:
            entry = self._words[table + address // PAGE % _ENTRIES]
        if not entry & x86.USER:
            return 0
        return _RIGHTS[entry & ~_ADDRESS & ~LARGE]

    def release(self) -> None:
        """Let go of the view. Further calls do nothing."""
        self._words.release()

    # ---- what it is made of ----

    def _places(self, address: int) -> tuple[int, int, int]:
        """Return where the entry for 2 MiB is, where their table begins, both in words, and the
        table's number.
        """
        if address < TABLE_SPAN:
            block = number = address // LARGE_PAGE
            return (
                self._low_directory * _ENTRIES + block,
                (self._low_tables + block) * _ENTRIES,
                number,
            )
        block = (address - self._arena.base) // LARGE_PAGE
        directory = self._arena_directory * _ENTRIES + block
        return directory, (self._arena_tables + block) * _ENTRIES, _LOW_TABLES + block

    def _point(self, place: int, table: int) -> None:
        # Rights are restricted at the leaves only.
        self._words[place] = self._base + table * PAGE | _POINTER

    def _fill(self, place: int, first: int, count: int, step: int) -> None:
        self._words[place : place + count] = array("Q", range(first, first + count * step, step))

    def _set(self, start: int, end: int, flags: int) -> None:
        while start < end:
            block = start & -LARGE_PAGE
            count = (end - start) // LARGE_PAGE if start == block else 0
            if count:
                self._set_blocks(block, count, flags)
                start += count * LARGE_PAGE
            else:
                stop = min(end, block + LARGE_PAGE)
                self._set_pages(block, start, stop, flags)
                start = stop

    def _set_blocks(self, block: int, count: int, flags: int) -> None:
        directory, table, number = self._places(block)
        used = self._used.find(1, number, number + count)
        while used >= 0:
            at = used - number
            self._fill_pages(table + at * _ENTRIES, block + at * LARGE_PAGE, _ENTRIES, flags)
            used = self._used.find(1, used + 1, number + count)
        self._merge(directory, number, block, count, flags)

    def _merge(self, directory: int, number: int, block: int, count: int, flags: int) -> None:
        """Make each of so many 2 MiB one page, or none."""
        if not flags:
            self._words[directory : directory + count] = array("Q", bytes(count * 8))
            return
        seen = slice(number, number + count)
        self._large[seen] = self._large[seen].translate(_WITH[_RIGHTS[flags]])
        self._fill(directory, block | flags | LARGE, count, LARGE_PAGE)

    def _set_pages(self, block: int, start: int, stop: int, flags: int, delta: int = 0) -> None:
        directory, table, number = self._places(block)
        entry = self._words[directory]
        old = entry & ~_ADDRESS & ~LARGE if entry & LARGE else 0
        if not self._used[number]:
            self._fill_pages(table, block, _ENTRIES, old)
            self._used[number] = 1
        place, count = table + (start - block) // PAGE, (stop - start) // PAGE
        self._fill_pages(place, start + delta, count, flags)
        if self._uniform(table, block, flags) and number != _DOORBELL_BLOCK:
            self._merge(directory, number, block, 1, flags)
            return
        large = self._large[number]
        if flags and large and (delta or large & ~(1 << _RIGHTS[flags])):
            self.mixed = True
            self._large[number] = 0
        self._words[directory] = self._base + table * 8 | _POINTER

    def _fill_pages(self, place: int, address: int, count: int, flags: int) -> None:
        if flags:
            self._fill(place, address | flags, count, PAGE)
        else:
            self._words[place : place + count] = array("Q", bytes(count * 8))

    def _uniform(self, table: int, block: int, flags: int) -> bool:
        """Whether all pages of a table have these rights."""
        words = self._words
        first, last = words[table], words[table + _ENTRIES - 1]
        if not flags:
            return first == last == 0 and not any(words[table : table + _ENTRIES])
        first_page, last_page = block | flags, block + LARGE_PAGE - PAGE | flags
        if first != first_page or last != last_page:
            return False
        wanted = array("Q", range(first_page, last_page + PAGE, PAGE))
        return words[table : table + _ENTRIES].tobytes() == wanted.tobytes()
